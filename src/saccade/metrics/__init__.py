"""Scores, exact to the official evaluators; one file per family."""

from __future__ import annotations

from saccade.errors import UsageError
from saccade.metrics.base import Metric
from saccade.metrics.caption import CaptionMetric
from saccade.metrics.detection import DetectionMetric, Engine
from saccade.metrics.grounding import GroundingMetric
from saccade.metrics.semantic import SemanticMetric
from saccade.samples import ClassList
from saccade.tasks import TASKS, Task

__all__ = [
    "CaptionMetric",
    "DetectionMetric",
    "GroundingMetric",
    "Metric",
    "SemanticMetric",
    "build_metrics",
]


def build_metrics(task: Task, classes: ClassList | None = None, *, engine: Engine = "faster") -> Metric:
    """The metric that a task is evaluated with.

    Args:
        task: The task.
        classes: Required by the tasks that are prompted by classes.
        engine: COCO evaluator: ``"faster"`` inside training runs, ``"pycocotools"`` for numbers that are reported.

    Raises:
        UsageError: The task needs classes and none are given.
    """
    if task is Task.CAPTION:
        return CaptionMetric()
    if task is Task.GROUNDING:
        return GroundingMetric()
    if classes is None:
        raise UsageError(
            f"the metric of {task} needs the class list",
            why=f"its prompt is '{TASKS[task].prompt}'",
            fix="pass the classes of the data set",
        )
    if task is Task.SEMANTIC:
        return SemanticMetric(classes)
    return DetectionMetric(classes, masks=task is Task.INSTANCE, engine=engine)
