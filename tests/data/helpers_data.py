"""Small sources and samples for the tests of data."""

from __future__ import annotations

import numpy as np
import torch
from torchvision import tv_tensors

from saccade.data.geometry import boxes_tensor, mask_tensor
from saccade.samples import ClassList, Origin, Sample, Target
from saccade.tasks import Task

CLASSES = ClassList(names=("cat", "dog", "bird"), category_ids=(1, 3, 90))


def tight_boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes of non-empty masks, XYXY."""
    boxes = []
    for mask in masks:
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    return np.array(boxes, np.float32).reshape(-1, 4)


def make_sample(
    number: int, task: Task = Task.DETECTION, *, size_hw: tuple[int, int] | None = None, objects: int = 3
) -> Sample:
    """A random image with rectangles: boxes, masks, labels, captions and a phrase that agree."""
    rng = np.random.default_rng([11, number])
    height, width = size_hw or (int(rng.integers(40, 120)), int(rng.integers(40, 120)))
    image = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    masks = np.zeros((objects, height, width), bool)
    for mask in masks:
        y, x = int(rng.integers(height - 12)), int(rng.integers(width - 12))
        mask[y : y + int(rng.integers(6, 30)), x : x + int(rng.integers(6, 30))] = True
    ids = torch.from_numpy(rng.integers(0, 3, objects))
    labels = np.full((height, width), 255, np.int64)
    for mask, class_id in zip(masks, ids.tolist(), strict=True):
        labels[mask] = class_id
    target = Target()
    if task in (Task.DETECTION, Task.INSTANCE):
        target = Target(boxes=boxes_tensor(tight_boxes(masks), (height, width)), class_ids=ids)
        if task is Task.INSTANCE:
            target.masks = mask_tensor(masks)
    elif task is Task.SEMANTIC:
        target = Target(semantic=mask_tensor(labels))
    elif task is Task.CAPTION:
        target = Target(captions=(f"caption {number} a", f"caption {number} b"))
    else:
        target = Target(boxes=boxes_tensor(tight_boxes(masks[:1]), (height, width)))
    return Sample(
        image=tv_tensors.Image(torch.from_numpy(image)),
        task=task,
        target=target,
        origin=Origin(dataset="made", image_id=number, path=None, size_hw=(height, width)),
        classes=CLASSES if task in (Task.DETECTION, Task.INSTANCE, Task.SEMANTIC) else None,
        phrase="the first box" if task is Task.GROUNDING else None,
    )


class MadeSource:
    """Samples made on the fly."""

    def __init__(self, task: Task, length: int, *, broken: int | None = None) -> None:
        self.name, self.task, self.length, self.broken = f"made {task}", task, length, broken
        self.classes = CLASSES
        self.skipped: dict[str, int] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        from saccade.errors import ImageError

        if index == self.broken:
            raise ImageError("cannot be decoded", where="photos/broken.jpg", fix="remove it")
        return make_sample(index, self.task)

    def class_ids_of(self, index: int) -> set[int]:
        return {0} if index else {0, 1}
