"""COCO instances: boxes and masks in one JSON file (also as Roboflow, CVAT and Label Studio export them)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from saccade.data.geometry import boxes_tensor, mask_tensor
from saccade.data.sources.layout import (
    Records,
    choose_classes,
    data_root,
    find_images,
    first_existing,
    hash_split,
    list_of,
    load_image,
    per_split,
    read_json,
    split_names,
)
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, MissingDataError, UsageError
from saccade.samples import ClassList, Sample, Target
from saccade.tasks import Task

Shape: TypeAlias = list[NDArray[np.float64]] | dict[str, Any]
"""Polygons (x0 y0 x1 y1 ... in pixels), or a run-length mask."""

# A vertex this many image sides outside the frame is damage, and would make the rasteriser run away.
_FAR = 10.0


def file_name(entry: dict[str, Any]) -> str:
    """The image file as COCO names it."""
    return str(entry["file_name"])


@dataclass(kw_only=True, frozen=True)
class CocoLayout:
    """Where a data set in COCO form keeps its files, and what its annotations hold.

    Attributes:
        annotations: Patterns of the annotation file of a split relative to root, best guess first; ``{}`` is the split.
        undivided: Annotation files that hold the whole data set.
        images: Patterns of the image folder relative to root; empty = where exports in COCO form usually have it.
        file_names: Ways to read the image file (relative to the image folder) from its entry; the first one that finds
            images counts.
        absent: File names (read in the last of the ways) that the annotations list but the data set does not ship.
        masks: Whether the annotations have masks.
    """

    annotations: tuple[str, ...]
    undivided: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    file_names: tuple[Callable[[dict[str, Any]], str], ...] = (file_name,)
    absent: frozenset[str] = frozenset()
    masks: bool = True


COCO = CocoLayout(
    annotations=(
        "annotations/instances_{}.json",
        "annotations/instances_{}2017.json",
        "annotations/instances_{}2014.json",
        "annotations/{}.json",
        "{}/_annotations.coco.json",
        "{}/annotations.json",
        "{}/labels.json",
        "instances_{}.json",
        "{}.json",
    ),
    undivided=(
        "_annotations.coco.json",
        "annotations.json",
        "instances.json",
        "annotations/instances.json",
        "annotations/instances_default.json",
        "result.json",
        "labels.json",
    ),
)
"""COCO itself, and what annotation tools export."""


class CocoSource:
    """Images with boxes, and masks for instance segmentation.

    Crowd regions, and annotations marked ``ignore``, are kept and marked: evaluation ignores them, training drops them.
    Class ids follow the category ids in ascending order, or ``classes`` where given.

    Args:
        task: Detection or instance segmentation.
        root: Folder of the data set.
        split: Part of the file name (``instances_<split>.json``, ``instances_<split>2017.json``), a subfolder
            (``<split>/_annotations.coco.json``), or, for a data set that is one file, ``train``, ``val`` or ``all``.
        images: Image folder relative to root; empty = looked for.
        annotations: JSON file relative to root; empty = looked for.
        classes: Class names, a choice among the file's; empty = all.
        drop_empty: Leave out images without an annotation.
        min_side: Leave out images whose shorter side is below this, in pixels.
        min_box: Boxes with a side below this, in pixels, are marked as if they were crowds.
        soft_masks: Draw soft masks (:func:`decode_soft`), which training understands, but no metric.
        layout: Where the data set keeps its files.

    Raises:
        UsageError: Files are not found, a class is not in the file, or masks are asked for where there are only boxes.
        DataError: The file is damaged or contradicts itself.
    """

    def __init__(
        self,
        *,
        task: Task,
        root: str | Path,
        split: str = "train",
        images: str = "",
        annotations: str = "",
        classes: Sequence[str] = (),
        drop_empty: bool = False,
        min_side: int = 0,
        min_box: float = 0.0,
        soft_masks: bool = False,
        layout: CocoLayout = COCO,
    ) -> None:
        if task not in (Task.DETECTION, Task.INSTANCE):
            raise UsageError(f"COCO instances serve detection and instance segmentation, not {task}", where=str(root))
        if task is Task.INSTANCE and not layout.masks:
            raise UsageError("the data set has boxes only", where=str(root), fix="task=detection")
        folder = data_root(root)
        path, divided = find_annotations(folder, split, annotations, layout)
        content = read_json(path)
        self.name = f"{folder.name}/{split}"
        self.task = task
        skipped: Counter[str] = Counter()
        categories = read_categories(content, path, skipped)
        self._path, self._layout, self._min_box, self._soft_masks = path, layout, min_box, soft_masks
        self.classes: ClassList = self._read_classes(content, categories, classes)
        self._class_id_of = {category: class_id for class_id, category in enumerate(self.classes.category_ids)}
        listed = list_of(content, "images", path)
        by_image = _group(content, path, _image_ids(listed, path), skipped)
        if not divided:
            keep = hash_split([Path(str(image.get("file_name", ""))).stem for image in listed], split, path)
            listed = [listed[index] for index in keep]
        records, entries = [], []
        for image in listed:
            record = self._read_image_entry(image)
            raw = by_image.pop(record["id"], [])
            if layout.file_names[-1](image) in layout.absent:
                skipped["image that is listed but not shipped"] += 1
            elif min(record["size_hw"]) < min_side:
                skipped[f"image smaller than {min_side} pixels"] += 1
            elif drop_empty and not any(annotation.get("category_id") in self._class_id_of for annotation in raw):
                skipped["image without annotations"] += 1
            else:
                records.append(record | self._read_annotations(raw, record["size_hw"], categories, skipped))
                entries.append(image)
        if not records:
            raise DataError("no image is left", where=path, why=str(dict(skipped)) if skipped else "the list is empty")
        self._images, files = locate_images(folder, entries, images, path, split, layout)
        self._records = Records(record | {"file": file} for record, file in zip(records, files, strict=True))
        self.skipped: dict[str, int] = dict(skipped)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image and its truth, in the frame of the original image."""
        record = self._records[index]
        image, origin = load_image(self._images / record["file"], self.name, record["id"], record["size_hw"])
        return Sample(image=image, task=self.task, origin=origin, target=self._target(record), classes=self.classes)

    def class_ids_of(self, index: int) -> set[int]:
        """Class ids in an image, crowds left out."""
        record = self._records[index]
        return set(record["class_ids"][~record["crowd"]].tolist())

    def object_count(self, index: int) -> int:
        """Objects in an image, crowds left out."""
        return int((~self._records[index]["crowd"]).sum())

    def _read_classes(self, content: Any, categories: dict[int, str], asked: Sequence[str]) -> ClassList:
        return choose_classes(categories, asked, self._path)

    def _target(self, record: dict[str, Any]) -> Target:
        target = Target(
            boxes=boxes_tensor(record["boxes"], record["size_hw"]),
            class_ids=torch.from_numpy(record["class_ids"]),
            is_crowd=torch.from_numpy(record["crowd"]),
            areas=torch.from_numpy(record["areas"]),
        )
        if self.task is Task.INSTANCE:
            masks = [self._decode(shape, record) for shape in record["shapes"]]
            target.masks = mask_tensor(
                np.stack(masks)
                if masks
                else np.zeros((0, *record["size_hw"]), np.float32 if self._soft_masks else bool)
            )
        return target

    def _read_image_entry(self, image: dict[str, Any]) -> dict[str, Any]:
        try:
            size_hw = (int(image["height"]), int(image["width"]))
            return {"file": self._layout.file_names[0](image), "id": image["id"], "size_hw": size_hw}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                "an image entry lacks a field or has a wrong one", where=f"{self._path}, image {image}", why=repr(error)
            ) from error

    def _read_annotations(
        self, raw: list[dict[str, Any]], size_hw: tuple[int, int], categories: dict[int, str], skipped: Counter[str]
    ) -> dict[str, Any]:
        boxes, class_ids, crowd, areas, shapes = [], [], [], [], []
        for annotation in raw:
            category = annotation.get("category_id")
            if category not in categories:
                raise DataError(
                    f"category id {category} is not declared",
                    where=f"{self._path}, annotation {annotation.get('id')}",
                    fix="run `saccade data check` on the data set",
                )
            if category not in self._class_id_of:
                skipped["annotation of another class"] += 1
                continue
            box = to_xyxy(annotation.get("bbox"))
            if box is None or not _inside(box, size_hw):
                skipped["box without extent in the image"] += 1
                continue
            if self.task is Task.INSTANCE:
                shape = self._read_shape(annotation, size_hw, skipped)
                if shape is None:
                    skipped["instance without a mask"] += 1
                    continue
                shapes.append(shape)
            boxes.append(box)
            class_ids.append(self._class_id_of[category])
            small = min(box[2] - box[0], box[3] - box[1]) < self._min_box
            crowd.append(bool(annotation.get("iscrowd")) or bool(annotation.get("ignore")) or small)
            area = annotation.get("area")
            areas.append(float((box[2] - box[0]) * (box[3] - box[1]) if area is None else area))
        return {
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "class_ids": np.array(class_ids, np.int64),
            "crowd": np.array(crowd, bool),
            "areas": np.array(areas, np.float64),
            "shapes": shapes,
        }

    def _read_shape(self, annotation: dict[str, Any], size_hw: tuple[int, int], skipped: Counter[str]) -> Shape | None:
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            size = segmentation.get("size")
            if not isinstance(size, list) or tuple(size) != size_hw:
                raise DataError(
                    "a mask has another size than its image",
                    where=f"{self._path}, annotation {annotation.get('id')}",
                    why=f"the mask says height and width {size}, the image {list(size_hw)}",
                    fix="run `saccade data check` on the data set",
                )
            return segmentation
        if not isinstance(segmentation, list) or not segmentation:
            return None
        polygons = []
        for points in segmentation:
            polygon = to_polygon(points)
            if polygon is None:
                skipped["polygon with fewer than 3 points"] += 1
            elif not np.isfinite(polygon).all() or is_far_outside(polygon, size_hw):
                skipped["polygon far outside the image"] += 1
            else:
                polygons.append(polygon)
        return polygons or None

    def _decode(self, shape: Shape, record: dict[str, Any]) -> NDArray:
        try:
            return (decode_soft if self._soft_masks else decode_shape)(shape, record["size_hw"])
        except (ValueError, TypeError, OverflowError) as error:
            raise DataError(
                "a run-length mask is damaged",
                where=f"{self._path}, image {record['id']} ({record['file']})",
                why=str(error),
                fix="run `saccade data check` on the data set",
            ) from error


def open_coco(spec: SourceSpec, *, layout: CocoLayout = COCO, source: type[CocoSource] = CocoSource) -> CocoSource:
    """Opens a data set in COCO form.

    Args:
        spec: The data set.
        layout: Where it keeps its files.
        source: The reader: :class:`CocoSource`, or one that reads more.
    """
    return source(
        task=spec.task,
        root=spec.root,
        split=spec.split,
        images=spec.images,
        annotations=spec.annotations,
        classes=spec.classes,
        drop_empty=spec.drop_empty,
        min_side=spec.min_side,
        min_box=spec.min_box,
        soft_masks=spec.soft_masks,
        layout=layout,
    )


def find_annotations(root: Path, split: str, annotations: str = "", layout: CocoLayout = COCO) -> tuple[Path, bool]:
    """The JSON file of a split.

    Returns:
        The file; and whether it belongs to that split alone (else it is the whole data set).

    Raises:
        MissingDataError: It is not found; the message lists what is there.
    """
    if annotations:
        if not (root / annotations).is_file():
            beside = sorted(str(path.relative_to(root)) for path in root.rglob("*.json"))[:10]
            raise UsageError(
                "the annotation file does not exist", where=root / annotations, fix=f"json files there: {beside}"
            )
        return root / annotations, True
    own = [pattern.format(name) for name in split_names(split) for pattern in layout.annotations]
    found = first_existing(root, own)
    if found is not None:
        return found, True
    found = first_existing(root, layout.undivided)
    if found is not None:
        return found, False
    there = sorted(str(path.relative_to(root)) for path in root.glob("*/*.json")) + [
        p.name for p in root.glob("*.json")
    ]
    raise MissingDataError(
        f"no COCO annotation file for the split '{split}' is found",
        where=root,
        why=f"json files there: {', '.join(there[:10]) or 'none'}",
        fix="name the file, relative to root (annotations=...)",
    )


def image_folders(root: Path, annotations: Path, split: str, layout: CocoLayout = COCO) -> list[str]:
    """Where images of a split usually are, relative to root, best guess first."""
    if layout.images:
        return per_split(layout.images, split)
    beside = str(annotations.parent.relative_to(root)) if annotations.parent.is_relative_to(root) else "."
    year = [annotations.stem.removeprefix("instances_").removeprefix("captions_")]
    usual = [
        pattern.format(name)
        for name in (*year, *split_names(split))
        for pattern in ("{}", "{}2017", "{}2014", "images/{}", "images/{}2017", "{}/images", "JPEGImages/{}")
    ]
    near = [] if beside == "annotations" else [beside]
    return [*near, *usual, "images", "JPEGImages", "data", "."]


def locate_images(
    root: Path, entries: Sequence[dict[str, Any]], given: str, annotations: Path, split: str, layout: CocoLayout
) -> tuple[Path, list[str]]:
    """The image folder, and the files of the entries relative to it.

    Args:
        root: Folder of the data set.
        entries: Image entries of the annotation file.
        given: Folder relative to root; empty = look for it.
        annotations: The annotation file.
        split: The split.
        layout: Where the data set keeps its files.

    Raises:
        UsageError: The given folder does not exist, or no usual one holds the files.
    """
    candidates = image_folders(root, annotations, split, layout)
    found: tuple[Path, list[str]] | None = None
    refused: UsageError | None = None
    for name_of in layout.file_names:
        names = [name_of(entry) for entry in entries]
        try:
            folder = find_images(root, names, given, candidates)
        except UsageError as error:
            refused = refused or error
            continue
        found = found or (folder, names)
        if any((folder / name).is_file() for name in names[:3]):
            return folder, names
    if found is None:
        assert refused is not None
        raise refused
    return found


def read_categories(content: Any, path: Path, skipped: Counter[str]) -> dict[int, str]:
    """Category id to name.

    Roboflow writes a category 0 that is only the heading of the others; it is left out and counted.

    Raises:
        DataError: A category without an id or name, or an id twice.
    """
    categories: dict[int, str] = {}
    parents = set()
    for category in list_of(content, "categories", path):
        try:
            key, name = int(category["id"]), str(category["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("a category lacks its id or name", where=f"{path}, {category}", why=repr(error)) from error
        if key in categories:
            raise DataError(f"category id {key} is declared twice", where=path, why=f"{categories[key]}, {name}")
        categories[key] = name
        if key:
            parents.add(category.get("supercategory"))
    used = any(isinstance(a, dict) and a.get("category_id") == 0 for a in content.get("annotations", ()))
    if 0 in categories and len(categories) > 1 and parents == {categories[0]} and not used:
        del categories[0]
        skipped["heading category 0"] += 1
    return categories


def _image_ids(listed: list[Any], path: Path) -> set[int | str]:
    known: set[int | str] = set()
    for image in listed:
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            raise DataError("an image entry has no id", where=f"{path}, {image}")
        if image["id"] in known:
            raise DataError(
                f"image id {image['id']} occurs twice", where=path, fix="run `saccade data check` on the data set"
            )
        known.add(image["id"])
    return known


def _group(
    content: Any, path: Path, known: set[int | str], skipped: Counter[str]
) -> dict[int | str, list[dict[str, Any]]]:
    """Annotations by image."""
    grouped: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for annotation in list_of(content, "annotations", path):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(image_id, int | str):
            raise DataError("an annotation has no image id", where=f"{path}, {annotation}")
        if image_id in known:
            grouped[image_id].append(annotation)
        else:
            skipped["annotation of an image that is not listed"] += 1
    return grouped


def to_xyxy(box: Any) -> list[float] | None:
    """``[x, y, width, height]`` to corners; None where it is not four finite numbers with a positive extent."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError):
        return None
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        return None
    return [x, y, x + width, y + height]


def to_polygon(points: Any) -> NDArray[np.float64] | None:
    """A flat list x0 y0 x1 y1 ...; None where it is not at least three points."""
    try:
        polygon = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        return None
    return polygon if polygon.ndim == 1 and len(polygon) >= 6 and len(polygon) % 2 == 0 else None


def is_far_outside(polygon: NDArray[np.float64], size_hw: tuple[int, int]) -> bool:
    """Whether a vertex lies so far outside the image that it must be damage."""
    return float(np.abs(polygon).max()) > _FAR * max(size_hw)


def decode_shape(shape: Shape, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Rasterises polygons or decodes a run-length mask as the COCO tools do.

    Raises:
        ValueError: The runs do not fill the mask.
        TypeError: The runs are not what COCO defines.
    """
    height, width = size_hw
    if isinstance(shape, dict):
        counts = shape.get("counts")
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts, default=0) < 0:
                raise ValueError(f"the runs cover {sum(counts)} of {height * width} pixels")
            rle = coco_mask.frPyObjects(shape, height, width)
        elif isinstance(counts, str | bytes):
            rle = {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
        else:
            raise TypeError("a run-length mask without counts")
    else:
        rle = coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in shape], height, width))
    return coco_mask.decode(rle).astype(bool)


def decode_soft(shape: Shape, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """A mask with a soft outline, 0..1: polygons are rasterised at four times the size and reduced bilinearly.

    Without antialiasing every pixel is the mean of the middle four of its sixteen. Run-length masks stay hard.

    Raises:
        ValueError: The runs do not fill the mask.
        TypeError: The runs are not what COCO defines.
    """
    if isinstance(shape, dict):
        return decode_shape(shape, size_hw).astype(np.float32)
    height, width = size_hw
    large = decode_shape([polygon * 4 for polygon in shape], (4 * height, 4 * width))
    return large.reshape(height, 4, width, 4)[:, 1:3, :, 1:3].mean((1, 3), dtype=np.float32)


def _inside(box: list[float], size_hw: tuple[int, int]) -> bool:
    height, width = size_hw
    return min(box[2], width) > max(box[0], 0) and min(box[3], height) > max(box[1], 0)
