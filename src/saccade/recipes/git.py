"""The published trainings of GiT: single-task, five-task, universal (specs of GiT, section 7).

Common to all: AdamW with weight decay 0.05 on every parameter, gradients clipped to 0.1, a cosine to 2e-6 without
warm-up, float32, activation checkpointing; the backbone starts from SAM, the word table from the authors' embedding
file. One batch is one task. ``data`` is the folder that holds the data sets (layout: docs/recipes.md).

The published learning rate belongs to 24 images per step over all processes (3 on each of 8 GPUs in base). The authors
scale it linearly with that number (automatically in the universal trainings); ``total_batch`` does the same here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal, TypeAlias

from saccade.data.augment import CaptionAugment, DetectionAugment, GroundingAugment, SemanticAugment
from saccade.data.class_names import CLASS_NAMES
from saccade.models.git.config import GIT_TASKS, GiTConfig
from saccade.models.git.presets import PRESETS
from saccade.tasks import Task
from saccade.training.config import LayerRates, OptimConfig, SourceConfig, TrainConfig

Size: TypeAlias = Literal["base", "large", "huge"]

LAYER_RATES: dict[Size, LayerRates] = {
    "base": LayerRates(floor=0.1, frozen_until=5, first_full=12),
    "large": LayerRates(floor=0.1, frozen_until=12, first_full=24),
    "huge": LayerRates(floor=0.1, frozen_until=16, first_full=32),
}
"""Learning-rate ramps over the blocks: SAM's lower blocks move slowly, the new blocks at the full rate."""

BASE_BATCH = 24
"""Images per step, over all processes, that the published learning rate 2e-4 belongs to."""


# Images per forward pass in evaluation.
def _test_batch(boxes: int, text: int) -> dict[Task, int]:
    return {Task.DETECTION: boxes, Task.INSTANCE: boxes, Task.SEMANTIC: 1, Task.CAPTION: text, Task.GROUNDING: text}


_TEST_BATCH: dict[Size, dict[Task, int]] = {
    "base": _test_batch(3, 32),
    "large": _test_batch(2, 16),
    "huge": _test_batch(1, 16),
}


def only(config: GiTConfig, tasks: Collection[Task]) -> GiTConfig:
    """The same model offering these tasks alone (no task has weights of its own)."""
    reduced = dataclasses.replace(config)
    for task in GIT_TASKS:
        if task not in tasks:
            setattr(reduced, task.value, None)
    return reduced


def published_optim(size: Size, *, total_batch: int = BASE_BATCH) -> OptimConfig:
    """The optimiser of all published trainings.

    Args:
        size: Decides the ramp of the learning rate over the blocks.
        total_batch: Images per step over all processes; the learning rate is proportional to it.
    """
    return OptimConfig(
        lr=2e-4 * total_batch / BASE_BATCH,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
        clip_norm=0.1,
        layer_rates=LAYER_RATES[size],
        schedule="cosine",
        warmup_steps=0,
        min_lr=2e-6,
    )


def training(
    name: str,
    size: Size,
    model: GiTConfig,
    train: tuple[SourceConfig, ...],
    val: tuple[SourceConfig, ...],
    *,
    steps: int,
    every: int,
    total_batch: int,
) -> TrainConfig:
    """A published training: everything that they have in common around the given parts."""
    return TrainConfig(
        name=name,
        model=model,
        train=train,
        val=val,
        steps=steps,
        optim=published_optim(size, total_batch=total_batch),
        init_from=f"sam-vit-{size}",
        text_init=f"git-text-{size}",
        activation_checkpointing=True,
        eval_every=every,
        save_every=every,
        workers=4,
        log_every=50,
    )


# ------------------------------------------------------------------------------------------- the five data sets


def coco_detection(data: str, *, batch_size: int, weight: float = 1.0, keep_empty: bool = False) -> SourceConfig:
    """COCO 2017 boxes for training; ``keep_empty`` keeps images without objects, as the five-task GiT-H does."""
    return SourceConfig(
        task=Task.DETECTION,
        reader="coco",
        root=f"{data}/coco",
        split="train2017",
        images="train2017",
        annotations="annotations/instances_train2017.json",
        classes=CLASS_NAMES["coco"],
        drop_empty=not keep_empty,
        min_side=0 if keep_empty else 32,
        weight=weight,
        batch_size=batch_size,
        augment=DetectionAugment(filter_boxes=not keep_empty),
    )


def coco_instances(data: str, *, batch_size: int, weight: float = 1.0, keep_empty: bool = False) -> SourceConfig:
    """COCO 2017 masks for training; images are resized as float32, contours traced by the loader."""
    return dataclasses.replace(
        coco_detection(data, batch_size=batch_size, weight=weight, keep_empty=keep_empty),
        task=Task.INSTANCE,
        augment=DetectionAugment(resize_as_float=True, contour_rays=24),
    )


def ade20k(data: str, *, batch_size: int, weight: float = 1.0) -> SourceConfig:
    """ADE20K (150 classes) for training."""
    return SourceConfig(
        task=Task.SEMANTIC,
        reader="ade20k",
        root=f"{data}/ade/ADEChallengeData2016",
        split="training",
        classes=CLASS_NAMES["ade20k"],
        reduce_zero_label=True,
        weight=weight,
        batch_size=batch_size,
        augment=SemanticAugment(),
    )


def coco_captions(data: str, *, batch_size: int, weight: float = 1.0) -> SourceConfig:
    """COCO captions, Karpathy's train split, one sample per caption."""
    return SourceConfig(
        task=Task.CAPTION,
        reader="karpathy",
        root=f"{data}/coco",
        split="train",
        annotations="annotations/coco_karpathy_train.json",
        per_caption=True,
        weight=weight,
        batch_size=batch_size,
        augment=CaptionAugment(),
    )


_REFCOCO = (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))


def refcoco(data: str, *, batch_size: int, weight: float = 1.0) -> tuple[SourceConfig, ...]:
    """RefCOCO, RefCOCO+ and RefCOCOg for training, each with ``weight``; one sample per sentence."""
    return tuple(
        SourceConfig(
            task=Task.GROUNDING,
            reader="refcoco",
            root=f"{data}/coco",
            split="train",
            images="train2014",
            annotations=f"{name}/refs({by}).p",
            weight=weight,
            batch_size=batch_size,
            augment=GroundingAugment(),
        )
        for name, by in _REFCOCO
    )


def validation(data: str, size: Size, tasks: Collection[Task]) -> tuple[SourceConfig, ...]:
    """What the published trainings are evaluated on, of these tasks."""
    batch = _TEST_BATCH[size]
    boxes = SourceConfig(
        task=Task.DETECTION,
        reader="coco",
        root=f"{data}/coco",
        split="val2017",
        images="val2017",
        annotations="annotations/instances_val2017.json",
        classes=CLASS_NAMES["coco"],
        batch_size=batch[Task.DETECTION],
    )
    everything = (
        boxes,
        dataclasses.replace(boxes, task=Task.INSTANCE),
        dataclasses.replace(ade20k(data, batch_size=batch[Task.SEMANTIC]), split="validation", augment=None),
        dataclasses.replace(
            coco_captions(data, batch_size=batch[Task.CAPTION]),
            split="test",
            annotations="annotations/coco_karpathy_test.json",
            per_caption=False,
            augment=None,
        ),
        dataclasses.replace(refcoco(data, batch_size=batch[Task.GROUNDING])[0], split="val", augment=None),
    )
    return tuple(source for source in everything if source.task in tasks)


# ------------------------------------------------------------------------------------------- one task


def _single(
    name: str, task: Task, train: tuple[SourceConfig, ...], *, data: str, total_batch: int, preset: str = "base"
) -> TrainConfig:
    return training(
        name,
        "base",
        only(PRESETS[preset](), [task]),
        train,
        validation(data, "base", [task]),
        steps=120_000,
        every=5_000,
        total_batch=total_batch,
    )


def single_detection_base(*, data: str = "data", total_batch: int = BASE_BATCH) -> TrainConfig:
    """GiT-B on COCO boxes alone (published: 45.1 AP)."""
    train = (coco_detection(data, batch_size=3),)
    return _single("git/single_detection_base", Task.DETECTION, train, data=data, total_batch=total_batch)


def single_detection_base_672(*, data: str = "data", total_batch: int = BASE_BATCH) -> TrainConfig:
    """The light config: 672 px, 1,344 bins (about 41.5 AP in about 20 hours, say its authors)."""
    train = (coco_detection(data, batch_size=3),)
    name = "git/single_detection_base_672"
    return _single(name, Task.DETECTION, train, data=data, total_batch=total_batch, preset="base-672")


def single_instanceseg_base(*, data: str = "data", total_batch: int = BASE_BATCH) -> TrainConfig:
    """GiT-B on COCO masks alone (published: 31.4 mask AP)."""
    train = (coco_instances(data, batch_size=3),)
    return _single("git/single_instanceseg_base", Task.INSTANCE, train, data=data, total_batch=total_batch)


def single_semanticseg_base(*, data: str = "data", total_batch: int = BASE_BATCH) -> TrainConfig:
    """GiT-B on ADE20K alone (published: 47.7 mIoU)."""
    train = (ade20k(data, batch_size=3),)
    return _single("git/single_semanticseg_base", Task.SEMANTIC, train, data=data, total_batch=total_batch)


def single_caption_base(*, data: str = "data", total_batch: int = BASE_BATCH) -> TrainConfig:
    """GiT-B on COCO captions alone (published: 33.7 BLEU-4). The tables keep the size of 1120 px, as published."""
    train = (coco_captions(data, batch_size=3),)
    return _single("git/single_caption_base", Task.CAPTION, train, data=data, total_batch=total_batch)


def single_visualgrounding_base(*, data: str = "data", total_batch: int = BASE_BATCH) -> TrainConfig:
    """GiT-B on RefCOCO, RefCOCO+ and RefCOCOg alone (published: 83.3 Acc@0.5 on RefCOCO val)."""
    train = refcoco(data, batch_size=3, weight=1 / 3)
    return _single("git/single_visualgrounding_base", Task.GROUNDING, train, data=data, total_batch=total_batch)


# ------------------------------------------------------------------------------------------- five tasks


def multi_fivetask(size: Size, *, data: str = "data", total_batch: int = BASE_BATCH) -> TrainConfig:
    """Five tasks together, a fifth of the steps each.

    Args:
        size: Base takes 3 images per process and step; large and huge take 1, so that the published 24 per step need 24
            processes.
        data: Folder of the data sets.
        total_batch: Images per step over all processes; the learning rate is proportional to it.
    """
    batch = 3 if size == "base" else 1
    # The published huge config keeps images without boxes in its detection source.
    keep_empty = size == "huge"
    train = (
        coco_detection(data, batch_size=batch, weight=1 / 5, keep_empty=keep_empty),
        coco_instances(data, batch_size=batch, weight=1 / 5),
        ade20k(data, batch_size=batch, weight=1 / 5),
        coco_captions(data, batch_size=batch, weight=1 / 5),
        *refcoco(data, batch_size=batch, weight=1 / 15),
    )
    return training(
        f"git/multi_fivetask_{size}",
        size,
        PRESETS[size](),
        train,
        validation(data, size, GIT_TASKS),
        steps=640_000,
        every=20_000,
        total_batch=total_batch,
    )
