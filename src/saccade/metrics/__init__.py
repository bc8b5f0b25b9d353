"""Scores, exact to the official evaluators; one file per family."""

from __future__ import annotations

from saccade.errors import UsageError, nearest
from saccade.metrics.base import Metric
from saccade.metrics.caption import CaptionMetric
from saccade.metrics.center import CenterMetric
from saccade.metrics.depth import DepthMetric, DepthProtocol, depth_protocol
from saccade.metrics.detection import DetectionMetric, Engine
from saccade.metrics.grounding import GroundingMetric
from saccade.metrics.lesion import PROTOCOL as POLAR_PROTOCOL
from saccade.metrics.lesion import LesionMetric
from saccade.metrics.lvis import LvisMetric
from saccade.metrics.panoptic import PanopticMetric
from saccade.metrics.referring import REFERRING_PROTOCOLS, ReferringMetric, referring_protocol
from saccade.metrics.semantic import SemanticMetric
from saccade.metrics.voc import VocMetric
from saccade.samples import ClassList
from saccade.tasks import TASKS, Task

__all__ = [
    "DETECTION_PROTOCOLS",
    "REFERRING_PROTOCOLS",
    "SEMANTIC_PROTOCOLS",
    "CaptionMetric",
    "CenterMetric",
    "DepthMetric",
    "DepthProtocol",
    "DetectionMetric",
    "GroundingMetric",
    "LesionMetric",
    "LvisMetric",
    "Metric",
    "PanopticMetric",
    "ReferringMetric",
    "SemanticMetric",
    "VocMetric",
    "build_metrics",
    "depth_protocol",
    "detection_protocol",
    "referring_protocol",
    "semantic_protocol",
]

DETECTION_PROTOCOLS: dict[str, str] = {
    "coco": "COCO {} AP, IoU 0.50:0.95, 100 detections per image",
    "boundary": "COCO {} AP and Boundary AP (2 % of the diagonal), IoU 0.50:0.95, 100 detections per image",
    "lvis": "LVIS {} AP (federated), IoU 0.50:0.95, 300 detections per image over all classes",
    "voc07": "VOC box mAP, IoU 0.5, mean over 11 recalls, difficult objects ignored",
    "voc10": "VOC box mAP, IoU 0.5, area under the curve, difficult objects ignored",
}
"""How detection and instance segmentation can be scored; ``{}`` stands for what is scored."""


SEMANTIC_PROTOCOLS: dict[str, str] = {
    "areas": "IoU from areas summed over the set, at the original size, label 255 left out",
    "polar": POLAR_PROTOCOL,
}
"""How label maps can be scored; the first is what is done where nothing is asked for."""


def semantic_protocol(asked: str = "") -> str:
    """The protocol that is asked for, else ``areas``.

    Raises:
        UsageError: No such protocol.
    """
    if asked and asked not in SEMANTIC_PROTOCOLS:
        raise UsageError(f"unknown protocol '{asked}'", fix=nearest(asked, SEMANTIC_PROTOCOLS))
    return asked or "areas"


def detection_protocol(classes: ClassList, asked: str = "") -> str:
    """The protocol that is asked for; else LVIS where the classes have frequency groups, and COCO elsewhere.

    Raises:
        UsageError: No such protocol.
    """
    if asked and asked not in DETECTION_PROTOCOLS:
        raise UsageError(f"unknown protocol '{asked}'", fix=nearest(asked, DETECTION_PROTOCOLS))
    return asked or ("lvis" if classes.frequencies else "coco")


def build_metrics(
    task: Task, classes: ClassList | None = None, *, engine: Engine = "faster", protocol: str = "", data: str = ""
) -> Metric:
    """The metric that a task is evaluated with.

    Args:
        task: The task.
        classes: Required by the tasks that are prompted by classes.
        engine: COCO evaluator: ``"faster"`` inside training runs, ``"pycocotools"`` for numbers that are reported.
        protocol: Of detection and instance segmentation (:data:`DETECTION_PROTOCOLS`) or of referring segmentation
            (:data:`REFERRING_PROTOCOLS`); empty = that of the data set. Of label maps
            (:data:`SEMANTIC_PROTOCOLS`). Of depth (:func:`depth_protocol`); empty = the
            official one.
        data: Name of the data set, for the protocol of referring segmentation.

    Raises:
        UsageError: The task needs classes and none are given, or the protocol does not score the task.
    """
    if task is Task.DEPTH:
        return DepthMetric(depth_protocol(protocol))
    if task is Task.REFERRING:
        return ReferringMetric(referring_protocol(protocol, data))
    if protocol and task not in (Task.DETECTION, Task.INSTANCE, Task.SEMANTIC):
        raise UsageError(
            f"the protocol '{protocol}' scores detection, segmentation, phrases or depth, not {task}",
            fix="leave the protocol out, or name the task",
        )
    if task is Task.CAPTION:
        return CaptionMetric()
    if task is Task.GROUNDING:
        return GroundingMetric()
    if task is Task.CENTER:
        return CenterMetric()
    if classes is None:
        raise UsageError(
            f"the metric of {task} needs the class list",
            why=f"its prompt is '{TASKS[task].prompt}'",
            fix="pass the classes of the data set",
        )
    if task is Task.SEMANTIC:
        return LesionMetric(classes) if semantic_protocol(protocol) == "polar" else SemanticMetric(classes)
    masks = task is Task.INSTANCE
    match detection_protocol(classes, protocol):
        case "lvis":
            return LvisMetric(classes, masks=masks)
        case "voc07" | "voc10" as chosen:
            return VocMetric(classes, eleven_points=chosen == "voc07")
        case chosen:
            return DetectionMetric(classes, masks=masks, boundary=chosen == "boundary", engine=engine)
