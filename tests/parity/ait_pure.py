"""AiT's functions against the original's: sequences, positions, nucleus, masks, depth, the data pipeline, schedules."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import math
import random
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import roi_align
from vitdet_pure import Recorded

from saccade.data.augment import ScaleJitterAugment
from saccade.data.depth_augment import DepthAugment
from saccade.data.mixture import Mixture
from saccade.data.photometric import change_brightness_contrast, change_gamma, shift_hsv
from saccade.data.sources.coco import CocoSource
from saccade.data.sources.nyu import open_nyu
from saccade.data.sources.spec import SourceSpec
from saccade.data.transforms import collate, preprocess
from saccade.layers import swin
from saccade.layers.boxes import paste_masks
from saccade.layers.decoding import Nucleus, nucleus_probs
from saccade.layers.losses import dice_error, scale_invariant_log_error
from saccade.layers.roi import mask_targets
from saccade.layers.swin import SwinV2Config, WindowAttention, log_offsets, window_groups
from saccade.metrics.depth import DepthMetric
from saccade.metrics.detection import coco_ap
from saccade.models.ait.config import AiTConfig, DepthConfig, ObjectsConfig
from saccade.models.ait.convert import to_official
from saccade.models.ait.model import AiT, SaidObjects
from saccade.models.ait.sequences import (
    Draws,
    Vocabulary,
    corrupt_classes,
    noise_objects,
    object_tokens,
    sequence_targets,
)
from saccade.models.ait.transformer import TransformerConfig, sine_positions
from saccade.results import DepthMap, Instances
from saccade.samples import Batch, Origin, Preprocess, Sample, Target
from saccade.tasks import Task
from saccade.tokens import codebook
from saccade.tokens.codebook import CodebookConfig, VQVAEConfig
from saccade.training.config import OptimConfig
from saccade.training.schedule import learning_rate

if TYPE_CHECKING:
    from check import Report

FLOAT, LOSS, GRADIENT, EXACT = 1e-4, 1e-4, 1e-3, 1e-6
LOSSY = 4e-3  # tensors that were rounded to float16
MASK_SHARE = 1e-4
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)

NOT_YET: dict[str, str] = {
    r"seq/corrupted\.(rand|real).*": "other corruptions of class tokens (no config of the original has them)",
    r"posenc/sine_norm\..*": "sine positions scaled to the size of the map (no config of the original has them)",
}
"""What no code of ours makes so far, and why: names of tensors and values of ``functions/``."""

# The least model with the published vocabulary.
SMALL = AiTConfig(
    backbone=SwinV2Config(
        width=8,
        depths=(1,),
        heads=(1,),
        windows=(2,),
        pretrained_windows=(2,),
        shifted=(False,),
        patch_size=32,
        out_stages=(0,),
    ),
    transformer=TransformerConfig(width=8, heads=1, mlp_width=8, encoder_blocks=1, decoder_blocks=1),
)
# Schedules of the original (specs/ait.md 9).
SCHEDULES: dict[str, dict[str, Any]] = {
    "lr_swinv2b_480reso_depthonly": {"schedule": "steps", "milestones": (18180,), "warmup_steps": 500},
    "lr_swinv2b_640reso_detonly": {"schedule": "linear", "warmup_steps": 18330},
    "lr_swinv2b_640reso_inssegonly": {"schedule": "linear", "warmup_steps": 14660},
    "lr_swinv2b_640reso_joint": {"schedule": "linear", "warmup_steps": 12115},
}


class File:
    """One file of tensors, and what is still to be compared; what a reduced file lacks is not compared."""

    def __init__(self, path: Path, report: Report | None) -> None:
        self.path, self.report = path, report
        self.name = f"{path.parent.name}/{path.stem}"
        self.tensors = load_file(path)
        self._described = json.loads((path.parent / "meta.json").read_text())["files"].get(path.name, {})
        if report is not None:
            report.expect(self.name, list(self.tensors))

    def __getitem__(self, name: str) -> Tensor:
        """An input: using it is all that can be done with it."""
        if self.report is not None:
            self.report.skip(f"{self.name}/{name}")
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def description(self, name: str) -> str:
        """What the maker of the fixtures says about a tensor."""
        return str(self._described[name]["desc"])

    def draws(self, prefix: str = "") -> list[tuple[str, Tensor]]:
        """Recorded random draws below a name, in the order in which they were made."""
        return [(name, self[name]) for name in sorted(self.tensors) if name.startswith(f"{prefix}rng.")]

    def close(self, name: str, ours: Tensor, tolerance: float = FLOAT, note: str = "") -> None:
        if name in self.tensors and self.report is not None:
            wanted = self.tensors[name].float()
            self.report.skip(f"{self.name}/{name}")
            self.report.close(f"{self.name}/{name}{note}", ours, wanted, tolerance)

    def same(self, name: str, ours: Tensor, allowed: float = 0.0) -> None:
        if name in self.tensors and self.report is not None:
            self.report.same(f"{self.name}/{name}", ours, self.tensors[name], allowed=allowed)


class Replay(Draws):
    """Recorded draws instead of new ones; each must be of the kind and shape that is asked for.

    Args:
        draws: Names (``rng.003.torch.randperm``) and values, in order.
    """

    def __init__(self, draws: list[tuple[str, Tensor]]) -> None:
        self._draws = list(draws)

    @property
    def left(self) -> list[str]:
        """Names of the draws that nobody asked for."""
        return [name for name, _ in self._draws]

    def _next(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        name, value = self._draws.pop(0)
        if not name.endswith(kind) or tuple(value.shape) != shape:
            raise AssertionError(f"asked for {kind} {shape}, the original drew {name} {tuple(value.shape)}")
        return value

    def integer(self, high: int) -> int:
        drawn = int(self._next("random.randint", ()))
        assert drawn <= high
        return drawn

    def permutation(self, count: int) -> Tensor:
        return self._next("torch.randperm", (count,))

    def uniform(self, *shape: int) -> Tensor:
        return self._next("torch.rand", shape)

    def normal(self, *shape: int) -> Tensor:
        return self._next("trunc_normal_", shape)

    def classes(self, count: int, *shape: int) -> Tensor:
        drawn = self._next("torch.randint", shape)
        assert not drawn.numel() or int(drawn.max()) < count
        return drawn


def check(folder: Path, report: Report) -> None:
    """Every file of a folder of functions, and the values beside them."""
    values = json.loads((folder / "values.json").read_text()) if (folder / "values.json").is_file() else {}
    report.expect(f"{folder.name}/values", list(values))
    checks: dict[str, Callable[[File, dict[str, Any]], None]] = {
        "coco": check_coco,
        "depth": check_depth,
        "masks": check_masks,
        "nucleus": check_nucleus,
        "nyu": check_nyu,
        "posenc": check_positions,
        "seq": check_sequences,
    }
    for path in sorted(folder.glob("*.safetensors")):
        checks[path.stem](File(path, report), values)
    check_schedules(f"{folder.name}/values", values, report)
    check_samplers(f"{folder.name}/values", values, report)
    for name in sorted(report.pending):
        kind = name.removeprefix(f"{folder.name}/")
        reasons = [reason for pattern, reason in NOT_YET.items() if re.fullmatch(pattern, kind)]
        if kind != name and reasons:
            report.later(name, reasons[0])


def value(file: File, values: dict[str, Any], name: str) -> Any:
    """A value that is used as an input."""
    assert file.report is not None
    file.report.skip(f"{file.path.parent.name}/values/{name}")
    return values[name]


# ---------------------------------------------------------------------- sequences


def check_sequences(file: File, values: dict[str, Any]) -> None:
    config = AiTConfig()
    side = value(file, values, "norm_val") if values else ObjectsConfig().input_size
    words = Vocabulary(
        bins=config.bins,
        classes=config.class_tokens.start,
        num_classes=config.num_classes,
        noise=config.noise_token,
        codes=config.mask_tokens.start,
        side=side,
    )
    boxes, labels = file["boxes"], file["labels"]
    told = file.description("aug.input_seq")
    counts = [int(n) for n in re.findall(r"\d+", re.search(r"images with (.*?) objects", told)[1])]
    sizes = [(int(h), int(w)) for h, w in re.findall(r"\((\d+),(\d+)\)", told)]
    for case in ("noaug", "aug"):
        # Without augmentation a sequence has the objects of the fullest image, and zeros behind the real ones.
        objects = file.tensors[f"{case}.input_seq"].shape[1] // 5
        draws = Replay(file.draws(f"{case}."))
        rows, real = [], []
        for number, size_hw in zip(counts, sizes, strict=True):
            own, classes = boxes[:number], torch.full((objects,), words.noise)
            classes[:number] = labels[:number] + words.classes
            if case == "aug":
                noise = noise_objects(own, size_hw, objects - number, draws)
                rows.append(object_tokens(torch.cat([own, noise.boxes_xyxy]), classes, None, words))
            else:
                tokens = object_tokens(own, classes[:number], None, words)
                rows.append(F.pad(tokens, (0, 0, 0, objects - number)))
            real.append(torch.arange(objects) < number)
        tokens = torch.stack(rows)
        assert not draws.left
        file.same(f"{case}.input_seq", tokens.flatten(1))
        if case == "aug":
            file.same("corrupted.none", tokens.flatten(1))
        corrupted = corrupt_classes(tokens, words, Replay(file.draws(f"{case}.corrupt.")))
        file.same(f"{case}.corrupted", corrupted.flatten(1))
        file.same(f"{case}.targets", sequence_targets(tokens, torch.stack(real)).flatten(1))
    _dequantisation(file, config, side)


def _dequantisation(file: File, config: AiTConfig, side: int) -> None:
    """Tokens to boxes in the original picture, by a model that says what was recorded."""
    tokens, scores, scale = file["dequant.tokens"], file["dequant.scores"], file["dequant.scale_factor"]
    net = AiT(dataclasses.replace(SMALL, detection=ObjectsConfig(input_size=side, objects=len(tokens))))
    # The scale is the ratio of the picture inside the input to the original picture.
    original = [(round(1e6), round(1e6))]
    inside = [(float(scale[1]) * original[0][0], float(scale[0]) * original[0][1])]
    said = SaidObjects(tokens[None], scores[None], None)
    batch = Batch(
        images=torch.zeros(1, 3, 8, 8),
        task=Task.DETECTION,
        origins=[Origin(dataset="", image_id=0, path=None, size_hw=original[0])],
        input_sizes_hw=inside,  # type: ignore[arg-type]
    )
    with mock.patch.object(net, "say_objects", lambda *_: said), mock.patch.object(net, "encode", lambda *_: None):
        found = net.predict(batch)[0]
    assert isinstance(found, Instances)
    order = scores.argsort(descending=True, stable=True).argsort()
    file.close("dequant.boxes", torch.cat([found.boxes_xyxy, found.scores[:, None]], dim=1)[order], EXACT)
    file.same("dequant.labels", found.class_ids[order])


# ---------------------------------------------------------------------- positions


def check_positions(file: File, values: dict[str, Any]) -> None:
    for name in file.tensors:
        if found := re.fullmatch(r"sine\.(\d+)x(\d+)x(\d+)", name):
            file.close(name, sine_positions(*map(int, found.groups()))[None], EXACT * 10)
        elif found := re.fullmatch(r"rpe_table\.w(\d+)\.p(\d+)", name):
            file.close(name, log_offsets(int(found[1]), int(found[2])), EXACT)
        elif found := re.fullmatch(r"rpe_index_(first|last)_row\.w(\d+)", name):
            file.same(name, _relative_index(int(found[2]))[0 if found[1] == "first" else -1])
        elif found := re.fullmatch(r"shift_mask\.h(\d+)w(\d+)", name):
            window = math.isqrt(file.tensors[name].shape[-1])
            file.close(name, _shift_masks(int(found[1]), int(found[2]), window), EXACT)
    if "custom_normalize.in" in file:
        file.close("custom_normalize.out", _normalised(file["custom_normalize.in"]), EXACT)


def _relative_index(window: int) -> Tensor:
    """The table that a released backbone carries."""
    backbone = dataclasses.replace(SMALL.backbone, windows=(window,), pretrained_windows=(window,))
    tables = to_official({}, dataclasses.replace(SMALL, backbone=backbone))
    return tables["backbone.layers.0.blocks.0.attn.relative_position_index"]


def _shift_masks(height: int, width: int, window: int) -> Tensor:
    """Masks of all windows of a map that is padded to whole ones."""
    rows, columns = -(-height // window), -(-width // window)
    tokens = window * window
    masks = torch.zeros(rows * columns, tokens, tokens)
    groups = window_groups(1, (rows * window, columns * window), window, window // 2, torch.device("cpu"))
    for chosen, mask in groups:
        if mask is not None:
            masks[slice(None) if chosen is None else chosen] = mask.flip(0)  # queries stand in reverse order
    return masks


def _normalised(x_NC: Tensor) -> Tensor:
    """What the attention makes of keys that are its input."""
    rows, width = x_NC.shape
    window = math.isqrt(rows - 1) + 1
    attention = WindowAttention(width, 1, window, window)
    attention.qkv.weight.data = torch.eye(width).repeat(3, 1)
    seen: list[Tensor] = []

    def record(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
        seen.append(k)
        return v

    with mock.patch.object(swin, "cosine_attention", record), torch.no_grad():
        attention.forward_groups(F.pad(x_NC, (0, 0, 0, window**2 - rows))[None], [(None, None)])
    return seen[0][0, 0, :rows]


def check_nucleus(file: File, values: dict[str, Any]) -> None:
    logits = file["logits"]
    for name in file.tensors:
        if name.startswith("probs.top_p"):
            file.close(name, nucleus_probs(logits, Nucleus(top_p=float(name.removeprefix("probs.top_p")))), EXACT)


# ---------------------------------------------------------------------- masks and depth


def check_masks(file: File, values: dict[str, Any]) -> None:
    masks, boxes = file["paste.masks"][:, 0], file["paste.boxes"]
    size_hw = (int(file.tensors["paste.full"].shape[1]), int(file.tensors["paste.full"].shape[2]))
    file.same("paste.binary", paste_masks(masks, boxes, size_hw, anywhere=True), MASK_SHARE)
    # Ours gives only which pixels are above a threshold: the original's values are met at several.
    _thresholds(file, "paste.full", masks, boxes, anywhere=True)
    odd = file["paste_degenerate.boxes"]
    _thresholds(file, "paste_degenerate.full", masks[: len(odd)], odd, anywhere=True)
    for index in range(len(masks)):
        _thresholds(file, f"paste.cpu_path.{index}", masks[index, None], boxes[index, None], anywhere=False)
    truth, regions, owners = file["crop.masks"], file["crop.boxes"], file["crop.inds"]
    side = int(file.tensors["crop.binary"].shape[-1])
    file.same("crop.binary", mask_targets(truth, regions, owners, side))
    rows = torch.cat([owners[:, None].float(), regions], dim=1)
    file.close("crop.soft", roi_align(truth[:, None].float(), rows, side, 1.0, 0, aligned=True)[:, 0], EXACT)
    said, wanted = file["dice.pred"], file["dice.target"]
    file.close("dice.loss", dice_error(said, wanted).mean(), EXACT)
    file.close("dice.mse", F.mse_loss(said, wanted), EXACT)


def _thresholds(file: File, name: str, masks: Tensor, boxes: Tensor, *, anywhere: bool) -> None:
    assert file.report is not None
    wanted = file[name] if file.tensors[name].ndim == 3 else file[name][None]
    for threshold in THRESHOLDS:
        ours = paste_masks(masks, boxes, (wanted.shape[1], wanted.shape[2]), threshold=threshold, anywhere=anywhere)
        # A value at the threshold may fall on either side.
        clear = (wanted - threshold).abs() > EXACT
        file.report.same(f"{file.name}/{name} >= {threshold}", ours[clear], (wanted >= threshold)[clear])


def check_depth(file: File, values: dict[str, Any]) -> None:
    whole = file["maskaug.in"]
    for name in file.tensors:
        if not re.fullmatch(r"maskaug\d+\.out", name):
            continue
        drawn = file[name.replace(".out", ".permutation")]
        told = re.search(r"ratio ([\d.]+) patch (\d+)", file.description(name))
        with mock.patch.object(codebook.torch, "randperm", lambda count, drawn=drawn, **_: drawn[:count]):
            masked = codebook.mask_patches(
                whole[None], patch=int(told[2]), ratio=float(told[1]), generator=torch.Generator()
            )
        file.close(name, masked[0], EXACT)
    file.close("silog.loss", scale_invariant_log_error(file["silog.pred"], whole), EXACT)
    _depth_metric(file, values)


def _depth_metric(file: File, values: dict[str, Any]) -> None:
    """Scores of maps that the notes of the fixtures say how to draw."""
    assert file.report is not None
    at = f"{file.path.parent.name}/values"
    y, x = torch.meshgrid(torch.arange(480), torch.arange(640), indexing="ij")
    fine = ((y * 7919 + x * 104729) % 97) / 1000
    together = DepthMetric()
    for index in itertools.count():
        if f"metrics.gt_grid{index}" not in file:
            break
        told, said = (file[f"metrics.{kind}_grid{index}"][y // 16, x // 16] for kind in ("gt", "pred"))
        truth = torch.where(told == 0, 0.0, told + fine)
        predicted = torch.where(said == -7, torch.nan, torch.where(said == -8, torch.inf, said + fine))
        image = tv_tensors.Image(torch.zeros(3, 480, 640, dtype=torch.uint8))
        origin = Origin(dataset="", image_id=index, path=None, size_hw=(480, 640))
        sample = Sample(image=image, task=Task.DEPTH, origin=origin, target=Target(depth_m=truth))
        alone = DepthMetric()
        for metric in (alone, together):
            metric.update(sample, DepthMap(depth_m=predicted))
        wanted = values[f"metrics{index}"]
        _scores(file.report, f"{at}/metrics{index}", alone.compute(), wanted["values"])
        file.report.equal(f"{at}/metrics{index} (pixels)", alone.images["", index].pixels, wanted["n_valid"])
    _scores(file.report, f"{at}/metrics_mean_over_images", together.compute(), values["metrics_mean_over_images"])


def _scores(report: Report, name: str, ours: dict[str, float], told: dict[str, Any]) -> None:
    wanted = torch.tensor([told[key] for key in ours], dtype=torch.float64)
    report.close(name, torch.tensor(list(ours.values()), dtype=torch.float64), wanted, EXACT * 10)


# ---------------------------------------------------------------------- NYU Depth v2


def check_nyu(file: File, values: dict[str, Any]) -> None:
    """Pictures, depth and every training sample, read from files as the data set lays them out."""
    image = file["img"].permute(2, 0, 1).contiguous().numpy()
    for name in file.tensors:
        kind, _, rest = name.partition(".")
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", rest)]
        if kind == "brightness_contrast":
            changed = change_brightness_contrast(image, gain=numbers[0], shift=numbers[1])
        elif kind == "gamma":
            changed = change_gamma(image, numbers[0])
        elif kind == "hsv":
            changed = shift_hsv(image, hue=numbers[0], saturation=numbers[1], value=numbers[2])
        else:
            continue
        file.same(name, torch.from_numpy(changed).permute(1, 2, 0))
    rgb, millimetres = file["file.rgb"].numpy(), file["file.depth_mm"].numpy().astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder) / "official_splits/test/room"
        room.mkdir(parents=True)
        Image.fromarray(rgb).save(room / "rgb.png")
        Image.fromarray(millimetres).save(room / "depth.png")
        (Path(folder) / "test_list.txt").write_text("/room/rgb.png /room/depth.png 518.8579\n")
        sample = open_nyu(SourceSpec(task=Task.DEPTH, reader="nyu", root=folder, split="test"))[0]
    depth = VQVAEConfig(size=4, downsample=4, base_width=1, codebook=CodebookConfig(codes=2, width=2))
    declared = AiT(dataclasses.replace(SMALL, depth_codes=2, depth=DepthConfig(depth=depth))).preprocess(Task.DEPTH)
    declared = dataclasses.replace(declared, size_hw=(min(sample.size_hw),) * 2)
    tested = collate([preprocess(sample, declared)], declared)
    file.close("test.img", tested.images[0], EXACT)
    file.close("test.depth", _depth_of(tested), EXACT)
    for name in [name.removesuffix(".img") for name in file.tensors if re.fullmatch(r"train\d+\.img", name)]:
        told = value(file, values, f"nyu_{name}")
        # The original counts the samples of a process, and lays the strip over every fourth one.
        draws = NyuDraws(told["seed"], pasted=told["count_before"] % 4 == 0)
        size = int(file.tensors[f"{name}.img"].shape[-1])
        done = DepthAugment(resize=False).build(size)(sample, draws)  # type: ignore[arg-type]
        trained = collate([done], declared)
        file.close(f"{name}.img", trained.images[0], EXACT)
        file.close(f"{name}.depth", _depth_of(trained), EXACT)


def _depth_of(batch: Batch) -> Tensor:
    depth_m = batch.targets[0].depth_m
    assert depth_m is not None
    return depth_m[None]


class NyuDraws:
    """The stream of the original, without the two draws that ours does not make: for the chain, and for the crop.

    Args:
        seed: Of Python's generator.
        pasted: Whether the strip is laid over this sample, which is no draw in the original.
    """

    def __init__(self, seed: int, *, pasted: bool) -> None:
        self._stream = random.Random(seed)
        strip = [self._stream.random(), self._stream.random()] if pasted else []
        _chain, flip, _crop = (self._stream.random() for _ in range(3))
        self._first = [0.0 if pasted else 1.0, *strip, flip]

    def random(self) -> float:
        return self._first.pop(0) if self._first else self._stream.random()

    def uniform(self, low: float, high: float) -> float:
        return self._stream.uniform(low, high)


# ---------------------------------------------------------------------- COCO


def check_coco(file: File, values: dict[str, Any]) -> None:
    assert file.report is not None
    path = file.path.parent / "coco_ann.json"
    told, report, at = json.loads(path.read_text()), file.report, f"{file.path.parent.name}/values"
    size = value(file, values, "coco_pipeline_size")[0]
    declared = Preprocess(size_hw=(size, size), keep_ratio=True, pad_multiple=size)
    with tempfile.TemporaryDirectory() as folder:
        for index, entry in enumerate(told["images"]):
            Image.fromarray(file[f"file{index}.rgb"].numpy()).save(Path(folder) / entry["file_name"])
        shutil.copyfile(path, Path(folder) / "all.json")
        tested = CocoSource(task=Task.INSTANCE, root=folder, split="all")
        kept = CocoSource(task=Task.INSTANCE, root=folder, split="all", drop_empty=True, min_side=32, min_box=1.0)
        tests = {sample.origin.image_id: sample for sample in (tested[i] for i in range(len(tested)))}
        trains = [kept[i] for i in range(len(kept))]
    numbers = values["coco_cat2label_sample"]
    report.equal(f"{at}/coco_cat2label_sample", {key: tested.classes.class_id(int(key)) for key in numbers}, numbers)
    report.equal(f"{at}/coco_test_image_ids", list(tests), values["coco_test_image_ids"])
    report.equal(
        f"{at}/coco_train_kept_image_ids", [one.origin.image_id for one in trains], values["coco_train_kept_image_ids"]
    )
    for name in file.tensors:
        if found := re.fullmatch(r"test\.img(\d+)", name):
            sample = preprocess(tests[values["coco_test_image_ids"][int(found[1])]], declared)
            file.close(name, collate([sample], declared).images[0], LOSSY)
            meta = values[f"coco_test{found[1]}"]
            _sizes(report, f"{at}/coco_test{found[1]}", meta, sample.size_hw, sample.origin.size_hw)
        elif found := re.fullmatch(r"(train\.img(\d+)\.seed\d+)\.img", name):
            _coco_train(file, found[1], trains[int(found[2])], value(file, values, found[1]), declared)
    _coco_eval(at, values, told, report)


def _sizes(report: Report, name: str, meta: dict[str, Any], input_hw: tuple[int, int], own_hw: tuple[int, int]) -> None:
    report.equal(f"{name} (size)", list(input_hw), meta["img_shape"][:2])
    scale = torch.tensor([input_hw[1] / own_hw[1], input_hw[0] / own_hw[0]]).repeat(2)
    report.close(name, scale, torch.tensor(meta["scale_factor"]), EXACT)


def _coco_train(file: File, name: str, sample: Sample, told: dict[str, Any], declared: Preprocess) -> None:
    """The draws of the original in ours; boxes come from the annotations, which ours takes where it has no masks."""
    low, high = 0.1, 3.0
    (_, drawn), *offsets, (_, flipped) = told["draws"]
    numbers = [int(offset) for _, offset in offsets]
    augment = ScaleJitterAugment(scales=(low, high)).build(declared.size_hw[0])
    for masks in (True, False):
        target = sample.target if masks else dataclasses.replace(sample.target, masks=None)
        rng = Recorded([float(drawn), 0.0 if flipped == "horizontal" else 1.0], numbers)
        done = augment(dataclasses.replace(sample, target=target), rng)  # type: ignore[arg-type]
        batch = collate([done], declared)
        own = batch.targets[0]
        assert own.boxes is not None and own.class_ids is not None
        if masks:
            assert own.masks is not None and file.report is not None
            file.report.equal(
                f"{file.path.parent.name}/values/{name}",
                {"img_shape": [*done.size_hw, 3], "flip": flipped == "horizontal"},
                {key: told[key] for key in ("img_shape", "flip")},
            )
            file.close(f"{name}.img", batch.images[0], LOSSY)
            file.same(f"{name}.masks", own.masks)
        else:
            file.close(f"{name}.bboxes", own.boxes.as_subclass(Tensor), EXACT)
            file.same(f"{name}.labels", own.class_ids)


def _coco_eval(at: str, values: dict[str, Any], told: dict[str, Any], report: Report) -> None:
    """Average precision, to the three places that the original prints."""
    report.skip(f"{at}/coco_results")
    ids = sorted(category["id"] for category in told["categories"])
    found: dict[str, list[dict[str, Any]]] = {"bbox": [], "segm": []}
    for image_id, result in zip(values["coco_test_image_ids"], values["coco_results"], strict=True):
        for (x0, y0, x1, y1, score), label, rle in zip(
            result["bboxes"], result["labels"], result["mask_rle"], strict=True
        ):
            common = {"image_id": image_id, "category_id": ids[label], "score": score}
            found["bbox"].append(common | {"bbox": [x0, y0, x1 - x0, y1 - y0]})
            found["segm"].append(common | {"segmentation": rle})
    names = {"mAP": "AP", "mAP_50": "AP50", "mAP_75": "AP75", "mAP_s": "APs", "mAP_m": "APm", "mAP_l": "APl"}
    wanted = values["coco_eval"]
    ours = {}
    for kind, detections in found.items():
        stats = coco_ap(told, detections, kind).stats  # type: ignore[arg-type]
        ours |= {f"{kind}_{theirs}": round(stats[own], 3) for theirs, own in names.items()}
    report.equal(f"{at}/coco_eval", ours, {key: wanted[key] for key in ours})


# ---------------------------------------------------------------------- schedules


def check_schedules(at: str, values: dict[str, Any], report: Report) -> None:
    for name, choices in SCHEDULES.items():
        if name in values:
            optim = OptimConfig(lr=1.0, warmup_start=0.1, **choices)
            told = values[name]["multiplier_of_group_lr"]
            steps = max(map(int, told)) + 1
            ours = [learning_rate(int(step), steps=steps, optim=optim) for step in told]
            wanted = torch.tensor(list(told.values()), dtype=torch.float64)
            report.close(f"{at}/{name}", torch.tensor(ours, dtype=torch.float64), wanted, EXACT)
    if "vae_insseg_cosine" in values:
        # What the original has computed after step i is the rate of step i + 1, and its first two steps have the same
        # one. Ours is not one step late: its rate of step i is that value itself.
        told = values["vae_insseg_cosine"]
        optim = OptimConfig(lr=3e-4, min_lr=1e-6, warmup_steps=500, warmup_start=1e-3, warmup_counted=True)
        steps = [0 if step == "initial" else int(step) for step in told["lr"]]
        ours = [learning_rate(step, steps=told["t_initial"], optim=optim) for step in steps]
        wanted = torch.tensor(list(told["lr"].values()), dtype=torch.float64)
        report.close(f"{at}/vae_insseg_cosine", torch.tensor(ours, dtype=torch.float64), wanted, EXACT)


def check_samplers(at: str, values: dict[str, Any], report: Report) -> None:
    """Streams that take a number of samples of every task in turn, dealt out to the processes one by one.

    What is compared is whose turn it is, and that a pass over a task meets each of its samples once: which sample comes
    when is drawn by another generator.
    """
    if "sampler_seed" in values:
        report.skip(f"{at}/sampler_seed")
    for name, ranks in values.items():
        if not (found := re.fullmatch(r"sampler_bs\d+_ws\d+_(\[.*?\])_(\[.*?\])", name)):
            continue
        lengths, rounds = json.loads(found[1]), json.loads(found[2])
        dealt = [list(itertools.chain(*batches)) for batches in ranks.values()]
        stream = [index for turn in zip(*dealt, strict=True) for index in turn]
        ends = list(itertools.accumulate(lengths))
        theirs = [bisect.bisect_right(ends, index) for index in stream]
        ours = Mixture(
            lengths=lengths, weights=[1.0] * len(lengths), batch_sizes=[1] * len(lengths), rounds=rounds, seed=0
        )
        plans = [ours.plan(step) for step in range(len(stream))]
        report.equal(f"{at}/{name}", [plan.source for plan in plans], theirs)
        for task, (length, end) in enumerate(zip(lengths, ends, strict=True)):
            first = [index - end + length for index, whose in zip(stream, theirs, strict=True) if whose == task][
                :length
            ]
            own = [ours.index(task, plan.positions[0]) for plan in plans if plan.source == task][:length]
            report.equal(f"{at}/{name} (task {task}, one pass)", len(set(own)), len(set(first)))
