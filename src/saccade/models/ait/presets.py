"""Named sizes of AiT: the published ones, and a small one of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from saccade.layers.swin import SwinV2Config
from saccade.models.ait.config import AiTConfig, DepthConfig, ObjectsConfig, mask_vqvae
from saccade.models.ait.transformer import TransformerConfig

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
