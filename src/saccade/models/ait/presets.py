"""Named sizes of AiT: the published ones, and a small one of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from saccade.layers.swin import SwinV2Config
from saccade.layers.vit import ViTConfig
from saccade.models.ait.config import AiTConfig, DepthConfig, ObjectsConfig, depth_vqvae, mask_vqvae
from saccade.models.ait.transformer import TransformerConfig
from saccade.models.ait.vqvae import MapVQVAEConfig
from saccade.tasks import Task
from saccade.tokens.codebook import CodebookConfig, VQVAEConfig

_SPARE = 128


def swin(size: str, *, shifted: bool, drop_path: float) -> SwinV2Config:
    """The published backbones: ``b`` or ``l``; the depth models shift no windows in their last two stages."""
    shifts = (True, True, shifted, shifted)
    if size == "l":
        return SwinV2Config(width=192, heads=(6, 12, 24, 48), shifted=shifts, drop_path=drop_path)
    return SwinV2Config(shifted=shifts, drop_path=drop_path)


def depth(size: str = "b", *, parallel: bool = False, soft: bool = True) -> AiTConfig:
    """Depth alone at 480 px."""
    return AiTConfig(
        backbone=swin(size, shifted=False, drop_path=0.1),
        transformer=TransformerConfig(grid=15, parallel=parallel),
        depth=DepthConfig(
            soft_tokens=soft and not parallel,
            soft_maps=soft,
            sharpness=0.8 if soft else 1.0,
            auxiliary=1.0 if soft else 0.0,
        ),
    )


def detection() -> AiTConfig:
    """Boxes alone at 640 px."""
    return AiTConfig(backbone=swin("b", shifted=True, drop_path=0.3), detection=ObjectsConfig(top_p=0.4))


def instance(*, soft: bool = True) -> AiTConfig:
    """Boxes and masks at 640 px."""
    masks = ObjectsConfig(masks=mask_vqvae(), soft_tokens=soft, soft_masks=soft, auxiliary=5.0 if soft else 0.0)
    return AiTConfig(backbone=swin("b", shifted=True, drop_path=0.3), spare_rows=_SPARE, instance=masks)


def joint() -> AiTConfig:
    """Boxes, masks and depth with one set of weights; depth windows are padded to 640 px."""
    return AiTConfig(
        backbone=swin("b", shifted=True, drop_path=0.3),
        spare_rows=_SPARE,
        instance=ObjectsConfig(masks=mask_vqvae()),
        depth=DepthConfig(sharpness=1.0, weight=0.2, top_p=0.3, pad_to=640),
    )


PRESETS: dict[str, Callable[[], AiTConfig]] = {
    "depth-b": depth,
    "depth-b-hard": partial(depth, soft=False),
    "depth-b-parallel": partial(depth, parallel=True),
    "depth-l": partial(depth, "l"),
    "depth-l-parallel": partial(depth, "l", parallel=True),
    "detection-b": detection,
    "instance-b": instance,
    "instance-b-hard": partial(instance, soft=False),
    "joint-b": joint,
}


def vqvae(task: Task) -> MapVQVAEConfig:
    """The published VQ-VAE of masks, or of depth with half of its patches hidden in training."""
    if task is Task.DEPTH:
        return MapVQVAEConfig(task=task, vqvae=depth_vqvae(), hide_patch=16, hide_ratio=0.5)
    return MapVQVAEConfig(task=task, vqvae=mask_vqvae())


VQVAES: dict[str, Callable[[], MapVQVAEConfig]] = {
    "vqvae-masks": partial(vqvae, Task.INSTANCE),
    "vqvae-depth": partial(vqvae, Task.DEPTH),
}


def nano(size: int = 192, *, parallel: bool = False, soft: bool = True) -> AiTConfig:
    """Ours: a backbone of three stages, a code of depth for every 16 px, eight objects with 4 x 4 codes each.

    It has all three tasks; a recipe takes out what it does not train.
    """
    side = size // 16
    masks = ObjectsConfig(
        input_size=size,
        objects=8,
        top_p=0.0,
        masks=nano_vqvae(Task.INSTANCE),
        soft_tokens=soft,
        soft_masks=soft,
        auxiliary=5.0 if soft else 0.0,
    )
    return AiTConfig(
        num_classes=8,
        bins=2 * size,
        backbone=SwinV2Config(
            width=32,
            depths=(2, 2, 6),
            heads=(1, 2, 4),
            windows=(side,) * 3,
            pretrained_windows=(side,) * 3,
            shifted=(True, True, False),
            drop_path=0.0,
            out_stages=(2,),
        ),
        transformer=TransformerConfig(
            width=96,
            heads=3,
            mlp_width=384,
            encoder_blocks=2,
            decoder_blocks=3,
            grid=side,
            length=max(masks.length, side**2),
            dropout=0.0,
            drop_path=0.0,
            parallel=parallel,
        ),
        instance=masks,
        depth=DepthConfig(
            depth=nano_vqvae(Task.DEPTH, size),
            soft_tokens=soft and not parallel,
            soft_maps=soft,
            sharpness=1.0,
            auxiliary=1.0 if soft else 0.0,
            normalised=True,
        ),
    )


def nano_plain(*, soft: bool = True) -> AiTConfig:
    """:func:`nano` on a plain ViT: the backbone of GiT-nano under AiT's encoder, codes and decoder.

    ``init_from=git-nano`` fills the backbone with what GiT learned.
    """
    vit = ViTConfig(
        width=192,
        depth=8,
        heads=3,
        mlp_width=672,
        image_size=192,
        window_size=12,
        global_blocks=(2, 5),
    )
    return dataclasses.replace(nano(soft=soft), backbone=vit)


def nano_vqvae(task: Task, size: int = 192) -> VQVAEConfig:
    """The VQ-VAEs of :func:`nano`; dead codes are revived, for there is no time to try other starts."""
    codebook = CodebookConfig(width=64, revive_below=0.5)
    if task is Task.DEPTH:
        return dataclasses.replace(depth_vqvae(), size=size, downsample=16, base_width=8, scale=10.0, codebook=codebook)
    return dataclasses.replace(mask_vqvae(), base_width=8, codebook=codebook)


def preset_of(state: Mapping[str, Tensor]) -> str | None:
    """The preset whose form a released solver has, from names and shapes; None for another form.

    A model that was trained without soft tokens has the same tensors: it is named by hand (``depth-b-hard``).
    """
    width = state["backbone.patch_embed.proj.bias"].shape[0] if "backbone.patch_embed.proj.bias" in state else 0
    form = (
        width,
        any(key.startswith("depth_head.vqvae.") for key in state),
        any(key.startswith("insseg_head.vqvae.") for key in state),
        "transformer.mask_embed" in state,
    )
    for name, make in PRESETS.items():
        config = make()
        own = (
            config.backbone.width,
            config.depth is not None,
            config.instance is not None,
            config.transformer.parallel,
        )
        if form == own:
            return name
    return None
