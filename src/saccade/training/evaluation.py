"""Evaluates a model on a source with the metric of its task; the trainer and ``saccade eval`` both come here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from saccade.data.loader import EvalLoader
from saccade.data.sources.base import Source, select_range
from saccade.errors import SaccadeError, UsageError
from saccade.layers.lora import updates_of
from saccade.layers.precision import Precision, autocast
from saccade.metrics import (
    DETECTION_PROTOCOLS,
    SEMANTIC_PROTOCOLS,
    CaptionMetric,
    DepthMetric,
    ReferringMetric,
    build_metrics,
    detection_protocol,
    semantic_protocol,
)
from saccade.metrics.center import PROTOCOL as CENTER_PROTOCOL
from saccade.metrics.detection import Engine
from saccade.models.ait.model import AiT
from saccade.models.ait.vqvae import MapVQVAE
from saccade.models.gsva.inputs import Answering, ConversationBatch
from saccade.models.gsva.model import GSVA
from saccade.models.polar.model import PolarSegmenter
from saccade.models.systems import Model, extra_of
from saccade.models.vitdet.model import ViTDet
from saccade.tasks import Task
from saccade.training.centers import find_centers
from saccade.training.distributed import World
from saccade.training.sharding import is_sharded

PROTOCOLS: dict[Task, str] = {
    Task.CAPTION: "BLEU-1..4, ROUGE-L and CIDEr of COCO captions, PTB tokens",
    Task.CENTER: CENTER_PROTOCOL,
    Task.GROUNDING: "share of phrases whose box has IoU >= 0.5, in pixels of the original image",
}
"""How each task is scored; every result carries the line. Detection and label maps have several protocols."""

Given: TypeAlias = Literal["own", "truth"]
"""Where a polar segmenter's centres come from: its finder, or the truth, which perfect centres would be."""


class EvaluationStopped(SaccadeError):
    """The caller asked to stop before every sample was seen; there is no result."""


@dataclass(kw_only=True)
class EvalResult:
    """What an evaluation found, and what it was.

    Attributes:
        metrics: Metric name to value.
        per_class: Class name to its metrics, for tasks that have classes.
        images: Samples evaluated, over all ranks.
        seconds: Wall time, loading included.
        stamp: How the numbers came about: task, data set, what its reader left out, protocol, notes of the metric,
            network input, precision, checkpoint.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    images: int
    seconds: float
    stamp: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json`` and for logs."""
        return {
            "metrics": self.metrics,
            "per_class": self.per_class,
            "images": self.images,
            "seconds": round(self.seconds, 3),
            **self.stamp,
        }


def evaluate(
    model: Model,
    source: Source,
    *,
    batch_size: int = 1,
    workers: int = 0,
    limit: int = 0,
    precision: Precision = "float32",
    engine: Engine = "faster",
    protocol: str = "",
    answer: Answering = "given",
    centers: Given = "own",
    finder: str = "",
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    world: World | None = None,
    checkpoint: str = "",
) -> EvalResult:
    """Predicts every sample of a source once and scores the predictions in the frame of the original images.

    Args:
        model: Offers the task of the source; stays on its device, and gets its training mode back afterwards.
        source: What to evaluate on.
        batch_size: Images per forward pass.
        workers: Loader processes.
        limit: Evaluate only the first N samples (0 = all).
        precision: Arithmetic of the forward pass.
        engine: ``pycocotools`` runs the reference programs, for numbers that are reported: it itself, and METEOR
            where its Java program is found. ``faster`` gives the same AP sooner and leaves METEOR out.
        protocol: How detection and instance segmentation (:data:`saccade.metrics.DETECTION_PROTOCOLS`), phrases
            (:data:`saccade.metrics.REFERRING_PROTOCOLS`), label maps (:data:`saccade.metrics.SEMANTIC_PROTOCOLS`) and
            depth are scored; empty = as the data set is, e.g. LVIS by
            its own protocol, other boxes by that of COCO.
        answer: How a model that converses answers.
        centers: Where a polar segmenter's centres come from.
        finder: Name or folder of what finds them in the place of the model's own finder, for the stamp.
        progress: Called with (samples done on this rank, samples of this rank).
        stop: Asked after every batch; once it says yes on any rank, the evaluation is given up.
        world: This process among all; samples are shared out and metrics merged, every rank gets the result.
        checkpoint: Name or folder of the weights, for the stamp.

    Raises:
        UsageError: The model does not offer the task, the protocol does not score it, or centres of a truth or another
            way of answering are asked of a model that has none.
        EvaluationStopped: ``stop`` said yes.
    """
    world = world or World()
    if source.task not in model.tasks:
        raise UsageError(
            f"the model does not offer the task {source.task}",
            where=source.name,
            fix=f"it offers: {', '.join(model.tasks)}",
        )
    if centers == "truth" and not isinstance(model, PolarSegmenter):
        raise UsageError(f"a {model.system} model has no centres", where=source.name, fix="leave out --centers")
    if answer != "given" and not isinstance(model, GSVA):
        raise UsageError(f"a {model.system} model does not converse", where=source.name, fix="leave out --answers")
    source = select_range(source, limit=limit)
    declared = model.preprocess(source.task)
    device = next(model.parameters()).device
    metric = (
        CaptionMetric(meteor=engine == "pycocotools")
        if source.task is Task.CAPTION and not protocol
        else build_metrics(source.task, source.classes, engine=engine, protocol=protocol, data=source.name)
    )
    in_step = is_sharded(model)
    loader = EvalLoader(
        source,
        preprocess=declared,
        extra=extra_of(model, answer=answer, reevaluate=isinstance(metric, ReferringMetric) and metric.scores_rejected),
        batch_size=batch_size,
        workers=workers,
        rank=world.rank,
        world_size=world.size,
        even=in_step,
        pin_memory=device.type == "cuda",
    )
    around = _centers_stamp(model, finder or centers)
    share = len(range(world.rank, len(source), world.size))
    started_s, done, divided, stopped = time.perf_counter(), 0, 0, False
    with _evaluation_mode(model):
        for samples, batch in loader:
            with autocast(precision, device):
                # A VQ-VAE looks at truths: how well they survive the way into codes and back.
                moved = batch.to(device, non_blocking=True)
                if isinstance(model, MapVQVAE):
                    predictions = model.reconstruct(samples)
                elif isinstance(model, PolarSegmenter):
                    truth = centers == "truth"
                    places = model.true_centers(samples) if truth else find_centers(model, samples, device)
                    predictions = model.predict(moved, centers_xy=places)
                else:
                    predictions = model.predict(moved)
            own = min(len(samples), share - done)  # the rest keeps this process in step with the others
            for sample, prediction in zip(samples[:own], predictions[:own], strict=True):
                metric.update(sample, prediction)
            done += own
            divided += sum(batch.divided[:own]) if isinstance(batch, ConversationBatch) else 0
            if progress is not None:
                progress(done, share)
            stopped = stop is not None and stop()
            if in_step:  # who stopped alone would leave the others waiting in their next batch
                stopped = world.any([stopped])[0]
            if stopped:
                break
    if world.any([stopped])[0]:
        raise EvaluationStopped("the evaluation was stopped", where=source.name)
    if world.size > 1:
        metric.merge(world.gather(metric.state()))
        divided = sum(world.gather(divided))
    return EvalResult(
        metrics=metric.compute(),
        per_class={str(row["class_name"]): _numbers(row) for row in metric.per_class()},
        images=len(source),
        seconds=time.perf_counter() - started_s,
        stamp={
            "task": str(source.task),
            "data": source.name,
            "left_out": dict(source.skipped),
            "protocol": metric.protocol
            if isinstance(metric, DepthMetric | ReferringMetric)
            else "; ".join([_protocol_line(source, protocol, engine), *(f"centres: {one}" for one in around.values())]),
            "notes": [*metric.notes, *_answer_notes(metric, answer, divided)],
            "input_hw": list(declared.size_hw),
            "precision": precision,
            **_lora_stamp(model),
            **_answer_stamp(model, source.task, answer),
            **around,
            "checkpoint": checkpoint,
        },
    )


def _answer_notes(metric: object, answer: Answering, divided: int) -> list[str]:
    notes = []
    if divided:
        notes.append(f"{divided} images have more phrases than go into one conversation, and were asked in several")
    if answer != "given" and isinstance(metric, ReferringMetric):
        what = "what the model rejects has no mask, and overlaps with nothing, in every protocol"
        notes.append(f"answers: {answer}: {what}")
    return notes


def _lora_stamp(model: Model) -> dict[str, Any]:
    """How often low-rank updates counted, where there are some."""
    updates = [update for _, update in updates_of(model).values()]
    return {"lora": {"rank": updates[0].config.rank, "multiplier": updates[0].multiplier}} if updates else {}


def _centers_stamp(model: Model, centers: str) -> dict[str, str]:
    """Where centres came from: ``truth``, ``own``, or the checkpoint that found them."""
    return {"centers": centers} if isinstance(model, PolarSegmenter) else {}


def _answer_stamp(model: Model, task: Task, answer: str) -> dict[str, Any]:
    """How a detector predicted, where that is not the plain way, and how tokens were chosen."""
    if isinstance(model, GSVA):
        return {"answers": answer}
    if isinstance(model, AiT):
        depth = model.config.depth
        if task is Task.DEPTH and depth is not None:
            return {"windows": depth.windows, "flip": depth.flip, "top_p": depth.top_p}
        objects = model.config.detection if task is Task.DETECTION else model.config.instance
        return {} if objects is None else {"top_p": objects.top_p, "seed": objects.seed}
    if not isinstance(model, ViTDet):
        return {}
    config = model.config
    said = {"soft_nms": config.test_soft_nms, "test_sizes": list(config.test_sizes), "test_flip": config.test_flip}
    return {key: value for key, value in said.items() if value and value != "none"}


def _protocol_line(source: Source, asked: str, engine: Engine) -> str:
    if source.task is Task.SEMANTIC:
        return SEMANTIC_PROTOCOLS[semantic_protocol(asked)]
    if source.classes is None or source.task in PROTOCOLS:
        return PROTOCOLS[source.task]
    chosen = detection_protocol(source.classes, asked)
    line = DETECTION_PROTOCOLS[chosen].format("box and mask" if source.task is Task.INSTANCE else "box")
    return f"{line} ({engine})" if chosen in ("coco", "boundary") else line


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


@contextmanager
def _evaluation_mode(model: Model) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
