"""Feature pyramids on the single-scale map of a plain backbone.

Shape legend: B images, C channels of the backbone, H W its map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.layers.convolution import ChannelNorm, NormedConv


@dataclass(kw_only=True)
class PyramidConfig:
    """A pyramid of strides 4 to 64 on a map of stride 16.

    Attributes:
        kind: ``simple``: every level from the last map, no top-down path (the paper's); ``fpn_last``: the same maps
            with lateral connections and a top-down path; ``fpn_stages``: such a path on the last maps of four equal
            parts of the backbone.
        channels: Of every level.
        norm_eps: Epsilon of the channel norms of the outputs.
        shrink: Upsampling halves the channels each time (detectron2); the ViTAE repository keeps them.
    """

    kind: Literal["simple", "fpn_last", "fpn_stages"] = "simple"
    channels: int = 256
    norm_eps: float = 1e-6
    shrink: bool = True


class Pyramid(nn.Module):
    """Maps of strides 4, 8, 16, 32 and 64 from maps of stride 16.

    Args:
        config: Form and sizes.
        width: Channels C of the backbone.
    """

    def __init__(self, config: PyramidConfig, width: int) -> None:
        super().__init__()
        self.config = config
        half, quarter = (width // 2, width // 4) if config.shrink else (width, width)
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, stride=2),
            ChannelNorm(half, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.up8 = nn.ConvTranspose2d(width, half, 2, stride=2)
        inputs = (quarter, half, width, width)
        self.lateral = nn.ModuleList(NormedConv(c, config.channels, 1, eps=config.norm_eps) for c in inputs)
        self.output = nn.ModuleList(
            NormedConv(config.channels, config.channels, 3, eps=config.norm_eps) for _ in inputs
        )

    def scales(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of strides 4, 8, 16 and 32 from one map ``[B, C, H, W]`` of stride 16, or from four."""
        first, second, third, last = maps if len(maps) > 1 else list(maps) * 4
        return [self.up4(first), self.up8(second), third, F.max_pool2d(last, 2)]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Five levels ``[B, channels, ., .]`` of strides 4, 8, 16, 32, 64."""
        levels = [conv(x) for conv, x in zip(self.lateral, self.scales(maps), strict=True)]
        if self.config.kind != "simple":
            for index in (2, 1, 0):
                above = F.interpolate(levels[index + 1], size=levels[index].shape[2:], mode="nearest")
                levels[index] = levels[index] + above
        levels = [conv(x) for conv, x in zip(self.output, levels, strict=True)]
        return [*levels, levels[-1][:, :, ::2, ::2]]
