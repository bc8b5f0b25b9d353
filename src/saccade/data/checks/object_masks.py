"""Defects of medical data sets: pictures or volumes with a binary mask each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from saccade.data.checks.pairs import check_maps
from saccade.data.checks.report import ImageEntry, Report
from saccade.data.images import read_labels
from saccade.data.sources.lits import lits_pairs, open_lits
from saccade.data.sources.object_masks import LEVEL
from saccade.data.sources.spec import SourceSpec
from saccade.tasks import Task

Pairs: TypeAlias = Callable[[SourceSpec], tuple[list[tuple[Path, Path]], dict[str, int]]]

_WHITE = 255
_NEAR = 8  # greys that are as good as black or white
_SOFT_EDGE = 0.01  # share of other greys that a mask may have where it went through a resize


def check_pairs(spec: SourceSpec, root: Path, report: Report, *, pairs: Pairs) -> list[ImageEntry]:
    """Looks at every mask of a split.

    Args:
        spec: The data set.
        root: Its folder.
        report: Where defects go.
        pairs: Finds pictures and masks.

    Returns:
        The images.
    """
    del root
    found, skipped = pairs(spec)
    for reason, kind in (("image without a mask", "missing_mask"), ("mask without an image", "missing_image_of_mask")):
        for _ in range(skipped.get(reason, 0)):
            report.add(kind, report.name)

    def look(path: Path) -> tuple[int, ...]:
        labels = read_labels(path)
        top = _WHITE if labels.max(initial=0) > 1 else 1
        odd = (labels > top) | ((labels > _NEAR) & (labels < top - _NEAR))
        if odd.mean() > _SOFT_EDGE:
            report.add("value_outside_classes", f"{path.name}: {np.unique(labels[odd])[:8].tolist()} in a binary mask")
        report.note("image without an object", int(not (labels >= min(top, LEVEL)).any()))
        return labels.shape

    entries = check_maps(found, look, report)
    report.counts |= {"annotations": len(found), "classes": 2}
    return entries


def check_lits(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at every slice of every volume; there are no image files to be looked at behind them.

    Returns:
        Nothing.
    """
    source = open_lits(dataclasses.replace(spec, task=Task.SEMANTIC, drop_empty=False))
    maps = (source[index].target.semantic for index in range(len(source)))
    report.note("slice without liver", sum(labels is not None and not bool(labels.any()) for labels in maps))
    report.counts |= {"images": len(source), "volumes": len(lits_pairs(spec, root)), "classes": 2}
    return []
