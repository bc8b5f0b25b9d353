"""Readers of data set formats. Each gives samples in the frame of the original image."""

from __future__ import annotations

from collections.abc import Callable

from saccade.data.sources.base import Source, balance_classes, select_range
from saccade.data.sources.coco import CocoSource
from saccade.data.sources.karpathy import KarpathySource
from saccade.data.sources.mask_folder import MaskFolderSource, ade20k_source
from saccade.data.sources.refcoco import RefCocoSource
from saccade.data.sources.scenes import ScenesSource
from saccade.data.sources.spec import SourceSpec
from saccade.data.sources.voc import VocSource
from saccade.errors import UsageError, nearest

__all__ = ["READERS", "Source", "SourceSpec", "open_source"]


def _open_scenes(spec: SourceSpec) -> Source:
    return ScenesSource(task=spec.task, split=spec.split, size=spec.size, seed=spec.seed, style=spec.style)


def _open_coco(spec: SourceSpec) -> Source:
    return CocoSource(
        task=spec.task,
        root=spec.root,
        split=spec.split,
        images=spec.images,
        annotations=spec.annotations,
        classes=spec.classes,
        drop_empty=spec.drop_empty,
        min_side=spec.min_side,
    )


def _open_voc(spec: SourceSpec) -> Source:
    return VocSource(task=spec.task, root=spec.root, split=spec.split, classes=spec.classes)


def _open_mask_folder(spec: SourceSpec) -> Source:
    return MaskFolderSource(
        task=spec.task,
        root=spec.root,
        split=spec.split,
        images=spec.images,
        masks=spec.annotations,
        suffix=spec.mask_suffix,
        classes=spec.classes,
        ignore_labels=spec.ignore_labels,
        reduce_zero_label=spec.reduce_zero_label,
    )


def _open_ade20k(spec: SourceSpec) -> Source:
    return ade20k_source(task=spec.task, root=spec.root, split=spec.split, classes=spec.classes)


def _open_karpathy(spec: SourceSpec) -> Source:
    return KarpathySource(
        task=spec.task,
        root=spec.root,
        split=spec.split,
        images=spec.images,
        annotations=spec.annotations,
        per_caption=spec.per_caption,
    )


def _open_refcoco(spec: SourceSpec) -> Source:
    return RefCocoSource(
        task=spec.task, root=spec.root, split=spec.split, images=spec.images, annotations=spec.annotations
    )


READERS: dict[str, Callable[[SourceSpec], Source]] = {
    "scenes": _open_scenes,
    "coco": _open_coco,
    "voc": _open_voc,
    "mask_folder": _open_mask_folder,
    "ade20k": _open_ade20k,
    "karpathy": _open_karpathy,
    "refcoco": _open_refcoco,
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
