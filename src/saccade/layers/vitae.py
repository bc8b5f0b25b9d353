"""ViTAE-S: convolutional reduction cells, then blocks with a parallel convolution (the ViTAE repository's backbone).

ViTAE-B needs nothing of its own: it is the plain ViT with ``parallel_conv="two"``.

Shape legend: B images, H W map, C channels, N tokens, e token width, m random features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.layers.convolution import ConvStack
from saccade.layers.vit import Block, ViTConfig, run_blocks

_DROPOUT = 0.1  # of the reduction cells' attention; always on in training, as in the original


@dataclass(kw_only=True)
class CellConfig:
    """A reduction cell.

    Attributes:
        kernel: Side of the dilated convolutions.
        stride: Their stride.
        dilations: One convolution per dilation.
        embed: Channels of each.
        width: Channels of the tokens.
        attention: Whether kernelised attention and a convolution branch follow.
    """

    kernel: int
    stride: int
    dilations: tuple[int, ...]
    embed: int
    width: int
    attention: bool = True


def _cells() -> tuple[CellConfig, ...]:
    return (
        CellConfig(kernel=7, stride=4, dilations=(1, 2, 3, 4), embed=64, width=96),
        CellConfig(kernel=3, stride=2, dilations=(1, 2, 3), embed=64, width=192),
        CellConfig(kernel=3, stride=2, dilations=(1, 2), embed=192, width=384, attention=False),
    )


@dataclass(kw_only=True)
class ViTAEConfig:
    """A ViTAE with reduction cells before its blocks.

    Attributes:
        cells: In order; their strides multiply to 16.
        blocks: The blocks behind them, a plain ViT without patches and positions of its own.
    """

    cells: tuple[CellConfig, ...] = field(default_factory=_cells)
    blocks: ViTConfig = field(
        default_factory=lambda: ViTConfig(
            width=384,
            depth=14,
            heads=6,
            mlp_width=1152,
            image_size=1024,
            global_blocks=(2, 5, 8, 13),
            parallel_conv="three",
            abs_pos=False,
            final_norm=True,
            drop_path_attention=True,
        )
    )

    @property
    def width(self) -> int:
        """Channels of the map that comes out."""
        return self.blocks.width


class DilatedReduction(nn.Module):
    """Strided convolutions of several dilations side by side (PRM)."""

    def __init__(self, inputs: int, config: CellConfig) -> None:
        super().__init__()
        self.config = config
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, config.embed, config.kernel, stride=config.stride, dilation=dilation)
            for dilation in config.dilations
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, dilations * embed, H / stride, W / stride]``."""
        k, stride = self.config.kernel, self.config.stride
        maps = []
        for dilation, conv in zip(self.config.dilations, self.convs, strict=True):
            around = -(-((k - 1) * dilation + 1 - stride) // 2)
            extra = -(-stride // 2) - 1
            bottom, right = (around + (extra if size % stride else 0) for size in x_BCHW.shape[2:])
            maps.append(F.gelu(conv(F.pad(x_BCHW, (right, right, bottom, bottom)))))
        return torch.cat(maps, dim=1)


class Performer(nn.Module):
    """Attention through random features, linear in the tokens, and an MLP.

    Args:
        inputs: Channels of the tokens that come in.
        width: Channels e of those that go out.
    """

    random_features: Tensor

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.features = width // 2
        self.norm1 = nn.LayerNorm(inputs)
        self.kqv = nn.Linear(inputs, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(_DROPOUT)
        drawn = nn.init.orthogonal_(torch.empty(self.features, width)) * self.features**0.5
        self.register_buffer("random_features", drawn)

    def _map(self, x_BNe: Tensor) -> Tensor:
        """Positive random features ``[B, N, m]``, in float32."""
        x_BNe = x_BNe.float()
        half_norm = x_BNe.square().sum(-1, keepdim=True) / 2
        return (x_BNe @ self.random_features.T - half_norm).exp() / self.features**0.5

    def forward(self, x_BNC: Tensor, local_BNe: Tensor) -> Tensor:
        """Tokens ``[B, N, inputs]`` and what the convolution branch adds, to ``[B, N, e]``."""
        k, q, v = self.kqv(self.norm1(x_BNC)).chunk(3, dim=-1)
        k_BNm, q_BNm = self._map(k), self._map(q)
        share = (q_BNm @ k_BNm.sum(dim=1)[:, :, None]) + 1e-8
        mixed = q_BNm @ (k_BNm.mT @ v.float()) / share
        out = v + self.dropout(self.proj(mixed.to(v.dtype))) + local_BNe
        return out + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(out)))))


class ReductionCell(nn.Module):
    """Reduces a map; kernelised attention and a convolution branch where the config asks for them."""

    def __init__(self, inputs: int, config: CellConfig) -> None:
        super().__init__()
        self.reduce = DilatedReduction(inputs, config)
        width = config.embed * len(config.dilations)
        self.attn = Performer(width, config.width) if config.attention else None
        self.local: ConvStack | None = None
        if config.attention:
            # The stride is taken by the first convolutions, two at a time.
            first, second, third = {4: (2, 2, 1), 2: (2, 1, 1)}[config.stride]
            inner = config.embed
            self.local = ConvStack(
                nn.Conv2d(inputs, inner, 3, stride=first, padding=1),
                nn.SiLU(),
                nn.Conv2d(inner, inner, 3, stride=second, padding=1),
                nn.BatchNorm2d(inner),
                nn.SiLU(),
                nn.Conv2d(inner, config.width, 3, stride=third, padding=1),
                nn.SiLU(),
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, width, H / stride, W / stride]``."""
        reduced = self.reduce(x_BCHW)
        if self.attn is None or self.local is None:
            return reduced
        tokens = reduced.flatten(2).mT
        local = self.local(x_BCHW).flatten(2).mT
        return self.attn(tokens, local).mT.unflatten(2, reduced.shape[2:])


class ViTAE(nn.Module):
    """Reduction cells, then blocks; any input that is a multiple of 16 pixels.

    Args:
        config: Cells and blocks.
    """

    def __init__(self, config: ViTAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = [3] + [cell.width for cell in config.cells]
        self.cells = nn.ModuleList(
            ReductionCell(inputs, cell) for inputs, cell in zip(widths[:-1], config.cells, strict=True)
        )
        self.blocks = nn.ModuleList(Block(config.blocks, index) for index in range(config.blocks.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.blocks.norm_eps)
        self.activation_checkpointing = False

    def __iter__(self) -> Iterator[Block]:
        """The blocks in order."""
        return iter(cast("list[Block]", self.blocks))

    def embed(self, images_B3HW: Tensor) -> Tensor:
        """The map that enters the blocks, ``[B, H / 16, W / 16, C]``.

        Raises:
            UsageError: The image is not a multiple of the stride.
        """
        height, width, patch = images_B3HW.shape[2], images_B3HW.shape[3], self.config.blocks.patch_size
        if height % patch or width % patch:
            raise UsageError(
                f"an image of {height}x{width} pixels is not a multiple of {patch}",
                where="ViTAE",
                fix=f"resize or pad the image to a multiple of {patch} pixels",
            )
        # Channels last, so that a map is read as tokens, and tokens as a map, without a copy.
        x_BCHW = images_B3HW.contiguous(memory_format=torch.channels_last)
        for cell in self.cells:
            x_BCHW = cell(x_BCHW)
        return x_BCHW.permute(0, 2, 3, 1)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Image map after the last block and norm, ``[B, H / 16, W / 16, C]``."""
        return self.maps(images_B3HW, [self.config.blocks.depth - 1])[0]

    def maps(self, images_B3HW: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Image maps after the given blocks (0-based), each ``[B, H / 16, W / 16, C]``; the last block's is normed."""
        return run_blocks(self, self.embed(images_B3HW), self.norm, after, checkpointing=self.activation_checkpointing)
