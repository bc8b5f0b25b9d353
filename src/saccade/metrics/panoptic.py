"""Panoptic quality (A. Kirillov et al., "Panoptic Segmentation", CVPR 2019), as COCO's panopticapi computes it.

A predicted and a true segment of the same class match if their IoU is above 0.5; pixels that are unlabelled in the
truth are left out of the union. Crowd segments are never matched and never missed. An unmatched prediction that lies by
more than half on unlabelled pixels or on a crowd of its class is no error. Per class, SQ is the mean IoU of the
matches, RQ their F1 score and PQ the product; averages take the classes that occur in the truth or in a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.errors import DataError, UsageError
from saccade.metrics.base import ImageRecords, Key, check_classes, check_size, image_key
from saccade.results import Panoptic, Prediction
from saccade.samples import ClassList, Sample, Segment

_VOID = 0
_MIN_IOU = 0.5
_IDS = 2**24  # segment ids fit into the three channels of a PNG


@dataclass(kw_only=True)
class Tally:
    """Matches and errors of one class.

    Attributes:
        tp: Matched pairs.
        fp: Predicted segments without a match.
        fn: True segments without a match.
        iou: Sum of the IoU over the matched pairs.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0

    def add(self, other: Tally) -> None:
        """Adds the counts of another one."""
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        self.iou += other.iou

    def scores(self) -> dict[str, float]:
        """PQ, SQ and RQ; NaN for a class that does not occur, SQ 0 without a match."""
        total = self.tp + self.fp / 2 + self.fn / 2
        if not total:
            return {"PQ": math.nan, "SQ": math.nan, "RQ": math.nan}
        return {"PQ": self.iou / total, "SQ": self.iou / self.tp if self.tp else 0.0, "RQ": self.tp / total}


def match_segments(
    true_ids: NDArray[np.int64],
    true_segments: Sequence[Segment],
    predicted_ids: NDArray[np.int64],
    predicted_segments: Sequence[Segment],
    *,
    where: object = None,
) -> dict[int, Tally]:
    """Compares the two maps of one image.

    Args:
        true_ids: ``[H, W]`` segment ids, 0 where unlabelled.
        true_segments: What the ids are; ids that are not listed count as other than unlabelled, but as no segment.
        predicted_ids: ``[H, W]``, 0 for none.
        predicted_segments: What the ids are.
        where: The image, for errors.

    Returns:
        What occurs, by class id.

    Raises:
        DataError: The maps differ in size, or a map and its list of predicted segments name different ids.
    """
    check_size(predicted_ids.shape, true_ids.shape, where=where)
    pairs, counts = np.unique(true_ids.astype(np.int64) * _IDS + predicted_ids, return_counts=True)
    common = {divmod(pair, _IDS): count for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)}
    true_areas, areas = _areas(true_ids), _areas(predicted_ids)
    truths, said = {one.id: one for one in true_segments}, {one.id: one for one in predicted_segments}
    if odd := sorted(said.keys() ^ (areas.keys() - {_VOID})):
        raise DataError(
            "the predicted map and its list of segments name different ids", where=where, why=f"ids {odd[:5]}"
        )
    tallies: dict[int, Tally] = {}

    def of(segment: Segment) -> Tally:
        return tallies.setdefault(segment.class_id, Tally())

    matched_truths, matched = set(), set()
    for (true_id, id_), intersection in common.items():
        truth, one = truths.get(true_id), said.get(id_)
        if truth is None or one is None or truth.is_crowd or truth.class_id != one.class_id:
            continue
        union = areas[id_] + true_areas[true_id] - intersection - common.get((_VOID, id_), 0)
        if intersection / union > _MIN_IOU:
            of(one).add(Tally(tp=1, iou=intersection / union))
            matched_truths.add(true_id)
            matched.add(id_)
    for truth in truths.values():
        if not truth.is_crowd and truth.id not in matched_truths:
            of(truth).fn += 1
    crowds = {truth.class_id: truth.id for truth in truths.values() if truth.is_crowd}  # the last one, as officially
    for one in said.values():
        if one.id in matched:
            continue
        excused = common.get((_VOID, one.id), 0)
        if one.class_id in crowds:
            excused += common.get((crowds[one.class_id], one.id), 0)
        if excused / areas[one.id] <= _MIN_IOU:
            of(one).fp += 1
    return tallies


def _areas(ids: NDArray[np.int64]) -> dict[int, int]:
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


class PanopticMetric(ImageRecords[Key, dict[int, Tally]]):
    """PQ, SQ and RQ over all classes, over things and over stuff.

    Args:
        classes: The classes; their ``things`` say which are things.

    Raises:
        UsageError: The classes do not say which are things.
    """

    def __init__(self, classes: ClassList) -> None:
        super().__init__()
        if not classes.things:
            raise UsageError(
                "panoptic quality needs to know which classes are things",
                why=f"the class list {classes.names[:4]} does not say so",
                fix="read the data set with the reader panoptic, or fill ClassList.things",
            )
        self.classes = classes

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one image.

        Args:
            target: With ``panoptic`` and ``segments``.
            prediction: A :class:`~saccade.results.Panoptic`.

        Raises:
            DataError: The two do not belong together (size, classes), or the target has no map.
            UsageError: The prediction is of another task.
        """
        key = image_key(target)
        if not isinstance(prediction, Panoptic):
            raise UsageError(f"panoptic quality is scored on Panoptic, not on {type(prediction).__name__}", where=key)
        if target.target.panoptic is None:
            raise DataError("the target has no panoptic map", where=key)
        check_classes(self.classes, target.classes, key)
        check_classes(self.classes, prediction.classes, key)
        tallies = match_segments(
            torch.as_tensor(target.target.panoptic).cpu().numpy(),
            target.target.segments,
            prediction.segment_ids.cpu().numpy(),
            prediction.segments,
            where=key,
        )
        if any(not 0 <= class_id < len(self.classes) for class_id in tallies):
            raise DataError(f"a class id of a segment is outside 0..{len(self.classes) - 1}", where=key)
        self.keep(key, tallies)

    def tallies(self) -> list[Tally]:
        """Sums over all images, by class id."""
        total = [Tally() for _ in self.classes.names]
        for tallies in self.images.values():
            for class_id, tally in tallies.items():
                total[class_id].add(tally)
        return total

    def compute(self) -> dict[str, float]:
        """PQ, SQ and RQ over all classes, and with the endings ``_things`` and ``_stuff``; NaN without such a class."""
        tallies = self.tallies()
        chosen = {
            "": [True] * len(tallies),
            "_things": list(self.classes.things),
            "_stuff": [not thing for thing in self.classes.things],
        }
        scores: dict[str, float] = {}
        for ending, keep in chosen.items():
            rows = [tally.scores() for tally, kept in zip(tallies, keep, strict=True) if kept]
            for name in ("PQ", "SQ", "RQ"):
                values = [row[name] for row in rows if not math.isnan(row[name])]
                scores[f"{name}{ending}"] = float(np.mean(values)) if values else math.nan
        return scores

    def per_class(self) -> list[dict[str, Any]]:
        """Class, whether it is a thing, true segments, and PQ, SQ and RQ; NaN where a class does not occur."""
        named = zip(self.tallies(), self.classes.names, self.classes.category_ids, self.classes.things, strict=True)
        return [
            {
                "class_id": class_id,
                "class_name": name,
                "category_id": category_id,
                "is_thing": is_thing,
                "segments": tally.tp + tally.fn,
                **tally.scores(),
            }
            for class_id, (tally, name, category_id, is_thing) in enumerate(named)
        ]
