"""Colour augmentation. Every draw comes from the generator that is given; images are ``[3, H, W]`` uint8 RGB.

The functions without a generator change a picture by given amounts. Those that AiT's depth pipeline uses equal
albumentations 1.3 with OpenCV 4.5 value by value.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

Image8 = NDArray[np.uint8]

_HSV_SHIFT = 12  # bits behind the point in OpenCV's division tables
_HUES = 180  # OpenCV's 8-bit hue counts steps of two degrees
_LANES = 32  # pixels that OpenCV's AVX2 code converts at once
# Which of the four products (value, and the three of _sector_factors) red, green and blue are in each sixth of the hue.
_SECTORS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])


def photometric_distortion(image: Image8, rng: np.random.Generator) -> Image8:
    """Brightness, contrast, saturation and hue, each with probability one half (SSD; specs/git.md 6.4).

    Brightness shifts by up to 32 grey levels; contrast and saturation scale by 0.5..1.5, contrast either before or
    after saturation and hue; hue turns by up to 36 degrees.
    """
    if rng.random() < 0.5:
        image = _apply_curve(image, gain=1.0, shift=rng.uniform(-32.0, 32.0))
    contrast_first = rng.random() < 0.5
    if contrast_first and rng.random() < 0.5:
        image = _apply_curve(image, gain=rng.uniform(0.5, 1.5), shift=0.0)
    if rng.random() < 0.5:
        image = scale_saturation(image, rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        image = _turn_hue(image, int(rng.integers(-18, 18)) / 180.0)
    if not contrast_first and rng.random() < 0.5:
        image = _apply_curve(image, gain=rng.uniform(0.5, 1.5), shift=0.0)
    return image


def color_jitter(
    image: Image8,
    rng: np.random.Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Image8:
    """Brightness, contrast, saturation and hue in random order.

    Args:
        image: ``[3, H, W]`` uint8 RGB.
        rng: Source of all draws.
        brightness: The factor is drawn from 1 - b .. 1 + b; the image is blended with black.
        contrast: The same, blended with its mean grey.
        saturation: The same, blended with its grey version.
        hue: The shift is drawn from -h .. h; 1 is the whole circle.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(image))
    for step in rng.permutation(4):
        if step == 0 and brightness:
            tensor = F.adjust_brightness(tensor, _factor(rng, brightness))
        elif step == 1 and contrast:
            tensor = F.adjust_contrast(tensor, _factor(rng, contrast))
        elif step == 2 and saturation:
            tensor = F.adjust_saturation(tensor, _factor(rng, saturation))
        elif step == 3 and hue:
            tensor = F.adjust_hue(tensor, float(rng.uniform(-hue, hue)))
    return tensor.numpy()


def scale_saturation(image: Image8, factor: float) -> Image8:
    """Multiplies the saturation of HSV, hue and value kept: every channel moves towards or from the greatest one."""
    value = image.max(axis=0).astype(np.float32)
    chroma = value - image.min(axis=0)
    # Saturation cannot pass 1, so the factor cannot pass value / chroma.
    most = np.divide(value, chroma, out=np.full_like(value, np.inf), where=chroma > 0)
    scaled = value - (value - image) * np.minimum(np.float32(factor), most)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def _factor(rng: np.random.Generator, strength: float) -> float:
    return float(rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength))


def change_brightness_contrast(image: Image8, *, gain: float, shift: float) -> Image8:
    """Multiplies by ``gain`` and adds ``shift`` (1 is white), in single precision, truncated (albumentations)."""
    return _apply_curve(image, gain=gain, shift=shift * 255, dtype=np.float32)


def change_gamma(image: Image8, gamma: float) -> Image8:
    """Raises grey levels in 0..1 to a power, truncated (albumentations)."""
    curve = (np.arange(256) * (1.0 / 255)) ** gamma * 255
    return curve.astype(np.uint8)[image]


def shift_hsv(image: Image8, *, hue: float, saturation: float, value: float) -> Image8:
    """Adds to hue, saturation and value of OpenCV's 8-bit HSV (albumentations).

    Args:
        image: ``[3, H, W]`` uint8 RGB.
        hue: In steps of two degrees; the sum wraps round and is truncated.
        saturation: In 1/255; the sum is clipped and truncated.
        value: The same.
    """
    shifted = to_hsv(image)
    levels = np.arange(256)
    shifted[0] = np.mod(levels + hue, _HUES).astype(np.uint8)[shifted[0]]
    for channel, amount in ((1, saturation), (2, value)):
        shifted[channel] = _apply_curve(shifted[channel], gain=1.0, shift=amount)
    return from_hsv(shifted)


def to_hsv(image: Image8) -> Image8:
    """Hue 0..179, saturation and value 0..255, as OpenCV's ``COLOR_RGB2HSV`` computes them in fixed point."""
    red, green, blue = image.astype(np.int32)
    greatest = image.max(axis=0)
    chroma = greatest - image.min(axis=0)
    by_value, by_chroma = _divisions()
    half = 1 << (_HSV_SHIFT - 1)
    sixths = np.where(
        greatest == image[0],
        green - blue,
        np.where(
            greatest == image[1], blue - red + 2 * chroma.astype(np.int32), red - green + 4 * chroma.astype(np.int32)
        ),
    )
    hue = (sixths * by_chroma[chroma] + half) >> _HSV_SHIFT
    hue += _HUES * (hue < 0)
    saturation = (chroma * by_value[greatest] + half) >> _HSV_SHIFT
    return np.stack([hue.astype(np.uint8), saturation.astype(np.uint8), greatest])


def from_hsv(image: Image8) -> Image8:
    """RGB of OpenCV's 8-bit HSV, as its ``COLOR_HSV2RGB`` computes it in single precision.

    Its vector code drops the fraction of a grey level; the columns that fill no whole vector are rounded by other code.
    The original trains on 480 columns, where there are none of these.
    """
    hue, saturation, value = image
    brightness = _brightness()[value]
    whole = hue.shape[-1] - hue.shape[-1] % _LANES
    out = np.empty_like(image)
    for channel, factors in zip(out, _sector_factors(), strict=True):
        exact = brightness * factors[hue, saturation] * np.float32(255)
        channel[..., :whole] = exact[..., :whole]
        channel[..., whole:] = np.rint(exact[..., whole:])
    return out


@cache
def _divisions() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Fixed-point 255 / value and 30 / chroma."""
    divisors = np.arange(1, 256)
    tables = (np.rint((255 << _HSV_SHIFT) / divisors), np.rint((_HUES << _HSV_SHIFT) / (6.0 * divisors)))
    by_value, by_chroma = (np.concatenate([[0], table]).astype(np.int32) for table in tables)
    return by_value, by_chroma


@cache
def _brightness() -> NDArray[np.float32]:
    return np.arange(256, dtype=np.float32) * np.float32(1 / 255)


@cache
def _sector_factors() -> NDArray[np.float32]:
    """What the value is multiplied by to give red, green and blue: ``[3, hue, saturation]``."""
    one = np.ones((_HUES, 256), np.float32)
    saturation = _brightness()[None]
    sixths = np.arange(_HUES, dtype=np.float32)[:, None] * np.float32(6 / _HUES)
    sector = np.trunc(sixths)
    rest = sixths - sector

    def less(share: NDArray[np.float32]) -> NDArray[np.float32]:
        # One rounding for product and difference: the compiler of OpenCV's binaries fuses them. Double is wide enough.
        return (1.0 - saturation.astype(np.float64) * share.astype(np.float64)).astype(np.float32)

    factors = np.stack([one, (1 - saturation) * one, less(rest), less(1 - rest)])
    chosen = _SECTORS[sector[:, 0].astype(np.intp)].T
    return np.stack([factors[at, np.arange(_HUES)] for at in chosen])


def _apply_curve(image: Image8, *, gain: float, shift: float, dtype: type[np.floating] = np.float64) -> Image8:
    curve = (np.arange(256, dtype=dtype) * gain + shift).clip(0, 255).astype(np.uint8)
    return curve[image]


def _turn_hue(image: Image8, turns: float) -> Image8:
    return F.adjust_hue(torch.from_numpy(np.ascontiguousarray(image)), turns).numpy()
