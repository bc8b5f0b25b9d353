"""What a model says: one result type per task, in the frame of the original image.

Every result knows how to describe itself (``to_dict``) and how to draw itself (:mod:`saccade.drawing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from saccade.samples import ClassList

RLE: TypeAlias = dict[str, Any]
"""COCO run-length encoding: ``{"size": [height, width], "counts": bytes}``."""


@dataclass(kw_only=True)
class Instances:
    """Detected objects, best first.

    Attributes:
        boxes_xyxy: ``[N, 4]`` float32 pixels of the original image.
        scores: ``[N]`` float32 in 0..1.
        class_ids: ``[N]`` int64 in 0..K-1.
        classes: Names and category ids of the K classes.
        size_hw: Size of the original image.
        masks: N run-length masks, or None for boxes only.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    class_ids: Tensor
    classes: ClassList
    size_hw: tuple[int, int]
    masks: list[RLE] | None = None


@dataclass(kw_only=True)
class SemanticMap:
    """One class per pixel.

    Attributes:
        labels: ``[H, W]`` int64 class ids.
        classes: Names and category ids of the classes.
    """

    labels: Tensor
    classes: ClassList


@dataclass(kw_only=True)
class Caption:
    """A sentence.

    Attributes:
        text: The sentence.
        score: Length-normalised log-probability.
    """

    text: str
    score: float


@dataclass(kw_only=True)
class Grounding:
    """The box that a phrase refers to.

    Attributes:
        phrase: The phrase as asked.
        box_xyxy: ``[4]`` float32 pixels of the original image.
        score: Geometric mean of the probabilities of the four box tokens, 0..1.
    """

    phrase: str
    box_xyxy: Tensor
    score: float


Prediction: TypeAlias = Instances | SemanticMap | Caption | Grounding
