"""Deformable attention: every query reads a few places of a feature map, wherever it wants to.

Source: Deformable DETR, ICLR 2021, section 4.1. Places are relative, 0..1, x before y, and may lie outside.

Shape legend: B images, N cells of all levels, Q queries, C width, n heads, d channels per head, L levels, P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, UsageError


def bilinear_taps(places_xy: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four cells that bilinear sampling looks at, with zeros outside (``grid_sample``, align_corners False).

    Args:
        places_xy: ``[..., 2]`` relative places.
        size_hw: The map.

    Returns:
        ``[..., 4]`` row-major cell and ``[..., 4]`` its share; a cell outside has none, and stands at the border.
    """
    height, width = size_hw
    at = places_xy * places_xy.new_tensor([width, height]) - 0.5
    corner = at.detach().floor()
    beyond = at - corner
    sides = []
    for axis, size in ((1, height), (0, width)):
        # Far places would not fit whole numbers.
        first = corner[..., axis].clamp(-2, size).long()
        cells = torch.stack([first, first + 1], dim=-1)
        shares = torch.stack([1 - beyond[..., axis], beyond[..., axis]], dim=-1)
        sides.append((cells.clamp(0, size - 1), shares * ((cells >= 0) & (cells < size))))
    (rows, down), (columns, across) = sides
    index = rows[..., :, None] * width + columns[..., None, :]
    return index.flatten(-2), (down[..., :, None] * across[..., None, :]).flatten(-2)


def deformable_sample(
    values_BNnd: Tensor, sizes_hw: Sequence[tuple[int, int]], places_BQnLP2: Tensor, weights_BQnLP: Tensor
) -> Tensor:
    """Weighted sums of bilinear samples.

    One weighted bag of table rows per query and head: every row is d values side by side, which a CPU reads many times
    faster than ``grid_sample`` gathers single ones (tests compare the two).

    Args:
        values_BNnd: Values of all levels, one behind the other, each row-major.
        sizes_hw: Size of every level.
        places_BQnLP2: Relative places.
        weights_BQnLP: What each sample weighs.

    Returns:
        ``[B, Q, n * d]``.
    """
    b, cells, heads, _ = values_BNnd.shape
    queries = places_BQnLP2.shape[1]
    starts = [0, *accumulate(height * width for height, width in sizes_hw)]
    image = torch.arange(b, device=values_BNnd.device).view(b, 1, 1, 1, 1) * cells
    head = torch.arange(heads, device=values_BNnd.device).view(1, 1, heads, 1, 1)
    indices, shares = [], []
    for level, size_hw in enumerate(sizes_hw):
        index, share = bilinear_taps(places_BQnLP2[:, :, :, level], size_hw)
        indices.append(((index + (image + starts[level])) * heads + head).flatten(3))
        shares.append((share * weights_BQnLP[:, :, :, level, :, None]).flatten(3))
    read = F.embedding_bag(
        torch.cat(indices, dim=3).flatten(0, 2),
        values_BNnd.flatten(0, 2),
        mode="sum",
        per_sample_weights=torch.cat(shares, dim=3).flatten(0, 2).to(values_BNnd.dtype),
    )
    return read.view(b, queries, -1)


class DeformableAttention(nn.Module):
    """Attention to a few sampled places per query, head and level.

    It starts as published: every head looks in its own direction, point after point farther away, all weighed alike.

    Args:
        width: Channels C.
        heads: Heads n.
        points: Points P per head and level.
        levels: Maps L.
    """

    def __init__(self, width: int, *, heads: int = 8, points: int = 4, levels: int = 1) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"{width} channels for {heads} heads", where="heads")
        self.heads, self.points, self.levels = heads, points, levels
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the start."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ring /= ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        bias = ring[:, None, None] * steps[:, None].expand(self.levels, -1, -1)
        self.offsets.bias.copy_(bias.flatten())
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.value, self.proj):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.weights, self.value, self.proj):
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        queries_BQC: Tensor,
        references: Tensor,
        memory_BNC: Tensor,
        sizes_hw: Sequence[tuple[int, int]],
        padding_BN: Tensor | None = None,
    ) -> Tensor:
        """What the queries find.

        Args:
            queries_BQC: Queries, positions included.
            references: ``[B, Q, L, 2]`` relative points, from which offsets are counted in cells of the level, or
                ``[B, Q, L, 4]`` relative boxes (centre and size), of which P offsets reach from the centre to the edge.
                B may be 1.
            memory_BNC: The cells of all levels.
            sizes_hw: Size of every level.
            padding_BN: Bool, True where a cell is padding and gives nothing; None = nowhere.

        Returns:
            ``[B, Q, C]``.

        Raises:
            UsageError: The sizes are not those of the memory, or references are neither points nor boxes.
        """
        if len(sizes_hw) != self.levels or sum(h * w for h, w in sizes_hw) != memory_BNC.shape[1]:
            raise UsageError(
                f"a memory of {memory_BNC.shape[1]} cells does not hold maps of {list(sizes_hw)}",
                why=f"the attention reads {self.levels} levels",
            )
        values = self.value(memory_BNC)
        if padding_BN is not None:
            values = values.masked_fill(padding_BN[..., None], 0.0)
        shape = (self.heads, self.levels, self.points)
        # Places of a large map need more than half precision.
        offsets = self.offsets(queries_BQC).float().unflatten(-1, (*shape, 2))
        weights = self.weights(queries_BQC).float().unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, shape[1:])
        if references.shape[-1] == 2:
            cells = torch.tensor([[w, h] for h, w in sizes_hw], device=offsets.device)
            places = references[:, :, None, :, None] + offsets / cells[:, None]
        elif references.shape[-1] == 4:
            centre, size = references[:, :, None, :, None].split(2, dim=-1)
            places = centre + offsets / self.points * size * 0.5
        else:
            raise UsageError(f"references of {references.shape[-1]} numbers are neither points nor boxes")
        found = deformable_sample(values.unflatten(-1, (self.heads, -1)), sizes_hw, places, weights)
        return self.proj(found)
