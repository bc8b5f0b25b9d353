"""ViSFT as published (specs/visft.md 8): heads on a frozen backbone, then low-rank updates through frozen heads.

``data`` is a folder with ``coco`` (images and annotations of 2017) and ``coco_captions`` (HDF5 files of the Karpathy
split, ``saccade data convert --to caption_hdf5`` writes them). Precision is bf16 where the authors
had fp16 with a loss scale.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from saccade.data.augment import Augment
from saccade.data.class_names import CLASS_NAMES
from saccade.data.detr_augment import DETRAugment
from saccade.data.large_scale_jitter import LargeScaleJitterAugment
from saccade.models.visft.config import Head, ViSFTConfig
from saccade.models.visft.convert import PUBLISHED_LORA
from saccade.models.visft.model import HEAD_OF
from saccade.models.visft.presets import PRESETS
from saccade.recipes.steps import batches_per_step
from saccade.tasks import Task
from saccade.training.config import OptimConfig, SourceConfig, TrainConfig

Size: TypeAlias = Literal["g", "e"]

TASK_OF: dict[Head, Task] = {head: task for task, head in HEAD_OF.items()}
_GPUS = 8
# Of the first stage: images of a step on all of them, updates, learning rate.
_FIRST: dict[Head, tuple[int, int, float]] = {
    "detection": (8, 150_000, 5e-5),
    "instance": (8, 150_000, 5e-5),
    "caption": (256, 100_000, 4e-4),
}
# Of the second: the share of a task, and images of a step where it is drawn.
_SECOND: dict[Head, tuple[float, int]] = {"caption": (0.4, 64), "instance": (0.3, 8), "detection": (0.3, 8)}
# Masks are trained on squares and predicted at 800 x 1333 at most.
_AUGMENT: dict[Head, Augment] = {"detection": DETRAugment(), "instance": LargeScaleJitterAugment(size=1024)}


def first_stage(
    head: Head,
    size: Size,
    *,
    data: str = "data",
    backbone: str = "",
    words: str = "",
    processes: int = 0,
    images: int = 0,
) -> TrainConfig:
    """One head on the frozen backbone.

    Args:
        head: Which one.
        size: The backbone, EVA-ViT-g or EVA-ViT-E.
        data: Folder of the data sets.
        backbone: ``eva-vit-g``, ``eva-clip-e`` (fetched), or a file; empty = fresh weights.
        words: The ``WORDMAP_*.json`` of captions.
        processes: GPUs; 0 = those that torchrun started.
        images: Images per GPU at a time; a step gathers them until it is whole. 0 = as published, where eight GPUs had
            them at once: 32 captions, one picture with boxes or masks. Losses are means over what comes together.
    """
    together, steps, lr = _FIRST[head]
    images = images or together // _GPUS
    return TrainConfig(
        name=f"visft/{head}_{size}",
        model=only(published(size), head),
        init_from=backbone,
        vocabulary=words,
        train=(_source(head, data, "train", batch_size=images),),
        val=(_source(head, data, "val", batch_size=1),),
        accumulate=batches_per_step(together, processes=processes, images=images),
        steps=steps,
        optim=published_optim(lr),
        precision="bf16",
        eval_every=10_000,
        save_every=1000,
    )


def second_stage(
    size: Size,
    *,
    data: str = "data",
    backbone: str = "",
    detection: str = "",
    instance: str = "",
    caption: str = "",
    words: str = "",
    processes: int = 0,
) -> TrainConfig:
    """Low-rank updates of queries and values, one task per step.

    Of the authors' 100,000 updates 5,000 to 50,000 were released. Dropout of the frozen heads rests, which theirs does
    not (``model.frozen_dropout=true``).

    Args:
        size: The backbone, EVA-ViT-g or EVA-ViT-E.
        data: Folder of the data sets.
        backbone: ``eva-vit-g``, ``eva-clip-e`` (fetched), or a file; updates need one, or ``weights`` of the whole.
        detection: The trained head: a run of the first stage, or a file of the authors; empty = a fresh one, which is
            trained in full beside the updates.
        instance: The same for masks.
        caption: The same for captions.
        words: The ``WORDMAP_*.json`` of captions.
        processes: GPUs; 0 = those that torchrun started. At most eight.
    """
    batches = batches_per_step(_GPUS, processes=processes, images=1)
    return TrainConfig(
        name=f"visft/lora_{size}",
        model=published(size),
        init_from=backbone,
        detection_init=detection,
        instance_init=instance,
        caption_init=caption,
        vocabulary=words,
        lora=PUBLISHED_LORA,
        train=tuple(
            dataclasses.replace(_source(head, data, "train", batch_size=together // _GPUS), weight=weight)
            for head, (weight, together) in _SECOND.items()
        ),
        mixture="stepwise",
        accumulate=batches,
        steps=100_000,
        optim=published_optim(1e-5),
        precision="bf16",
        activation_checkpointing=True,
        save_every=500,
    )


def published(size: Size) -> ViSFTConfig:
    """The model of a backbone, with COCO's names."""
    return PRESETS[f"eva-{size}"]().named(CLASS_NAMES["coco"])


def only(config: ViSFTConfig, head: Head) -> ViSFTConfig:
    """The model with one head; the authors' has all three, two of them idle."""
    return dataclasses.replace(config.only((head,)), trained=(head,))


def published_optim(lr: float) -> OptimConfig:
    """AdamW of transformers 4.10, a warm-up of 2,000 steps from 0, and a cosine to 0."""
    return OptimConfig(
        lr=lr,
        weight_decay=1e-4,
        clip_norm=0.1,
        adam="transformers",
        schedule="transformers",
        warmup_steps=2000,
    )


def _source(head: Head, data: str, split: Literal["train", "val"], *, batch_size: int) -> SourceConfig:
    training = split == "train"
    if head == "caption":
        return SourceConfig(
            task=Task.CAPTION,
            reader="caption_hdf5",
            root=f"{data}/coco_captions",
            split=split,
            batch_size=batch_size,
            per_caption=training,
        )
    return SourceConfig(
        task=TASK_OF[head],
        reader="coco",
        root=f"{data}/coco",
        split=split,
        batch_size=batch_size,
        augment=_AUGMENT[head] if training else None,
        soft_masks=training and head == "instance",
    )
