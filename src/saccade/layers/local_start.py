"""A start for plain ViTs without any pre-training: attention that is local, positions that are known."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import UsageError
from saccade.layers.vit import PlainViT

_PATCH_SCALE = 0.25
_POSITION_SCALE = 0.15
_MARKER_LOGIT = 7.0
_QUERY_BIAS = 2.0
_LOCALITY = 0.7
# Of a neighbour, against the place beside it, where sines and cosines have amplitude 1.
_STEP_LOGIT = 4.0
_PLACE_GAIN = 2.5  # of the positions that neighbour heads read
_STEPS_YX = ((0, -1), (0, 1), (-1, 0), (1, 0))
# Share of a marked token that is the marker after LayerNorm.
_MARKER_SHARE = 0.62


@torch.no_grad()
def start_local(backbone: PlainViT, *, marker: Tensor | None = None) -> None:
    """Rewrites the fresh weights of a backbone in place; draws from torch's CPU generator.

    * The position table holds 2-D sinusoids, and patches and positions weigh about the same.
    * Queries and keys start equal, so that tokens attend to those like themselves.
    * Every head starts local: a bias of the queries meets relative-position tables that fall off around a shifted
      neighbour (as in ConViT).

    Args:
        backbone: A plain ViT with relative and absolute positions.
        marker: ``[C]`` unit direction that some tokens of the model carry; the first head of every block reads them.

    Raises:
        UsageError: The backbone has no relative or no absolute positions to write to.
    """
    vit = backbone.config
    if not (vit.rel_pos and vit.abs_pos):
        raise UsageError("the local start needs relative and absolute positions", where="the plain ViT")
    backbone.patch_embed.weight.mul_(_PATCH_SCALE)
    if backbone.patch_embed.bias is not None:
        backbone.patch_embed.bias.mul_(_PATCH_SCALE)
    backbone.pos_embed.copy_(sinusoids_2d(backbone.pos_embed.shape[1], vit.width)[None] * _POSITION_SCALE)
    for block in backbone:
        attention = block.attn
        d, width = attention.head_dim, vit.width
        attention.qkv.weight[width : 2 * width] = attention.qkv.weight[:width]
        for head in range(attention.heads):
            rows = slice(head * d, (head + 1) * d)
            direction = F.normalize(torch.randn(d), dim=0)
            attention.qkv.bias[rows].add_(_QUERY_BIAS * direction)
            for table in (attention.rel_pos_h, attention.rel_pos_w):
                offset = torch.arange(len(table)) - len(table) // 2 - int(torch.randint(-1, 2, ()))
                fall = (-_LOCALITY * offset.float() ** 2).clamp(min=-8)
                table.add_(fall[:, None] * direction / _QUERY_BIAS)
            if head == 0 and marker is not None:
                gain = _MARKER_LOGIT * d**0.5 / (_QUERY_BIAS * _MARKER_SHARE * width**0.5)
                keys = slice(width + rows.start, width + rows.stop)
                attention.qkv.weight[keys] += gain * direction[:, None] * marker


@torch.no_grad()
def look_around(
    patches: Tensor, positions: Tensor, queries_keys: Iterable[tuple[Tensor, Tensor]], *, heads: int
) -> None:
    """The local start of a vision transformer without relative positions; it rewrites weights in place.

    Positions are 2-D sinusoids, some of whose channels patches leave alone; by these the heads of every block look at
    the patches to the left, to the right, above and below, in turn.

    Args:
        patches: Weight of the patch embedding, C rows.
        positions: The table of a square of patches, C columns.
        queries_keys: Weights of queries and of keys, ``[C, C]`` each, of every block.
        heads: Heads of a block.

    Raises:
        UsageError: Heads that cannot tell places.
    """
    width = len(patches)
    size = width // heads
    if heads < 2 or size % 4:
        raise UsageError(
            f"the local start needs 2 heads or more, of a multiple of 4 channels, not {heads} of {size}",
            where="the vision transformer",
            fix="change its heads, or choose initialise=plain",
        )
    places = _place_channels(width, size)
    patches.normal_(std=_PATCH_SCALE * (2 / patches[0].numel()) ** 0.5)
    patches[places] = 0
    side = round((positions.numel() // width) ** 0.5)
    positions.copy_(_POSITION_SCALE * sinusoids_2d(side, width).reshape(positions.shape))
    positions[..., places] *= _PLACE_GAIN
    for queries, keys in queries_keys:
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            queries[rows], keys[rows] = neighbour_head(width, size, _STEPS_YX[head % len(_STEPS_YX)])


def neighbour_head(width: int, size: int, step_yx: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Query and key weights of a head that attends to the place a step away, of tokens with :func:`sinusoids_2d`.

    Both read every second of the faster waves, where a place is least like the next.

    Args:
        width: Channels C of the tokens.
        size: Channels d of the head, a multiple of 4, at most C / 2.
        step_yx: Rows down and columns to the right.

    Returns:
        ``[d, C]`` and ``[d, C]``.
    """
    count = size // 4
    waves = _waves(width)[: 2 * count : 2]
    sine_y, cosine_y, sine_x, cosine_x = _place_channels(width, size).split(count)
    query, key = torch.zeros(size, width), torch.zeros(size, width)
    key[torch.arange(size), torch.cat([sine_y, cosine_y, sine_x, cosine_x])] = 1
    for axis, (sine, cosine, step) in enumerate(((sine_y, cosine_y, step_yx[0]), (sine_x, cosine_x, step_yx[1]))):
        turn = waves * step
        rows = torch.arange(count) + 2 * count * axis
        query[rows, sine], query[rows, cosine] = turn.cos(), turn.sin()
        query[rows + count, cosine], query[rows + count, sine] = turn.cos(), -turn.sin()
    gain = (_STEP_LOGIT * size**0.5 / (1 - waves.cos()).sum()) ** 0.5
    return gain * query, gain * key


def _place_channels(width: int, size: int) -> Tensor:
    """``[d]``: what a neighbour head of d channels reads: sines and cosines of the row, then of the column."""
    starts = torch.arange(4) * (width // 4)
    return (starts[:, None] + 2 * torch.arange(size // 4)).flatten()


def _waves(width: int) -> Tensor:
    """Radians per place, ``[C / 4]``."""
    quarter = width // 4
    return 2 * math.pi / (4 * 10 ** (torch.arange(quarter) / (quarter - 1)))


def sinusoids_2d(side: int, width: int) -> Tensor:
    """``[side, side, width]``: sine and cosine of row and column, wavelengths from 4 to 40 positions."""
    quarter, waves = width // 4, _waves(width)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    parts = [wave(axis[..., None] * waves) for axis in (y, x) for wave in (torch.sin, torch.cos)]
    return F.pad(torch.cat(parts, dim=-1), (0, width - 4 * quarter))
