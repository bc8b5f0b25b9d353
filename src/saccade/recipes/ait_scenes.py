"""AiT-nano on drawn scenes: the two VQ-VAEs, then depth, instances, and both together."""

from __future__ import annotations

import dataclasses

from saccade.data.augment import ScaleJitterAugment
from saccade.data.depth_augment import DepthAugment
from saccade.data.mask_crops import MaskCropAugment
from saccade.data.sources.scenes import ScenesSource
from saccade.metrics.depth import DRAWN_SCENES
from saccade.models.ait import presets
from saccade.models.ait.config import AiTConfig
from saccade.models.ait.vqvae import MapVQVAEConfig
from saccade.recipes.ait import NO_DECAY
from saccade.recipes.small import scratch_optim
from saccade.tasks import Task
from saccade.training.config import LayerRates, OptimConfig, SourceConfig, TrainConfig


def nano_vqvae_masks(*, steps: int = 1_500, size: int = 192) -> TrainConfig:
    """Codes of masks, learned from crops of drawn objects.

    Args:
        steps: Optimiser steps.
        size: Side of the scenes in pixels.
    """
    train = SourceConfig(task=Task.INSTANCE, reader="scenes", size=size, batch_size=64, augment=MaskCropAugment())
    return _vqvae("nano_vqvae_masks", Task.INSTANCE, train, _instances_validation(size), steps=steps, size=size)


def nano_vqvae_depth(*, steps: int = 1_500, size: int = 192, hidden: float = 0.5, holes: float = 0.0) -> TrainConfig:
    """Codes of depth, learned from depth maps of scenes.

    Args:
        steps: Optimiser steps.
        size: Side of the scenes in pixels.
        hidden: Share of the patches that are hidden from the encoder.
        holes: Share of the depth that is lost, as a sensor loses it.
    """
    config = _vqvae(
        "nano_vqvae_depth",
        Task.DEPTH,
        _depth_source(16, size, holes=holes),
        _depth_validation(size),
        steps=steps,
        size=size,
    )
    assert isinstance(config.model, MapVQVAEConfig)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, hide_patch=16, hide_ratio=hidden))


def nano_depth(
    *,
    depth_vqvae: str = "",
    steps: int = 6_000,
    size: int = 192,
    parallel: bool = False,
    soft: bool = True,
    holes: float = 0.0,
) -> TrainConfig:
    """Metric depth of scenes, as the bundled ``ait-nano`` was trained.

    Args:
        depth_vqvae: What ``ait.nano_vqvae_depth`` trained.
        steps: Optimiser steps.
        size: Side of the scenes in pixels.
        parallel: All codes in one pass instead of one after the other.
        soft: Soft tokens, in prediction and by the loss of what they draw.
        holes: Share of the depth that is lost in training, as a sensor loses it.
    """
    model = dataclasses.replace(presets.nano(size, parallel=parallel, soft=soft), instance=None)
    return _solver(
        "nano_depth",
        model,
        (_depth_source(12, size, holes=holes),),
        (_depth_validation(size),),
        depth_vqvae=depth_vqvae,
        steps=steps,
    )


def nano_depth_plain(*, depth_vqvae: str = "", init_from: str = "git-nano", steps: int = 3_000) -> TrainConfig:
    """Depth as soft tokens on a plain ViT: what GiT-nano sees, said in AiT's codes.

    Args:
        depth_vqvae: What ``ait.nano_vqvae_depth`` trained.
        init_from: Where the backbone comes from; empty = fresh weights.
        steps: Optimiser steps.
    """
    config = _solver(
        "nano_depth_plain",
        dataclasses.replace(presets.nano_plain(), instance=None),
        (_depth_source(12, 192),),
        (_depth_validation(192),),
        depth_vqvae=depth_vqvae,
        steps=steps,
    )
    return _from_backbone(config, init_from)


def nano_instance(
    *, mask_vqvae: str = "", init_from: str = "git-nano", steps: int = 3_000, soft: bool = True
) -> TrainConfig:
    """Boxes and masks of scenes, on the plain ViT of GiT-nano.

    Args:
        mask_vqvae: What ``ait.nano_vqvae_masks`` trained.
        init_from: Where the backbone comes from; empty = fresh weights.
        steps: Optimiser steps.
        soft: Soft tokens, in prediction and by the loss of what they draw.
    """
    config = _solver(
        "nano_instance",
        dataclasses.replace(presets.nano_plain(soft=soft), depth=None),
        (_instances(12, 192),),
        (_instances_validation(192),),
        mask_vqvae=mask_vqvae,
        steps=steps,
    )
    return _from_backbone(config, init_from)


def nano_joint(
    *, mask_vqvae: str = "", depth_vqvae: str = "", init_from: str = "git-nano", steps: int = 3_000
) -> TrainConfig:
    """Boxes, masks and depth with one set of weights; a step has as many pictures of each as when trained alone.

    Depth weighs a fifth, as in the published joint model: at full weight masks hardly learn beside it.

    Args:
        mask_vqvae: What ``ait.nano_vqvae_masks`` trained.
        depth_vqvae: What ``ait.nano_vqvae_depth`` trained.
        init_from: Where the backbone comes from; empty = fresh weights.
        steps: Optimiser steps.
    """
    model = presets.nano_plain()
    assert model.depth is not None
    model = dataclasses.replace(model, depth=dataclasses.replace(model.depth, weight=0.2))
    config = _solver(
        "nano_joint",
        model,
        (_instances(12, 192), _depth_source(12, 192)),
        (_instances_validation(192), _depth_validation(192)),
        mask_vqvae=mask_vqvae,
        depth_vqvae=depth_vqvae,
        steps=steps,
    )
    return dataclasses.replace(_from_backbone(config, init_from), mixture="together")


def _solver(
    name: str,
    model: AiTConfig,
    train: tuple[SourceConfig, ...],
    val: tuple[SourceConfig, ...],
    *,
    mask_vqvae: str = "",
    depth_vqvae: str = "",
    steps: int,
) -> TrainConfig:
    if model.instance is not None:
        classes = ScenesSource(task=Task.INSTANCE).classes
        assert classes is not None
        model = dataclasses.replace(
            model, classes=classes.names, category_ids=classes.category_ids, num_classes=len(classes)
        )
    return TrainConfig(
        name=f"ait/{name}",
        model=model,
        mask_vqvae=mask_vqvae,
        depth_vqvae=depth_vqvae,
        train=train,
        val=val,
        steps=steps,
        optim=dataclasses.replace(scratch_optim(steps), no_decay=NO_DECAY),
        precision="bf16",
        initialise="local",
        ema_decay=0.999,
        save_every=500,
        log_every=50,
        workers=1,
    )


def _from_backbone(config: TrainConfig, init_from: str) -> TrainConfig:
    """A start from a trained backbone, whose blocks learn at a tenth of the rate: at the full one they forget."""
    if not init_from:
        return config
    rates = LayerRates(floor=0.1, frozen_until=7, first_full=8)
    return dataclasses.replace(config, init_from=init_from, optim=dataclasses.replace(config.optim, layer_rates=rates))


def _vqvae(name: str, task: Task, train: SourceConfig, val: SourceConfig, *, steps: int, size: int) -> TrainConfig:
    vqvae = presets.nano_vqvae(task, size)
    codebook = dataclasses.replace(vqvae.codebook, sync=True)
    model = MapVQVAEConfig(task=task, vqvae=dataclasses.replace(vqvae, codebook=codebook))
    return TrainConfig(
        name=f"ait/{name}",
        model=model,
        train=(train,),
        val=(val,),
        steps=steps,
        optim=OptimConfig(lr=1e-3, weight_decay=0.0, clip_norm=1.0, warmup_steps=100, min_lr=1e-5),
        precision="bf16",
        initialise="local",
        save_every=500,
        log_every=50,
        workers=1,
    )


def _depth_source(images: int, size: int, *, holes: float = 0.0) -> SourceConfig:
    augment = DepthAugment(cut_depth=0.0, light=0.0, resize=False, holes=holes)
    return SourceConfig(task=Task.DEPTH, reader="scenes", size=size, batch_size=images, augment=augment)


def _depth_validation(size: int) -> SourceConfig:
    return SourceConfig(
        task=Task.DEPTH,
        reader="scenes",
        split="val",
        size=size,
        limit=500,
        batch_size=16,
        protocol=DRAWN_SCENES,
    )


def _instances(images: int, size: int) -> SourceConfig:
    # Scenes never end, and nothing is drawn twice; flips and mild scaling still teach that place and size are free.
    augment = ScaleJitterAugment(scales=(0.8, 1.3), rules="ait")
    return SourceConfig(task=Task.INSTANCE, reader="scenes", size=size, batch_size=images, augment=augment)


def _instances_validation(size: int) -> SourceConfig:
    return SourceConfig(task=Task.INSTANCE, reader="scenes", split="val", size=size, limit=500, batch_size=16)
