"""Centres as heatmaps, and back.

Positions (x, y) are in pixels, and (0, 0) is the middle of the first pixel. Source: the code of the polar paper; facts
in docs/polar.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_heatmap(centers_N2: Tensor, size_hw: tuple[int, int], sigma: float) -> Tensor:
    """A Gaussian of height 1 around every centre, ``[H, W]``; where several meet, the highest counts.

    As in the original a Gaussian ends after three standard deviations and a pixel along each axis.
    """
    y = torch.arange(size_hw[0], dtype=torch.float32)[:, None]
    x = torch.arange(size_hw[1], dtype=torch.float32)
    reach = 3 * sigma + 1
    heatmap = torch.zeros(size_hw)
    for cx, cy in centers_N2.float().cpu().tolist():
        inside = ((x - cx).abs() <= reach) & ((y - cy).abs() <= reach)
        bump = torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
        heatmap = torch.maximum(heatmap, bump * inside)
    return heatmap


def read_heatmap(heatmap_hw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """The highest place of a heatmap that is resized bilinearly to a picture, ``[2]`` float32 (x, y)."""
    resized = F.interpolate(heatmap_hw.float()[None, None], size=size_hw, mode="bilinear", align_corners=False)[0, 0]
    at = int(resized.argmax())
    return torch.tensor([at % size_hw[1], at // size_hw[1]], dtype=torch.float32)


def read_peaks(heatmap_hw: Tensor, size_hw: tuple[int, int], *, apart: int, least: float) -> tuple[Tensor, Tensor]:
    """Every peak of a heatmap, highest first.

    Args:
        heatmap_hw: ``[h, w]``.
        size_hw: Height and width of the picture.
        apart: Cells that two peaks are apart at least.
        least: Least height, as a share of the highest.

    Returns:
        Positions ``[N, 2]`` in the picture, N at least 1, and heights ``[N]``; the first is :func:`read_heatmap`'s.
    """
    heatmap = heatmap_hw.float().cpu()
    around = F.max_pool2d(heatmap[None, None], 2 * apart + 1, stride=1, padding=apart)[0, 0]
    highest = heatmap.max()
    rows, columns = ((heatmap == around) & (heatmap >= least * highest)).nonzero(as_tuple=True)
    heights = heatmap[rows, columns]
    order = heights.argsort(descending=True, stable=True)
    scale = torch.tensor([size_hw[1] / heatmap.shape[1], size_hw[0] / heatmap.shape[0]])
    cells = torch.stack([columns, rows], dim=1)[order]
    places = (cells + 0.5) * scale - 0.5
    limit = torch.tensor([size_hw[1] - 1.0, size_hw[0] - 1.0])
    places = places.clamp(min=torch.zeros(2), max=limit)
    if not len(places):  # nothing is above a share of a height below 0
        return read_heatmap(heatmap, size_hw)[None], highest[None]
    places[0] = read_heatmap(heatmap, size_hw)
    return places, heights[order]
