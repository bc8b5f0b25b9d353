"""BDD100K (arXiv 1805.04687): boxes of the 100k images, masks and label maps of the 10k images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from saccade.data.class_names import CLASS_NAMES
from saccade.data.images import read_rgba
from saccade.data.sources.base import Source
from saccade.data.sources.boxes import BoxSource, LabelledBox, LabelledImage, official_classes
from saccade.data.sources.coco import CocoLayout, open_coco
from saccade.data.sources.coco_layouts import BDD100K_BOXES, BDD100K_MASKS
from saccade.data.sources.label_maps import (
    FoundPairs,
    InstanceMap,
    InstanceMapSource,
    LabelMapSource,
    PairLayout,
    find_pairs,
    ignoring,
    renamed,
)
from saccade.data.sources.layout import data_root, find_file, find_images, first_existing, per_split, read_json
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError
from saccade.samples import IGNORE_LABEL, ClassList
from saccade.tasks import Task

Form: TypeAlias = Literal["coco", "frames", "bitmasks", "label_maps"]
"""How the annotations of a task are stored: see :func:`bdd100k_form`."""

_FRAMES = ("labels/det_20/det_{}.json", "det_20/det_{}.json", "labels/bdd100k_labels_images_{}.json")
_IMAGES_100K = ("images/100k/{}", "100k/{}", "{}")
_IMAGES_10K = ("images/10k/{}", "10k/{}", "{}")
_BITMASKS = PairLayout(
    images=_IMAGES_10K, maps=("labels/ins_seg/bitmasks/{}",), image_suffix=".jpg", map_suffixes=(".png",)
)
_LABEL_MAPS = PairLayout(
    images=_IMAGES_10K, maps=("labels/sem_seg/masks/{}",), image_suffix=".jpg", map_suffixes=(".png",)
)
# Category -> class and whether it is an ignored region: the official configuration of the detection challenge, with
# the names of the release of 2018.
_NAMES: dict[str, tuple[str, bool]] = {
    **{name: (name, False) for name in CLASS_NAMES["bdd100k_boxes"]},
    "person": ("pedestrian", False),
    "bike": ("bicycle", False),
    "motor": ("motorcycle", False),
    "other person": ("pedestrian", True),
    "van": ("car", False),
    "caravan": ("car", False),
    "other vehicle": ("car", True),
    "trailer": ("truck", True),
}
# The second channel of a bit mask: (truncated << 3) + (occluded << 2) + (crowd << 1) + ignored.
_IGNORED_BITS = 0b0011


def open_bdd100k(spec: SourceSpec) -> Source:
    """Opens BDD100K: 10 classes of boxes, 8 of masks, or 19 of label maps. Crowds are ignored regions.

    Args:
        spec: Root is the folder with ``images`` and ``labels``. ``annotations`` names a JSON file (the official list of
            frames, or the COCO form that ``bdd100k.label.to_coco`` writes) or a folder of bit masks or label maps;
            empty = looked for, the COCO form first.

    Raises:
        UsageError: Files are not found.
        DataError: An annotation file is damaged.
    """
    root = data_root(spec.root)
    name = f"{root.name}/{spec.split}"
    form = bdd100k_form(spec, root)
    if form == "coco":
        return open_coco(spec, layout=coco_layout(spec))
    if form == "frames":
        skipped: Counter[str] = Counter()
        return BoxSource(
            task=spec.task,
            name=name,
            images=read_frames(spec, root, skipped),
            classes=official_classes(_numbered(CLASS_NAMES["bdd100k_boxes"]), spec.classes, root),
            skipped=skipped,
            drop_empty=spec.drop_empty,
            min_side=spec.min_side,
            min_box=spec.min_box,
        )
    found = bdd100k_pairs(spec, root)
    if form == "label_maps":
        return LabelMapSource(
            task=spec.task,
            name=name,
            pairs=found.pairs,
            classes=renamed(CLASS_NAMES["cityscapes"], spec.classes, root),
            class_id_of=ignoring(bdd100k_values(), spec.ignore_labels),
            skipped=found.skipped,
        )
    return InstanceMapSource(
        task=spec.task,
        name=name,
        pairs=found.pairs,
        classes=official_classes(bdd100k_instances(), spec.classes, root),
        decode=read_bitmask,
        skipped=found.skipped,
        drop_empty=spec.drop_empty,
    )


def bdd100k_instances() -> ClassList:
    """The 8 classes with masks."""
    return _numbered(CLASS_NAMES["bdd100k_instances"])


def bdd100k_form(spec: SourceSpec, root: Path) -> Form:
    """How the annotations of the task are stored in the folder.

    Raises:
        UsageError: A task that the data set does not have, or boxes without a file.
        DataError: The file that is named is neither of the two known forms.
    """
    if spec.task is Task.SEMANTIC:
        return "label_maps"
    if spec.task not in (Task.DETECTION, Task.INSTANCE):
        raise UsageError(f"BDD100K has no annotations for {spec.task}", where=root)
    if spec.annotations.endswith(".json"):
        content = read_json(root / spec.annotations)
        if not isinstance(content, list) and not (isinstance(content, dict) and "images" in content):
            raise DataError("neither a list of frames nor the COCO form", where=root / spec.annotations)
        return "frames" if isinstance(content, list) else "coco"
    if not spec.annotations and first_existing(root, per_split(coco_layout(spec).annotations, spec.split)) is not None:
        return "coco"
    return "frames" if spec.task is Task.DETECTION and not spec.annotations else "bitmasks"


def coco_layout(spec: SourceSpec) -> CocoLayout:
    """Where the COCO form of the task's annotations lies."""
    return BDD100K_MASKS if spec.task is Task.INSTANCE else BDD100K_BOXES


def bdd100k_pairs(spec: SourceSpec, root: Path) -> FoundPairs:
    """Images, and their bit masks or label maps."""
    layout = _LABEL_MAPS if spec.task is Task.SEMANTIC else _BITMASKS
    return find_pairs(root, layout, spec.split, images=spec.images, maps=spec.annotations)


def bdd100k_values() -> dict[int, int]:
    """Stored value -> class id of label maps: Cityscapes' train ids."""
    return {**{k: k for k in range(len(CLASS_NAMES["cityscapes"]))}, IGNORE_LABEL: IGNORE_LABEL}


def read_frames(spec: SourceSpec, root: Path, skipped: Counter[str]) -> list[LabelledImage]:
    """The images of the official list of frames.

    Args:
        spec: The data set.
        root: Its folder.
        skipped: Counts labels without a box (lanes and drivable areas of the release of 2018).

    Raises:
        UsageError: Files are not found.
        DataError: The file is damaged.
    """
    # The second layout is only looked for, not read here: that it was looked for is for the error.
    candidates = per_split((*_FRAMES, *BDD100K_BOXES.annotations), spec.split)
    path = find_file(root, spec.annotations, candidates, f"the BDD100K annotation file of the split '{spec.split}'")
    frames = read_json(path)
    if not isinstance(frames, list):
        raise DataError("the annotation file is no list of frames", where=path)
    listed = [_read_frame(frame, f"{path}, frame {number}", skipped) for number, frame in enumerate(frames)]
    folder = find_images(root, [name for name, _ in listed], spec.images, per_split(_IMAGES_100K, spec.split))
    return [
        LabelledImage(image=folder / name, image_id=Path(name).stem, size_hw=None, objects=objects)
        for name, objects in listed
    ]


def _read_frame(frame: Any, where: str, skipped: Counter[str]) -> tuple[str, list[LabelledBox]]:
    try:
        labels = frame.get("labels") or []
        skipped["label without a box"] += sum(not label.get("box2d") for label in labels)
        return str(frame["name"]), [_read_label(label) for label in labels if label.get("box2d")]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            "a frame lacks a field or has a wrong one", where=where, why=f"{type(error).__name__}: {error}"
        ) from error


def _read_label(label: dict[str, Any]) -> LabelledBox:
    x0, y0, x1, y1 = (float(label["box2d"][key]) for key in ("x1", "y1", "x2", "y2"))
    x1, y1 = x1 + 1, y1 + 1  # the last pixel belongs to the box, as in the official conversion to COCO's format
    name, ignored = _NAMES.get(label["category"], (str(label["category"]), False))
    attributes = label.get("attributes") or {}
    marked = any(bool(attributes.get(key)) for key in ("crowd", "Crowd", "ignored"))
    return LabelledBox(name=name, box_xyxy=(x0, y0, x1, y1), ignored=ignored or marked)


def read_bitmask(path: Path) -> InstanceMap:
    """Reads a bit mask: category, attributes and (in two channels) the number of the object."""
    category, attributes, high, low = np.moveaxis(read_rgba(path).astype(np.int64), -1, 0)
    values = (category << 24) | (attributes << 16) | (high << 8) | low
    objects = {
        value: (value >> 24, bool((value >> 16) & _IGNORED_BITS)) for value in np.unique(values).tolist() if value >> 24
    }
    return InstanceMap(values=values, objects=objects)


def _numbered(names: Sequence[str]) -> ClassList:
    return ClassList(names=tuple(names), category_ids=tuple(range(1, len(names) + 1)))
