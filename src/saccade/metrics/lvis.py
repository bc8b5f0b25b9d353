"""LVIS average precision: COCO AP where only some classes are looked for in each image.

Source: A. Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", arXiv 1908.03195, section 2, and
its reference evaluator. An image says which classes were looked for: those that are annotated, and those that are
verified to be absent. Of some classes not every object is annotated. Therefore

- the 300 detections of an image with the best scores count, over all classes together;
- a detection of a class that was not looked for is left out;
- an unmatched detection of a class that is annotated in part is no error;
- classes are averaged within three groups too: rare, common and frequent.

What is left is COCO AP class by class, which faster-coco-eval computes.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import DataError, UsageError
from saccade.metrics.base import image_key
from saccade.metrics.detection import CocoResult, DetectionMetric, IouType, check_images, faster_evaluator, mean_defined
from saccade.samples import ClassList, Sample

MAX_DETECTIONS = 300
FREQUENCIES = ("r", "c", "f")


def lvis_ap(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], iou_type: IouType) -> CocoResult:
    """Evaluates detections in COCO form against an LVIS annotation file. Neither argument is changed.

    Args:
        ground_truth: ``images`` with ``neg_category_ids`` and ``not_exhaustive_category_ids``, ``annotations``,
            ``categories`` with ``frequency`` (``r``, ``c`` or ``f``).
        detections: As :func:`saccade.metrics.detection.coco_ap` takes them.
        iou_type: Overlap of boxes or of masks.

    Returns:
        AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@300, ARs@300, ARm@300, ARl@300.

    Raises:
        DataError: A detection names an image that the ground truth does not have.
    """
    check_images(ground_truth, detections)
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    images = {image["id"]: image for image in ground_truth["images"]}
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in ground_truth["annotations"]:
        objects[annotation["category_id"]].append(annotation)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for detection in _looked_for(ground_truth, _best(detections)):
        found[detection["category_id"]].append(detection)
    precision = np.full((10, 101, len(categories), 4), -1.0)
    recall = np.full((10, len(categories), 4), -1.0)
    for at, category in enumerate(categories):
        own, said = objects[category["id"]], found[category["id"]]
        if own:  # the scores of a class without objects are undefined
            shown = {entry["image_id"] for entry in (*own, *said)}
            precision[:, :, at], recall[:, at] = _one_class(
                category, [images[id_] for id_ in sorted(shown)], own, said, iou_type
            )
    return _result(precision, recall, categories)


def _best(detections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best of each image; among equal scores the order of the list decides."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    return [
        detection
        for found in by_image.values()
        for detection in sorted(found, key=lambda entry: -entry["score"])[:MAX_DETECTIONS]
    ]


def _looked_for(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The detections of classes that were looked for in their image."""
    known = {image["id"]: set(image["neg_category_ids"]) for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        known[annotation["image_id"]].add(annotation["category_id"])
    return [detection for detection in detections if detection["category_id"] in known[detection["image_id"]]]


def _one_class(
    category: dict[str, Any],
    images: list[dict[str, Any]],
    objects: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    iou_type: IouType,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision ``[10 IoU, 101 recalls, 4 areas]`` and recall ``[10 IoU, 4 areas]``.

    One class at a time: the evaluator's memory grows with images times classes, and here only a few images matter.
    """
    # The evaluator writes into the annotations, so each run gets its own copies of the dictionaries.
    truth = {
        "images": images,
        "categories": [{"frequency": FREQUENCIES[-1], **category}],  # it insists on a group, which has no effect here
        "annotations": [dict(annotation) for annotation in objects],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = faster_evaluator(truth, [dict(entry) for entry in detections], iou_type, lvis_style=True)
        evaluator.params.maxDets = [MAX_DETECTIONS]
        evaluator.evaluate()
        evaluator.accumulate()
    precision = np.asarray(evaluator.eval["precision"], np.float64).reshape(10, 101, 4)
    return precision, np.asarray(evaluator.eval["recall"], np.float64).reshape(10, 4)


def _result(
    precision: NDArray[np.float64], recall: NDArray[np.float64], categories: Sequence[dict[str, Any]]
) -> CocoResult:
    """Averages as the official evaluator does.

    Args:
        precision: ``[10 IoU, 101 recalls, K, 4 areas]``.
        recall: ``[10 IoU, K, 4 areas]``.
        categories: The K categories.
    """
    best = precision[:, :, :, 0]
    stats = {"AP": mean_defined(best), "AP50": mean_defined(best[0]), "AP75": mean_defined(best[5])}
    stats |= {f"AP{size}": mean_defined(precision[:, :, :, area]) for area, size in enumerate("sml", start=1)}
    for group in FREQUENCIES:
        members = [at for at, category in enumerate(categories) if category.get("frequency") == group]
        stats[f"AP{group}"] = mean_defined(best[:, :, members])
    for area, size in enumerate(("", "s", "m", "l")):
        stats[f"AR{size}@{MAX_DETECTIONS}"] = mean_defined(recall[:, :, area])
    return CocoResult(
        stats=stats,
        per_category={category["id"]: mean_defined(best[:, :, at]) for at, category in enumerate(categories)},
        ap_per_iou=tuple(mean_defined(row) for row in best),
        ar_per_iou=tuple(mean_defined(row) for row in recall[:, :, 0]),
        precision=precision[..., None],
    )


class LvisMetric(DetectionMetric):
    """LVIS AP of boxes, and of masks for instance segmentation.

    The targets say which classes were looked for in an image (``absent_class_ids``) and which are annotated in part
    (``partial_class_ids``); the class list says which classes are rare, common and frequent (``frequencies``).

    Args:
        classes: The classes, with their frequencies.
        masks: Also score masks, with names that begin with ``mask_``.

    Raises:
        UsageError: The classes have no frequencies.
    """

    def __init__(self, classes: ClassList, *, masks: bool = False) -> None:
        if not classes.frequencies:
            raise UsageError(
                "LVIS AP needs the frequency group of each class (r, c or f)",
                why=f"the class list {classes.names[:4]} has no frequencies",
                fix="read the data set with the reader lvis, or score it by the COCO protocol",
            )
        super().__init__(classes, masks=masks)

    def _entry(self, sample: Sample) -> dict[str, Any]:
        absent, partial = sample.target.absent_class_ids, sample.target.partial_class_ids
        if absent is None or partial is None:
            raise DataError(
                "the target does not say which classes were looked for",
                where=image_key(sample),
                why="LVIS AP needs absent_class_ids and partial_class_ids",
                fix="read the data set with the reader lvis, or score it by the COCO protocol",
            )
        return {
            "neg_category_ids": [self.classes.category_ids[id_] for id_ in absent.tolist()],
            "not_exhaustive_category_ids": [self.classes.category_ids[id_] for id_ in partial.tolist()],
        }

    def evaluate(self, iou_type: IouType) -> CocoResult:
        """The full evaluation of what has been added; ``"segm"`` needs ``masks=True``."""
        if iou_type not in self._results:
            truth, detections = self.to_coco(iou_type)
            for category, frequency in zip(truth["categories"], self.classes.frequencies, strict=True):
                category["frequency"] = frequency
            self._results[iou_type] = lvis_ap(truth, detections, iou_type)
        return self._results[iou_type]

    def per_class(self) -> list[dict[str, Any]]:
        """Class, its frequency group, number of objects, and the APs; -1 where a class has no object."""
        return [
            {**row, "frequency": frequency}
            for row, frequency in zip(super().per_class(), self.classes.frequencies, strict=True)
        ]
