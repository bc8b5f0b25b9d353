"""Masks as a centre and rays: how GiT says the shape of an object (GiT, section 3; specs/git.md 5.2).

A mask becomes the list of its border pixels (outer borders and holes), the list becomes one integer mass centre, and
from there R rays, one every 360/R degrees, reach the farthest border pixel in their direction. Back: the ray ends are
the vertices of a polygon, and the polygon is filled.

The numbers follow the original to the last bit, because they are targets of classification: the order of the border
pixels is that of OpenCV's ``findContours`` (tree order, every pixel kept), and sums run in that order.

Frame: pixels, integer coordinates at pixel centres of the mask as given, ``x`` to the right and ``y`` down. Angles are
measured from +y (down) towards +x (right).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from saccade.errors import UsageError
from saccade.results import RLE

NO_BORDER_LENGTH = 1e-6
"""Length of a ray that meets no border pixel within three degrees, in pixels."""

# The eight neighbours, counter-clockwise on the screen, starting at the right: (dx, dy).
_STEPS = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
_RIGHT, _LEFT = 0, 4
_OUTER, _HOLE = 0, 1


def _build_turns() -> tuple[list[int], list[int]]:
    """Tables over (direction we came from) * 256 + (bit set of the non-zero neighbours).

    Returns:
        The next direction, counter-clockwise from the one we came from; and the same plus 8 where the search passed the
        right neighbour and found it empty (the pixel ends its row, and gets a negative label). The second table is for
        the first step of a border: its first neighbour is searched clockwise.
    """
    following, first = [], []
    for came in range(8):
        for neighbours in range(256):
            turn = next((k for k in range(came + 1, came + 9) if neighbours >> (k & 7) & 1), came + 8)
            direction = turn & 7
            following.append(direction + 8 * (1 <= direction <= came))
            first.append(next((k & 7 for k in range(came - 1, came - 8, -1) if neighbours >> (k & 7) & 1), -1))
    return following, first


_FOLLOWING, _FIRST = _build_turns()


def trace_contours(mask: Tensor) -> list[Tensor]:
    """All borders of a mask, outer and inner, every border pixel kept.

    Border following by S. Suzuki and K. Abe, "Topological structural analysis of digitized binary images by border
    following", CVGIP 30 (1985), algorithm 1; 8-connected. The list has the order of OpenCV's ``findContours`` with
    ``RETR_TREE`` and ``CHAIN_APPROX_NONE``: parents before children, and among siblings the last one found first.

    Args:
        mask: ``[H, W]`` bool (or any type, non-zero is inside).

    Returns:
        One int32 tensor ``[P, 2]`` of pixel coordinates (x, y) per border.
    """
    points, ends = _trace(_as_array(mask))
    return [part.clone() for part in torch.from_numpy(points).tensor_split(ends[:-1].tolist())] if len(ends) else []


def mass_center(points_xy: Tensor) -> tuple[int, int]:
    """Centroid of the closed polygon through the points, truncated to integers.

    The polygon may be a concatenation of several borders, as the original makes it. Sums run sequentially in double
    precision: another order moves the result by a pixel now and then.

    Args:
        points_xy: ``[P, 2]`` integer pixel coordinates.

    Returns:
        (x, y) in pixels: the mean of the points where the signed area is zero, (0, 0) without points.
    """
    points = points_xy.numpy().astype(np.int64)
    if not len(points):
        return 0, 0
    before = np.roll(points, 1, axis=0)
    area = (points[:, 0] * before[:, 1] - points[:, 1] * before[:, 0]) / 2.0
    # cumsum adds from left to right; sum would add in pairs.
    total = np.cumsum(area)[-1]
    if total == 0:
        x, y = points.mean(axis=0)
    else:
        x, y = (np.cumsum(area * (points[:, k] + before[:, k]) / 3.0)[-1] / total for k in (0, 1))
    return int(x), int(y)


def ray_lengths(points_xy: Tensor, center_xy: tuple[int, int], num_rays: int) -> Tensor:
    """Distance from the centre to the farthest border pixel in each of R directions.

    A ray at ``a`` degrees takes the points whose angle, truncated to whole degrees, is a; if there is none, a + 1, then
    a - 1, a + 2, a - 2, a + 3, a - 3 (0 and 360 are not joined); if there is none, :data:`NO_BORDER_LENGTH`.

    Args:
        points_xy: ``[P, 2]`` integer pixel coordinates.
        center_xy: Integer centre (x, y).
        num_rays: R, at most 360.

    Returns:
        ``[R]`` float32 pixels.

    Raises:
        UsageError: ``num_rays`` is not in 1..360.
    """
    step_degrees = _ray_step(num_rays)
    x, y = (points_xy - torch.tensor(center_xy)).to(torch.float32).T.contiguous()
    # Float32 and this very sequence of operations: rays at 45, 135, ... degrees are decided by the last bit.
    degrees = torch.atan2(x, y) * 180 / math.pi
    degrees[degrees < 0] += 360
    # The root is numpy's: it is rounded correctly on every processor, torch's is not.
    farthest = np.full(360 + 2 * 3 + 1, -1.0, dtype=np.float32)  # three empty degrees on each side: no wrap-around
    np.maximum.at(farthest, degrees.to(torch.int64).numpy() + 3, np.sqrt((x**2 + y**2).numpy()))
    angles = np.arange(num_rays) * step_degrees + 3
    lengths = np.full(num_rays, NO_BORDER_LENGTH, dtype=np.float32)
    for offset in (-3, 3, -2, 2, -1, 1, 0):  # the preferred one last, so that it wins
        found = farthest[angles + offset]
        lengths = np.where(found >= 0, found, lengths)
    return torch.from_numpy(lengths)


def encode_contours(masks: Tensor, num_rays: int) -> Tensor:
    """Centre and rays of every mask.

    Args:
        masks: ``[N, H, W]`` bool.
        num_rays: R, at most 360.

    Returns:
        ``[N, 2 + R]`` float32 pixels: integer mass centre (x, y), then the ray lengths. An empty mask has its centre at
        (0, 0) and every ray at :data:`NO_BORDER_LENGTH`.

    Raises:
        UsageError: ``num_rays`` is not in 1..360.
    """
    encoded = torch.empty(len(masks), 2 + num_rays)
    for row, mask in zip(encoded, masks, strict=True):
        points_xy = torch.from_numpy(_trace(_as_array(mask))[0])
        center = mass_center(points_xy)
        row[:2] = torch.tensor(center)
        row[2:] = ray_lengths(points_xy, center, num_rays)
    return encoded


def decode_polygons(centers_xy: Tensor, lengths: Tensor) -> Tensor:
    """Vertices of the star-shaped polygons: ``x = d sin(a) + cx``, ``y = d cos(a) + cy``.

    Args:
        centers_xy: ``[N, 2]`` pixels.
        lengths: ``[N, R]`` pixels.

    Returns:
        ``[N, 2, R]``: x in row 0, y in row 1, in the type of ``lengths``.

    Raises:
        UsageError: There are not 1..360 rays.
    """
    num_rays = lengths.shape[-1]
    degrees = torch.arange(num_rays, device=lengths.device) * _ray_step(num_rays)
    angles = degrees.to(lengths.dtype) * (math.pi / 180)
    directions = torch.stack([angles.sin(), angles.cos()])
    return lengths[:, None, :] * directions + centers_xy[:, :, None]


def rasterize(polygons_xy: Tensor | Sequence[Tensor], size_hw: tuple[int, int]) -> list[RLE]:
    """Fills polygons as the COCO tools do.

    Args:
        polygons_xy: ``[N, 2, R]`` vertices in pixels (or N tensors ``[2, R]``), with the origin at the corner of the
            first pixel.
        size_hw: Height and width of the masks.

    Returns:
        N run-length masks.
    """
    height, width = size_hw
    rles: list[RLE] = []
    for polygon in polygons_xy:
        vertices = polygon.detach().to("cpu", torch.float64).T.reshape(-1).tolist()
        rles.append(coco_mask.merge(coco_mask.frPyObjects([vertices], height, width)))
    return rles


def _ray_step(num_rays: int) -> int:
    if not 1 <= num_rays <= 360:
        raise UsageError(f"{num_rays} rays", why="rays are whole degrees apart", fix="use 1 to 360 rays")
    return 360 // num_rays


def _as_array(mask: Tensor) -> NDArray[np.bool_]:
    return mask.detach().to("cpu", torch.bool).numpy()


def _trace(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Traces every border.

    Returns:
        ``[P, 2]`` points (x, y) of all borders, in tree order; and the index after the last point of each border.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return np.empty((0, 2), np.int32), np.empty(0, np.int64)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    padded = np.zeros((bottom - top + 2, right - left + 2), dtype=np.uint8)
    padded[1:-1, 1:-1] = mask[top:bottom, left:right]

    stride = padded.shape[1]
    borders = _follow_borders(padded)
    flat = np.array([index for border in borders for index in border], dtype=np.int64)
    y, x = np.divmod(flat, stride)
    points = np.stack([x + (left - 1), y + (top - 1)], axis=1).astype(np.int32)
    return points, np.cumsum([len(border) for border in borders])


def _neighbour_bits(padded: NDArray[np.uint8]) -> bytes:
    """Bit k of each pixel is set where its neighbour in direction k is inside; zero on the padding."""
    bits = np.zeros_like(padded)
    height, width = padded.shape
    for k, (dx, dy) in enumerate(_STEPS):
        bits[1:-1, 1:-1] |= padded[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx] << k
    return bits.tobytes()


def _follow_borders(padded: NDArray[np.uint8]) -> list[list[int]]:
    """Scans a zero-padded 0/1 image and follows each border from its first pixel.

    Labels of pixels are as in the paper: absent = not on a border yet (1 in the paper), b or -b = last passed by border
    b, negative where the right neighbour was seen empty. A border starts where the image rises from 0 at an unlabelled
    pixel (outer border) or falls to 0 after a pixel without a negative label (hole), so only these places are visited.

    Returns:
        The flat indices of the pixels of each border, in tree order.
    """
    stride = padded.shape[1]
    offsets = [dy * stride + dx for dx, dy in _STEPS]
    bits = _neighbour_bits(padded)
    flat = padded.reshape(-1)
    # In raster order the changes alternate: a rise (the first pixel inside) and a fall (the first pixel outside).
    changes = (np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist()
    labels: dict[int, int] = {}
    borders: list[list[int]] = [[]]  # border 0 is the frame
    kinds, parents = [_HOLE], [0]
    row_end, last_seen = 0, 0
    for rise, fall in zip(changes[0::2], changes[1::2], strict=True):
        if rise >= row_end:  # the first run of its row: the last border seen is the frame
            row_end = (rise // stride + 1) * stride
            last_seen = 0
        if rise not in labels:
            _new_border(_OUTER, last_seen, kinds, parents)
            borders.append(_follow(rise, _LEFT, len(borders), bits, offsets, labels))
        last = fall - 1
        if labels.get(last, 0) >= 0:
            seen = last
            while seen not in labels:  # ends at the latest at the rise, which is labelled by now
                seen -= 1
            _new_border(_HOLE, abs(labels[seen]), kinds, parents)
            borders.append(_follow(last, _RIGHT, len(borders), bits, offsets, labels))
        last_seen = abs(labels[last])
    return [borders[number] for number in _tree_order(parents)]


def _new_border(kind: int, last_seen: int, kinds: list[int], parents: list[int]) -> None:
    """Table 1 of the paper: the parent is the last border seen in the row, or its parent if it is of the same kind."""
    parents.append(parents[last_seen] if kinds[last_seen] == kind else last_seen)
    kinds.append(kind)


def _follow(
    start: int, outside: int, number: int, bits: bytes, offsets: list[int], labels: dict[int, int]
) -> list[int]:
    """Follows one border counter-clockwise from ``start``, whose neighbour in direction ``outside`` is empty."""
    first = _FIRST[outside << 8 | bits[start]]
    if first < 0:
        labels[start] = -number
        return [start]
    before_start = start + offsets[first]
    border: list[int] = []
    pixel, came = start, first
    while True:
        turn = _FOLLOWING[came << 8 | bits[pixel]]
        border.append(pixel)
        if turn >= 8:
            turn -= 8
            labels[pixel] = -number
        elif pixel not in labels:
            labels[pixel] = number
        following = pixel + offsets[turn]
        if following == start and pixel == before_start:
            return border
        pixel, came = following, turn ^ 4


def _tree_order(parents: list[int]) -> list[int]:
    """Numbers of the borders, parents before children, younger siblings first."""
    children: list[list[int]] = [[] for _ in parents]
    for number, parent in enumerate(parents[1:], start=1):
        children[parent].append(number)
    order: list[int] = []
    stack = [0]
    while stack:
        number = stack.pop()
        order.append(number)
        stack.extend(children[number])  # the last pushed is the youngest and comes out first
    return order[1:]
