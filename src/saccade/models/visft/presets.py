"""Named sizes: the two published backbones with heads of the published form, and a small one of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from saccade.layers.detr import DETRConfig
from saccade.layers.mask2former import MaskedDecoderConfig, PixelDecoderConfig
from saccade.layers.vit import ViTConfig
from saccade.models.visft.caption import CaptionHeadConfig
from saccade.models.visft.clip import CLIPPairConfig, TextTowerConfig
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.detection import DetectionHeadConfig
from saccade.models.visft.segmentation import SegmentationHeadConfig

# The official detection head has a logit for every COCO category id up to 90, ten of which name nothing.
_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_CATEGORY_IDS = tuple(id_ for id_ in range(1, 91) if id_ not in _UNUSED)

_NANO_SIDE, _NANO_PATCH = 112, 8  # pixels
_PUBLISHED_HEAD_FROM = 768  # channels of the backbone


def eva(*, width: int, depth: int, heads: int, mlp_width: int, **changes: Any) -> ViTConfig:
    """A backbone of the EVA family: every block global, absolute positions, no bias on the keys."""
    settings: dict[str, Any] = {
        "patch_size": 14,
        "image_size": 224,
        "global_blocks": tuple(range(depth)),
        "rel_pos": False,
        "qkv_bias": "qv",
        "final_norm": True,
        "ragged": "drop",
        "drop_path": 0.0,
    }
    return ViTConfig(width=width, depth=depth, heads=heads, mlp_width=mlp_width, **{**settings, **changes})


def eva_g() -> ViTConfig:
    """EVA-ViT-g as ViSFT builds it: 40 blocks and a last norm (BLIP-2 has 39 and none)."""
    return eva(width=1408, depth=40, heads=16, mlp_width=6144)


def eva_e() -> ViTConfig:
    """EVA-ViT-E: its norms stand behind the branches."""
    return eva(width=1792, depth=64, heads=16, mlp_width=15360, norm="post")


def published(vit: ViTConfig) -> ViSFTConfig:
    """The three heads in the form of the released weights."""
    return ViSFTConfig(
        vit=vit,
        detection=DetectionHeadConfig(layout="official", category_ids=_CATEGORY_IDS),
        instance=SegmentationHeadConfig(layout="official", category_ids=_CATEGORY_IDS),
    )


def nano_vit() -> ViTConfig:
    """A backbone of our own for 112 px: 14 x 14 patches of 8 px, half as wide as most objects of drawn scenes."""
    return eva(width=128, depth=4, heads=4, mlp_width=512, patch_size=_NANO_PATCH, image_size=_NANO_SIDE)


def nano(*, words: CaptionHeadConfig, classes: int) -> ViSFTConfig:
    """Small heads on the small backbone.

    Args:
        words: The caption head, whose vocabulary comes from the data.
        classes: Classes of the other two.
    """
    return ViSFTConfig(
        vit=nano_vit(),
        detection=DetectionHeadConfig(
            detr=DETRConfig(
                encoder_width=96,
                decoder_width=96,
                mlp_width=192,
                heads=4,
                encoder_layers=2,
                decoder_layers=3,
                dropout=0.0,
            ),
            queries=24,
            num_classes=classes,
        ),
        instance=dataclasses.replace(_small_masks(), num_classes=classes, stride=_NANO_PATCH, pad_multiple=_NANO_PATCH),
        caption=words,
        detection_size=_NANO_SIDE,
        detection_short_side=0,
        instance_size=_NANO_SIDE,
        instance_short_side=0,
        caption_size=_NANO_SIDE,
    )


def labelling(vit: ViTConfig, classes: tuple[str, ...], *, side: int) -> ViSFTConfig:
    """A backbone with a head for label maps alone, small on a small backbone and else as large as the published ones.

    Args:
        vit: Any plain ViT; its map gets a norm where it has none, and a class token is left out.
        classes: All that a pixel can be.
        side: Side of the network input in pixels.
    """
    masks = _small_masks() if vit.width < _PUBLISHED_HEAD_FROM else SegmentationHeadConfig()
    return ViSFTConfig(
        vit=dataclasses.replace(vit, final_norm=True, class_token=False),
        detection=None,
        instance=None,
        caption=None,
        semantic=dataclasses.replace(masks, num_classes=len(classes), classes=classes, stride=vit.patch_size),
        trained=("backbone", "semantic"),
        semantic_size=side,
    )


def _small_masks() -> SegmentationHeadConfig:
    return SegmentationHeadConfig(
        pixels=PixelDecoderConfig(width=96, mask_width=96, heads=4, mlp_width=192, layers=2, groups=8),
        decoder=MaskedDecoderConfig(heads=4, mlp_width=192, layers=3, queries=24),
        points=1024,
    )


def nano_pair(vocabulary: int) -> CLIPPairConfig:
    """The small backbone beside a small text tower, for contrastive pre-training; it has the house's statistics.

    Its map is taught, too: it is all that the small heads have.
    """
    vit = nano_vit()
    vit.class_token = True
    return CLIPPairConfig(
        vit=vit,
        text=TextTowerConfig(vocab_size=vocabulary, positions=64, width=192, layers=3, heads=4),
        joint_width=128,
        map_weight=1.0,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    )


PRESETS: dict[str, Callable[[], ViSFTConfig]] = {
    "eva-g": lambda: published(eva_g()),
    "eva-e": lambda: published(eva_e()),
}


def preset_of_width(width: int) -> str | None:
    """Name of the published backbone of so many channels; None where there is none."""
    return next((name for name, make in PRESETS.items() if make().vit.width == width), None)
