"""What a data source is, and the sources made from other sources."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from saccade.errors import UsageError
from saccade.samples import ClassList, Sample
from saccade.tasks import Task


@runtime_checkable
class Source(Protocol):
    """A sized, indexable collection of samples in the frame of the original image."""

    @property
    def name(self) -> str:
        """Name of the data set and split, for messages and reports."""
        ...

    @property
    def task(self) -> Task:
        """The task of every sample."""
        ...

    @property
    def classes(self) -> ClassList | None:
        """The class list, for tasks prompted by classes."""
        ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """What was left out while the annotations were read, and how often."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class CountsClasses(Protocol):
    """A source that knows the classes of a sample without reading its image."""

    def class_ids_of(self, index: int) -> set[int]:
        """Class ids that occur in the sample."""
        ...


@runtime_checkable
class CountsObjects(Protocol):
    """A source that knows the number of objects of a sample without reading its image."""

    def object_count(self, index: int) -> int:
        """Objects of the sample that are learned, crowds and ignored ones left out."""
        ...


@runtime_checkable
class KnowsCaptions(Protocol):
    """A source that knows the captions of a sample without reading its image."""

    def captions_of(self, index: int) -> tuple[str, ...]:
        """The captions of the sample."""
        ...


class _CannotCountError(UsageError):
    """A part of another source was asked for classes that the other one does not list."""


class Selection:
    """Some samples of another source, in a given order (an index may occur more than once).

    Args:
        source: Where the samples come from.
        indices: Which ones.
    """

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices
        self.name, self.task, self.classes = source.name, source.task, source.classes
        self.skipped = source.skipped

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._source[self._indices[index]]

    def class_ids_of(self, index: int) -> set[int]:
        """Class ids that occur in the sample (only where the source below can say)."""
        if not isinstance(self._source, CountsClasses):
            raise _CannotCountError(f"'{self.name}' cannot list the classes of a sample without reading its image")
        return self._source.class_ids_of(self._indices[index])


def class_counts(source: Source) -> Counter[int] | None:
    """How many samples hold each class id; None where the source cannot say without reading images."""
    try:
        if isinstance(source, CountsClasses):
            return Counter(class_id for index in range(len(source)) for class_id in source.class_ids_of(index))
    except _CannotCountError:
        pass
    return None


def most_objects(source: Source) -> int:
    """Objects of the sample that has most of them; images are read where the source cannot say."""
    if isinstance(source, CountsObjects):
        return max(source.object_count(index) for index in range(len(source)))
    most = 0
    for index in range(len(source)):
        target = source[index].target
        crowd = 0 if target.is_crowd is None else int(target.is_crowd.sum())
        most = max(most, (0 if target.class_ids is None else len(target.class_ids)) - crowd)
    return most


def select_range(source: Source, *, offset: int = 0, limit: int = 0) -> Source:
    """Skips ``offset`` samples and keeps the next ``limit`` (0 = all).

    Raises:
        UsageError: Nothing is left.
    """
    if not offset and not limit:
        return source
    stop = min(len(source), offset + limit) if limit else len(source)
    if offset >= stop:
        raise UsageError(
            f"no sample is left of '{source.name}'",
            why=f"offset {offset} passes its {len(source)} samples",
            fix="lower the offset",
        )
    return Selection(source, range(offset, stop))


class Repeated(Selection):
    """A source whose samples are to be seen more than once per pass of training; elsewhere it is the source itself.

    Args:
        source: Where the samples come from.
        factors: How often each sample is seen per pass, on average; at least 1.
    """

    def __init__(self, source: Source, factors: Sequence[float]) -> None:
        super().__init__(source, range(len(source)))
        self.factors = tuple(factors)


def balance_classes(source: Source, threshold: float, rounding: Literal["up", "random"] = "up") -> Source:
    """Repeats images of rare classes in training (LVIS, arXiv 1908.03195, section 5.3).

    A class that occurs in the share f of the images gets the factor ``max(1, sqrt(threshold / f))``; an image is
    seen as often as its rarest class asks.

    Args:
        source: Must be able to list classes without reading images.
        threshold: Share of images below which a class counts as rare (0 = leave the source as it is).
        rounding: Factors between whole numbers are rounded up (mmdetection, GiT), or up or down anew in every pass so
            that the mean is right (detectron2).

    Raises:
        UsageError: The source cannot list classes.
    """
    if threshold <= 0:
        return source
    if not isinstance(source, CountsClasses):
        raise UsageError(
            f"'{source.name}' cannot repeat rare classes",
            why="its reader does not list classes",
            fix="repeat_threshold=0",
        )
    factors = repeat_factors([source.class_ids_of(index) for index in range(len(source))], threshold)
    return Repeated(source, factors if rounding == "random" else [math.ceil(factor) for factor in factors])


def repeat_factors(classes_of: Sequence[Collection[int]], threshold: float) -> list[float]:
    """How often each image should be seen per epoch so that rare classes are; see :func:`balance_classes`.

    Args:
        classes_of: Class ids in every image.
        threshold: Share of images below which a class counts as rare.
    """
    images_with = Counter(class_id for present in classes_of for class_id in set(present))
    factor = {id_: max(1.0, math.sqrt(threshold * len(classes_of) / count)) for id_, count in images_with.items()}
    return [max((factor[class_id] for class_id in present), default=1.0) for present in classes_of]
