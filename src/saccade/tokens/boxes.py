"""Boxes as integer bins relative to a reference point (GiT, section "unified language interface")."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(values: Tensor, num_bins: int) -> Tensor:
    """Rounds normalised values (half to even) to bins 0..num_bins.

    Args:
        values: Any shape; 0 maps to bin 0 and 1 to bin num_bins, outside is clamped.
        num_bins: Highest bin.

    Returns:
        int64, same shape.
    """
    return (values * num_bins).round().clamp(0, num_bins).long()


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """``[..., 4]`` corners to centre and size."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """``[..., 4]`` centre and size to corners."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def encode_boxes(boxes_xyxy: Tensor, points_xy: Tensor, size_hw: tuple[int, int], num_bins: int) -> Tensor:
    """Box tokens relative to one reference point per box.

    Args:
        boxes_xyxy: ``[N, 4]`` pixels.
        points_xy: ``[N, 2]`` normalised reference points.
        size_hw: Image size in pixels.
        num_bins: Highest bin.

    Returns:
        ``[N, 4]`` int64 bins of cx - px + 0.5, cy - py + 0.5, w, h (each normalised by the image size).
    """
    h, w = size_hw
    values = xyxy_to_cxcywh(boxes_xyxy / boxes_xyxy.new_tensor([w, h, w, h]))
    values = torch.cat([values[:, :2] - points_xy + 0.5, values[:, 2:]], dim=-1)
    return quantize(values, num_bins)


def decode_boxes(tokens: Tensor, points_xy: Tensor, num_bins: int) -> Tensor:
    """The inverse of :func:`encode_boxes`.

    Args:
        tokens: ``[..., 4]`` bins.
        points_xy: ``[..., 2]`` normalised reference points.
        num_bins: Highest bin.

    Returns:
        ``[..., 4]`` normalised cx, cy, w, h.
    """
    values = tokens / num_bins
    return torch.cat([values[..., :2] - 0.5 + points_xy, values[..., 2:]], dim=-1)
