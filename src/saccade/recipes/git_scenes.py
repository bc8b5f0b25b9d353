"""GiT-nano on drawn scenes: the bundled checkpoint, and the question of negative transfer at that scale."""

from __future__ import annotations

import dataclasses

from saccade.data.augment import Augment, CaptionAugment, DetectionAugment
from saccade.models.git.config import GIT_TASKS, GiTConfig
from saccade.models.git.presets import PRESETS
from saccade.recipes.git import only
from saccade.recipes.small import STEM_RATES, scratch_optim
from saccade.tasks import TASKS, Task
from saccade.training.config import SourceConfig, TrainConfig

# Scenes never end, so that nothing is drawn twice and images need no distortion; captions and phrases speak of left and
# right, so that they may not be flipped. Contours are traced in the loader's processes.
_AUGMENT: dict[Task, Augment] = {
    Task.INSTANCE: DetectionAugment(flip=0.0, crop_probability=0.0, contour_rays=24, resize_as_float=True),
    Task.CAPTION: CaptionAugment(flip=0.0, min_area=1.0),
}
_BATCH: dict[Task, int] = {
    Task.DETECTION: 12,
    Task.INSTANCE: 8,
    Task.SEMANTIC: 8,
    Task.CAPTION: 12,
    Task.GROUNDING: 12,
}
# Instance responses are six times as long as boxes, and phrases must be learned from nothing; captions are short.
_WEIGHT: dict[Task, float] = {
    Task.DETECTION: 1.0,
    Task.INSTANCE: 1.2,
    Task.SEMANTIC: 0.9,
    Task.CAPTION: 0.6,
    Task.GROUNDING: 1.2,
}


def scenes_source(task: Task, *, size: int = 224, weight: float = 1.0) -> SourceConfig:
    """Drawn scenes for training one task."""
    return SourceConfig(
        task=task,
        reader="scenes",
        split="train",
        size=size,
        weight=weight,
        batch_size=_BATCH[task],
        augment=_AUGMENT.get(task),
    )


def scenes_validation(task: Task, *, size: int = 224, limit: int = 500) -> SourceConfig:
    """Drawn scenes that no training sees."""
    return SourceConfig(task=task, reader="scenes", split="val", size=size, limit=limit, batch_size=16)


def nano_scenes(*, steps: int = 6_300, size: int = 224) -> TrainConfig:
    """The five-task mixture that the bundled ``git-nano`` was trained with."""
    return _scenes("git/nano_scenes", PRESETS["nano"](), GIT_TASKS, steps=steps, size=size)


def nano_scenes_single(task: Task, *, steps: int = 0, size: int = 224) -> TrainConfig:
    """One task alone, with the samples that this task has in :func:`nano_scenes`.

    Args:
        task: The task.
        steps: 0 = the steps that the five-task mixture spends on this task.
        size: Side of the scenes in pixels.
    """
    alias = TASKS[task].alias
    share = steps or round(nano_scenes().steps * _WEIGHT[task] / sum(_WEIGHT.values()))
    return _scenes(f"git/nano_scenes_single_{alias}", only(PRESETS["nano"](), [task]), (task,), steps=share, size=size)


def _scenes(name: str, model: GiTConfig, tasks: tuple[Task, ...], *, steps: int, size: int) -> TrainConfig:
    return TrainConfig(
        name=name,
        model=model,
        train=tuple(scenes_source(task, size=size, weight=_WEIGHT[task]) for task in tasks),
        val=tuple(scenes_validation(task, size=size) for task in tasks),
        steps=steps,
        optim=dataclasses.replace(
            scratch_optim(steps),
            lr=6e-4,
            decay_matrices_only=False,
            # Clipping this low gives every task a step of the same length, whatever the scale of its loss.
            clip_norm=0.1,
            # The 768 inputs of a patch are nearly equal, so that full steps of their weights would drown the rest.
            layer_rates=STEM_RATES,
        ),
        precision="bf16",
        initialise="local",
        ema_decay=0.999,
        save_every=250,
        log_every=50,
        workers=1,
    )
