"""Large-scale jitter as ViSFT trains its segmentation head: soft masks, and grey around them (specs/visft.md 7.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from saccade.data.geometry import View, boxes_tensor, mask_tensor
from saccade.data.pipeline import Transform
from saccade.data.resize import resize_pillow, resize_soft
from saccade.errors import DataError
from saccade.samples import Sample, Target


@dataclass(kw_only=True, frozen=True)
class LargeScaleJitterAugment:
    """Flip, resize by a random factor, pad with grey, crop.

    Masks are resized bilinearly and never made hard again. Objects whose box is cut away go; a crop of nothing but
    background is learned from. The padding is part of the picture that the network gets.

    Attributes:
        size: Side of the result in pixels; 0 = that of the network input.
        flip: Probability of the horizontal flip.
        scales: Least and greatest factor, 1 = the picture fits the network input.
        pad_value: Grey level of the padding, 0..255.
    """

    size: int = 0
    flip: float = 0.5
    scales: tuple[float, float] = (0.1, 2.0)
    pad_value: int = 128

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a square sample.

        Args:
            size: Its side in pixels, where the settings have none.
        """
        size = self.size or size

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            target = sample.target
            if target.masks is None:
                raise DataError(
                    "the sample has no masks",
                    where=sample.origin.path or sample.origin.image_id,
                    fix="use a source with masks, or another augmentation",
                )
            masks = target.masks.as_subclass(torch.Tensor).numpy()
            view = View(sample)
            if rng.random() < self.flip:
                view.flip_horizontal()
                masks = masks[:, :, ::-1]
            factor = self.scales[0] + rng.random() * (self.scales[1] - self.scales[0])
            height, width = resized_hw = scaled_size(view.size_hw, size, factor)
            view.resize(resized_hw, resize_pillow)
            # What is smaller than the network input is cut nowhere: padded, it is just as large.
            top, left = (int(rng.integers(max(0, side - size) + 1)) for side in resized_hw)
            window = (top, left, min(height, size), min(width, size))
            view.crop(*window)
            view.clip_boxes()
            keep = np.all(view.boxes[:, 2:] > view.boxes[:, :2], axis=1)
            if target.is_crowd is not None:
                keep &= ~target.is_crowd.numpy()
            kept = np.flatnonzero(keep)
            soft = resize_soft(masks[kept], resized_hw, window)
            below, right = size - window[2], size - window[3]
            view.image = np.pad(view.image, ((0, 0), (0, below), (0, right)), constant_values=self.pad_value)
            return view.to_sample(
                Target(
                    boxes=boxes_tensor(view.boxes[kept], (size, size)),
                    class_ids=None if target.class_ids is None else target.class_ids[torch.from_numpy(kept)],
                    masks=mask_tensor(np.pad(soft, ((0, 0), (0, below), (0, right)))),
                )
            )

        return transform


def scaled_size(size_hw: tuple[int, int], size: int, factor: float) -> tuple[int, int]:
    """Height and width of a picture that fits into ``factor * size``, the aspect ratio kept, sides rounded."""
    scale = min(factor * size / side for side in size_hw)
    height, width = (max(1, round(side * scale)) for side in size_hw)
    return height, width
