"""Masks by queries: a pixel decoder refines one feature map, and queries of a masked decoder look inside their masks.

Source: Masked-attention Mask Transformer for Universal Image Segmentation, CVPR 2022, reduced to one level as in ViSFT
(docs/visft.md). Any ``[B, H, W, C]`` map will do, whatever backbone made it.

Shape legend: B images, H W map, N = H * W cells, C width of the input map, E width of a decoder, M mask channels,
Q queries, K logits, L predictions (one before the layers, one after each).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saccade.errors import ConfigError
from saccade.layers.deform import DeformableAttention
from saccade.layers.positions import sine_positions
from saccade.layers.sam_decoder import TokenMLP

_MASK_LAYERS = 3


@dataclass(kw_only=True, frozen=True)
class PixelDecoderConfig:
    """The pixel decoder.

    Attributes:
        width: Channels E of the memory.
        mask_width: Channels M of the mask map.
        heads: Heads of the deformable attention.
        points: Places that each head reads.
        mlp_width: Hidden channels of the MLPs.
        layers: Deformable layers.
        groups: Groups of the group norms.
    """

    width: int = 256
    mask_width: int = 256
    heads: int = 8
    points: int = 4
    mlp_width: int = 512
    layers: int = 6
    groups: int = 32

    def __post_init__(self) -> None:
        _require_multiple("pixels", self.width, {"heads": self.heads, "groups": self.groups, "axes and waves": 4})


@dataclass(kw_only=True, frozen=True)
class MaskedDecoderConfig:
    """The decoder of the queries.

    Attributes:
        heads: Attention heads.
        mlp_width: Hidden channels of the MLPs.
        layers: Layers.
        queries: Learned queries Q.
    """

    heads: int = 8
    mlp_width: int = 1024
    layers: int = 9
    queries: int = 100


def _require_multiple(part: str, width: int, of: dict[str, int]) -> None:
    for name, number in of.items():
        if width % number:
            raise ConfigError(f"width {width} is not a multiple of {number} ({name})", where=f"{part}.width")


def _xavier(parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


def _places(x_BHWC: Tensor) -> Tensor:
    """Sine positions of a whole map, ``[1, N, C]``."""
    valid = torch.ones(1, *x_BHWC.shape[1:3], dtype=torch.bool, device=x_BHWC.device)
    return sine_positions(valid, x_BHWC.shape[3] // 2).flatten(1, 2).to(x_BHWC.dtype)


class DeformableLayer(nn.Module):
    """Deformable self-attention and MLP, each normed after it is added."""

    def __init__(self, config: PixelDecoderConfig) -> None:
        super().__init__()
        width = config.width
        self.attn = DeformableAttention(width, heads=config.heads, points=config.points)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = TokenMLP(width, config.mlp_width, width)
        self.norm2 = nn.LayerNorm(width)
        _xavier(self.mlp.parameters())

    def forward(self, x_BNE: Tensor, places_BNE: Tensor, references: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """``[B, N, E]`` to the same shape; positions are added to the queries only."""
        x_BNE = self.norm1(x_BNE + self.attn(x_BNE + places_BNE, references, x_BNE, [size_hw]))
        return self.norm2(x_BNE + self.mlp(x_BNE))


class PixelDecoder(nn.Module):
    """Makes a memory for queries, and a map that masks are read from, both of the size of the input map.

    Args:
        config: Sizes.
        in_width: Channels C of the input map.
    """

    def __init__(self, config: PixelDecoderConfig, in_width: int) -> None:
        super().__init__()
        width, groups = config.width, config.groups
        self.input_proj = nn.Sequential(nn.Conv2d(in_width, width, 1), nn.GroupNorm(groups, width))
        self.level_embed = nn.Parameter(torch.randn(1, width))
        self.layers = nn.ModuleList(DeformableLayer(config) for _ in range(config.layers))
        self.lateral = nn.Sequential(nn.Conv2d(in_width, width, 1, bias=False), nn.GroupNorm(groups, width))
        self.fuse = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.ReLU()
        )
        self.mask_proj = nn.Conv2d(width, config.mask_width, 1)
        _xavier(self.input_proj[0].parameters())
        for conv in (self.lateral[0], self.fuse[0], self.mask_proj):
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_uniform_(conv.weight, a=1)
        for conv in (self.input_proj[0], self.mask_proj):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, map_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """The memory ``[B, H, W, E]`` and the mask map ``[B, H, W, M]``."""
        height, width = size_hw = (map_BHWC.shape[1], map_BHWC.shape[2])
        x_BCHW = map_BHWC.permute(0, 3, 1, 2)
        x_BHWE = self.input_proj(x_BCHW).permute(0, 2, 3, 1)
        places = _places(x_BHWE) + self.level_embed
        y, x = (torch.arange(side, device=map_BHWC.device) + 0.5 for side in size_hw)
        centres = torch.stack([(x / width).expand(height, width), (y / height)[:, None].expand(height, width)], dim=-1)
        references = centres.view(1, height * width, 1, 2)
        tokens = x_BHWE.flatten(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, places, references, size_hw)
        memory_BHWE = tokens.unflatten(1, size_hw)
        fused = self.fuse(self.lateral(x_BCHW) + memory_BHWE.permute(0, 3, 1, 2))
        return memory_BHWE, self.mask_proj(fused).permute(0, 2, 3, 1)


class MaskedLayer(nn.Module):
    """Attention to the memory inside the masks, among the queries, and MLP, each normed after it is added."""

    def __init__(self, config: MaskedDecoderConfig, width: int) -> None:
        super().__init__()
        self.cross = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TokenMLP(width, config.mlp_width, width)
        self.norm3 = nn.LayerNorm(width)
        _xavier(self.parameters())

    def forward(
        self, x_BQE: Tensor, queries_BQE: Tensor, keys_BNE: Tensor, values_BNE: Tensor, blocked_BQN: Tensor
    ) -> Tensor:
        """``[B, Q, E]`` to the same shape.

        Args:
            x_BQE: States of the queries.
            queries_BQE: The learned queries, added to queries and own keys only.
            keys_BNE: The memory with positions.
            values_BNE: The memory.
            blocked_BQN: Bool, True where a query must not look.
        """
        # One image needs no copy per head.
        mask = blocked_BQN[0] if len(blocked_BQN) == 1 else blocked_BQN.repeat_interleave(self.cross.num_heads, dim=0)
        found, _ = self.cross(x_BQE + queries_BQE, keys_BNE, values_BNE, attn_mask=mask, need_weights=False)
        x_BQE = self.norm1(x_BQE + found)
        placed = x_BQE + queries_BQE
        found, _ = self.attn(placed, placed, x_BQE, need_weights=False)
        x_BQE = self.norm2(x_BQE + found)
        return self.norm3(x_BQE + self.mlp(x_BQE))


class MaskedDecoder(nn.Module):
    """Queries that become masks and classes; each looks where it believed its mask to be a layer before.

    Args:
        config: Sizes.
        width: Channels E of the memory.
        mask_width: Channels M of the mask map.
        logits: Class logits K.
    """

    def __init__(self, config: MaskedDecoderConfig, *, width: int, mask_width: int, logits: int) -> None:
        super().__init__()
        _require_multiple("decoder", width, {"heads": config.heads, "axes and waves": 4})
        self.query_feat = nn.Embedding(config.queries, width)
        self.query_embed = nn.Embedding(config.queries, width)
        self.level_embed = nn.Embedding(1, width)
        self.layers = nn.ModuleList(MaskedLayer(config, width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.class_logits = nn.Linear(width, logits)
        self.mask_mlp = TokenMLP(*[width] * _MASK_LAYERS, mask_width)

    def forward(self, memory_BHWE: Tensor, masks_BHWM: Tensor) -> tuple[Tensor, Tensor]:
        """What the queries say before the layers and after each.

        Args:
            memory_BHWE: The memory of the pixel decoder.
            masks_BHWM: Its mask map, of the same size.

        Returns:
            Class logits ``[L, B, Q, K]`` and mask logits ``[L, B, Q, H, W]``.
        """
        values = memory_BHWE.flatten(1, 2) + self.level_embed.weight
        keys = values + _places(memory_BHWE)
        cells_BMN = masks_BHWM.flatten(1, 2).mT
        queries = self.query_embed.weight.expand(len(values), -1, -1)
        state = self.query_feat.weight.expand_as(queries)
        normed, masks = [self.norm(state)], []
        for layer in self.layers:
            masks.append(self.mask_mlp(normed[-1]) @ cells_BMN)
            state = layer(state, queries, keys, values, blocked_cells(masks[-1]))
            normed.append(self.norm(state))
        masks.append(self.mask_mlp(normed[-1]) @ cells_BMN)
        return self.class_logits(torch.stack(normed)), torch.stack(masks).unflatten(-1, memory_BHWE.shape[1:3])


def blocked_cells(masks_BQN: Tensor) -> Tensor:
    """Where queries must not look: outside their masks; one whose mask is empty looks everywhere.

    Args:
        masks_BQN: Mask logits.

    Returns:
        ``[B, Q, N]`` bool.
    """
    outside = masks_BQN.detach() < 0
    return outside & ~outside.all(-1, keepdim=True)
