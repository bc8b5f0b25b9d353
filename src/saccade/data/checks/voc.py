"""Defects of PASCAL VOC folders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from saccade.data.checks.report import UNDIVIDED, ImageEntry, Report, check_box
from saccade.data.sources.spec import SourceSpec
from saccade.data.sources.voc import find_voc_files, has_splits, read_voc_file
from saccade.errors import DataError


def list_images(spec: SourceSpec, root: Path) -> list[Path]:
    """The XML files of the split: one per image."""
    return find_voc_files(root, spec.split, must_exist=False)[0]


def check(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the XML files of a split.

    Returns:
        The images that they name.
    """
    entries = []
    used: Counter[str] = Counter()
    objects = 0
    for path in list_images(spec, root):
        label = str(path.relative_to(root))
        if not path.is_file():
            report.add("unreadable_annotations", f"{label}: does not exist")
            continue
        try:
            file = read_voc_file(path)
        except DataError as error:
            report.add("unreadable_annotations", f"{label}: {error.what} ({error.why})")
            continue
        entries.append(
            ImageEntry(path=file.image, declared_hw=file.size_hw, label=f"{file.image.name} (of {path.name})")
        )
        for number, item in enumerate(file.objects):
            objects += 1
            used[item.name] += 1
            report.note("difficult object", int(item.difficult))
            if spec.classes and item.name not in spec.classes:
                report.add("unknown_category", f"{label}, object {number}: '{item.name}'")
            check_box(report, item.box_xyxy, file.size_hw, f"{label}, object {number} ({item.name})")
        report.note("image without annotations", int(not file.objects))
    for name in spec.classes:
        if not used[name]:
            report.add("unused_class", name)
    if spec.split != "all" and not has_splits(root, spec.split):
        report.note(UNDIVIDED)
    report.counts |= {"annotations": objects, "classes": len(used)}
    return entries
