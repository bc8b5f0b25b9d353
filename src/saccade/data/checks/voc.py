"""Defects of PASCAL VOC folders."""

from __future__ import annotations

from pathlib import Path

from saccade.data.checks.boxes import check_boxes
from saccade.data.checks.report import UNDIVIDED, ImageEntry, Report
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
    files = []
    for path in list_images(spec, root):
        label = str(path.relative_to(root))
        if not path.is_file():
            report.add("unreadable_annotations", f"{label}: does not exist")
            continue
        try:
            files.append((label, read_voc_file(path)))
        except DataError as error:
            report.add("unreadable_annotations", f"{label}: {error.what} ({error.why})")
    if spec.split != "all" and not has_splits(root, spec.split):
        report.note(UNDIVIDED)
    return check_boxes(files, spec.classes, report, ignored="difficult object")
