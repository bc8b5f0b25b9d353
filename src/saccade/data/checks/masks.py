"""Defects of folders with images and masks, ADE20K included."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from saccade.data.checks.report import UNDIVIDED, ImageEntry, Report
from saccade.data.images import image_size, read_labels
from saccade.data.sources.mask_crops import crop_files
from saccade.data.sources.mask_folder import MaskLayout, ade20k_classes, class_file
from saccade.data.sources.spec import SourceSpec
from saccade.errors import ImageError
from saccade.samples import IGNORE_LABEL


def ade20k_spec(spec: SourceSpec) -> SourceSpec:
    """ADE20K as the mask folder that it is."""
    split = {"train": "training", "val": "validation"}.get(spec.split, spec.split)
    return dataclasses.replace(
        spec,
        split=split,
        images=f"images/{split}",
        annotations=f"annotations/{split}",
        classes=spec.classes or ade20k_classes(spec.root),
        reduce_zero_label=True,
    )


def layout_of(spec: SourceSpec, root: Path, *, must_exist: bool = True) -> MaskLayout:
    """Which image belongs to which mask."""
    return MaskLayout(
        root, spec.split, images=spec.images, masks=spec.annotations, suffix=spec.mask_suffix, must_exist=must_exist
    )


def check(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the masks of a split.

    Returns:
        The images, with or without a mask.
    """
    layout = layout_of(spec, root, must_exist=False)
    for stem in layout.missing_images:
        report.add("missing_image", f"{stem} (in the split file)")
    for path in layout.unmatched_images:
        report.add("missing_mask", path.name)
    for path in layout.unmatched_masks:
        report.add("missing_image_of_mask", path.name)
    if layout.undivided and spec.split != "all":
        report.note(UNDIVIDED)
    names = spec.classes or class_file(root)
    present: set[int] = set()
    of_mask: dict[str, set[int]] = {}
    for image, mask in layout.pairs:
        try:
            labels = read_labels(mask)
        except ImageError as error:
            report.add("unreadable_mask", f"{mask.name}: {error.what}" + (f" ({error.why})" if error.why else ""))
            continue
        of_mask[mask.name] = set(np.flatnonzero(np.bincount(labels.ravel())).tolist())
        present |= of_mask[mask.name]
        try:
            size_hw = image_size(image)
        except ImageError:
            continue  # told where the images are looked at
        if labels.shape != size_hw:
            report.add(
                "mask_size_mismatch",
                f"{mask.name}: {labels.shape[1]} x {labels.shape[0]}, image {size_hw[1]} x {size_hw[0]}",
            )
    _check_values(spec, names, of_mask, present, report)
    report.counts |= {"annotations": len(layout.pairs)}
    return [
        ImageEntry(path=path, declared_hw=None, label=str(path.relative_to(root)))
        for path in sorted([image for image, _ in layout.pairs] + layout.unmatched_images)
    ]


def check_crops(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Lists the crops of a split; that they can be read is looked at where all images are.

    Returns:
        The crops.
    """
    folder, files = crop_files(spec, root)
    report.counts |= {"annotations": len(files)}
    return [ImageEntry(path=path, declared_hw=None, label=str(path.relative_to(folder))) for path in files]


def _check_values(
    spec: SourceSpec, names: tuple[str, ...], of_mask: dict[str, set[int]], present: set[int], report: Report
) -> None:
    if not spec.reduce_zero_label and len(names) <= 2 and (mostly := _mostly_binary(of_mask)):
        report.counts["classes"] = 2
        for mask, values in of_mask.items():
            if not values <= {0, mostly}:
                report.add("value_outside_classes", f"{mask}: {sorted(values - {0, mostly})[:8]} in a binary mask")
        if mostly not in present or 0 not in present:
            report.add("unused_class", "foreground" if mostly not in present else "background")
        return
    ignored = {*spec.ignore_labels, IGNORE_LABEL} | ({0} if spec.reduce_zero_label else set())
    if not names:
        report.counts["classes"] = max(present - ignored, default=-1) + 1
        for value in set(range(report.counts["classes"])) - present:
            report.add("unused_class", f"value {value}")
        return
    shift = int(spec.reduce_zero_label)
    allowed = set(range(shift, len(names) + shift)) | ignored
    report.counts["classes"] = len(names)
    for mask, values in of_mask.items():
        if values - allowed:
            report.add("value_outside_classes", f"{mask}: {sorted(values - allowed)[:8]}")
    for class_id, name in enumerate(names):
        if class_id + shift not in present:
            report.add("unused_class", name)


def _mostly_binary(of_mask: dict[str, set[int]]) -> int:
    """The foreground value if most masks are binary (a single odd one is then the defect), else 0."""
    for foreground in (255, 1):
        fitting = sum(values <= {0, foreground} and foreground in values for values in of_mask.values())
        if 2 * fitting > len(of_mask):
            return foreground
    return 0
