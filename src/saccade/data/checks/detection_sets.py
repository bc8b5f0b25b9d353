"""Defects of the public data sets that have a form of their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from saccade.data.checks import coco
from saccade.data.checks.boxes import check_boxes
from saccade.data.checks.pairs import check_instance_maps, check_label_maps, check_partners
from saccade.data.checks.report import ImageEntry, Report, check_box
from saccade.data.class_names import CLASS_NAMES
from saccade.data.images import read_labels
from saccade.data.sources.bdd100k import (
    bdd100k_form,
    bdd100k_instances,
    bdd100k_pairs,
    bdd100k_values,
    coco_layout,
    read_bitmask,
    read_frames,
)
from saccade.data.sources.boxes import LabelledImage
from saccade.data.sources.cityscapes import (
    cityscapes_instances,
    cityscapes_pairs,
    coco_form,
    read_instance_ids,
    semantic_values,
)
from saccade.data.sources.coco_layouts import CITYSCAPES, NUIMAGES
from saccade.data.sources.crowdhuman import Extent, read_crowdhuman
from saccade.data.sources.nuimages import nuimages_pairs, nuimages_values
from saccade.data.sources.openimages import find_image_folder, find_masks, find_table, read_descriptions, read_rows
from saccade.data.sources.spec import SourceSpec
from saccade.data.sources.wider_face import read_wider_face
from saccade.errors import ImageError, UsageError
from saccade.tasks import Task


def check_crowdhuman(spec: SourceSpec, root: Path, report: Report, *, extent: Extent) -> list[ImageEntry]:
    """Looks at an ``.odgt`` file.

    Returns:
        The images that it names.
    """
    return check_boxes(_labelled(read_crowdhuman(spec, root, extent)), spec.classes, report, ignored="ignored region")


def check_wider_face(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at a list of faces.

    Returns:
        The images that it names.
    """
    return check_boxes(_labelled(read_wider_face(spec, root)), spec.classes, report, ignored="ignored region")


def check_bdd100k(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the annotations of the task in whichever form they are.

    Returns:
        The images that they name.
    """
    form = bdd100k_form(spec, root)
    if form == "coco":
        return coco.check(spec, root, report, coco_layout(spec))
    if form == "frames":
        skipped: Counter[str] = Counter()
        files = _labelled(read_frames(spec, root, skipped))
        report.note("label without a box", skipped["label without a box"])
        return check_boxes(files, spec.classes or CLASS_NAMES["bdd100k_boxes"], report, ignored="ignored region")
    found = bdd100k_pairs(spec, root)
    check_partners(found.unmatched_images, found.unmatched_maps, report)
    if form == "label_maps":
        return check_label_maps(found.pairs, bdd100k_values(), CLASS_NAMES["cityscapes"], report)
    return check_instance_maps(found.pairs, read_bitmask, bdd100k_instances(), report)


def check_nuimages(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the JSON file, or at the label maps.

    Returns:
        The images of the split.
    """
    if spec.task is not Task.SEMANTIC:
        return coco.check(spec, root, report, NUIMAGES)
    pairs, missing = nuimages_pairs(spec, root)
    for path in missing:
        report.add("missing_mask", path.name)
    return check_label_maps(pairs, nuimages_values(), CLASS_NAMES["nuimages_semantic"], report)


def check_cityscapes(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the maps of the task, or at the COCO form.

    Returns:
        The images of the split.
    """
    if coco_form(spec, root):
        return coco.check(spec, root, report, CITYSCAPES)
    found = cityscapes_pairs(spec, root)
    check_partners(found.unmatched_images, found.unmatched_maps, report)
    if spec.task is Task.SEMANTIC:
        return check_label_maps(found.pairs, semantic_values(found), CLASS_NAMES["cityscapes"], report)
    return check_instance_maps(found.pairs, read_instance_ids, cityscapes_instances(), report)


def check_openimages(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at a table of boxes or of masks.

    Returns:
        The images that it names.
    """
    described = read_descriptions(root)
    used: Counter[str] = Counter()
    images: dict[str, None] = {}
    masks: list[str] = []
    for row in read_rows(find_table(spec, root), spec.task):
        images.setdefault(row.image_id)
        label = f"line {row.number}"
        if row.label not in described:
            report.add("unknown_category", f"{label}: '{row.label}'")
        used[row.label] += 1
        report.note("group of objects", int(row.is_group))
        # Shares of width and height: in hundredths, the tolerance of a pixel becomes one of a hundredth.
        check_box(report, [100 * value for value in row.box], (100, 100), f"{label}, in percent")
        masks.append(row.mask)
    for label, name in described.items():
        if not used[label] and (not spec.classes or name in spec.classes):
            report.add("unused_class", name)
    report.counts |= {"annotations": len(masks), "classes": len(described)}
    try:
        if spec.task is Task.INSTANCE:
            _check_mask_files(find_masks(root, masks, spec.split), masks, report)
        folder = find_image_folder(spec, root, list(images))
    except UsageError as error:
        report.add("missing_image", f"{error.what}: {error.why}")
        return []
    return [ImageEntry(path=folder / f"{name}.jpg", declared_hw=None, label=name) for name in images]


def _check_mask_files(folder: Path, masks: list[str], report: Report) -> None:
    for name in masks:
        if not (folder / name).is_file():
            report.add("missing_mask", name)
            continue
        try:
            read_labels(folder / name)
        except ImageError as error:
            report.add("unreadable_mask", f"{name}: {error.what}" + (f" ({error.why})" if error.why else ""))


def _labelled(images: list[LabelledImage]) -> list[tuple[str, LabelledImage]]:
    return [(str(image.image_id), image) for image in images]
