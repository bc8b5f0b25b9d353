"""GSVA: pre-training and fine-tuning as published (specs/gsva.md 7.3 and 10), and GSVA-nano on drawn scenes."""

from __future__ import annotations

from saccade.data.phrases import PhraseAugment
from saccade.models.gsva import presets
from saccade.tasks import Task
from saccade.training.config import OptimConfig, SourceConfig, TrainConfig


def nano_scenes(*, steps: int = 6_000, size: int = 192, images: int = 16) -> TrainConfig:
    """``gsva-nano`` on drawn scenes: its Llama, its CLIP-like tower and its SAM learn everything from scenes.

    Args:
        steps: Optimiser steps.
        size: Side of the scenes in pixels.
        images: Pictures per step, with five phrases each.
    """
    return TrainConfig(
        name="gsva/nano_scenes",
        model=presets.nano(size),
        train=(
            SourceConfig(
                task=Task.REFERRING, reader="scenes", size=size, batch_size=images, augment=PhraseAugment(count=5)
            ),
        ),
        val=(SourceConfig(task=Task.REFERRING, reader="scenes", split="val", size=size, limit=500, batch_size=16),),
        steps=steps,
        optim=OptimConfig(
            lr=1e-3,
            betas=(0.9, 0.98),
            weight_decay=0.05,
            decay_matrices_only=True,
            clip_norm=1.0,
            warmup_steps=min(300, steps // 10),
            min_lr=1e-5,
        ),
        precision="bf16",
        initialise="local",
        ema_decay=0.999,
        save_every=500,
        log_every=50,
        workers=1,
        monitor=f"{Task.REFERRING}/gIoU",
    )
