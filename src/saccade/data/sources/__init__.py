"""Readers of data set formats. Each gives samples in the frame of the original image."""

from __future__ import annotations

from collections.abc import Callable

from saccade.data.sources.base import Source, balance_classes, select_range
from saccade.data.sources.spec import SourceSpec
from saccade.errors import UsageError, nearest

__all__ = ["READERS", "Source", "SourceSpec", "open_source"]


def _open_scenes(spec: SourceSpec) -> Source:
    from saccade.data.sources.scenes import ScenesSource

    return ScenesSource(task=spec.task, split=spec.split, size=spec.size, seed=spec.seed)


READERS: dict[str, Callable[[SourceSpec], Source]] = {
    "scenes": _open_scenes,
}
"""Reader name -> function that opens a data set."""


def open_source(spec: SourceSpec) -> Source:
    """Opens a data set: its reader, the range of samples, and the repetition of rare classes.

    Args:
        spec: What to open (:class:`saccade.training.config.SourceConfig` is one).

    Raises:
        UsageError: No such reader, or a choice that the data set does not have.
        DataError: The annotations are damaged or contradict themselves.
    """
    if spec.reader not in READERS:
        raise UsageError(f"unknown reader '{spec.reader}'", fix=nearest(spec.reader, READERS))
    source = select_range(READERS[spec.reader](spec), offset=spec.offset, limit=spec.limit)
    return balance_classes(source, spec.repeat_threshold)
