"""The pipeline of detection transformers for boxes: a resize, or a resize, a crop and a resize, after a flip.

Source: End-to-End Object Detection with Transformers, ECCV 2020, section 4; with the sizes of ViSFT (docs/visft.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.data.geometry import View, boxes_tensor
from saccade.data.pipeline import Transform
from saccade.data.resize import resize_pillow
from saccade.data.transforms import fit_short
from saccade.draws import Draws, GeneratorDraws
from saccade.samples import Sample, Target

_UNLIMITED = 2**31


@dataclass(kw_only=True, frozen=True)
class DETRAugment:
    """DETR's pipeline. Crowds and boxes of which the crop leaves nothing are dropped; a picture may lose all.

    Attributes:
        flip: Probability of the horizontal flip.
        resize_probability: Probability of the branch without a crop.
        short_sides: Short side of the last resize in pixels, one drawn at random; the long side is at most the input.
        crop_short_sides: Short side of the resize before the crop, whose long side has no limit.
        crop_range: Least and greatest side of the crop in pixels.
    """

    flip: float = 0.5
    resize_probability: float = 0.5
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672)
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample of about ``size`` pixels at most.

        The short side is rounded for that, and the long one follows it: it may be a few pixels more.
        """

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            return self.apply(sample, size, GeneratorDraws(rng))

        return transform

    def apply(self, sample: Sample, size: int, draws: Draws) -> Sample:
        """One sample in the frame of the network input.

        Args:
            sample: In the frame of the original image.
            size: Greatest side of the network input in pixels, before the short one is rounded.
            draws: All random choices, in the order of the original.
        """
        view = View(sample)
        view.clip_boxes()
        kept = _with_area(view)
        if draws.share() < self.flip:
            view.flip_horizontal()
        if draws.share() >= self.resize_probability:
            view.resize(fit_short(view.size_hw, draws.pick(self.crop_short_sides), _UNLIMITED), resize_pillow)
            self._crop(view, draws)
            kept = np.intersect1d(kept, _with_area(view))
        view.resize(fit_short(view.size_hw, draws.pick(self.short_sides), size), resize_pillow)
        return _finish(view, sample, kept)

    def _crop(self, view: View, draws: Draws) -> None:
        height, width = view.size_hw
        least, greatest = self.crop_range

        def side(limit: int) -> int:
            least_side = min(least, limit)
            return least_side + draws.below(min(limit, greatest) - least_side + 1)

        crop_width, crop_height = side(width), side(height)
        top = left = 0
        if (crop_height, crop_width) != (height, width):
            top, left = draws.below(height - crop_height + 1), draws.below(width - crop_width + 1)
        view.crop(top, left, crop_height, crop_width)
        view.clip_boxes()


def _with_area(view: View) -> NDArray[np.intp]:
    return np.flatnonzero(np.all(view.boxes[:, 2:] > view.boxes[:, :2], axis=1))


def _finish(view: View, sample: Sample, kept: NDArray[np.intp]) -> Sample:
    target = sample.target
    if target.is_crowd is not None:
        kept = kept[~target.is_crowd.numpy()[kept]]
    boxes = boxes_tensor(view.boxes[kept], view.size_hw)
    class_ids = None if target.class_ids is None else target.class_ids[torch.from_numpy(kept)]
    return view.to_sample(Target(boxes=boxes, class_ids=class_ids))
