"""Defects of medical data sets: pictures or volumes with a binary mask each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from saccade.data.checks.pairs import check_maps, check_partners
from saccade.data.checks.report import NO_OBJECT, SOFT_MASK, ImageEntry, Report
from saccade.data.images import read_labels
from saccade.data.sources.binary_masks import SOFT_EDGE, greys_of, object_of
from saccade.data.sources.label_maps import FoundPairs
from saccade.data.sources.layout import split_names
from saccade.data.sources.lits import lits_pairs, open_lits
from saccade.data.sources.spec import SourceSpec
from saccade.tasks import Task

Pairs: TypeAlias = Callable[[SourceSpec], FoundPairs]

_DRAWN = ("train", "val", "test")


def check_pairs(spec: SourceSpec, root: Path, report: Report, *, pairs: Pairs, published: int) -> list[ImageEntry]:
    """Looks at every mask of a split.

    Args:
        spec: The data set.
        root: Its folder.
        report: Where defects go.
        pairs: Finds pictures and masks.
        published: Of how many pairs the published splits are drawn.

    Returns:
        The images.
    """
    del root
    found = pairs(spec)
    drawn = next((name for name in split_names(spec.split) if name in _DRAWN), None)
    if drawn in (None, "train"):
        check_partners(found.unmatched_images, found.unmatched_maps, report)
    else:  # they belong to none of the parts, and are named once
        for reason, count in found.skipped.items():
            report.note(f"{reason}, named with the split 'train'", count)
    whole = len(pairs(dataclasses.replace(spec, split="all")).pairs) if drawn else published
    if whole != published:
        report.note(f"pairs that the splits are drawn from, other than the {published} of the published ones", whole)
    empty = 0

    def look(path: Path) -> tuple[int, ...]:
        nonlocal empty
        labels = read_labels(path)
        greys = greys_of(labels)
        if greys.mean() > SOFT_EDGE:
            odd = np.unique(labels[greys])[:8].tolist()
            report.add("value_outside_classes", f"{path.name}: {odd} in a binary mask")
        elif greys.any():
            report.note(SOFT_MASK)
        empty += not object_of(labels).any()
        return labels.shape

    entries = check_maps(found.pairs, look, report)
    report.note(NO_OBJECT, empty)
    if found.pairs and empty == len(found.pairs):
        report.add("unused_class", "no mask has an object")
    report.counts |= {"annotations": len(found.pairs), "classes": 2}
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
