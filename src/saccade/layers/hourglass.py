"""Stacked hourglasses: heatmaps, each stack looking again with what the one before it said.

Shape legend: B images, C channels, H W map. Source: Stacked Hourglass Networks for Human Pose Estimation, ECCV 2016, in
the form that the polar paper trains; facts in docs/polar.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError

_STEM, _STEM_OUT = 64, 128


@dataclass(kw_only=True, frozen=True)
class HourglassConfig:
    """Sizes of stacked hourglasses.

    Attributes:
        stacks: Hourglasses one behind the other.
        width: Channels between them.
        depth: Times that an hourglass halves its map.
        heatmaps: Channels of the answer.
        channels: Channels of the picture: 3, or 1 of a grey one.
    """

    stacks: int = 8
    width: int = 256
    depth: int = 4
    heatmaps: int = 1
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("stacks", "depth", "heatmaps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", where=f"network.{name}")
        if self.channels not in (1, 3):
            raise ConfigError(f"pictures have 3 channels or 1, not {self.channels}", where="network.channels")
        if self.width < 2 or self.width % 2:
            raise ConfigError("width must be an even number of channels", where="network.width")

    @property
    def stride(self) -> int:
        """Pixels of the input per pixel of a heatmap."""
        return 4


class Residual(nn.Module):
    """Pre-activation bottleneck; the skip has a convolution where the widths differ.

    The released files hold that convolution everywhere, used or not, and so does the module.

    Args:
        inputs: Channels in.
        outputs: Channels out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, half, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(half), nn.Conv2d(half, half, 3, padding=1)
        self.norm3, self.conv3 = nn.BatchNorm2d(half), nn.Conv2d(half, outputs, 1)
        self.skip = nn.Conv2d(inputs, outputs, 1)
        self._reads_skip = inputs != outputs
        if not self._reads_skip:
            self.skip.requires_grad_(False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H, W]``."""
        y = self.conv1(F.relu(self.norm1(x_BCHW)))
        y = self.conv2(F.relu(self.norm2(y)))
        y = self.conv3(F.relu(self.norm3(y)))
        return y + (self.skip(x_BCHW) if self._reads_skip else x_BCHW)


class Level(nn.Module):
    """One level of an hourglass.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = Residual(width, width)
        self.before = Residual(width, width)
        self.after = Residual(width, width)


class Hourglass(nn.Module):
    """Halves the map several times and doubles it again, with a branch around every level.

    Args:
        depth: Levels.
        width: Channels.
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Level(width) for _ in range(depth))
        self.inner = Residual(width, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        branches = []
        levels = cast("list[Level]", list(self.levels))
        for level in levels:
            branches.append(level.branch(x_BCHW))
            x_BCHW = level.before(F.max_pool2d(x_BCHW, 2))
        x_BCHW = self.inner(x_BCHW)
        for level, branch in zip(reversed(levels), reversed(branches), strict=True):
            x_BCHW = branch + F.interpolate(level.after(x_BCHW), scale_factor=2.0, mode="nearest")
        return x_BCHW


class Stack(nn.Module):
    """An hourglass, its heatmaps, and what the next stack is given of both.

    Args:
        config: Sizes.
        last: No stack follows.
    """

    def __init__(self, config: HourglassConfig, *, last: bool) -> None:
        super().__init__()
        width = config.width
        self.hourglass = Hourglass(config.depth, width)
        self.residual = Residual(width, width)
        self.conv, self.norm = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.heatmap = nn.Conv2d(width, config.heatmaps, 1)
        if not last:
            self.merge_heatmap = nn.Conv2d(config.heatmaps, width, 1)
            self.merge_feature = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, C, H, W]`` to feature ``[B, C, H, W]`` and heatmaps ``[B, K, H, W]``."""
        feature = F.relu(self.norm(self.conv(self.residual(self.hourglass(x_BCHW)))))
        return feature, self.heatmap(feature)


class StackedHourglass(nn.Module):
    """Pictures to heatmaps of a quarter of their size, one answer per stack.

    Args:
        config: Sizes.
    """

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.stem = nn.Conv2d(config.channels, _STEM, 7, stride=2, padding=3)
        self.stem_norm = nn.BatchNorm2d(_STEM)
        self.residuals = nn.ModuleList(
            [Residual(_STEM, _STEM_OUT), Residual(_STEM_OUT, _STEM_OUT), Residual(_STEM_OUT, config.width)]
        )
        last = config.stacks - 1
        self.stacks = nn.ModuleList(Stack(config, last=number == last) for number in range(config.stacks))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """``[B, channels, H, W]`` to heatmaps ``[B, stacks, K, H / 4, W / 4]``, the last stack's the answer."""
        x = F.relu(self.stem_norm(self.stem(images_BCHW)))
        x = F.max_pool2d(self.residuals[0](x), 2)
        x = self.residuals[2](self.residuals[1](x))
        heatmaps = []
        for stack in cast("list[Stack]", list(self.stacks)):
            feature, heatmap = stack(x)
            heatmaps.append(heatmap)
            if len(heatmaps) < len(self.stacks):
                x = x + stack.merge_heatmap(heatmap) + stack.merge_feature(feature)
        return torch.stack(heatmaps, dim=1)
