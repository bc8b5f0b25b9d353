"""Colour augmentation. Every draw comes from the generator that is given; images are ``[3, H, W]`` uint8 RGB."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

Image8 = NDArray[np.uint8]


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


def _apply_curve(image: Image8, *, gain: float, shift: float) -> Image8:
    curve = (np.arange(256) * gain + shift).clip(0, 255).astype(np.uint8)
    return curve[image]


def _turn_hue(image: Image8, turns: float) -> Image8:
    return F.adjust_hue(torch.from_numpy(np.ascontiguousarray(image)), turns).numpy()
