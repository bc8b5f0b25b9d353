"""CrowdHuman (arXiv 1805.00123): one JSON object per line and image, with a full and a visible box of each person."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

from saccade.data.class_names import CLASS_NAMES
from saccade.data.sources.boxes import BoxSource, LabelledBox, LabelledImage, official_classes
from saccade.data.sources.layout import data_root, find_file, find_images, per_split
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError
from saccade.samples import ClassList

Extent: TypeAlias = Literal["full", "visible"]
"""Which box of a person is read: the whole body as it would be without occlusion, or what can be seen of it."""

_KEYS: dict[Extent, str] = {"full": "fbox", "visible": "vbox"}
_IMAGES = ("Images", "CrowdHuman_{}/Images", "{}/Images", "images/{}", "{}", "images")


def open_crowdhuman(spec: SourceSpec, *, extent: Extent) -> BoxSource:
    """Opens CrowdHuman. Masks (dummies, reflections) and people marked ``ignore`` are ignored regions.

    Full boxes may reach out of the image, as annotated.

    Args:
        spec: Root is the folder with ``annotation_<split>.odgt``.
        extent: Which box.

    Raises:
        UsageError: Files are not found.
        DataError: A line is damaged.
    """
    root = data_root(spec.root)
    return BoxSource(
        task=spec.task,
        name=f"{root.name}/{spec.split}",
        images=read_crowdhuman(spec, root, extent),
        classes=official_classes(ClassList(names=CLASS_NAMES["crowdhuman"], category_ids=(1,)), spec.classes, root),
        drop_empty=spec.drop_empty,
        min_side=spec.min_side,
        min_box=spec.min_box,
    )


def read_crowdhuman(spec: SourceSpec, root: Path, extent: Extent) -> list[LabelledImage]:
    """The images of a split.

    Raises:
        UsageError: Files are not found.
        DataError: A line is damaged.
    """
    path = _find(root, spec)
    listed = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError("the annotation file cannot be read", where=path, why=str(error)) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            listed.append(_read_line(line, f"{path}, line {number}", extent))
    names = [f"{image_id}.jpg" for image_id, _ in listed]
    folder = find_images(root, names, spec.images, per_split(_IMAGES, spec.split))
    return [
        LabelledImage(image=folder / name, image_id=image_id, size_hw=None, objects=objects)
        for name, (image_id, objects) in zip(names, listed, strict=True)
    ]


def _find(root: Path, spec: SourceSpec) -> Path:
    candidates = per_split(("annotation_{}.odgt", "annotations/annotation_{}.odgt"), spec.split)
    return find_file(root, spec.annotations, candidates, f"the CrowdHuman file (.odgt) of the split '{spec.split}'")


def _read_line(line: str, where: str, extent: Extent) -> tuple[str, list[LabelledBox]]:
    try:
        entry = json.loads(line)
        return str(entry["ID"]), [_read_person(box, extent) for box in entry["gtboxes"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            "a line of the annotation file is damaged",
            where=where,
            why=f"{type(error).__name__}: {error}",
            fix="each line is one JSON object with ID and gtboxes: fetch the file again",
        ) from error


def _read_person(entry: dict[str, Any], extent: Extent) -> LabelledBox:
    x, y, width, height = (float(value) for value in entry[_KEYS[extent]])
    marked = bool(entry.get("extra", {}).get("ignore", 0))
    return LabelledBox(
        name=CLASS_NAMES["crowdhuman"][0],
        box_xyxy=(x, y, x + width, y + height),
        ignored=marked or entry["tag"] != "person",
    )
