"""The pinhole camera above the ground plane.

World frame: origin at the camera, x to the right, y up, z forward and level; the ground is the plane
``y = -height_m``. A pixel's ray is ``depth * (x, -down, forward)`` where depth is measured along the optical axis (the
depth of depth maps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(kw_only=True, frozen=True)
class Camera:
    """A level camera (no roll) that looks down by ``pitch``.

    Attributes:
        size_hw: Picture size in pixels.
        focal_px: Focal length in pixels.
        height_m: Height above the ground.
        pitch: Angle below the horizontal, in radians.
        x: ``[W]`` ray component to the right, per column.
        down: ``[H]`` ray component downwards, per row.
        forward: ``[H]`` ray component forwards, per row.
    """

    size_hw: tuple[int, int]
    focal_px: float
    height_m: float
    pitch: float
    sin: float = field(init=False)
    cos: float = field(init=False)
    x: Floats = field(init=False)
    down: Floats = field(init=False)
    forward: Floats = field(init=False)

    def __post_init__(self) -> None:
        height, width = self.size_hw
        # Rounding hides the last bit of the machine's libm, so that silhouettes agree across machines.
        sin, cos = round(math.sin(self.pitch), 9), round(math.cos(self.pitch), 9)
        x = (np.arange(width, dtype=np.float64) + 0.5 - width / 2) / self.focal_px
        y = (np.arange(height, dtype=np.float64) + 0.5 - height / 2) / self.focal_px
        for name, value in (
            ("sin", sin),
            ("cos", cos),
            ("x", x.astype(np.float32)),
            ("down", (y * cos + sin).astype(np.float32)),
            ("forward", (cos - y * sin).astype(np.float32)),
        ):
            object.__setattr__(self, name, value)

    def depth(self, y: float, z: float) -> float:
        """Depth along the optical axis of a point at height y and level distance z."""
        return z * self.cos - y * self.sin

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Pixel position (column, row) of a world point in front of the camera."""
        depth = max(self.depth(y, z), 1e-3)
        height, width = self.size_hw
        return width / 2 + self.focal_px * x / depth, height / 2 + self.focal_px * (
            -z * self.sin - y * self.cos
        ) / depth
