"""Defects of formats that list plain boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from saccade.data.checks.report import ImageEntry, Report, check_box
from saccade.data.sources.boxes import LabelledImage


def check_boxes(
    files: Iterable[tuple[str, LabelledImage]], classes: Sequence[str], report: Report, *, ignored: str
) -> list[ImageEntry]:
    """Looks at the objects of every image.

    Args:
        files: What to call each image in the report, and the image with its objects.
        classes: The classes that are asked for; empty = all.
        report: Where defects go.
        ignored: What the format calls its ignored objects.

    Returns:
        The images.
    """
    entries = []
    used: Counter[str] = Counter()
    objects = 0
    for label, file in files:
        entries.append(ImageEntry(path=file.image, declared_hw=file.size_hw, label=f"{file.image.name} (of {label})"))
        for number, item in enumerate(file.objects):
            objects += 1
            used[item.name] += 1
            report.note(ignored, int(item.ignored))
            if classes and item.name not in classes:
                report.add("unknown_category", f"{label}, object {number}: '{item.name}'")
            check_box(report, item.box_xyxy, file.size_hw, f"{label}, object {number} ({item.name})")
        report.note("image without annotations", int(not file.objects))
    for name in classes:
        if not used[name]:
            report.add("unused_class", name)
    report.counts |= {"annotations": objects, "classes": len(used)}
    return entries
