"""OpenImages v6 (arXiv 1811.00982): boxes and masks in CSV tables, coordinates as shares of width and height."""

from __future__ import annotations

import csv
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saccade.data.geometry import mask_tensor
from saccade.data.images import read_labels
from saccade.data.resize import resize_nearest
from saccade.data.sources.boxes import box_target, has_extent
from saccade.data.sources.layout import (
    choose_classes,
    data_root,
    find_file,
    find_images,
    first_existing,
    load_image,
    per_split,
)
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError
from saccade.samples import ClassList, Sample
from saccade.tasks import Task

_TABLES: dict[Task, tuple[str, ...]] = {
    Task.DETECTION: ("oidv6-{}-annotations-bbox.csv", "{}-annotations-bbox.csv"),
    Task.INSTANCE: ("{}-annotations-object-segmentation.csv",),
}
_CLASSES = ("class-descriptions-boxable.csv", "oidv7-class-descriptions-boxable.csv")
_FOLDERS = ("annotations/", "labels/", "csv/", "")
_IMAGES = ("{}", "images/{}", "OpenImages/{}", "{}/data")
_MASKS = ("masks/{}", "{}-masks", "segmentation/{}", "segmentation/masks/{}", "{}/masks", "masks")
_BOX: dict[Task, tuple[str, ...]] = {
    Task.DETECTION: ("XMin", "YMin", "XMax", "YMax"),
    Task.INSTANCE: ("BoxXMin", "BoxYMin", "BoxXMax", "BoxYMax"),
}
_LAST_OF_ROW: dict[Task, str] = {Task.DETECTION: "IsGroupOf", Task.INSTANCE: "MaskPath"}


@dataclass(kw_only=True)
class Row:
    """One object of a table.

    Attributes:
        number: Line of the table, for messages.
        image_id: The image.
        label: Machine id of the class.
        box: Corners x0, y0, x1, y1 as shares of width and height.
        is_group: One box around many objects that touch one another.
        mask: File of the mask, empty in tables of boxes.
    """

    number: int
    image_id: str
    label: str
    box: tuple[float, float, float, float]
    is_group: bool
    mask: str


class OpenImagesSource:
    """Images with boxes (groups of objects are ignored regions), or with masks.

    An image without an object in the table is not listed. Masks are stored in another size than their image; they are
    brought to its size by nearest neighbour. Category ids are positions in the file of class descriptions.

    Args:
        spec: Detection or instance segmentation. Root is the folder with the tables (in ``annotations``), the images
            (in ``<split>`` or ``images/<split>``) and the masks (in ``masks/<split>`` or ``<split>-masks``).
            ``annotations`` names the table; empty = looked for.

    Attributes:
        skipped: Boxes without extent, objects of classes that were not asked for.

    Raises:
        UsageError: Files are not found, or a class is not in the file of class descriptions.
        DataError: A table is damaged, or names a class that is not described.
    """

    def __init__(self, spec: SourceSpec) -> None:
        root = data_root(spec.root)
        table = find_table(spec, root)
        described = read_descriptions(root)
        labels = list(described)
        self.name, self.task = f"{root.name}/{spec.split}", spec.task
        self.classes: ClassList = choose_classes(dict(enumerate(described.values())), spec.classes, root)
        class_id_of = {labels[category]: class_id for class_id, category in enumerate(self.classes.category_ids)}
        # Fifteen million rows: columns of numbers, sorted by image once they are all there.
        numbers: dict[str, int] = {}
        images, class_ids, groups, boxes = array("q"), array("h"), array("b"), array("f")
        masks: list[str] = []
        skipped: Counter[str] = Counter()
        for row in read_rows(table, spec.task):
            number = numbers.setdefault(row.image_id, len(numbers))
            if row.label not in described:
                raise DataError(
                    f"the class '{row.label}' is not described",
                    where=f"{table}, line {row.number}",
                    fix=f"the table and {_CLASSES[0]} must be of one release",
                )
            if row.label not in class_id_of:
                skipped["object of another class"] += 1
            elif not has_extent(row.box):
                skipped["box without extent"] += 1
            else:
                images.append(number)
                class_ids.append(class_id_of[row.label])
                groups.append(row.is_group)
                boxes.extend(row.box)
                masks.append(row.mask)
        if not numbers:
            raise DataError("no image is left", where=table, why="the table is empty")
        owner = np.array(images, np.int64)
        order = np.argsort(owner, kind="stable")
        self._ends = np.cumsum(np.bincount(owner, minlength=len(numbers)))
        self._class_ids = np.array(class_ids, np.int16)[order]
        self._groups = np.array(groups, bool)[order]
        self._boxes = np.array(boxes, np.float32).reshape(-1, 4)[order]
        self._image_ids = np.array(list(numbers))
        self._image_folder = find_image_folder(spec, root, list(numbers))
        if spec.task is Task.INSTANCE:
            self._mask_files = np.array(masks)[order]
            self._mask_folder = find_masks(root, masks, spec.split)
        self.skipped: dict[str, int] = dict(skipped)

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image and its truth, in the frame of the original image."""
        rows = self._rows(index)
        image_id = str(self._image_ids[index])
        image, origin = load_image(self._image_folder / f"{image_id}.jpg", self.name, image_id, None)
        height, width = origin.size_hw
        target = box_target(
            self._boxes[rows] * np.array([width, height, width, height], np.float32),
            self._class_ids[rows].astype(np.int64),
            self._groups[rows].copy(),
            origin.size_hw,
        )
        if self.task is Task.INSTANCE:
            masks = [read_mask(self._mask_folder / name, origin.size_hw) for name in self._mask_files[rows]]
            target.masks = mask_tensor(np.stack(masks) if masks else np.zeros((0, height, width), bool))
            target.areas = target.masks.sum(dim=(1, 2)).double()
        return Sample(image=image, task=self.task, origin=origin, target=target, classes=self.classes)

    def class_ids_of(self, index: int) -> set[int]:
        """Class ids in an image, groups left out."""
        rows = self._rows(index)
        return set(self._class_ids[rows][~self._groups[rows]].tolist())

    def _rows(self, index: int) -> slice:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))


def find_table(spec: SourceSpec, root: Path) -> Path:
    """The table of a split.

    Raises:
        UsageError: It is not found, or OpenImages has none for the task.
    """
    if spec.task not in _TABLES:
        raise UsageError(f"OpenImages serves detection and instance segmentation, not {spec.task}", where=root)
    candidates = [folder + name for folder in _FOLDERS for name in per_split(_TABLES[spec.task], spec.split)]
    return find_file(root, spec.annotations, candidates, f"the OpenImages table (.csv) of the split '{spec.split}'")


def read_descriptions(root: Path) -> dict[str, str]:
    """Machine id -> name of the classes that have boxes, in the order of the file.

    Raises:
        UsageError: The file is not found.
        DataError: It is damaged.
    """
    path = first_existing(root, [folder + name for folder in _FOLDERS for name in _CLASSES])
    if path is None:
        raise UsageError(
            "the class descriptions are not found", where=root, fix=f"put {_CLASSES[0]} into the folder annotations"
        )
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and rows[0][0] == "LabelName":  # since release 7 the file has a heading
        del rows[0]
    if not rows or any(len(row) < 2 for row in rows):
        raise DataError("a class description lacks its name", where=path, fix="each line is /m/id,name")
    return {row[0]: row[1] for row in rows}


def read_rows(table: Path, task: Task) -> Iterator[Row]:
    """The objects of a table, in its order.

    Raises:
        DataError: A column is missing, or a row has too few or no numbers.
    """
    wanted = ("ImageID", "LabelName", *_BOX[task], _LAST_OF_ROW[task])
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        missing = [name for name in wanted if name not in header]
        if missing:
            raise DataError(
                f"the table has no column {', '.join(missing)}",
                where=table,
                why=f"its columns are {', '.join(header[:12])}",
                fix="is it the table of the task?",
            )
        columns = [header.index(name) for name in wanted]
        for number, fields in enumerate(reader, start=2):
            try:
                image_id, label, *box, last = (fields[column] for column in columns)
                x0, y0, x1, y1 = map(float, box)
            except (IndexError, ValueError) as error:
                raise DataError(
                    "a row of the table is damaged", where=f"{table}, line {number}", why=str(error)
                ) from error
            is_box = task is Task.DETECTION
            yield Row(
                number=number,
                image_id=image_id,
                label=label,
                box=(x0, y0, x1, y1),
                is_group=is_box and last == "1",
                mask="" if is_box else last,
            )


def find_image_folder(spec: SourceSpec, root: Path, image_ids: Sequence[str]) -> Path:
    """The folder of the images of a split.

    Raises:
        UsageError: No usual folder holds them.
    """
    names = [f"{image_id}.jpg" for image_id in image_ids[:3]]
    return find_images(root, names, spec.images, per_split(_IMAGES, spec.split))


def find_masks(root: Path, masks: Sequence[str], split: str) -> Path:
    """The folder of the masks of a split.

    Raises:
        UsageError: No usual folder holds them.
    """
    candidates = per_split(_MASKS, split)
    for candidate in candidates:
        if any((root / candidate / name).is_file() for name in masks[:3]):
            return root / candidate
    raise UsageError(
        "the masks are in none of the usual folders",
        where=root,
        why=f"looked for {masks[0] if masks else 'masks'} in {', '.join(candidates)}",
        fix="unpack the mask archives of the split into masks/<split>",
    )


def read_mask(path: Path, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Reads a mask and brings it to the size of its image."""
    return resize_nearest(read_labels(path) > 0, size_hw)
