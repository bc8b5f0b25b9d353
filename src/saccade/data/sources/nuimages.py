"""nuImages as mmdetection3d's ``nuimage_converter.py`` writes it: a JSON file in COCO form, label maps beside it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from saccade.data.class_names import CLASS_NAMES
from saccade.data.sources.base import Source
from saccade.data.sources.coco import find_annotations, locate_images, open_coco
from saccade.data.sources.coco_layouts import NUIMAGES
from saccade.data.sources.label_maps import LabelMapSource, ignoring, renamed
from saccade.data.sources.layout import data_root, list_of, read_json
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError
from saccade.samples import IGNORE_LABEL
from saccade.tasks import Task

_MAP_FOLDER = "semantic_masks"


def open_nuimages(spec: SourceSpec) -> Source:
    """Opens nuImages: 10 classes of objects, or 31 classes of label maps.

    Args:
        spec: Root is the folder with ``samples`` and ``annotations``. The JSON file says which images belong to the
            split; label maps are in ``semantic_masks`` beside it, in the same nested folders as the images.

    Raises:
        UsageError: Files are not found.
        DataError: The JSON file is damaged.
    """
    if spec.task is not Task.SEMANTIC:
        return open_coco(spec, layout=NUIMAGES)
    root = data_root(spec.root)
    pairs, missing = nuimages_pairs(spec, root)
    if not pairs:
        raise UsageError(
            "no image has a label map",
            where=root,
            why=f"looked for {missing[0] if missing else 'none: the JSON file lists no image'}",
            fix="nuimage_converter.py of mmdetection3d writes them",
        )
    return LabelMapSource(
        task=spec.task,
        name=f"{root.name}/{spec.split}",
        pairs=pairs,
        classes=renamed(CLASS_NAMES["nuimages_semantic"], spec.classes, root),
        class_id_of=ignoring(nuimages_values(), spec.ignore_labels),
        skipped={"image without a mask": len(missing)} if missing else {},
    )


def nuimages_values() -> dict[int, int]:
    """Stored value -> class id: 0 is background, which is not learned, and class k is stored as k + 1."""
    count = len(CLASS_NAMES["nuimages_semantic"])
    return {0: IGNORE_LABEL, **{class_id + 1: class_id for class_id in range(count)}}


def nuimages_pairs(spec: SourceSpec, root: Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Images and label maps of a split, and the label maps that are not there.

    Raises:
        UsageError: Files are not found.
        DataError: The JSON file is damaged.
    """
    path, _ = find_annotations(root, spec.split, spec.annotations, NUIMAGES)
    entries: list[dict[str, Any]] = list_of(read_json(path), "images", path)
    try:
        folder, names = locate_images(root, entries, spec.images, path, spec.split, NUIMAGES)
    except (KeyError, TypeError) as error:
        raise DataError("an image entry has no file name", where=path, why=repr(error)) from error
    maps = [path.parent / _MAP_FOLDER / PurePosixPath(name).with_suffix(".png") for name in names]
    listed = [(folder / name, labels) for name, labels in zip(names, maps, strict=True)]
    return [pair for pair in listed if pair[1].is_file()], [labels for _, labels in listed if not labels.is_file()]
