"""Named sizes: the paper's three networks as published, and small ones for tests and for a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from torch import Tensor

from saccade.layers.hourglass import HourglassConfig
from saccade.layers.unet import UNetConfig
from saccade.models.polar.config import CentersConfig, LibraryConfig, PolarConfig, SegmenterConfig
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


def library(architecture: LibraryConfig) -> SegmenterConfig:
    """One of the paper's other networks at the same input."""
    return SegmenterConfig(network=architecture)


def centers() -> CentersConfig:
    """The paper's centre predictor: eight hourglasses of width 256 at 256 pixels."""
    return CentersConfig()


def centers_small() -> CentersConfig:
    """Two hourglasses of width 64, for a CPU."""
    return CentersConfig(network=HourglassConfig(stacks=2, width=64))


PRESETS: dict[str, Callable[[], AnyConfig]] = {
    "unet": unet,
    "unet-polar": unet_polar,
    "unetplusplus": partial(library, LibraryConfig(architecture="unetplusplus")),
    "deeplabv3plus": partial(library, LibraryConfig(architecture="deeplabv3plus")),
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
        return CentersConfig(network=HourglassConfig(**sizes))
    size = UNetConfig(features=sizes["features"], levels=sizes["levels"])
    outputs = sizes["outputs"]
    names = ("lesion",) if outputs == 1 else tuple(f"class {number}" for number in range(1, outputs))
    segmenter = SegmenterConfig(network=size, classes=("background", *names))
    if sizes["channels"] == 1:
        mean = (_GREY_MEAN,) * 3
        segmenter = SegmenterConfig(
            network=size, classes=("background", "liver"), channels=1, input_hw=_GREY_HW, mean=mean
        )
    return PolarConfig(segmenter=segmenter, interpolation="nearest") if polar else segmenter
