"""The tasks: what each is asked with, what it learns from, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from saccade.errors import UsageError, nearest


class Task(StrEnum):
    """A vision task. The value is the name used in files, configs and on the command line."""

    DETECTION = "detection"
    INSTANCE = "instance_segmentation"
    SEMANTIC = "semantic_segmentation"
    CAPTION = "caption"
    GROUNDING = "grounding"
    DEPTH = "depth"
    REFERRING = "referring_segmentation"
    CENTER = "center"


@dataclass(kw_only=True, frozen=True)
class TaskSpec:
    """What a task takes and gives.

    Attributes:
        prompt: ``"classes"`` (a list of class names), ``"phrase"`` (one expression), ``"phrases"`` (several at once) or
            ``"none"``.
        target: The fields of :class:`saccade.samples.Target` that training and evaluation read.
        result: Name of the result type in :mod:`saccade.results`.
        alias: The short name accepted on the command line.
    """

    prompt: Literal["classes", "phrase", "phrases", "none"]
    target: tuple[str, ...]
    result: str
    alias: str


TASKS: dict[Task, TaskSpec] = {
    Task.DETECTION: TaskSpec(prompt="classes", target=("boxes", "class_ids"), result="Instances", alias="detection"),
    Task.INSTANCE: TaskSpec(
        prompt="classes", target=("boxes", "class_ids", "masks"), result="Instances", alias="instance"
    ),
    Task.SEMANTIC: TaskSpec(prompt="classes", target=("semantic",), result="SemanticMap", alias="semantic"),
    Task.CAPTION: TaskSpec(prompt="none", target=("captions",), result="Caption", alias="caption"),
    Task.GROUNDING: TaskSpec(prompt="phrase", target=("boxes",), result="Grounding", alias="grounding"),
    Task.DEPTH: TaskSpec(prompt="none", target=("depth_m",), result="DepthMap", alias="depth"),
    Task.REFERRING: TaskSpec(prompt="phrases", target=("masks",), result="Referral", alias="referring"),
    Task.CENTER: TaskSpec(prompt="classes", target=("semantic",), result="Centers", alias="center"),
}


def parse_task(name: str) -> Task:
    """Reads a task by its name or its alias (``instance`` for ``instance_segmentation``).

    Raises:
        UsageError: No such task; the message offers the nearest name.
    """
    by_name = {str(task): task for task in TASKS} | {spec.alias: task for task, spec in TASKS.items()}
    if name not in by_name:
        raise UsageError(f"unknown task '{name}'", fix=nearest(name, by_name))
    return by_name[name]


def require_task(offered: Sequence[Task], asked: Task) -> None:
    """Refuses a task that a model does not offer.

    Raises:
        UsageError: It is not among those offered.
    """
    if asked not in offered:
        raise UsageError(f"this model does not offer the task '{asked}'", fix=f"choose one of: {', '.join(offered)}")
