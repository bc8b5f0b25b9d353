"""Fixed sine positions of a map, which detection transformers add to queries and keys, and its padding.

Source: End-to-End Object Detection with Transformers, ECCV 2020, appendix A.4; the form that DETR and Mask2Former
publish. Shape legend: B images, H W map, F features per axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_TEMPERATURE = 10_000.0
_EPSILON = 1e-6


def sine_positions(valid_BHW: Tensor, features: int) -> Tensor:
    """Sines and cosines of where a cell stands in the valid part of its map.

    Rows and columns are counted from 1 over the valid cells and spread over a whole circle, so that the last valid one
    is at 2 pi whatever the size.

    Args:
        valid_BHW: Bool, False where a cell is padding; ``torch.ones`` for maps without any.
        features: F per axis, even.

    Returns:
        ``[B, H, W, 2 F]`` float32, rows before columns, sine and cosine of one frequency side by side.
    """
    power = torch.arange(0, features, 2, device=valid_BHW.device, dtype=torch.float32) / features
    period = _TEMPERATURE**power
    axes = []
    for axis in (1, 2):
        count = valid_BHW.cumsum(axis, dtype=torch.float32)
        last = count.select(axis, -1).unsqueeze(axis)
        angle = (count / (last + _EPSILON) * (2 * math.pi))[..., None] / period
        axes.append(torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2))
    return torch.cat(axes, dim=-1)


def padded_cells(
    sizes_hw: Sequence[tuple[int, int]], input_hw: tuple[int, int], map_hw: tuple[int, int], device: torch.device
) -> Tensor | None:
    """Which cells of a map are padding: what stands at the pixel that nearest-neighbour resizing takes.

    Args:
        sizes_hw: Size of every image inside the padded network input, in pixels.
        input_hw: Size of the network input.
        map_hw: Size of the map.
        device: Of the result.

    Returns:
        ``[B, H, W]`` bool, True = padding; None where no image is padded.
    """
    if all(tuple(size) == tuple(input_hw) for size in sizes_hw):
        return None
    sides = []
    for axis in (0, 1):
        length = torch.tensor([size[axis] for size in sizes_hw])[:, None]
        beyond = (torch.arange(input_hw[axis]) >= length)[:, None].float()
        sides.append(F.interpolate(beyond, size=map_hw[axis], mode="nearest")[:, 0].bool())
    return (sides[0][:, :, None] | sides[1][:, None, :]).to(device)
