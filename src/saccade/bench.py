"""Times one image of one task against a named reference, interleaved in the same process.

The reference is torchvision's ``vit_b_16`` at 224 px, batch 1: the ratio says how many of its forward passes one answer
costs, which carries over between machines much better than milliseconds do.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from saccade import bench_gsva
from saccade.errors import UsageError, nearest
from saccade.labels import middle
from saccade.layers.lora import LoRAConfig, add_lora
from saccade.layers.precision import Precision, autocast, halve_linears
from saccade.metrics.depth import DRAWN_SCENES
from saccade.models.ait.config import AiTConfig
from saccade.models.ait.presets import PRESETS as AIT_PRESETS
from saccade.models.ait.presets import nano as ait_nano
from saccade.models.git.config import GiTConfig
from saccade.models.git.model import GiT
from saccade.models.git.presets import PRESETS as GIT_PRESETS
from saccade.models.gsva.config import GSVAConfig
from saccade.models.gsva.inputs import ConversationBatch
from saccade.models.gsva.model import GSVA
from saccade.models.gsva.presets import PRESETS as GSVA_PRESETS
from saccade.models.polar.centers import CenterPredictor
from saccade.models.polar.model import PolarSegmenter
from saccade.models.polar.presets import PRESETS as POLAR_PRESETS
from saccade.models.polar.segmenter import Segmenter
from saccade.models.systems import Model, ModelConfig, backbone_of, build, fixed_classes, input_size
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.model import ViSFT
from saccade.models.visft.presets import PRESETS as VISFT_PRESETS
from saccade.models.visft.segmentation import set_loss as segmentation_loss
from saccade.models.vitdet.config import ViTDetConfig
from saccade.models.vitdet.presets import PRESETS as DETECTORS
from saccade.samples import Batch, ClassList, Origin, Target
from saccade.tasks import Task
from saccade.tokens.vocabulary import TextVocabulary

PRESETS: dict[str, Mapping[str, Callable[[], ModelConfig]]] = {
    "git": GIT_PRESETS,
    "vitdet": DETECTORS,
    "ait": {**AIT_PRESETS, "nano": ait_nano, "nano-parallel": partial(ait_nano, parallel=True)},
    "gsva": GSVA_PRESETS,
    "visft": VISFT_PRESETS,
    "polar": POLAR_PRESETS,
}
"""System to its named sizes."""

BACKBONE = "backbone"
"""Stands for a task where the backbone alone is timed (of GSVA the image encoder of SAM)."""

HEAD_PARTS = ("detection-head", "instance-head", "instance-loss", "caption-head")
"""Stand for tasks of ViSFT, where one of its heads (or its loss) is timed on a map that is at hand."""

_REFERENCE = "torchvision vit_b_16, 224 px, batch 1"
_TASK_OF_PART = {"instance-head": Task.INSTANCE, "instance-loss": Task.INSTANCE, "caption-head": Task.CAPTION}
_CAPTION_WORDS, _OBJECTS = 20, 7
_SQUARE = 1024  # as ViSFT's masks are trained; what they are predicted from, 800 x 1333 at most, is no square
_CLASSES = {Task.DETECTION: 80, Task.INSTANCE: 80, Task.SEMANTIC: 150}
_PHRASE = "the man in the red shirt on the left"


@dataclasses.dataclass(kw_only=True, frozen=True)
class BenchResult:
    """What a benchmark measured.

    Attributes:
        system: ``git``, ``vitdet``, ``ait``, ``gsva``, ``visft`` or ``polar``.
        preset: Size of the model.
        task: The task, or the part of a model.
        input_size: Side of the network input in pixels, the longer one where it is no square.
        dtype: Arithmetic.
        threads: Threads of torch.
        batch: Images per forward pass.
        repeats: Timed passes of each.
        ms_per_image: Median time per image, from network input to results.
        reference: What it is compared with.
        reference_ms: Median time of the reference, always in float32.
        ratio: ``ms_per_image / reference_ms``.
        machine: Processor and versions.
        lora: Rank of the low-rank updates, not merged; 0 = there are none.
        tokens_per_s: Of a free answer (the part ``decode`` of GSVA); 0 = nothing is said.
        peak_gb: Greatest memory on the GPU during a pass, weights included, in GB (10^9 bytes); 0 on a processor.
    """

    system: str
    preset: str
    task: str
    input_size: int
    dtype: str
    threads: int
    batch: int
    repeats: int
    ms_per_image: float
    reference: str
    reference_ms: float
    ratio: float
    machine: str
    lora: int = 0
    tokens_per_s: float = 0.0
    peak_gb: float = 0.0


def run_bench(
    system: str,
    *,
    task: Task | str,
    preset: str = "base",
    dtype: Precision = "float32",
    repeats: int = 3,
    batch_size: int = 1,
    threads: int = 1,
    device: str = "cpu",
    side: int = 0,
    lora: int = 0,
) -> BenchResult:
    """Times a model with random weights.

    Args:
        system: ``git``, ``vitdet``, ``ait``, ``gsva``, ``visft`` or ``polar``.
        task: The task; :data:`BACKBONE`, which sees what the first task of the model sees; or one of
            :data:`saccade.bench_gsva.PARTS` or :data:`HEAD_PARTS`.
        preset: Size of the model.
        dtype: ``float32``, or ``bf16`` for bfloat16 arithmetic where it is safe.
        repeats: Timed passes; the median counts.
        batch_size: Images per pass.
        threads: Threads of torch during the run.
        device: ``cpu`` or ``cuda``.
        side: Side of the network input in pixels, of a backbone that reads any (ViSFT); 0 = that of the task.
        lora: Rank of low-rank updates of the backbone's queries and values, not merged; 0 = none.

    Raises:
        UsageError: No such system or preset, the preset does not offer the task, or it reads one size alone.
    """
    if system not in PRESETS:
        raise UsageError(f"no benchmark for '{system}'", fix=nearest(system, PRESETS))
    if preset not in PRESETS[system]:
        raise UsageError(f"unknown preset '{preset}'", fix=nearest(preset, PRESETS[system]))
    with _threads(threads), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        model = _build(system, preset, Path(scratch), device, task).eval().to(device)
        if lora:
            add_lora(model, LoRAConfig(rank=lora))
        if dtype == "bf16" and isinstance(model, GSVA):
            model.to(torch.bfloat16)  # as it is loaded
        elif dtype == "bf16":
            halve_linears(backbone_of(model))
        parts = {"gsva": (BACKBONE, *bench_gsva.PARTS), "visft": (BACKBONE, *HEAD_PARTS)}.get(system, (BACKBONE,))
        asked = Task(task) if task in list(Task) else None
        if task in parts:  # a backbone alone has no task of its own
            asked = _TASK_OF_PART.get(str(task), next(iter(model.tasks), Task.DETECTION))
        if asked is None or (asked not in model.tasks and task != BACKBONE):
            raise UsageError(
                f"{system} {preset} does not offer the task '{task}'",
                fix=f"one of: {', '.join((*model.tasks, *parts))}",
            )
        if side and (task != BACKBONE or not isinstance(model, ViSFT)):
            raise UsageError("only the backbone of ViSFT is timed at other sizes", where="--side", fix="leave it out")
        size = side or (model.config.vit.image_size if isinstance(model, ViSFT) and task == BACKBONE else 0)
        if not size:
            size = input_size(model.config, asked)
            size = min(size, _SQUARE) if isinstance(model, ViSFT) else size
        batch = _batch(asked, size, batch_size, device, named=isinstance(model, GiT))
        if isinstance(model, Segmenter | CenterPredictor | PolarSegmenter):
            batch = _oblong(model, batch)
        if isinstance(model, GSVA):
            batch = bench_gsva.conversations(model, batch, rejected=task in bench_gsva.PARTS)
        work = _work(model, batch, task)

        def answer() -> None:
            with autocast(dtype, device), torch.inference_mode():
                work()

        peak_gb = _peak_gb(answer) if device == "cuda" else 0.0
        reference = _reference(device)
        # Three passes of the reference around every pass of ours: both see the same machine.
        ours_s, reference_s = _interleave(answer, reference, repeats=repeats, device=device)
    per_image_ms = 1e3 * statistics.median(ours_s) / batch_size
    reference_ms = 1e3 * statistics.median(reference_s)
    return BenchResult(
        system=system,
        preset=preset,
        task=str(task),
        input_size=size,
        dtype=dtype,
        threads=threads,
        batch=batch_size,
        repeats=repeats,
        ms_per_image=per_image_ms,
        reference=_REFERENCE,
        reference_ms=reference_ms,
        ratio=per_image_ms / reference_ms,
        machine=describe_machine(device),
        lora=lora,
        tokens_per_s=1e3 * bench_gsva.TOKENS / per_image_ms if task == "decode" else 0.0,
        peak_gb=peak_gb,
    )


def _work(model: Model, batch: Batch, task: Task | str) -> Callable[[], object]:
    """What is timed: from the network input to the results."""
    if task == BACKBONE:
        return lambda: backbone_of(model)(batch.images)
    if not isinstance(task, Task) and task in bench_gsva.PARTS:
        assert isinstance(model, GSVA) and isinstance(batch, ConversationBatch)
        return bench_gsva.part_work(model, batch, task)
    if task in HEAD_PARTS:
        assert isinstance(model, ViSFT)
        return _head_work(model, batch, str(task))
    if isinstance(model, PolarSegmenter):
        centers = [middle(origin.size_hw)[None] for origin in batch.origins]
        return lambda: model.predict(batch, centers_xy=centers)
    return lambda: model.predict(batch)


def _head_work(model: ViSFT, batch: Batch, part: str) -> Callable[[], object]:
    """One head on a map at hand: its network, the words of a caption, or the loss of seven masks."""
    vit = model.config.vit
    cells = [side // vit.patch_size for side in batch.images.shape[-2:]]
    map_BHWC = torch.randn(len(batch), *cells, vit.width, device=batch.images.device)
    if part == "detection-head" and model.detection is not None:
        detection = model.detection
        return lambda: detection(map_BHWC)
    if part == "caption-head" and model.caption is not None:
        caption = model.caption
        caption.config = dataclasses.replace(caption.config, beams=1, most_words=_CAPTION_WORDS)
        return lambda: caption.speak(map_BHWC, start=1, end=-1)
    assert model.instance is not None
    instance = model.instance
    if part == "instance-head":
        return lambda: instance(map_BHWC)
    # Rectangles, so many as a picture of COCO has objects on average.
    masks = torch.zeros(_OBJECTS, *batch.images.shape[-2:])
    for number, mask in enumerate(masks):
        mask[100 * number : 100 * number + 300, 50 * number : 50 * number + 400] = 1
    class_ids = torch.arange(_OBJECTS, device=map_BHWC.device) % instance.config.num_classes
    target = Target(masks=tv_tensors.Mask(masks), class_ids=class_ids).to(map_BHWC.device)
    taught = dataclasses.replace(batch, targets=[target] * len(batch))
    # What the network says is at hand, too: a loss is timed by itself.
    images = instance.images(map_BHWC, taught)
    truths = [instance._truths(taught, index) for index in range(len(taught))]
    return lambda: segmentation_loss(images, truths, instance.config)


def _build(system: str, preset: str, scratch: Path, device: str, task: Task | str) -> Model:
    """The model with random weights, in the form that the published figures are of.

    A detector gives as many detections as it may, as a trained one does; depth is that of one window, not mirrored. Of
    GSVA whose parts alone are timed, the language model and CLIP have one block; of ViSFT likewise the backbone.
    """
    config = PRESETS[system][preset]()
    if isinstance(config, GiTConfig):
        return build(config, TextVocabulary(_bench_vocabulary(scratch, config.vocab_size - 2)))
    if isinstance(config, ViTDetConfig):
        config = dataclasses.replace(config, roi=dataclasses.replace(config.roi, min_score=0.0))
    if isinstance(config, AiTConfig) and config.depth is not None:
        config = dataclasses.replace(config, depth=dataclasses.replace(config.depth, flip=False))
    if isinstance(config, GSVAConfig):
        if task in (BACKBONE, "masks"):
            short = dataclasses.replace(config.language, layers=1), dataclasses.replace(config.clip, layers=2)
            config = dataclasses.replace(config, language=short[0], clip=short[1])
        with torch.device(device):  # billions of random numbers are drawn where they are used
            return build(config)
    if isinstance(config, ViSFTConfig):
        if task == BACKBONE:
            config = config.only(())
        elif task in HEAD_PARTS:
            config = dataclasses.replace(config, vit=dataclasses.replace(config.vit, depth=1, global_blocks=(0,)))
    return build(config)


def precision_cost(task: Task, *, model: str = "git-nano", images: int = 100) -> dict[str, dict[str, float]]:
    """What bfloat16 costs in accuracy: the same trained model on the same drawn scenes in both precisions.

    Args:
        task: The task.
        model: A trained checkpoint.
        images: Scenes of the validation split.

    Returns:
        Metrics of ``float32``, of ``bf16``, and their ``difference`` (bf16 minus float32).
    """
    from saccade.data.sources import SourceSpec, open_source
    from saccade.hub.resolve import load_model
    from saccade.training.evaluation import evaluate

    loaded = load_model(model).model
    source = open_source(SourceSpec(task=task, reader="scenes", split="val", limit=images))
    protocol = DRAWN_SCENES if task is Task.DEPTH else ""
    full = evaluate(loaded, source, batch_size=8, precision="float32", protocol=protocol).metrics
    halve_linears(backbone_of(loaded))
    half = evaluate(loaded, source, batch_size=8, precision="bf16", protocol=protocol).metrics
    return {"float32": full, "bf16": half, "difference": {name: half[name] - full[name] for name in full}}


def describe_machine(device: str) -> str:
    """Processor, core count and versions, for reports."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if device == "cuda":
        name = torch.cuda.get_device_name()
    elif cpuinfo.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, python {platform.python_version()}"


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _interleave(
    ours: Callable[[], None], reference: Callable[[], None], *, repeats: int, device: str
) -> tuple[list[float], list[float]]:
    def timed(work: Callable[[], None]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for work in (reference, ours, reference):
        timed(work)
    ours_s: list[float] = []
    reference_s: list[float] = []
    for _ in range(repeats):
        reference_s += [timed(reference) for _ in range(3)]
        ours_s.append(timed(ours))
        reference_s += [timed(reference) for _ in range(3)]
    return ours_s, reference_s


def _peak_gb(work: Callable[[], None]) -> float:
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


def _reference(device: str) -> Callable[[], None]:
    from torchvision.models import vit_b_16  # only the benchmark needs it

    model: nn.Module = vit_b_16(weights=None).eval().to(device)
    image = torch.randn(1, 3, 224, 224, device=device)

    def forward() -> None:
        with torch.inference_mode():
            model(image)

    return forward


def _batch(task: Task, size: int, batch_size: int, device: str, *, named: bool) -> Batch:
    images: Tensor = torch.randn(batch_size, 3, size, size)
    names = [f"class {index}" for index in range(_CLASSES.get(task, 0))] if named else []
    original = (size, size) if task is Task.DEPTH else (480, 640)
    return Batch(
        images=images.to(device),
        task=task,
        classes=ClassList.from_names(names) if names else None,
        phrases=[_PHRASE] * batch_size if task is Task.GROUNDING else None,
        origins=[Origin(dataset="bench", image_id=index, path=None, size_hw=original) for index in range(batch_size)],
        input_sizes_hw=[(size, size)] * batch_size,
    )


def _oblong(model: Segmenter | CenterPredictor | PolarSegmenter, batch: Batch) -> Batch:
    """The batch at the size of a network whose input is no square, with the classes that it knows."""
    height, width = size_hw = model.preprocess(batch.task).size_hw
    images = batch.images[..., :height, :width].contiguous()
    return dataclasses.replace(
        batch, images=images, classes=fixed_classes(model), input_sizes_hw=[size_hw] * len(batch)
    )


def _bench_vocabulary(folder: Path, lines: int) -> Path:
    """A vocabulary of the wanted size in which large numbers take several pieces, as in bert-base-uncased."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_PHRASE.split(), "class"]
    pieces += [str(number) for number in range(342)] + [f"##{digit}" for digit in range(10)]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz_"] + list("abcdefghijklmnopqrstuvwxyz_")
    unique = list(dict.fromkeys(pieces))[:lines]
    unique += [f"[unused{index}]" for index in range(lines - len(unique))]
    path = folder / "vocab.txt"
    path.write_text("\n".join(unique) + "\n", encoding="utf-8")
    return path
