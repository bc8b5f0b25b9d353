"""What every metric offers, and what the families share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from saccade.errors import DataError, UsageError
from saccade.results import Prediction, SemanticMap
from saccade.samples import ClassList, Sample

Key = tuple[str, int | str]
"""Identity of an image: its data set and its id there."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Metric(Protocol):
    """Accumulates predictions image by image and scores them all at the end.

    Between ranks: every rank updates its own metric, gathers all ``state()`` (picklable and compact: run lengths and
    counts, never dense masks) and calls ``merge`` with the list in rank order, its own state included.
    """

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers must know, e.g. a score that could not be computed and why."""

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one image. Both arguments are in the frame of the original image."""

    def compute(self) -> dict[str, float]:
        """The scores by name. A score that is undefined on this data is -1 (COCO AP) or NaN (all others)."""

    def per_class(self) -> list[dict[str, Any]]:
        """One row per class for reports; empty where the task has no classes."""

    def state(self) -> Any:
        """Everything accumulated so far."""

    def merge(self, states: Sequence[Any]) -> None:
        """Replaces what this metric holds by the union of the states, in their order."""


def image_key(sample: Sample) -> Key:
    """Identity of the sample's image."""
    return sample.origin.dataset, sample.origin.image_id


def add_once(records: dict[K, V], key: K, value: V) -> int:
    """Adds a record unless its key is known already: the first one counts, as in the official evaluators.

    Returns:
        1 for a repetition, else 0.
    """
    if key in records:
        return 1
    records[key] = value
    return 0


class ImageRecords(Generic[K, V]):
    """What most metrics share: one record of every image, by its identity, whatever the scores are made of.

    Attributes:
        images: Key of an image to its record.
        repetitions: Images that came again; the first prediction counts.
    """

    def __init__(self) -> None:
        self.images: dict[K, V] = {}
        self.repetitions = 0

    @property
    def notes(self) -> list[str]:
        """See :class:`Metric`; here how many images came more than once."""
        count = self.repetitions
        return [f"{count} images came more than once; only the first prediction of each counts"] if count else []

    def keep(self, key: K, record: V) -> None:
        """Adds the record of one image."""
        self.repetitions += add_once(self.images, key, record)

    def per_class(self) -> list[dict[str, Any]]:
        """Empty: the scores are not by class."""
        return []

    def state(self) -> Any:
        """See :class:`Metric`."""
        return self.images, self.repetitions

    def merge(self, states: Sequence[Any]) -> None:
        """See :class:`Metric`; an image that two ranks have counts once."""
        self.images, self.repetitions = {}, 0
        for images, repetitions in states:
            self.repetitions += repetitions
            for key, record in images.items():
                self.keep(key, record)


def check_classes(expected: ClassList, got: ClassList | None, key: Key) -> None:
    """Refuses a prediction or a target whose class list is not the metric's (a shifted list gives silent nonsense).

    Raises:
        DataError: The lists differ.
    """
    if got is not None and got is not expected and got.names != expected.names:
        raise DataError(
            f"the metric has {len(expected)} classes {expected.names[:4]}, this item has {len(got)} {got.names[:4]}",
            where=f"image {key[1]} of {key[0]}",
            why="class ids are positions in the class list: different lists cannot be compared",
            fix="build the metric, the data set and the model with the same class list",
        )


def check_size(predicted: Sequence[int], true: Sequence[int], *, where: object = None) -> None:
    """Refuses a predicted map of another size than the true one.

    Raises:
        DataError: The sizes differ.
    """
    if tuple(predicted) != tuple(true):
        raise DataError(
            f"the predicted map is {tuple(predicted)}, the true one {tuple(true)}",
            where=where,
            why="one of them is not in the frame of the original image",
        )


def label_maps(target: Sample, prediction: Prediction, classes: ClassList) -> tuple[Tensor, Tensor]:
    """The true and the predicted label map of an image, ``[H, W]`` each, on the CPU.

    Raises:
        DataError: The maps have different sizes or classes, or the target has none.
        UsageError: The prediction is of another task.
    """
    key = image_key(target)
    if not isinstance(prediction, SemanticMap):
        raise UsageError(f"label maps are scored on SemanticMap, not on {type(prediction).__name__}", where=key)
    if target.target.semantic is None:
        raise DataError("the target has no semantic map", where=key)
    check_classes(classes, target.classes, key)
    check_classes(classes, prediction.classes, key)
    truth = target.target.semantic.as_subclass(Tensor).cpu()
    truth = truth.reshape(truth.shape[-2:])
    check_size(prediction.labels.shape, truth.shape, where=key)
    return truth, prediction.labels.cpu()


def mean_rows(rows: Sequence[Sequence[float]], names: Sequence[str]) -> dict[str, float]:
    """The means over images, each a row of its scores, by name; NaN without an image."""
    means = np.mean(rows, axis=0).tolist() if rows else [float("nan")] * len(names)
    return dict(zip(names, means, strict=True))
