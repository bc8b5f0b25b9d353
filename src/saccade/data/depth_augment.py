"""Training augmentation of depth: AiT's pipelines for NYU Depth v2, of the solver and of the depth VQ-VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.data.geometry import View
from saccade.data.photometric import Image8, change_brightness_contrast, change_gamma, shift_hsv
from saccade.data.pipeline import Transform
from saccade.data.transforms import fit
from saccade.errors import DataError
from saccade.samples import Sample, Target

_MOST_CUT = 0.75  # of what is left of the width behind the strip's begin
_LIGHT = 0.2  # greatest change of brightness and contrast
_GAMMA = (80.0, 120.0)  # per cent
_HUE, _SATURATION, _VALUE = 20.0, 30.0, 20.0  # greatest shifts in OpenCV's 8-bit HSV
_HOLE = (0.03, 0.15)  # half axes of a lost ellipse, as shares of the sides
_NYU_WIDTH = 640
_NYU_COLUMNS = (41, 601)  # inside the white frame of the pictures


@dataclass(kw_only=True, frozen=True)
class DepthAugment:
    """AiT's pipeline for depth (specs/ait.md 8.2): vertical CutDepth, flip, random crop, changes of light and colour.

    Depth follows the picture, unscaled: a resize moves no wall. One thing differs from the original, which counts the
    samples of a loader process and lays the strip over every fourth one: here a draw decides it, with the same share,
    so that the number of processes changes nothing.

    Attributes:
        flip: Probability of the horizontal flip.
        cut_depth: Probability of the strip of depth over the picture.
        light: Probability of each of the three changes: brightness and contrast, gamma, hue with saturation and value.
        resize: Resize first, so that the crop has one whole side of the picture (480 of NYU's 480 rows: no resize);
            otherwise the crop is cut from the picture as it is, and only a smaller picture is enlarged to cover it.
        columns: ``"nyu"`` keeps the columns 41..600 before all else, as the original does for its depth VQ-VAE.
        holes: Share of the map whose depth is lost, in ellipses, as a depth sensor loses it (our addition).
    """

    flip: float = 0.5
    cut_depth: float = 0.25
    light: float = 0.5
    resize: bool = True
    columns: Literal["all", "nyu"] = "all"
    holes: float = 0.0

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample of ``size`` x ``size`` pixels."""

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            depth_m = _depth(sample)
            view = View(sample)
            if rng.random() < self.cut_depth:
                view.image = cut_depth(view.image, depth_m, alpha=rng.random(), beta=rng.random())
            if self.columns == "nyu":
                _keep_nyu_columns(view, sample)
            if rng.random() < self.flip:
                view.flip_horizontal()
            if self.resize or min(view.size_hw) < size:
                view.resize(fit(view.size_hw, (size, size), cover=True))
            height, width = view.size_hw
            top, left = (int((side - size + 1) * rng.random()) for side in (height, width))
            view.crop(top, left, size, size)
            view.image = self._relight(view.image, rng)
            cut = np.ascontiguousarray(view.gather(depth_m))
            if self.holes:
                cut = lose_depth(cut, self.holes, rng)
            return view.to_sample(Target(depth_m=torch.from_numpy(cut)))

        return transform

    def _relight(self, image: Image8, rng: np.random.Generator) -> Image8:
        if rng.random() < self.light:
            gain = 1.0 + rng.uniform(-_LIGHT, _LIGHT)
            image = change_brightness_contrast(image, gain=gain, shift=rng.uniform(-_LIGHT, _LIGHT))
        if rng.random() < self.light:
            image = change_gamma(image, rng.uniform(*_GAMMA) / 100.0)
        if rng.random() < self.light:
            image = shift_hsv(
                image,
                hue=rng.uniform(-_HUE, _HUE),
                saturation=rng.uniform(-_SATURATION, _SATURATION),
                value=rng.uniform(-_VALUE, _VALUE),
            )
        return image


def cut_depth(image: Image8, depth_m: NDArray[np.float32], *, alpha: float, beta: float) -> Image8:
    """Lays a vertical strip of the depth map over all three channels (vertical CutDepth, arXiv 2201.07436).

    Args:
        image: ``[3, H, W]`` uint8.
        depth_m: ``[H, W]`` metres; written as the last 8 bits of the millimetres, as the original does.
        alpha: Where the strip begins, as a share of the width, 0..1.
        beta: How wide it is, as a share of its greatest width, 0..1.

    Returns:
        A new picture.
    """
    width = image.shape[2]
    left = int(alpha * width)
    strip = int(max((width - alpha * width) * beta * _MOST_CUT, 1))
    cut = image.copy()
    millimetres = np.rint(depth_m[:, left : left + strip] * 1000.0).astype(np.int64)
    cut[:, :, left : left + strip] = millimetres.astype(np.uint8)
    return cut


def lose_depth(depth_m: NDArray[np.float32], share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Sets ellipses of a depth map to 0 (unknown) until so much of it is lost.

    Args:
        depth_m: ``[H, W]`` metres.
        share: At least this share of the pixels, of those that were known.
        rng: Draws centres, and half axes of 3 to 15 per cent of the sides.

    Returns:
        A new map.
    """
    height, width = depth_m.shape
    rows, columns = np.ogrid[:height, :width]
    known = depth_m > 0
    kept = known.copy()
    while known.any() and kept.sum() > (1 - share) * known.sum():
        (y, x), (tall, wide) = rng.random(2), rng.uniform(*_HOLE, size=2)
        inside = ((rows / height - y) / tall) ** 2 + ((columns / width - x) / wide) ** 2 < 1
        kept &= ~inside
    return np.where(kept, depth_m, np.float32(0.0))


def _keep_nyu_columns(view: View, sample: Sample) -> None:
    height, width = view.size_hw
    if width != _NYU_WIDTH:
        raise DataError(
            f"the columns of NYU are those of a picture of {_NYU_WIDTH} columns, not {width}",
            where=sample.origin.path or sample.origin.image_id,
            fix="columns='all'",
        )
    first, end = _NYU_COLUMNS
    view.crop(0, first, height, end - first)


def _depth(sample: Sample) -> NDArray[np.float32]:
    if sample.target.depth_m is None:
        raise DataError(
            "a depth sample without a depth map",
            where=sample.origin.path or sample.origin.image_id,
            fix="choose an augmentation that fits the task of the source",
        )
    return sample.target.depth_m.numpy()
