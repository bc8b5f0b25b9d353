"""Training augmentation: one pipeline per task, as its paper trained it, and a light one for small data sets.

A pipeline is a keyword-only dataclass; ``build(size)`` returns a function that brings a sample to ``size`` x ``size``
pixels. Every random draw comes from the generator handed to that function, never from a global one: exact resume and
independence of the number of workers rest on it.

A sample that a pipeline cannot use raises :class:`~saccade.data.pipeline.Redraw`; the loader then draws another index
with the same generator and counts it. Depth, single masks, phrases and centres have pipelines in files of their own.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.data.depth_augment import DepthAugment
from saccade.data.detr_augment import DETRAugment
from saccade.data.geometry import View, boxes_tensor, mask_tensor
from saccade.data.large_scale_jitter import LargeScaleJitterAugment
from saccade.data.mask_crops import MaskCropAugment
from saccade.data.photometric import color_jitter, photometric_distortion
from saccade.data.phrases import PhraseAugment
from saccade.data.pipeline import Redraw, Transform
from saccade.data.resize import resize_bicubic, resize_bilinear, resize_pillow
from saccade.data.warp_augment import WarpAugment
from saccade.errors import DataError
from saccade.samples import IGNORE_LABEL, Sample, Target
from saccade.tokens.contours import encode_contours

_MIN_BOX_SIDE = 1e-5  # pixels of the network input; specs/git.md 6.2
_LEAST_JITTERED_SIDE = 0.01  # specs/vitdet.md 11.1
_CROP_ATTEMPTS = 10


@dataclass(kw_only=True, frozen=True)
class DetectionAugment:
    """GiT's pipeline for boxes and instance masks (specs/git.md 6.2, 6.3).

    Flip, then either a plain resize, or a resize that keeps the aspect ratio, a random crop and a resize. Boxes are
    clipped; crowds, boxes without extent and masks without a pixel are dropped; an image that loses all its boxes to
    that filter is drawn again, one that has none after the crop trains on pure background.

    Attributes:
        flip: Probability of the horizontal flip.
        crop_probability: Probability of the branch with the crop (0 = resize only).
        short_sides: Short side of the first resize of that branch in pixels, one drawn at random.
        max_long_side: Limit of the long side in that resize.
        crop_range: Least and greatest side of the crop in pixels.
        resize_as_float: Resize in float32 without rounding (GiT does so for instance masks).
        contour_rays: Fill ``target.contours`` with that many rays and drop the masks (0 = keep the masks).
        filter_boxes: Draw again where the filter leaves nothing (off in GiT-H).
    """

    flip: float = 0.5
    crop_probability: float = 0.5
    short_sides: tuple[int, ...] = (400, 500, 600)
    max_long_side: int = 4200
    crop_range: tuple[int, int] = (384, 600)
    resize_as_float: bool = False
    contour_rays: int = 0
    filter_boxes: bool = True

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample of ``size`` x ``size`` pixels."""

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            view = View(sample, as_float=self.resize_as_float)
            if rng.random() < self.flip:
                view.flip_horizontal()
            inside = np.ones(len(view.boxes), bool)
            if rng.random() < self.crop_probability:
                self._resize_and_crop(view, rng)
                view.clip_boxes()
                inside = (view.boxes[:, 2] > view.boxes[:, 0]) & (view.boxes[:, 3] > view.boxes[:, 1])
            view.resize((size, size))
            view.clip_boxes()
            return _finish_instances(
                view, sample, inside=inside, contour_rays=self.contour_rays, redraw_empty=self.filter_boxes
            )

        return transform

    def _resize_and_crop(self, view: View, rng: np.random.Generator) -> None:
        height, width = view.size_hw
        short = self.short_sides[rng.integers(len(self.short_sides))]
        scale = min(self.max_long_side / max(height, width), short / min(height, width))
        view.resize((int(height * scale + 0.5), int(width * scale + 0.5)))
        height, width = view.size_hw
        least, greatest = self.crop_range
        crop_height = int(rng.integers(min(height, least), min(height, greatest) + 1))
        crop_width = int(rng.integers(min(width, least), min(width, greatest) + 1))
        top = int(rng.integers(height - crop_height + 1))
        left = int(rng.integers(width - crop_width + 1))
        view.crop(top, left, crop_height, crop_width)


@dataclass(kw_only=True, frozen=True)
class SemanticAugment:
    """GiT's pipeline for label maps (specs/git.md 6.4).

    Either a plain resize, or a resize to a larger square and a random crop in which the most frequent class should
    stay below a share; then flip and photometric distortion.

    Attributes:
        flip: Probability of the horizontal flip.
        crop_probability: Probability of the branch with the crop.
        scales: Side of the larger square in tenths of the input size, least and greatest.
        max_class_share: Crops are drawn again (ten times at most) while one class covers more than this.
        distort: Photometric distortion.
    """

    flip: float = 0.5
    crop_probability: float = 0.5
    scales: tuple[int, int] = (10, 20)
    max_class_share: float = 0.75
    distort: bool = True

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample of ``size`` x ``size`` pixels."""

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            view = View(sample)
            labels = _labels(sample)
            if rng.random() < self.crop_probability:
                side = int(size * int(rng.integers(self.scales[0], self.scales[1] + 1)) * 0.1)
                view.resize((side, side))
                view.crop(*self._choose_crop(view.gather(labels), size, rng))
            else:
                view.resize((size, size))
            if rng.random() < self.flip:
                view.flip_horizontal()
            if self.distort:
                view.image = photometric_distortion(view.image, rng)
            return view.to_sample(Target(semantic=mask_tensor(view.gather(labels).astype(np.int64))))

        return transform

    def _choose_crop(self, labels: NDArray, size: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        height, width = min(size, labels.shape[0]), min(size, labels.shape[1])
        top = left = 0
        for _ in range(_CROP_ATTEMPTS + 1):
            top = int(rng.integers(labels.shape[0] - height + 1))
            left = int(rng.integers(labels.shape[1] - width + 1))
            counts = np.bincount(labels[top : top + height, left : left + width].ravel(), minlength=IGNORE_LABEL + 1)
            counts[IGNORE_LABEL] = 0
            if np.count_nonzero(counts) > 1 and counts.max() < self.max_class_share * counts.sum():
                break
        return top, left, height, width


@dataclass(kw_only=True, frozen=True)
class CaptionAugment:
    """GiT's pipeline for captions (specs/git.md 6.5): random resized crop, flip, Pillow bicubic.

    One of the sample's captions is drawn. Where captions speak of left and right, set ``flip`` to 0, and where they
    name things at the border, ``min_area`` to 1.

    Attributes:
        flip: Probability of the horizontal flip.
        min_area: Least share of the image that the crop keeps; 1 = no crop.
        aspect_range: Least and greatest aspect ratio of the crop.
        brightness: Strength of the brightness factor (0 as published).
        contrast: Strength of the contrast factor (0 as published).
    """

    flip: float = 0.5
    min_area: float = 0.08
    aspect_range: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.0
    contrast: float = 0.0

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample of ``size`` x ``size`` pixels."""

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            captions = sample.target.captions
            if not captions:
                raise DataError(
                    "a caption sample without a caption", where=sample.origin.path or sample.origin.image_id
                )
            view = View(sample)
            if self.min_area < 1.0:
                view.crop(*draw_area_crop(view.size_hw, rng, min_area=self.min_area, aspect_range=self.aspect_range))
            view.resize((size, size), resize_bicubic)
            if rng.random() < self.flip:
                view.flip_horizontal()
            if self.brightness or self.contrast:
                view.image = color_jitter(
                    view.image, rng, brightness=self.brightness, contrast=self.contrast, saturation=0.0, hue=0.0
                )
            return view.to_sample(Target(captions=(captions[rng.integers(len(captions))],)))

        return transform


@dataclass(kw_only=True, frozen=True)
class GroundingAugment:
    """GiT's pipeline for referring expressions (specs/git.md 6.6): colour jitter, mild crop, no flip.

    Attributes:
        jitter_probability: Probability of the colour jitter.
        brightness: Strength of the brightness factor.
        contrast: Strength of the contrast factor.
        saturation: Strength of the saturation factor.
        hue: Greatest hue shift; 1 is the whole circle.
        min_side: Least relative side of the crop (1 = no crop). A crop without any of the box is drawn again.
    """

    jitter_probability: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    min_side: float = 0.8

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample of ``size`` x ``size`` pixels."""

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            view = View(sample)
            if rng.random() < self.jitter_probability:
                view.image = color_jitter(
                    view.image,
                    rng,
                    brightness=self.brightness,
                    contrast=self.contrast,
                    saturation=self.saturation,
                    hue=self.hue,
                )
            height, width = view.size_hw
            shares = self.min_side + rng.random(2) * (1.0 - self.min_side)
            crop_height, crop_width = int(height * shares[0] + 0.5), int(width * shares[1] + 0.5)
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            view.crop(top, left, crop_height, crop_width)
            view.clip_boxes()
            if not ((view.boxes[:, 2] > view.boxes[:, 0]) & (view.boxes[:, 3] > view.boxes[:, 1])).all():
                raise Redraw("the crop lost the box")
            view.resize((size, size))
            return view.to_sample(Target(boxes=boxes_tensor(view.boxes, (size, size))))

        return transform


@dataclass(kw_only=True, frozen=True)
class LightAugment:
    """For fine-tuning on some tens to thousands of images: detection, instance and semantic segmentation.

    Quarter turns, flips, a crop of random area and aspect, and colour jitter; boxes, masks and labels follow. A box of
    which the crop keeps less than ``min_visible`` is dropped.

    Attributes:
        flip: Probability of the horizontal flip.
        flip_vertical: Probability of the vertical flip (for views from above and through a microscope).
        rotate: Turn by 0, 90, 180 or 270 degrees, each equally likely.
        crop_probability: Probability of the crop.
        min_area: Least share of the image that the crop keeps.
        aspect_range: Least and greatest aspect ratio of the crop, relative to that of the image.
        min_visible: Least share of a box's area that must remain.
        jitter_probability: Probability of the colour jitter.
        brightness: Strength of the brightness factor.
        contrast: Strength of the contrast factor.
        saturation: Strength of the saturation factor.
        hue: Greatest hue shift; 1 is the whole circle.
        resize_as_float: Resize in float32 without rounding.
        contour_rays: Fill ``target.contours`` with that many rays and drop the masks (0 = keep the masks).
    """

    flip: float = 0.5
    flip_vertical: float = 0.0
    rotate: bool = False
    crop_probability: float = 0.5
    min_area: float = 0.4
    aspect_range: tuple[float, float] = (3 / 4, 4 / 3)
    min_visible: float = 0.2
    jitter_probability: float = 0.8
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    resize_as_float: bool = False
    contour_rays: int = 0

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample of ``size`` x ``size`` pixels."""

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            view = View(sample)
            # Colours are changed on 8-bit pixels: after the resize, where there are usually fewer, if they still are.
            if self.resize_as_float:
                self._jitter(view, rng)
                view.image = view.image.astype(np.float32)
            for _ in range(int(rng.integers(4)) if self.rotate else 0):
                view.rotate90()
            if rng.random() < self.flip:
                view.flip_horizontal()
            if rng.random() < self.flip_vertical:
                view.flip_vertical()
            inside = np.ones(len(view.boxes), bool)
            if rng.random() < self.crop_probability:
                before = _areas(view.boxes)
                height, width = view.size_hw
                low, high = (limit * width / height for limit in self.aspect_range)
                crop = draw_area_crop((height, width), rng, min_area=self.min_area, aspect_range=(low, high))
                view.crop(*crop)
                view.clip_boxes()
                inside = _areas(view.boxes) > self.min_visible * before
            view.resize((size, size))
            view.clip_boxes()
            if not self.resize_as_float:
                self._jitter(view, rng)
            if sample.target.semantic is not None and sample.target.boxes is None:
                labels = view.gather(_labels(sample)).astype(np.int64)
                return view.to_sample(Target(semantic=mask_tensor(labels)))
            return _finish_instances(view, sample, inside=inside, contour_rays=self.contour_rays, redraw_empty=True)

        return transform

    def _jitter(self, view: View, rng: np.random.Generator) -> None:
        if rng.random() < self.jitter_probability:
            view.image = color_jitter(
                view.image,
                rng,
                brightness=self.brightness,
                contrast=self.contrast,
                saturation=self.saturation,
                hue=self.hue,
            )


@dataclass(kw_only=True, frozen=True)
class ScaleJitterAugment:
    """Large-scale jitter of the plain-backbone detectors (specs/vitdet.md 11): resize by a random factor, crop, flip.

    The aspect ratio is kept; what is smaller than the network input is padded by the batch. Boxes are taken from the
    cropped masks where there are masks (not by AiT, specs/ait.md 8.1). A crop without objects is drawn again with
    another picture by ``mmdet`` only.

    Attributes:
        flip: Probability of the horizontal flip.
        scales: Least and greatest factor, 1 = the picture fits the network input.
        rules: ``mmdet``: OpenCV resize, row and column of the crop drawn apart, flip last; ``detectron2``: flip first,
            Pillow resize, one draw for row and column; ``ait``: drawn as by ``mmdet``, but boxes stay cut annotations,
            and a crop of nothing but background is learned from.
    """

    flip: float = 0.5
    scales: tuple[float, float] = (0.1, 2.0)
    rules: Literal["mmdet", "detectron2", "ait"] = "mmdet"

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample of at most ``size`` x ``size`` pixels."""

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            view = View(sample)
            detectron2 = self.rules == "detectron2"
            if detectron2 and rng.random() < self.flip:
                view.flip_horizontal()
            factor = self.scales[0] + rng.random() * (self.scales[1] - self.scales[0])
            view.resize(self._scaled(view.size_hw, size, factor), resize_pillow if detectron2 else resize_bilinear)
            height, width = view.size_hw
            down, across = max(0, height - size), max(0, width - size)
            if detectron2:
                share = rng.random()
                top, left = round(down * share), round(across * share)
            else:
                top, left = int(rng.integers(down + 1)), int(rng.integers(across + 1))
            view.crop(top, left, min(height, size), min(width, size))
            view.clip_boxes()
            if not detectron2 and rng.random() < self.flip:
                view.flip_horizontal()
            return self._finish(view, sample)

        return transform

    def _scaled(self, size_hw: tuple[int, int], size: int, factor: float) -> tuple[int, int]:
        """Size after the jitter, rounded as the originals do."""
        if self.rules == "detectron2":
            scale = size * factor / max(size_hw)
            height, width = (round(side * scale) for side in size_hw)
        else:
            scale = int(size * factor) / max(size_hw)
            height, width = (int(side * scale + 0.5) for side in size_hw)
        return max(1, height), max(1, width)

    def _finish(self, view: View, sample: Sample) -> Sample:
        inside: NDArray[np.bool_] = np.all(view.boxes[:, 2:] > view.boxes[:, :2], axis=1)
        done = _finish_instances(
            view,
            sample,
            inside=inside,
            contour_rays=0,
            redraw_empty=self.rules == "ait",
            least_side=_LEAST_JITTERED_SIDE,
            keep_unseen=self.rules == "ait",
        )
        target = done.target
        # detectron2 and AiT train on what is left of the background, mmdet draws another image.
        if self.rules == "mmdet" and (target.boxes is None or not len(target.boxes)):
            raise Redraw("no object is left after the crop")
        if target.masks is not None and self.rules != "ait":
            target.boxes = boxes_tensor(_boxes_of(target.masks.as_subclass(torch.Tensor).numpy()), view.size_hw)
        return done


def _boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Tight boxes of masks that have a pixel each."""
    columns, rows = np.asarray(masks.any(axis=1)), np.asarray(masks.any(axis=2))
    left, top = columns.argmax(axis=1), rows.argmax(axis=1)
    right = columns.shape[1] - columns[:, ::-1].argmax(axis=1)
    bottom = rows.shape[1] - rows[:, ::-1].argmax(axis=1)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


Augment: TypeAlias = (
    DetectionAugment
    | SemanticAugment
    | CaptionAugment
    | GroundingAugment
    | DETRAugment
    | LightAugment
    | ScaleJitterAugment
    | LargeScaleJitterAugment
    | DepthAugment
    | MaskCropAugment
    | PhraseAugment
    | WarpAugment
)
"""Any of the pipelines."""


def draw_area_crop(
    size_hw: tuple[int, int],
    rng: np.random.Generator,
    *,
    min_area: float,
    aspect_range: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws a crop by area and aspect ratio (width over height, log-uniform); ten attempts, then a central one.

    Returns:
        Top, left, height, width in pixels.
    """
    height, width = size_hw
    low, high = aspect_range
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * rng.uniform(min_area, 1.0)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_width, crop_height = width, height
    if width / height < low:
        crop_height = max(1, round(width / low))
    elif width / height > high:
        crop_width = max(1, round(height * high))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(0)
    return sides[:, 0] * sides[:, 1]


def _labels(sample: Sample) -> NDArray:
    if sample.target.semantic is None:
        raise DataError(
            "a semantic sample without a label map",
            where=sample.origin.path or sample.origin.image_id,
            fix="choose an augmentation that fits the task of the source",
        )
    return sample.target.semantic.as_subclass(torch.Tensor).numpy()


def _finish_instances(
    view: View,
    sample: Sample,
    *,
    inside: NDArray[np.bool_],
    contour_rays: int,
    redraw_empty: bool,
    least_side: float = _MIN_BOX_SIDE,
    keep_unseen: bool = False,
) -> Sample:
    """Filters the instances in the frame of the network input and builds the target.

    An instance of whose mask no pixel is left goes, too, unless it is kept for its box.
    """
    target = sample.target
    present = inside.copy()
    if target.is_crowd is not None:
        present &= ~target.is_crowd.numpy()
    sides = view.boxes[:, 2:] - view.boxes[:, :2]
    keep = np.flatnonzero(present & np.all(sides > least_side, axis=1))
    masks = None
    if target.masks is not None:
        masks = view.gather_masks(keep)
        seen = masks.any(axis=(1, 2)) | keep_unseen
        keep, masks = keep[seen], masks[seen]
    if redraw_empty and present.any() and not len(keep):
        raise Redraw("every box was filtered")
    boxes = boxes_tensor(view.boxes[keep], view.size_hw)
    class_ids = None if target.class_ids is None else target.class_ids[torch.from_numpy(keep)]
    filled = Target(boxes=boxes, class_ids=class_ids)
    if masks is not None and contour_rays:
        filled = dataclasses.replace(filled, contours=encode_contours(torch.from_numpy(masks), contour_rays))
    elif masks is not None:
        filled = dataclasses.replace(filled, masks=mask_tensor(masks))
    elif contour_rays:
        raise DataError(
            "contours are asked for, but the sample has no masks",
            where=sample.origin.path or sample.origin.image_id,
            fix="use a source with masks, or task=detection",
        )
    return view.to_sample(filled)
