"""Named sizes: the paper's networks as published, a plain ViT of ours, and a small centre predictor for a CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, TypeAlias

from torch import Tensor

from saccade.layers.hourglass import HourglassConfig
from saccade.layers.unet import UNetConfig
from saccade.layers.vit import ViTConfig
from saccade.models.polar.config import CentersConfig, LibraryConfig, PolarConfig, SegmenterConfig, ViTPixelsConfig
from saccade.models.polar.convert import Network, sizes_of

AnyConfig: TypeAlias = SegmenterConfig | CentersConfig | PolarConfig

_GREY_HW = (128, 128)
_GREY_MEAN = 25.5  # a tenth: the mean of CT slices that the paper's code subtracts


def unet() -> SegmenterConfig:
    """The paper's U-Net for lesions: 32 channels, four levels, 512 x 384 pixels."""
    return SegmenterConfig()


def unet_polar() -> PolarConfig:
    """The same network on unrolled pictures."""
    return PolarConfig(segmenter=unet(), interpolation="nearest")


def library(architecture: Literal["unetplusplus", "deeplabv3plus"]) -> SegmenterConfig:
    """One of the paper's other networks at the same input."""
    return SegmenterConfig(network=LibraryConfig(architecture=architecture))


def vit() -> SegmenterConfig:
    """A plain ViT of 4 million parameters with a light head at the same input."""
    blocks = ViTConfig(
        width=192,
        depth=8,
        heads=3,
        mlp_width=768,
        patch_size=16,
        image_size=256,
        window_size=8,
        global_blocks=(3, 7),
        drop_path=0.0,
    )
    return SegmenterConfig(network=ViTPixelsConfig(vit=blocks))


def grey(config: SegmenterConfig) -> SegmenterConfig:
    """The same for slices of the paper's CT: 128 x 128 pixels, and one channel where the network reads one."""
    channels: Literal[1, 3] = 3 if isinstance(config.network, ViTPixelsConfig) else 1
    return dataclasses.replace(config, input_hw=_GREY_HW, channels=channels, mean=(_GREY_MEAN,) * 3)


def grey_centers(config: CentersConfig) -> CentersConfig:
    """The same for slices of the paper's CT: one channel; they are enlarged to the input of the lesions."""
    network = dataclasses.replace(config.network, channels=1)
    return dataclasses.replace(config, network=network, mean=(_GREY_MEAN,) * 3)


def centers() -> CentersConfig:
    """The paper's centre predictor: eight hourglasses of width 256 at 256 pixels."""
    return CentersConfig()


def centers_small() -> CentersConfig:
    """Two hourglasses of width 64, for a CPU."""
    return CentersConfig(network=HourglassConfig(stacks=2, width=64))


SEGMENTERS: dict[str, Callable[[], SegmenterConfig]] = {
    "unet": unet,
    "unetplusplus": partial(library, "unetplusplus"),
    "deeplabv3plus": partial(library, "deeplabv3plus"),
    "vit": vit,
}
"""Networks that score every pixel."""

PRESETS: dict[str, Callable[[], AnyConfig]] = {
    **SEGMENTERS,
    "unet-polar": unet_polar,
    "centers": centers,
    "centers-small": centers_small,
}
"""Preset name -> configuration."""


def config_of(state: Mapping[str, Tensor], network: Network, *, polar: bool) -> AnyConfig:
    """What a released state dict fits: sizes from its shapes, the rest as the paper's code has it.

    Args:
        state: Official names to tensors.
        network: Which network it is.
        polar: Its training saw unrolled pictures, which the file does not say.
    """
    sizes = sizes_of(state, network)
    if network == "hourglass":
        found = CentersConfig(network=HourglassConfig(**sizes))
        if sizes["channels"] == 1:
            found = grey_centers(dataclasses.replace(found, classes=("background", "liver")))
        return found
    size = UNetConfig(features=sizes["features"], levels=sizes["levels"])
    outputs = sizes["outputs"]
    names = ("lesion",) if outputs == 1 else tuple(f"class {number}" for number in range(1, outputs))
    segmenter = SegmenterConfig(network=size, classes=("background", *names))
    if sizes["channels"] == 1:
        segmenter = grey(SegmenterConfig(network=size, classes=("background", "liver")))
    return PolarConfig(segmenter=segmenter, interpolation="nearest") if polar else segmenter
