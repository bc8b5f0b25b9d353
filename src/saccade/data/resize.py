"""Resizing that equals what the original systems computed: OpenCV bilinear and nearest, Pillow bicubic.

OpenCV's 8-bit bilinear is a fixed-point computation, so an ordinary float resize differs from it by a grey level in
many pixels. The functions here repeat its arithmetic with numpy: the horizontal pass gathers two columns, the
vertical pass two rows, with 11-bit weights. All arrays are channel-first and contiguous in the last axis.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

Window: TypeAlias = tuple[int, int, int, int]
"""Top, left, height, width."""

_WEIGHT_BITS = 11
_ROWS_PER_BLOCK = 32  # rows worked on at once: small enough that the int32 intermediates stay in the L2 cache


def nearest_indices(source: int, target: int) -> NDArray[np.intp]:
    """Source index of every target pixel along one axis, as ``cv2.INTER_NEAREST`` picks it.

    Args:
        source: Length of the axis before resizing, in pixels.
        target: Length after.
    """
    scale = 1.0 / (target / source)
    return np.minimum(np.floor(np.arange(target) * scale), source - 1).astype(np.intp)


def resize_nearest(array: NDArray, size_hw: tuple[int, int]) -> NDArray:
    """Resizes the last two axes by nearest neighbour, as ``cv2.INTER_NEAREST`` does.

    Args:
        array: ``[..., H, W]`` of any dtype (labels, masks).
        size_hw: Target height and width.
    """
    rows = nearest_indices(array.shape[-2], size_hw[0])
    cols = nearest_indices(array.shape[-1], size_hw[1])
    return np.ascontiguousarray(array[..., rows[:, None], cols])


def resize_bilinear(image: NDArray, size_hw: tuple[int, int]) -> NDArray:
    """Resizes bilinearly without antialiasing, as ``cv2.resize(..., INTER_LINEAR)`` does.

    Args:
        image: ``[C, H, W]`` uint8 (fixed point, exactly OpenCV's values) or float32.
        size_hw: Target height and width.

    Returns:
        ``[C, h, w]`` of the same dtype.
    """
    if image.shape[-2:] == tuple(size_hw):
        return image
    if image.dtype == np.uint8:
        return _bilinear_uint8(image, size_hw)
    return _bilinear_float32(image.astype(np.float32, copy=False), size_hw)


def resize_soft(masks: NDArray, size_hw: tuple[int, int], window: Window | None = None) -> NDArray[np.float32]:
    """Resizes masks bilinearly without antialiasing, as torch does.

    Args:
        masks: ``[N, H, W]`` bool, or 0..1.
        size_hw: Target height and width.
        window: Top, left, height and width of the part of the target that is wanted; None = all of it.

    Returns:
        ``[N, h, w]`` of the part.
    """
    top, left, height, width = window or (0, 0, *size_hw)
    out = np.empty((len(masks), height, width), np.float32)
    for mask, part in zip(masks, out, strict=True):  # all of them at twice the size would be gigabytes
        whole = torch.from_numpy(mask.astype(np.float32))[None, None]
        resized = F.interpolate(whole, size=size_hw, mode="bilinear", align_corners=False)[0, 0].numpy()
        part[:] = resized[top : top + height, left : left + width]
    return out


def resize_bicubic(image: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resizes bicubically with antialiasing, as Pillow does.

    Args:
        image: ``[3, H, W]`` uint8.
        size_hw: Target height and width.
    """
    return _with_pillow(image, size_hw, Image.Resampling.BICUBIC)


def resize_pillow(image: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resizes bilinearly with antialiasing, as Pillow does.

    Args:
        image: ``[3, H, W]`` uint8.
        size_hw: Target height and width.
    """
    return _with_pillow(image, size_hw, Image.Resampling.BILINEAR)


def _with_pillow(image: NDArray[np.uint8], size_hw: tuple[int, int], resample: Image.Resampling) -> NDArray[np.uint8]:
    if image.shape[-2:] == tuple(size_hw):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    resized = picture.resize((size_hw[1], size_hw[0]), resample=resample)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def _taps(source: int, target: int, dtype: type[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
    """Index of the left (upper) tap, possibly -1, and the weight of the other one, positions rounded to dtype."""
    scale = 1.0 / (target / source)
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(dtype)
    left = np.floor(position)
    return left.astype(np.intp), position - left


def _column_taps(
    source: int, target: int, dtype: type[np.floating] = np.float32
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Columns at the border take the border pixel with full weight."""
    left, fraction = _taps(source, target, dtype)
    fraction[(left < 0) | (left >= source - 1)] = 0.0
    left = np.clip(left, 0, source - 1)
    return left, np.minimum(left + 1, source - 1), fraction.astype(np.float32)


def _row_taps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Rows at the border keep their two weights on the same row: OpenCV clips the rows, not the weights."""
    upper, fraction = _taps(source, target, np.float32)
    return np.clip(upper, 0, source - 1), np.clip(upper + 1, 0, source - 1), fraction.astype(np.float32)


def _fixed(weight: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.rint(weight * np.float32(1 << _WEIGHT_BITS)).astype(np.int32)


def _bilinear_uint8(image: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    channels, height, width = image.shape
    left, right, fx = _column_taps(width, size_hw[1])
    upper, lower, fy = _row_taps(height, size_hw[0])
    a0, a1 = _fixed(np.float32(1) - fx), _fixed(fx)
    b0, b1 = _fixed(np.float32(1) - fy)[:, None], _fixed(fy)[:, None]
    out = np.empty((channels, *size_hw), np.uint8)
    for c in range(channels):
        wide = np.empty((height, size_hw[1]), np.int32)
        for y in range(0, height, _ROWS_PER_BLOCK):
            rows = image[c, y : y + _ROWS_PER_BLOCK]
            block = rows.take(left, axis=1) * a0
            block += rows.take(right, axis=1) * a1
            np.right_shift(block, 4, out=wide[y : y + _ROWS_PER_BLOCK])
        for y in range(0, size_hw[0], _ROWS_PER_BLOCK):
            part = slice(y, y + _ROWS_PER_BLOCK)
            top = wide.take(upper[part], axis=0)
            top *= b0[part]
            top >>= 16
            bottom = wide.take(lower[part], axis=0)
            bottom *= b1[part]
            bottom >>= 16
            top += bottom
            top += 2
            top >>= 2
            out[c, part] = top
    return out


def _bilinear_float32(image: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    # The float path of OpenCV's x86 builds (IPP) keeps positions in double and interpolates as a + (b - a) * t.
    channels, height, width = image.shape
    left, right, fx = _column_taps(width, size_hw[1], np.float64)
    upper, lower, fy = _column_taps(height, size_hw[0], np.float64)
    out = np.empty((channels, *size_hw), np.float32)
    for c in range(channels):
        wide = np.empty((height, size_hw[1]), np.float32)
        for y in range(0, height, _ROWS_PER_BLOCK):
            rows = image[c, y : y + _ROWS_PER_BLOCK]
            first, second = rows.take(left, axis=1), rows.take(right, axis=1)
            second -= first
            second *= fx
            np.add(first, second, out=wide[y : y + _ROWS_PER_BLOCK])
        for y in range(0, size_hw[0], _ROWS_PER_BLOCK):
            part = slice(y, y + _ROWS_PER_BLOCK)
            first, second = wide.take(upper[part], axis=0), wide.take(lower[part], axis=0)
            second -= first
            second *= fy[part, None]
            np.add(first, second, out=out[c, part])
    return out
