"""PASCAL VOC mean average precision of boxes.

Source: the development kit of the VOC challenges (``VOCevaldet.m``, ``VOCap.m``). Detections of a class are taken from
the best score down. Each belongs to the object of its class in its image that it overlaps most; with an IoU of at least
0.5 it is right the first time that object is met and wrong every time after; objects marked difficult count neither as
found nor as missed. The kit's boxes include their last pixel, ours end behind it, so that the IoU needs no ``+ 1``.

AP is the mean of the best precision at the recalls 0, 0.1 .. 1 (up to VOC 2007, and in GiT's few-shot test on WIDER
FACE), or the area under the curve of the best precision from each recall on (from VOC 2010).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from saccade.metrics.detection import DetectionMetric, check_images
from saccade.results import Prediction
from saccade.samples import ClassList, Sample

THRESHOLD = 0.5
_RECALLS = np.arange(0, 1.05, 0.1)


def voc_ap(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], *, eleven_points: bool
) -> dict[int, float]:
    """Evaluates detections in COCO form.

    Args:
        ground_truth: ``images``, ``categories``, and ``annotations`` where ``iscrowd`` marks what is difficult.
        detections: ``image_id``, ``category_id``, ``score`` and ``bbox`` (x, y, width, height in pixels). Among equal
            scores the order of the list decides.
        eleven_points: The mean at eleven recalls instead of the area under the curve.

    Returns:
        AP by category id; NaN for a class without objects that count.

    Raises:
        DataError: A detection names an image that the ground truth does not have.
    """
    check_images(ground_truth, detections)
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in ground_truth["annotations"]:
        objects[annotation["category_id"]].append(annotation)
    for detection in sorted(detections, key=lambda entry: -entry["score"]):
        found[detection["category_id"]].append(detection)
    result = {}
    for category_id in (category["id"] for category in ground_truth["categories"]):
        own = objects[category_id]
        number = sum(not annotation["iscrowd"] for annotation in own)
        right = _judge(own, found[category_id])
        result[category_id] = average_precision(right, number, eleven_points=eleven_points) if number else math.nan
    return result


def _judge(objects: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]]) -> NDArray[np.bool_]:
    """Whether each detection of one class, best first, is right; those of difficult objects are left out."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in objects:
        by_image[annotation["image_id"]].append(annotation)
    met: set[tuple[int, int]] = set()
    right = []
    for detection in detections:
        image_id = detection["image_id"]
        candidates = by_image[image_id]
        at, overlap = -1, 0.0
        if candidates:
            ious = mask_utils.iou([detection["bbox"]], [entry["bbox"] for entry in candidates], [0] * len(candidates))
            at, overlap = int(ious[0].argmax()), float(ious[0].max())
        if overlap < THRESHOLD:
            right.append(False)
        elif not candidates[at]["iscrowd"]:
            right.append((image_id, at) not in met)
            met.add((image_id, at))
    return np.array(right, dtype=bool)


def average_precision(right: NDArray[np.bool_], number: int, *, eleven_points: bool) -> float:
    """AP of one class.

    Args:
        right: Whether each detection is right, best first.
        number: Objects to find, at least 1.
        eleven_points: See :func:`voc_ap`.
    """
    found = np.cumsum(right)
    recall, precision = found / number, found / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a greater one
    if eleven_points:
        at = np.searchsorted(recall, _RECALLS, side="left")
        return float(np.append(best, 0.0)[at].mean())
    return float((np.diff(recall, prepend=0.0) * best).sum())


class VocMetric:
    """VOC mAP of boxes; ignored regions of the targets (``is_crowd``) are the objects marked difficult.

    Args:
        classes: The classes.
        eleven_points: See :func:`voc_ap`.
    """

    def __init__(self, classes: ClassList, *, eleven_points: bool) -> None:
        self.eleven_points = eleven_points
        self._collected = DetectionMetric(classes)

    @property
    def notes(self) -> list[str]:
        """See :class:`saccade.metrics.base.Metric`."""
        return self._collected.notes

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one image; see :meth:`saccade.metrics.detection.DetectionMetric.update`."""
        self._collected.update(target, prediction)

    def compute(self) -> dict[str, float]:
        """``mAP``: the mean over the classes that have objects; NaN if none has."""
        values = [value for value in self._per_category()[0].values() if not math.isnan(value)]
        return {"mAP": float(np.mean(values)) if values else math.nan}

    def per_class(self) -> list[dict[str, Any]]:
        """Class, number of objects (without difficult ones), AP; NaN where a class has no object."""
        per_category, counts = self._per_category()
        classes = self._collected.classes
        return [
            {
                "class_id": class_id,
                "class_name": name,
                "category_id": category_id,
                "objects": counts[category_id],
                "AP": per_category[category_id],
            }
            for class_id, (name, category_id) in enumerate(zip(classes.names, classes.category_ids, strict=True))
        ]

    def _per_category(self) -> tuple[dict[int, float], dict[int, int]]:
        """AP and number of objects by category id."""
        truth, detections = self._collected.to_coco("bbox")
        counts = dict.fromkeys(self._collected.classes.category_ids, 0)
        for annotation in truth["annotations"]:
            counts[annotation["category_id"]] += 1 - annotation["iscrowd"]
        return voc_ap(truth, detections, eleven_points=self.eleven_points), counts

    def state(self) -> Any:
        """See :class:`saccade.metrics.base.Metric`."""
        return self._collected.state()

    def merge(self, states: Sequence[Any]) -> None:
        """See :class:`saccade.metrics.base.Metric`."""
        self._collected.merge(states)
