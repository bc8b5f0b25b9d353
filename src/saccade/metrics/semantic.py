"""Semantic segmentation: IoU, accuracy, Dice, precision and recall per class, and lesion scores per image.

The set-level scores follow mmsegmentation's ``IoUMetric``: areas are summed over all images first; pixels with the
ignored label are left out of both maps; a class that occurs in neither is NaN and not averaged; a class that is only
predicted has IoU 0 but an undefined accuracy.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from saccade.labels import background_of
from saccade.metrics.base import ImageRecords, Key, check_size, image_key, label_maps
from saccade.results import Prediction
from saccade.samples import IGNORE_LABEL, ClassList, Sample

SCORE_NAMES = ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall")


@dataclass(kw_only=True, frozen=True)
class Areas:
    """Pixel counts per class, ``[K]`` int64 each.

    Attributes:
        intersect: Predicted and true.
        pred: Predicted (where the truth is not ignored).
        label: True.
    """

    intersect: NDArray[np.int64]
    pred: NDArray[np.int64]
    label: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        """Predicted or true."""
        return self.pred + self.label - self.intersect

    def __add__(self, other: Areas) -> Areas:
        return Areas(
            intersect=self.intersect + other.intersect, pred=self.pred + other.pred, label=self.label + other.label
        )

    @classmethod
    def zero(cls, num_classes: int) -> Areas:
        """No pixels at all."""
        return cls(**{name: np.zeros(num_classes, np.int64) for name in ("intersect", "pred", "label")})

    @classmethod
    def of(
        cls, label: NDArray[Any], pred: NDArray[Any], num_classes: int, *, ignore_index: int = IGNORE_LABEL
    ) -> Areas:
        """Counts one image.

        Args:
            label: True class ids, any shape.
            pred: Predicted class ids, same shape.
            num_classes: Ids outside 0..num_classes-1 count in neither histogram (yet the other map's pixel does).
            ignore_index: True label of the pixels to leave out.

        Raises:
            DataError: The shapes differ.
        """
        check_size(pred.shape, label.shape)
        counted = label != ignore_index
        label, pred = label[counted], pred[counted]

        def histogram(ids: NDArray[Any]) -> NDArray[np.int64]:
            inside = ids[(ids >= 0) & (ids < num_classes)]
            return np.bincount(inside.astype(np.int64, copy=False), minlength=num_classes)

        return cls(intersect=histogram(pred[pred == label]), pred=histogram(pred), label=histogram(label))


def class_scores(areas: Areas, dtype: DTypeLike = np.float64) -> dict[str, NDArray[Any]]:
    """Scores per class, ``[K]`` each, by :data:`SCORE_NAMES`; NaN where undefined."""
    intersect, union, pred, label = (
        counts.astype(dtype) for counts in (areas.intersect, areas.union, areas.pred, areas.label)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = intersect / pred, intersect / label
        return {
            "IoU": intersect / union,
            "Acc": recall,
            "Dice": 2 * intersect / (pred + label),
            "Fscore": 2 * precision * recall / (precision + recall),
            "Precision": precision,
            "Recall": recall,
        }


def summary(areas: Areas, *, nan_to_num: float | None = None, dtype: DTypeLike = np.float64) -> dict[str, Any]:
    """aAcc (share of right pixels) and the mean over classes of every score, as fractions.

    Args:
        areas: Sums over the set.
        nan_to_num: Counts undefined classes with this value instead of leaving them out.
        dtype: Precision of the arithmetic; the official code has float32.
    """
    total = areas.label.sum().astype(dtype)
    scores = {"aAcc": areas.intersect.sum().astype(dtype) / total if total else np.asarray(np.nan, dtype)}
    for name, values in class_scores(areas, dtype).items():
        scores[f"m{name}"] = _mean(values if nan_to_num is None else np.nan_to_num(values, nan=nan_to_num))
    return scores


def percent(areas: Areas, *, nan_to_num: float | None = None) -> dict[str, float]:
    """The summary as mmsegmentation prints it: per cent in float32, rounded to two decimals."""
    fractions = summary(areas, nan_to_num=nan_to_num, dtype=np.float32)
    return {name: round(float(np.round(value * 100, 2)), 2) for name, value in fractions.items()}


def official_percentages(
    predictions: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], *, ignore_index: int = IGNORE_LABEL
) -> dict[str, float]:
    """What mmsegmentation's ``IoUMetric`` prints for a few maps (see :func:`percent`).

    Args:
        predictions: ``[H, W]`` class ids each. The number of classes is not needed: absent ones are not averaged.
        labels: ``[H, W]`` true class ids each.
        ignore_index: True label of the pixels to leave out.
    """
    pairs = [(label.cpu().numpy(), pred.cpu().numpy()) for label, pred in zip(labels, predictions, strict=True)]
    highest = max(int(ids.max()) for label, pred in pairs for ids in (label[label != ignore_index], pred) if ids.size)
    total = Areas.zero(highest + 1)
    for label, pred in pairs:
        total += Areas.of(label, pred, highest + 1, ignore_index=ignore_index)
    return percent(total)


def _mean(values: NDArray[Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "mean of empty slice": NaN is the answer then
        return np.nanmean(values)


@dataclass(kw_only=True, frozen=True)
class _Counts:
    """Areas of one image, only of the classes that occur in it."""

    classes: NDArray[np.int64]
    areas: Areas

    @classmethod
    def of(cls, areas: Areas) -> _Counts:
        classes = np.flatnonzero(areas.pred + areas.label)
        kept = Areas(intersect=areas.intersect[classes], pred=areas.pred[classes], label=areas.label[classes])
        return cls(classes=classes, areas=kept)


class SemanticMetric(ImageRecords[Key, _Counts]):
    """Scores of semantic maps over a set.

    Besides the set-level scores there are means over images: for each image the mean over the classes that occur in its
    truth or prediction. With two classes (binary lesions) the foreground is also scored alone, over the set and per
    image; an image without foreground in truth and prediction counts as 1 there, as the lesion challenges do.

    Args:
        classes: The K classes. With two, the foreground is the one not called ``background`` (else the second).
        ignore_index: True label of the pixels to leave out.
    """

    def __init__(self, classes: ClassList, *, ignore_index: int = IGNORE_LABEL) -> None:
        super().__init__()
        self.classes, self.ignore_index = classes, ignore_index

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one image.

        Raises:
            DataError: The maps have different sizes or classes, or the target has none.
            UsageError: The prediction is of another task.
        """
        truth, predicted = label_maps(target, prediction, self.classes)
        areas = Areas.of(truth.numpy(), predicted.numpy(), len(self.classes), ignore_index=self.ignore_index)
        self.keep(image_key(target), _Counts.of(areas))

    def areas(self) -> Areas:
        """Sums over all images."""
        total = Areas.zero(len(self.classes))
        for counts in self.images.values():
            total.intersect[counts.classes] += counts.areas.intersect
            total.pred[counts.classes] += counts.areas.pred
            total.label[counts.classes] += counts.areas.label
        return total

    def _image_scores(self) -> dict[str, NDArray[np.float64]]:
        """IoU and Dice, ``[images, K]``; NaN where a class does not occur in an image."""
        tables = {name: np.full((len(self.images), len(self.classes)), np.nan) for name in ("IoU", "Dice")}
        for row, counts in enumerate(self.images.values()):
            scores = class_scores(counts.areas)
            for name, table in tables.items():
                table[row, counts.classes] = scores[name]
        return tables

    def compute(self) -> dict[str, float]:
        """Set level: aAcc, mIoU, mAcc, mDice, mFscore, mPrecision, mRecall. Means over images: image_mIoU, image_mDice.

        With two classes also IoU, Dice, image_IoU and image_Dice of the foreground.
        """
        areas = self.areas()
        scores = {name: float(value) for name, value in summary(areas).items()}
        tables = self._image_scores()
        for name, table in tables.items():
            present = ~np.isnan(table)
            rows = present.any(axis=1)
            means = np.nansum(table[rows], axis=1) / present[rows].sum(axis=1)
            scores[f"image_m{name}"] = float(_mean(means))
        if len(self.classes) == 2:
            at = 1 - background_of(self.classes)
            per_class = class_scores(areas)
            for name, table in tables.items():
                scores[name] = float(per_class[name][at])
                scores[f"image_{name}"] = float(_mean(np.nan_to_num(table[:, at], nan=1.0)))
        return scores

    def per_class(self) -> list[dict[str, Any]]:
        """Class, true pixels, the scores over the set, and the means over the images where the class occurs."""
        areas, tables = self.areas(), self._image_scores()
        scores = class_scores(areas)
        return [
            {
                "class_id": at,
                "class_name": name,
                "category_id": category_id,
                "pixels": int(areas.label[at]),
                **{score: float(values[at]) for score, values in scores.items()},
                **{f"image_{score}": float(_mean(table[:, at])) for score, table in tables.items()},
            }
            for at, (name, category_id) in enumerate(zip(self.classes.names, self.classes.category_ids, strict=True))
        ]
