"""Visual grounding: share of boxes with IoU of at least 0.5, and mean IoU (specs of GiT, section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saccade.errors import DataError, UsageError
from saccade.metrics.base import image_key
from saccade.results import Grounding, Prediction
from saccade.samples import Sample

THRESHOLD = 0.5


def aligned_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """IoU of box i with box i, in float32 as the official code computes it (no +1 pixel).

    Args:
        boxes_xyxy: ``[N, 4]`` pixels.
        others_xyxy: ``[N, 4]`` pixels.

    Returns:
        ``[N]`` float32; 0 for two empty boxes.
    """
    a, b = boxes_xyxy.float(), others_xyxy.float()
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    intersection = sides[:, 0] * sides[:, 1]
    area_a, area_b = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b))
    union = area_a + area_b - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def accuracy(ious: Tensor, threshold: float = THRESHOLD) -> float:
    """Share of pairs whose IoU reaches the threshold (an IoU of exactly the threshold counts); NaN for none."""
    return float((ious >= threshold).float().mean())


def grounding_accuracy(boxes_xyxy: Tensor, true_boxes_xyxy: Tensor) -> dict[str, float]:
    """The scores of GiT's official ``VisualGroundingMetric``.

    Args:
        boxes_xyxy: ``[N, 4]`` predicted, in pixels of the original image.
        true_boxes_xyxy: ``[N, 4]``.

    Returns:
        ``acc`` (share with IoU of at least 0.5) and ``miou``, as fractions.
    """
    ious = aligned_iou(boxes_xyxy, true_boxes_xyxy)
    return {"acc": accuracy(ious), "miou": float(ious.mean())}


class GroundingMetric:
    """Acc@0.5 and mean IoU over phrases, in pixels of the original image.

    Every update counts: two equal phrases about one image are two records, as in the RefCOCO files.
    """

    def __init__(self) -> None:
        self._ious: list[float] = []

    @property
    def notes(self) -> list[str]:
        """See :class:`saccade.metrics.base.Metric`."""
        return []

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one phrase.

        Args:
            target: With exactly one box.
            prediction: A :class:`~saccade.results.Grounding`.

        Raises:
            DataError: The target does not have exactly one box.
            UsageError: The prediction is of another task.
        """
        where = f"image {image_key(target)[1]}, phrase '{target.phrase}'"
        if not isinstance(prediction, Grounding):
            raise UsageError(f"grounding is scored on Grounding, not on {type(prediction).__name__}", where=where)
        boxes = target.target.boxes
        if boxes is None or len(boxes) != 1:
            number = 0 if boxes is None else len(boxes)
            raise DataError(f"a grounding target has one box, this one has {number}", where=where)
        iou = aligned_iou(prediction.box_xyxy.detach().cpu().reshape(1, 4), torch.as_tensor(boxes).cpu().reshape(1, 4))
        self._ious.append(float(iou[0]))

    def ious(self) -> Tensor:
        """``[N]`` float32, in the order of the updates."""
        return torch.tensor(self._ious, dtype=torch.float32)

    def compute(self) -> dict[str, float]:
        """``Acc@0.5`` and ``mIoU``, as fractions."""
        ious = self.ious()
        return {f"Acc@{THRESHOLD}": accuracy(ious), "mIoU": float(ious.mean())}

    def per_class(self) -> list[dict[str, Any]]:
        """Empty: phrases have no classes."""
        return []

    def state(self) -> Any:
        """See :class:`saccade.metrics.base.Metric`."""
        return self._ious

    def merge(self, states: Sequence[Any]) -> None:
        """See :class:`saccade.metrics.base.Metric`."""
        self._ious = [iou for state in states for iou in state]
