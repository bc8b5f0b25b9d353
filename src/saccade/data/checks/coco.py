"""Defects of COCO instance files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from saccade.data.checks.report import UNDIVIDED, ImageEntry, Report, check_box
from saccade.data.images import MAX_PIXELS
from saccade.data.sources.coco import (
    COCO,
    CocoLayout,
    decode_shape,
    find_annotations,
    is_far_outside,
    locate_images,
    read_categories,
    to_polygon,
)
from saccade.data.sources.layout import hash_split, list_of, read_json
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError


def list_images(spec: SourceSpec, root: Path, layout: CocoLayout = COCO) -> list[tuple[dict[str, Any], Path]]:
    """Entry and file of every image of the split, without looking at the files."""
    path, divided = find_annotations(root, spec.split, spec.annotations, layout)
    listed = [entry for entry in list_of(read_json(path), "images", path) if isinstance(entry, dict)]
    if not divided:
        stems = [Path(str(entry.get("file_name", ""))).stem for entry in listed]
        listed = [listed[index] for index in hash_split(stems, spec.split, path)]
    listed = [entry for entry in listed if (name := _file_of(entry, layout)) and name not in layout.absent]
    folder, names = locate_images(root, listed, spec.images, path, spec.split, layout)
    return [(entry, folder / name) for entry, name in zip(listed, names, strict=True)]


def check(spec: SourceSpec, root: Path, report: Report, layout: CocoLayout = COCO) -> list[ImageEntry]:
    """Looks at the annotation file of a split.

    Args:
        spec: The data set.
        root: Its folder.
        report: Where defects go.
        layout: Where the data set keeps its files.

    Returns:
        The images that it names.
    """
    path, divided = find_annotations(root, spec.split, spec.annotations, layout)
    content = read_json(path)
    categories = _check_categories(content, path, report)
    sizes: dict[int | str, tuple[int, int] | None] = {}
    for entry in list_of(content, "images", path):
        _check_image_entry(entry, sizes, report, layout)
    files = Counter(_file_of(entry, layout) for entry in content["images"] if isinstance(entry, dict))
    for name, count in files.items():
        for _ in range(count - 1):
            report.add("duplicate_file", name)
    used: Counter[int] = Counter()
    seen: set[Any] = set()
    annotations = list_of(content, "annotations", path)
    for annotation in annotations:
        _check_annotation(annotation, sizes, categories, used, seen, report)
    asked = set(spec.classes)
    for key, name in categories.items():
        if not used[key] and (not asked or name in asked):
            report.add("unused_class", f"{name} (category {key})")
    for name in spec.classes:
        if name not in categories.values():
            report.add("unknown_category", f"'{name}' is asked for, but not declared")
    report.counts |= {"annotations": len(annotations), "classes": len(categories)}
    sound = [annotation for annotation in annotations if isinstance(annotation, dict)]
    report.note("crowd region", sum(bool(annotation.get("iscrowd")) for annotation in sound))
    report.note("image that is listed but not shipped", sum(name in layout.absent for name in files))
    annotated = {value for annotation in sound if isinstance(value := annotation.get("image_id"), int | str)}
    report.note("image without annotations", sum(key not in annotated for key in sizes))
    if not divided and spec.split != "all":
        report.note(UNDIVIDED)
    try:
        pairs = list_images(spec, root, layout)
    except UsageError as error:
        report.add("missing_image", f"{error.what}: {error.why}")
        return []
    return [
        ImageEntry(path=file, declared_hw=_size_of(entry), label=str(file.relative_to(root))) for entry, file in pairs
    ]


def _file_of(entry: dict[str, Any], layout: CocoLayout) -> str:
    """The image file in the last of the layout's ways, empty where the entry does not name it."""
    try:
        return layout.file_names[-1](entry)
    except (KeyError, TypeError):
        return ""


def _size_of(entry: dict[str, Any]) -> tuple[int, int] | None:
    try:
        return int(entry["height"]), int(entry["width"])
    except (KeyError, TypeError, ValueError):
        return None


def _check_categories(content: Any, path: Path, report: Report) -> dict[int, str]:
    try:
        heading: Counter[str] = Counter()
        categories = read_categories(content, path, heading)
        report.note("heading category 0 (left out)", sum(heading.values()))
    except DataError:
        categories = {}
        for entry in list_of(content, "categories", path):
            try:
                key, name = int(entry["id"]), str(entry["name"])
            except (KeyError, TypeError, ValueError):
                report.add("invalid_entry", f"category {entry}")
                continue
            if key in categories:
                report.add("duplicate_category", f"id {key}: {categories[key]}, {name}")
            categories[key] = name
    names = Counter(categories.values())
    for name, count in names.items():
        if count > 1:
            report.add("duplicate_category", f"'{name}' has {count} ids")
    return categories


def _check_image_entry(
    entry: Any, sizes: dict[int | str, tuple[int, int] | None], report: Report, layout: CocoLayout
) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str) or not _file_of(entry, layout):
        report.add("invalid_entry", f"image {entry}")
        return
    if entry["id"] in sizes:
        report.add("duplicate_image_id", f"id {entry['id']} ({_file_of(entry, layout)})")
        return
    sizes[entry["id"]] = _size_of(entry)
    if sizes[entry["id"]] is None:
        report.add("invalid_entry", f"image {entry['id']} has no height and width")


def _check_annotation(
    annotation: Any,
    sizes: dict[int | str, tuple[int, int] | None],
    categories: dict[int, str],
    used: Counter[int],
    seen: set[Any],
    report: Report,
) -> None:
    if not isinstance(annotation, dict):
        report.add("invalid_entry", f"annotation {annotation}")
        return
    key = annotation.get("id")
    label = f"annotation {key}"
    if not isinstance(key, int | str):
        report.add("invalid_entry", f"{label} of image {annotation.get('image_id')} has no id")
    elif key in seen:
        report.add("duplicate_annotation_id", label)
    else:
        seen.add(key)
    image_id = annotation.get("image_id")
    if not isinstance(image_id, int | str) or image_id not in sizes:
        report.add("dangling_annotation", f"{label}: image {image_id}")
        return
    label = f"{label} of image {image_id}"
    category = annotation.get("category_id")
    if not isinstance(category, int) or category not in categories:
        report.add("unknown_category", f"{label}: category {category}")
    else:
        used[category] += 1
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        report.add("missing_box", label)
    else:
        check_box(report, (x, y, x + width, y + height), sizes[image_id], label)
    if annotation.get("segmentation") is not None:  # else a data set of boxes
        check_segmentation(annotation["segmentation"], sizes[image_id], label, report)


def check_segmentation(shape: Any, size_hw: tuple[int, int] | None, label: str, report: Report) -> None:
    """Looks at polygons, a run-length mask, or a list of such masks."""
    if isinstance(shape, dict):
        size = shape.get("size")
        if not isinstance(size, list) or len(size) != 2 or (size_hw is not None and tuple(size) != size_hw):
            report.add("bad_rle", f"{label}: size {size}, image {size_hw and list(size_hw)}")
            return
        try:
            height, width = int(size[0]), int(size[1])
            if height * width > MAX_PIXELS:
                raise ValueError(f"it claims {height} x {width} pixels")
            decode_shape(shape, (height, width))
        except (ValueError, TypeError, OverflowError) as error:
            report.add("bad_rle", f"{label}: {error}")
        return
    if not isinstance(shape, list):
        report.add("invalid_entry", f"{label}: segmentation {type(shape).__name__}")
        return
    if not shape:
        report.add("empty_polygon", label)
    for points in shape:
        polygon = to_polygon(points)
        if isinstance(points, dict):
            check_segmentation(points, size_hw, label, report)
        elif polygon is None:
            report.add("short_polygon", f"{label}: {points}")
        elif not np.isfinite(polygon).all() or (size_hw is not None and is_far_outside(polygon, size_hw)):
            report.add("invalid_polygon", f"{label}: {points[:6]} ...")
