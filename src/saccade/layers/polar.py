"""Unrolling maps around a centre: Cartesian to polar and back.

Shape legend: B maps, C channels, H W the Cartesian map, whose polar form has W rows and H columns. A column is an
angle, a row a radius; the centre lies along the bottom row and the radius grows upwards, to half the diagonal.
Positions are in pixels, and (0, 0) is the middle of the first pixel.

Source: Training on Polar Image Transformations Improves Biomedical Image Segmentation, IEEE Access 2021, whose code
takes OpenCV's ``linearPolar``. In nearest mode every value is the one OpenCV picks: it computes positions in double
precision and rounds them to float32 before it rounds them to pixels, ties to even, and takes angles from a polynomial.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import DataError

Interpolation: TypeAlias = Literal["bilinear", "nearest"]

# OpenCV's arc tangent of 0..1 in degrees: odd powers 1, 3, 5, 7.
_ARC_TANGENT = (0.9997878412794807, -0.3258083974640975, 0.1555786518463281, -0.04432655554792128)
_WRAP = 1  # columns of angles repeated on both sides, so that the last one borders on the first


def greatest_radius(size_hw: tuple[int, int]) -> float:
    """Radius of the top row: half the diagonal of the map, in pixels."""
    return math.hypot(size_hw[0] / 2, size_hw[1] / 2)


def to_polar(maps_BCHW: Tensor, centers_B2: Tensor, *, mode: Interpolation = "bilinear") -> Tensor:
    """Unrolls maps around one centre each.

    Args:
        maps_BCHW: ``[B, C, H, W]`` of any type that ``mode`` can compute with; integers and bools go with ``nearest``.
        centers_B2: ``[B, 2]`` centres (x, y) in pixels, inside the map.
        mode: ``nearest`` for labels.

    Returns:
        ``[B, C, W, H]``, 0 where the map ends.

    Raises:
        DataError: A centre lies outside its map.
    """
    height, width = maps_BCHW.shape[-2:]
    check_centers(centers_B2, (height, width))
    # float32 centres, double positions: as in OpenCV, where the centre is a Point2f
    centers = centers_B2.to(maps_BCHW.device, torch.float32).double()
    device = maps_BCHW.device
    angles = torch.arange(height, device=device, dtype=torch.float64) * (2 * math.pi / height)
    radii = torch.arange(width, device=device, dtype=torch.float64) * (greatest_radius((height, width)) / width)
    radii = radii.float().double()
    along_HW2 = torch.stack([angles.cos()[:, None] * radii, angles.sin()[:, None] * radii], dim=-1)
    positions = (along_HW2 + centers[:, None, None]).float()
    return _sample(maps_BCHW, positions, mode).rot90(1, (-2, -1))


def from_polar(polar_BCWH: Tensor, centers_B2: Tensor, *, mode: Interpolation = "bilinear") -> Tensor:
    """Rolls maps up again: the inverse of :func:`to_polar` within the greatest radius of the centre.

    Args:
        polar_BCWH: ``[B, C, W, H]``, as :func:`to_polar` gives it.
        centers_B2: ``[B, 2]`` the centres (x, y) that the maps were unrolled around.
        mode: ``nearest`` for labels.

    Returns:
        ``[B, C, H, W]``, 0 beyond the greatest radius.

    Raises:
        DataError: A centre lies outside its map.
    """
    width, height = polar_BCWH.shape[-2:]
    check_centers(centers_B2, (height, width))
    device = polar_BCWH.device
    unrolled = polar_BCWH.rot90(-1, (-2, -1))  # rows are angles, columns radii
    unrolled = torch.cat([unrolled[..., -_WRAP:, :], unrolled, unrolled[..., :_WRAP, :]], dim=-2)
    centers = centers_B2.to(device, torch.float32)[:, None, None]
    x = torch.arange(width, device=device, dtype=torch.float32) - centers[..., 0]
    y = torch.arange(height, device=device, dtype=torch.float32)[:, None] - centers[..., 1]
    x, y = torch.broadcast_tensors(x, y)
    radii = (x * x + y * y).sqrt().double()
    angles = (_angles_as_opencv(x, y) if mode == "nearest" else torch.atan2(y, x) % (2 * math.pi)).double()
    columns = (radii / (greatest_radius((height, width)) / width)).float()
    rows = (angles / (2 * math.pi / height)).float() + _WRAP
    return _sample(unrolled, torch.stack([columns, rows], dim=-1), mode)


def check_centers(centers_B2: Tensor, size_hw: tuple[int, int], *, where: object = None) -> None:
    """Refuses a centre outside the map; its unrolled map would hold next to nothing.

    Args:
        centers_B2: Centres (x, y) in pixels.
        size_hw: Size of the map.
        where: The picture, for the error.

    Raises:
        DataError: One is outside, or no number.
    """
    limit = torch.tensor([size_hw[1], size_hw[0]], device=centers_B2.device)
    inside = ((centers_B2 >= -0.5) & (centers_B2 <= limit - 0.5)).all(dim=-1)
    if not bool(inside.all()):
        x, y = centers_B2[~inside][0].tolist()
        raise DataError(
            f"the centre ({x:g}, {y:g}) lies outside the map",
            where=where,
            why=f"it has {size_hw[1]} x {size_hw[0]} pixels",
            fix="give the centre as x,y in pixels, counted from the left and from the top",
        )


def _sample(maps_BCHW: Tensor, positions_BHW2: Tensor, mode: Interpolation) -> Tensor:
    """Values at positions (x, y) in pixels, 0 outside; the type of the maps is kept."""
    height, width = maps_BCHW.shape[-2:]
    values = maps_BCHW if maps_BCHW.dtype is torch.float64 else maps_BCHW.float()
    if mode == "nearest":
        positions_BHW2 = positions_BHW2.round()  # ties to even, before the grid's own arithmetic can move them
    size = torch.tensor([width, height], device=positions_BHW2.device)
    grid = (positions_BHW2 * 2 + 1) / size - 1
    sampled = F.grid_sample(values, grid.to(values.dtype), mode=mode, padding_mode="zeros", align_corners=False)
    return sampled.to(maps_BCHW.dtype)


def _angles_as_opencv(x: Tensor, y: Tensor) -> Tensor:
    """Angles 0..2 pi of float32 vectors by the polynomial of OpenCV's ``cartToPolar``, which is off by 0.01 degrees."""
    across, down = x.abs(), y.abs()
    least, most = torch.minimum(across, down), torch.maximum(across, down)
    ratio = least / (most + torch.finfo(torch.float64).eps)
    square = ratio * ratio
    p1, p3, p5, p7 = (torch.tensor(p, dtype=x.dtype, device=x.device) * (180 / math.pi) for p in _ARC_TANGENT)
    degrees = (((p7 * square + p5) * square + p3) * square + p1) * ratio
    degrees = torch.where(across >= down, degrees, 90 - degrees)
    degrees = torch.where(x < 0, 180 - degrees, degrees)
    degrees = torch.where(y < 0, 360 - degrees, degrees)
    return degrees * (math.pi / 180)
