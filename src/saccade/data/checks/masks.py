"""Defects of folders with images and masks, ADE20K included."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from saccade.data.checks.pairs import check_maps, check_partners
from saccade.data.checks.report import NO_OBJECT, SOFT_MASK, UNDIVIDED, ImageEntry, Report
from saccade.data.images import read_labels
from saccade.data.sources.binary_masks import MaskKind, are_binary, kind_of, object_of, values_in, white_of
from saccade.data.sources.mask_crops import crop_files
from saccade.data.sources.mask_folder import MaskLayout, ade20k_classes, class_file
from saccade.data.sources.spec import SourceSpec
from saccade.labels import BACKGROUND
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
    check_partners(layout.unmatched_images, layout.unmatched_masks, report)
    for path in layout.same_names:
        report.add("same_name", path.relative_to(root))
    if layout.undivided and spec.split != "all":
        report.note(UNDIVIDED)
    found: dict[str, _Mask] = {}

    def look(path: Path) -> tuple[int, ...]:
        labels = read_labels(path)
        pixels = object_of(labels)
        found[path.name] = _Mask(
            kind=kind_of(labels),
            values=values_in(labels),
            white=white_of(labels),
            has_object=bool(pixels.any()),
            has_background=not pixels.all(),
        )
        return labels.shape

    check_maps(layout.pairs, look, report)
    _check_values(spec, spec.classes or class_file(root), found, report)
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


@dataclass(kw_only=True, frozen=True)
class _Mask:
    """What a check remembers of a mask; the object is what it would be if the mask is binary."""

    kind: MaskKind
    values: set[int]
    white: int
    has_object: bool
    has_background: bool


def _check_values(spec: SourceSpec, names: tuple[str, ...], masks: dict[str, _Mask], report: Report) -> None:
    may_be_binary = len(names) <= 2 and not spec.reduce_zero_label
    if may_be_binary and IGNORE_LABEL not in spec.ignore_labels and are_binary(mask.kind for mask in masks.values()):
        _check_binary(masks, names[-1] if names else "foreground", report)
        return
    present = {value for mask in masks.values() for value in mask.values}
    ignored = {*spec.ignore_labels, IGNORE_LABEL} | ({0} if spec.reduce_zero_label else set())
    if not names:
        report.counts["classes"] = max(present - ignored, default=-1) + 1
        report.note("mask read as a label map, because not all are binary", len(masks))
        for value in set(range(report.counts["classes"])) - present:
            report.add("unused_class", f"value {value}")
        return
    names = names if len(names) > 1 else (BACKGROUND, *names)
    shift = int(spec.reduce_zero_label)
    allowed = set(range(shift, len(names) + shift)) | ignored
    report.counts["classes"] = len(names)
    for name, mask in masks.items():
        if mask.values - allowed:
            report.add("value_outside_classes", f"{name}: {sorted(mask.values - allowed)[:8]}")
    for class_id, name in enumerate(names):
        if class_id + shift not in present:
            report.add("unused_class", name)


def _check_binary(masks: dict[str, _Mask], name: str, report: Report) -> None:
    report.counts["classes"] = 2
    for file, mask in masks.items():
        if mask.kind == "map":
            report.add("value_outside_classes", f"{file}: {sorted(mask.values - {0, mask.white})[:8]} in a binary mask")
    kinds = Counter(mask.kind for mask in masks.values())
    report.note(SOFT_MASK, kinds["soft"])
    report.note(NO_OBJECT, sum(not mask.has_object for mask in masks.values()))
    if kinds["white"] + kinds["soft"]:
        report.note("mask of 0 and 1 beside masks of 0 and 255: 1 is the object", kinds["ones"])
    for what, present in (
        (name, any(mask.has_object for mask in masks.values())),
        (BACKGROUND, any(mask.has_background for mask in masks.values())),
    ):
        if masks and not present:
            report.add("unused_class", what)
