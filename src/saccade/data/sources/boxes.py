"""Plain boxes: what readers of one-box-per-line formats (VOC, WIDER FACE, CrowdHuman, BDD100K) have in common."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.data.geometry import boxes_tensor
from saccade.data.images import image_size
from saccade.data.sources.layout import Records, load_image
from saccade.errors import DataError, UsageError, nearest
from saccade.samples import ClassList, Sample, Target
from saccade.tasks import Task


@dataclass(kw_only=True)
class LabelledBox:
    """One object of a file.

    Attributes:
        name: Class name.
        box_xyxy: Corners in pixels, the origin at the corner of the first pixel; not finite where it could not be read.
        ignored: Neither trained nor scored (difficult, invalid, a crowd).
    """

    name: str
    box_xyxy: tuple[float, float, float, float]
    ignored: bool


@dataclass(kw_only=True)
class LabelledImage:
    """One image and its objects.

    Attributes:
        image: The image file.
        image_id: The data set's own id (file stem where it has none).
        size_hw: Declared height and width, None where the format does not declare them.
        objects: The objects in order.
    """

    image: Path
    image_id: int | str
    size_hw: tuple[int, int] | None
    objects: list[LabelledBox]


class BoxSource:
    """Images with boxes, from a list that the reader of a format has made.

    Ignored objects are kept as ignored regions (``is_crowd``): they are neither trained nor scored.

    Args:
        task: Detection.
        name: Name of the data set and split.
        images: The images and their objects.
        classes: The classes; objects of others are left out.
        skipped: What the reader of the format has left out already.
        drop_empty: Leave out images without a box.
        min_side: Leave out images whose shorter side is below this, in pixels.
        min_box: Boxes with a side below this, in pixels, are ignored regions.

    Attributes:
        skipped: Boxes without extent, objects of classes that were not asked for, images that were filtered out.

    Raises:
        UsageError: Another task.
        DataError: No image is left.
    """

    def __init__(
        self,
        *,
        task: Task,
        name: str,
        images: Iterable[LabelledImage],
        classes: ClassList,
        skipped: Counter[str] | None = None,
        drop_empty: bool = False,
        min_side: int = 0,
        min_box: float = 0.0,
    ) -> None:
        if task is not Task.DETECTION:
            raise UsageError(f"plain boxes serve detection, not {task}", where=name)
        self.name, self.task, self.classes = name, task, classes
        self._min_box = min_box
        skipped = Counter() if skipped is None else skipped
        records = []
        for labelled in images:
            record = self._record(labelled, skipped)
            if min_side and min(labelled.size_hw or image_size(labelled.image)) < min_side:
                skipped[f"image smaller than {min_side} pixels"] += 1
            elif drop_empty and not len(record[3]):
                skipped["image without annotations"] += 1
            else:
                records.append(record)
        if not records:
            raise DataError("no image is left", where=name, why=str(dict(skipped)) if skipped else "the list is empty")
        self._records = Records(records)
        self.skipped: dict[str, int] = dict(skipped)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image and its boxes, in the frame of the original image."""
        path, image_id, size_hw, boxes, class_ids, ignored = self._records[index]
        image, origin = load_image(Path(path), self.name, image_id, size_hw)
        target = box_target(boxes, class_ids, ignored, origin.size_hw)
        return Sample(image=image, task=self.task, origin=origin, target=target, classes=self.classes)

    def class_ids_of(self, index: int) -> set[int]:
        """Class ids in an image, ignored objects left out."""
        *_, class_ids, ignored = self._records[index]
        return set(class_ids[~ignored].tolist())

    def object_count(self, index: int) -> int:
        """Objects in an image, ignored objects left out."""
        return int((~self._records[index][-1]).sum())

    def _record(self, labelled: LabelledImage, skipped: Counter[str]) -> tuple:
        boxes, class_ids, ignored = [], [], []
        for item in labelled.objects:
            if item.name not in self.classes.names:
                skipped["object of another class"] += 1
            elif not has_extent(item.box_xyxy):
                skipped["box without extent"] += 1
            else:
                x0, y0, x1, y1 = item.box_xyxy
                boxes.append(item.box_xyxy)
                class_ids.append(self.classes.names.index(item.name))
                ignored.append(item.ignored or min(x1 - x0, y1 - y0) < self._min_box)
        return (
            str(labelled.image),
            labelled.image_id,
            labelled.size_hw,
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(class_ids, np.int64),
            np.array(ignored, bool),
        )


def box_target(
    boxes: NDArray[np.float32], class_ids: NDArray[np.int64], ignored: NDArray[np.bool_], size_hw: tuple[int, int]
) -> Target:
    """A target of boxes alone; the area of an object is that of its box.

    Args:
        boxes: ``[N, 4]`` pixels, XYXY.
        class_ids: ``[N]``.
        ignored: ``[N]``, regions that are neither trained nor scored.
        size_hw: Height and width of the image.
    """
    return Target(
        boxes=boxes_tensor(boxes, size_hw),
        class_ids=torch.from_numpy(class_ids),
        is_crowd=torch.from_numpy(ignored),
        areas=torch.from_numpy((boxes[:, 2] - boxes[:, 0]).astype(np.float64) * (boxes[:, 3] - boxes[:, 1])),
    )


def has_extent(box_xyxy: Sequence[float]) -> bool:
    """Whether the box is finite and has a positive width and height."""
    x0, y0, x1, y1 = box_xyxy
    return all(map(math.isfinite, box_xyxy)) and x1 > x0 and y1 > y0


def official_classes(official: ClassList, asked: Sequence[str], where: object) -> ClassList:
    """The classes of a data set, or a choice among them in the order asked for; category ids stay.

    Raises:
        UsageError: The data set has no such class.
    """
    if not asked:
        return official
    for name in asked:
        if name not in official.names:
            raise UsageError(f"the data set has no class '{name}'", where=where, fix=nearest(name, official.names))
    ids = dict(zip(official.names, official.category_ids, strict=True))
    return ClassList(names=tuple(asked), category_ids=tuple(ids[name] for name in asked))
