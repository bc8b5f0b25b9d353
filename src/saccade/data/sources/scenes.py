"""Reader of the drawn world: every task, any split, no files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchvision import tv_tensors

from saccade.data.scenes import SCENE_STYLES, SEMANTIC_CLASSES, SPLITS, THING_CLASSES, Scene, draw_scene
from saccade.data.scenes.language import Phrase
from saccade.data.scenes.scene import MAX_SIZE, MIN_SIZE
from saccade.errors import DataError, UsageError, nearest
from saccade.samples import ClassList, Origin, Sample, Target
from saccade.tasks import Task
from saccade.tokens.pieces import SEG


class ScenesSource:
    """Drawn scenes as samples of one task. The same arguments give the same samples, byte for byte.

    Category ids are class id + 1, as in most data sets, so that code which confuses the two fails here first.

    Args:
        task: What the targets are filled for.
        split: ``train`` (10**9 scenes), ``val`` or ``test`` (10,000 each); they share no scene.
        size: Height and width of the pictures in pixels, 64 to 1120.
        limit: Only so many samples (0 = all).
        offset: Skip so many samples.
        seed: Another seed is another world of the same kind.
        style: Another look of the same scenes (``SCENE_STYLES``).
        dialogue: Of referring segmentation: a question about all objects, instead of phrases, and an answer that names
            each by its looks, with a [SEG] behind it.

    Raises:
        UsageError: An unknown split or style, or a size, limit, offset or seed out of range.
    """

    def __init__(
        self,
        *,
        task: Task,
        split: str = "train",
        size: int = 224,
        limit: int = 0,
        offset: int = 0,
        seed: int = 0,
        style: str = "plain",
        dialogue: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise UsageError(f"the scenes have no split '{split}'", fix=nearest(split, SPLITS))
        word, total = SPLITS[split]
        if min(limit, offset, seed) < 0 or offset >= total:
            raise UsageError(
                "limit, offset and seed must not be negative, and the offset must lie inside the split",
                where=f"limit={limit}, offset={offset}, seed={seed}, split '{split}' of {total} scenes",
            )
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise UsageError(f"scenes are drawn from {MIN_SIZE} to {MAX_SIZE} pixels a side, not {size}", where="size")
        if style not in SCENE_STYLES:
            raise UsageError(f"the scenes have no style '{style}'", fix=nearest(style, SCENE_STYLES))
        self.name = f"scenes/{split}" if style == "plain" else f"scenes/{split}/{style}"
        self._style, self._dialogue = style, dialogue
        self.task = Task(task)
        self.classes = _CLASSES.get(self.task)
        self.skipped: dict[str, int] = {}
        self._seed = (seed, word)
        self._size_hw = (size, size)
        self._offset = offset
        self._length = min(limit, total - offset) if limit else total - offset

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Draws one sample, in the frame of the drawn picture.

        Raises:
            IndexError: The index is not in 0..len-1.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"scene {index} of {self._length} in {self.name}")
        number = self._offset + index
        scene = draw_scene((*self._seed, number), self._size_hw, style=self._style)
        phrases: tuple[Phrase, ...] = ()
        if self.task is Task.REFERRING:
            phrases = scene.description if self._dialogue else scene.phrases
        return Sample(
            image=tv_tensors.Image(torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()),
            task=self.task,
            origin=Origin(dataset=self.name, image_id=number, path=None, size_hw=self._size_hw),
            target=_referred(scene, phrases) if phrases else _target(scene, self.task),
            classes=self.classes,
            phrase=scene.phrases[0].text if self.task is Task.GROUNDING else None,
            phrases=tuple(phrase.text for phrase in phrases),
            dialogue=(_described(phrases),) if self._dialogue else (),
        )


def _numbered(names: tuple[str, ...]) -> ClassList:
    return ClassList(names=names, category_ids=tuple(range(1, len(names) + 1)))


_CLASSES: dict[Task, ClassList] = {
    Task.DETECTION: _numbered(THING_CLASSES),
    Task.INSTANCE: _numbered(THING_CLASSES),
    Task.SEMANTIC: _numbered(SEMANTIC_CLASSES),
    Task.CENTER: _numbered(SEMANTIC_CLASSES),
}


def _target(scene: Scene, task: Task) -> Target:
    """The fields that the task reads; the others are never worked out."""
    if task in (Task.SEMANTIC, Task.CENTER):
        return Target(semantic=tv_tensors.Mask(torch.from_numpy(scene.semantic).to(torch.int64)))
    if task is Task.CAPTION:
        return Target(captions=scene.captions)
    if task is Task.DEPTH:
        return Target(depth_m=torch.from_numpy(scene.depth_m))
    boxes = torch.from_numpy(scene.boxes_xyxy)
    if task is Task.GROUNDING:
        return Target(boxes=_boxes(boxes[list(scene.phrases[0].targets)], scene.size_hw))
    if task in (Task.DETECTION, Task.INSTANCE):
        return Target(
            boxes=_boxes(boxes, scene.size_hw),
            class_ids=torch.from_numpy(scene.class_ids),
            masks=tv_tensors.Mask(torch.from_numpy(scene.masks)) if task is Task.INSTANCE else None,
            is_crowd=torch.zeros(len(scene), dtype=torch.bool),
            areas=torch.from_numpy(scene.areas).to(torch.float64),
        )
    raise DataError(f"the scenes reader fills no targets for the task '{task}'")


def _described(phrases: Sequence[Phrase]) -> tuple[str, str]:
    said = ", ".join(f"{phrase.text}:{SEG}" for phrase in phrases)
    return "What are the objects in this image?", f"Sure, they are {said}."


def _referred(scene: Scene, phrases: Sequence[Phrase]) -> Target:
    listed = [(k, target) for k, phrase in enumerate(phrases) for target in phrase.targets]
    masks = np.stack([scene.masks[list(phrase.targets)].any(axis=0) for phrase in phrases])
    return Target(
        masks=tv_tensors.Mask(torch.from_numpy(masks)),
        boxes=_boxes(torch.from_numpy(scene.boxes_xyxy)[[target for _, target in listed]], scene.size_hw),
        phrase_ids=torch.tensor([k for k, _ in listed], dtype=torch.int64),
    )


def _boxes(boxes: torch.Tensor, size_hw: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size_hw)
