"""Other looks of the same scenes, never used in training: they show how a model bears a change of style."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from saccade.data.scenes.camera import Floats
from saccade.errors import UsageError, nearest

SCENE_STYLES: tuple[str, ...] = ("plain", "fog", "night", "poster", "sketch")
"""``plain`` is the world as it is drawn."""


def restyle(image: npt.NDArray[np.uint8], depth_m: Floats, style: str) -> npt.NDArray[np.uint8]:
    """Changes the look of a finished picture and leaves every shape where it is.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        depth_m: ``[H, W]`` metres, 0 for the sky.
        style: One of :data:`SCENE_STYLES`.

    Raises:
        UsageError: An unknown style.
    """
    if style not in SCENE_STYLES:
        raise UsageError(f"the scenes have no style '{style}'", fix=nearest(style, SCENE_STYLES))
    if style == "fog":
        veil = np.where(depth_m > 0, depth_m / (depth_m + 6), np.float32(0.9))[..., None].astype(np.float32)
        return (image * (1 - veil) + np.float32(208) * veil).astype(np.uint8)
    if style == "night":
        return (image * np.array([0.30, 0.34, 0.46], dtype=np.float32)).astype(np.uint8)
    if style == "poster":
        return ((image >> 6) * 85).astype(np.uint8)
    if style == "sketch":
        grey = image.sum(axis=2, dtype=np.int32)
        # Sums over 3 x 3 pixels keep the noise of the camera out of the lines.
        padded = np.pad(grey, 1, mode="edge")
        soft = sum(padded[y : y + grey.shape[0], x : x + grey.shape[1]] for y in range(3) for x in range(3))
        lines = np.abs(np.gradient(soft, axis=0)) + np.abs(np.gradient(soft, axis=1))
        ink = np.clip(255 - lines / 3, 0, 255).astype(np.uint8)
        return np.repeat(ink[..., None], 3, axis=2)
    return image
