"""Fixed sine positions of a map, which detection transformers add to queries and keys.

Source: End-to-End Object Detection with Transformers, ECCV 2020, appendix A.4; the form that DETR and Mask2Former
publish. Shape legend: B images, H W map, F features per axis.
"""

from __future__ import annotations

import math

import torch
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
