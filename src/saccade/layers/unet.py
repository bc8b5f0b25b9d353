"""The U-Net of the polar paper: encoder and decoder of equally many levels, with batch norm.

Shape legend: B images, C channels, H W map. Source: U-Net, MICCAI 2015, in the form of the public implementations that
the polar paper trains (convolutions without bias, batch norm, transposed convolutions); facts in docs/polar.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError


@dataclass(kw_only=True, frozen=True)
class UNetConfig:
    """Sizes of a U-Net.

    Attributes:
        features: Channels of the first level; every level below has twice as many.
        levels: Levels of the encoder, and of the decoder.
    """

    features: int = 32
    levels: int = 4

    def __post_init__(self) -> None:
        for name in ("features", "levels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", where=f"network.{name}")


class ConvPair(nn.Module):
    """Two 3x3 convolutions, each followed by batch norm and ReLU.

    Args:
        inputs: Channels in.
        outputs: Channels out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, outputs, H, W]``."""
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x_BCHW))))))


class UNet(nn.Module):
    """Pixels to logits.

    Args:
        config: Sizes.
        inputs: Channels of the picture.
        outputs: Channels of the answer.
    """

    def __init__(self, config: UNetConfig, *, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = [config.features * 2**level for level in range(config.levels + 1)]
        pairs = zip([inputs, *widths[:-2]], widths[:-1], strict=True)
        self.encoder = nn.ModuleList(ConvPair(narrow, wide) for narrow, wide in pairs)
        self.bottleneck = ConvPair(widths[-2], widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[:-1])
        self.decoder = nn.ModuleList(ConvPair(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(config.features, outputs, 1)
        self.stride = 2**config.levels

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to logits ``[B, outputs, H, W]``; any size: the map is padded where it must be."""
        height, width = images_BCHW.shape[-2:]
        x = F.pad(images_BCHW, (0, -width % self.stride, 0, -height % self.stride))
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for level in reversed(range(len(skips))):
            x = self.decoder[level](torch.cat([self.up[level](x), skips[level]], dim=1))
        return self.head(x)[..., :height, :width]
