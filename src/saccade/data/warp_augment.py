"""Training augmentation by warps: flips, shift, scale and rotation, and grid distortion (the polar paper's centres).

The paper's code takes albumentations with the library's limits, which are the defaults here. What leaves the picture is
mirrored at its border. The cells of the grid distortion are scaled so that they fill the picture together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from saccade.data.geometry import View, mask_tensor
from saccade.data.pipeline import Transform
from saccade.errors import DataError
from saccade.samples import Sample, Target


@dataclass(kw_only=True, frozen=True)
class WarpAugment:
    """Label maps follow the picture; boxes and instances do not.

    Attributes:
        flip: Probability of the horizontal flip.
        flip_vertical: Probability of the vertical flip.
        move_probability: Probability of shift, scale and rotation together.
        shift: Greatest shift along each axis, as a share of the side.
        scale: Greatest change of the size, as a share.
        rotate_degrees: Greatest rotation.
        distort_probability: Probability of the grid distortion.
        distort_steps: Cells along each axis.
        distort: Greatest change of the width of a cell, as a share.
    """

    flip: float = 0.5
    flip_vertical: float = 0.5
    move_probability: float = 0.3
    shift: float = 0.0625
    scale: float = 0.1
    rotate_degrees: float = 45.0
    distort_probability: float = 0.3
    distort_steps: int = 5
    distort: float = 0.3

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample of ``size`` x ``size`` pixels."""

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            if sample.target.semantic is None:
                raise DataError(
                    "a sample without a label map",
                    where=sample.origin.path or sample.origin.image_id,
                    fix="choose an augmentation that fits the task of the source",
                )
            view = View(sample)
            view.resize((size, size))
            if rng.random() < self.flip:
                view.flip_horizontal()
            if rng.random() < self.flip_vertical:
                view.flip_vertical()
            labels = view.gather(sample.target.semantic.as_subclass(Tensor).numpy())
            places = _places(size)
            if rng.random() < self.move_probability:
                places = self._move(places, size, rng)
            if rng.random() < self.distort_probability:
                places = self._distort(places, size, rng)
            view.image = warp(view.image, places)
            return view.to_sample(Target(semantic=mask_tensor(warp(labels[None], places, nearest=True)[0])))

        return transform

    def _move(self, places: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Where the pixels come from when the picture is turned and scaled around its middle, and shifted."""
        angle = math.radians(rng.uniform(-self.rotate_degrees, self.rotate_degrees))
        factor = 1 + rng.uniform(-self.scale, self.scale)
        shift = rng.uniform(-self.shift, self.shift, 2) * size
        middle = (size - 1) / 2
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        return (places - middle - shift) @ (turn / factor) + middle

    def _distort(self, places: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Where the pixels come from when rows and columns of cells are widened and narrowed."""
        even = np.linspace(0, size - 1, self.distort_steps + 1)
        moved = []
        for axis in (0, 1):
            widths = 1 + rng.uniform(-self.distort, self.distort, self.distort_steps)
            knots = np.concatenate([[0.0], np.cumsum(widths)]) / widths.sum() * (size - 1)
            # Beyond the picture, where a shift may have led, a place keeps its distance from the border.
            inside = places[..., axis].clip(0, size - 1)
            moved.append(np.interp(inside, even, knots) + places[..., axis] - inside)
        return np.stack(moved, axis=-1)


def warp(maps: NDArray, places: NDArray[np.float64], *, nearest: bool = False) -> NDArray:
    """Samples maps at places, mirrored at the middles of their outermost pixels.

    Args:
        maps: ``[C, H, W]`` uint8 or int64.
        places: ``[h, w, 2]`` positions (x, y) in pixels; (0, 0) is the middle of the first pixel.
        nearest: Take the nearest pixel; otherwise bilinear, rounded.

    Returns:
        ``[C, h, w]`` of the same type.
    """
    values = torch.from_numpy(np.ascontiguousarray(maps)).float()[None]
    last = np.array([max(maps.shape[2] - 1, 1), max(maps.shape[1] - 1, 1)])
    grid = torch.from_numpy((2 * places / last - 1).astype(np.float32))[None]
    mode = "nearest" if nearest else "bilinear"
    sampled = F.grid_sample(values, grid, mode=mode, padding_mode="reflection", align_corners=True)
    return sampled[0].round().numpy().astype(maps.dtype)


def _places(size: int) -> NDArray[np.float64]:
    """Every pixel's own position, ``[size, size, 2]`` (x, y)."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    return np.stack([x, y], axis=-1)
