"""Defects of COCO panoptic annotations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from saccade.data.checks.report import ImageEntry, Report
from saccade.data.sources.coco import find_annotations, locate_images, read_categories
from saccade.data.sources.layout import list_of, read_json
from saccade.data.sources.panoptic import LAYOUT, read_segment_ids
from saccade.data.sources.spec import SourceSpec
from saccade.errors import ImageError


def check(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the JSON file and at every PNG.

    Returns:
        The images that are annotated.
    """
    path, _ = find_annotations(root, spec.split, spec.annotations, LAYOUT)
    content = read_json(path)
    categories = read_categories(content, path, Counter())
    images = {image["id"]: image for image in list_of(content, "images", path)}
    used: Counter[int] = Counter()
    entries: list[dict[str, Any]] = []
    for annotation in list_of(content, "annotations", path):
        entry = images.get(annotation["image_id"])
        if entry is None:
            report.add("dangling_annotation", f"image {annotation['image_id']}")
            continue
        entries.append(entry)
        for info in annotation["segments_info"]:
            used[info["category_id"]] += 1
            report.note("crowd region", int(bool(info.get("iscrowd"))))
            if info["category_id"] not in categories:
                report.add("unknown_category", f"image {entry['id']}, segment {info['id']}: {info['category_id']}")
        _check_map(path.with_suffix("") / annotation["file_name"], annotation, entry, report)
    for key, name in categories.items():
        if not used[key]:
            report.add("unused_class", f"{name} (category {key})")
    report.note("image without annotations", len(images.keys() - {entry["id"] for entry in entries}))
    report.counts |= {"annotations": used.total(), "classes": len(categories)}
    folder, names = locate_images(root, entries, spec.images, path, spec.split, LAYOUT)
    return [
        ImageEntry(path=folder / name, declared_hw=(entry["height"], entry["width"]), label=name)
        for name, entry in zip(names, entries, strict=True)
    ]


def _check_map(path: Path, annotation: dict[str, Any], entry: dict[str, Any], report: Report) -> None:
    if not path.is_file():
        report.add("missing_mask", path.name)
        return
    try:
        ids = read_segment_ids(path)
    except ImageError as error:
        report.add("unreadable_mask", f"{path.name}: {error.what}" + (f" ({error.why})" if error.why else ""))
        return
    height, width = ids.shape
    if (height, width) != (entry["height"], entry["width"]):
        report.add("mask_size_mismatch", f"{path.name}: {width} x {height}, image {entry['width']} x {entry['height']}")
    painted = set(np.unique(ids[ids > 0]).tolist())
    listed = {info["id"] for info in annotation["segments_info"]}
    if painted - listed:
        report.add("value_outside_classes", f"{path.name}: ids {sorted(painted - listed)[:5]} are not in the JSON file")
    if listed - painted:
        report.add("invalid_entry", f"{path.name}: ids {sorted(listed - painted)[:5]} are not in the PNG")
