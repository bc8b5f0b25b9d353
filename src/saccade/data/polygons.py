"""Polygons drawn as OpenCV draws them (line and filling), which is how the masks of ReasonSeg are defined.

Corners are whole pixels, and pixels on the outline belong to the polygon. COCO's polygons are drawn otherwise: corners
between pixels, by :func:`saccade.data.sources.coco.decode_shape`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BITS = 16  # of the fraction of an edge's column


def draw_polygon(points: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a closed polygon, its outline included; of an area that is covered twice, none inside.

    Args:
        points: ``[N, 2]`` x and y in pixels; the fractions are cut off.
        size_hw: Height and width of the picture; what lies outside is not drawn.

    Returns:
        ``[H, W]``.
    """
    mask = np.zeros(size_hw, bool)
    corners = np.trunc(points).astype(np.int64)
    ends = np.roll(corners, 1, axis=0)
    for (x0, y0), (x1, y1) in zip(ends.tolist(), corners.tolist(), strict=True):
        _draw_line(mask, x0, y0, x1, y1)
    _fill(mask, ends, corners)
    return mask


def _draw_line(mask: NDArray[np.bool_], x0: int, y0: int, x1: int, y1: int) -> None:
    """Bresenham's line, one pixel per step of the longer side, from left to right."""
    if x1 < x0:
        x0, y0, x1, y1 = x1, y1, x0, y0
    width, height = x1 - x0, abs(y1 - y0)
    long, short = max(width, height), min(width, height)
    steps = np.arange(long + 1)
    # Rounded to the nearest, and down where two are as near.
    aside = (2 * short * steps + long - 1) // (2 * long) if long else steps
    down = 1 if y1 >= y0 else -1
    x, y = (x0 + steps, y0 + down * aside) if width >= height else (x0 + aside, y0 + down * steps)
    inside = (x >= 0) & (x < mask.shape[1]) & (y >= 0) & (y < mask.shape[0])
    mask[y[inside], x[inside]] = True


def _fill(mask: NDArray[np.bool_], begins: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
    """Rows between the first and second, third and fourth ... edge; an edge has its upper row, not its lower one.

    Both ends of a row are rounded to the nearest column, as OpenCV does since 4.8 (before, the row was cut inwards).
    """
    steep = begins[:, 1] != ends[:, 1]
    begins, ends = begins[steep], ends[steep]
    if not len(begins):
        return
    downwards = (begins[:, 1] < ends[:, 1])[:, None]
    upper, lower = np.where(downwards, begins, ends), np.where(downwards, ends, begins)
    run, rise = (lower[:, 0] - upper[:, 0]) << _BITS, lower[:, 1] - upper[:, 1]
    slope = np.sign(run) * (np.abs(run) // rise)  # cut off towards zero
    for y in range(max(0, int(upper[:, 1].min())), min(mask.shape[0], int(lower[:, 1].max()))):
        crossed = (upper[:, 1] <= y) & (y < lower[:, 1])
        columns = np.sort((upper[crossed, 0] << _BITS) + (y - upper[crossed, 1]) * slope[crossed])
        for left, right in zip(columns[::2].tolist(), columns[1::2].tolist(), strict=True):
            first, last = ((column + (1 << _BITS >> 1)) >> _BITS for column in (left, right))
            mask[y, max(first, 0) : max(last + 1, 0)] = True
