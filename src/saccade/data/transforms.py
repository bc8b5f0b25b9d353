"""Carries out what a model declares about its input: the test-time resize, normalisation, padding, batching."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from saccade.data.geometry import View, boxes_tensor, mask_tensor
from saccade.data.resize import resize_bicubic, resize_bilinear, resize_pillow, resize_soft
from saccade.errors import DataError, UsageError
from saccade.samples import IGNORE_LABEL, Batch, Preprocess, Sample, Target, same_classes
from saccade.tasks import TASKS

_RESIZE = {"bilinear": resize_bilinear, "pillow": resize_pillow, "bicubic": resize_bicubic}


def preprocess(sample: Sample, declared: Preprocess, *, with_target: bool = True) -> Sample:
    """Resizes a sample to the network input.

    Args:
        sample: In the frame of the original image, image uint8.
        declared: What the model declares.
        with_target: Bring the target along into the frame of the network input; otherwise the target is left out
            (prediction and evaluation, which need the truth in the original frame only).

    Returns:
        The sample in the frame of the network input; the image stays 0..255.
    """
    view = View(sample, as_float=declared.resize_as_float)
    size_hw = declared.size_hw
    if declared.keep_ratio and declared.short_side:
        longest = max(declared.size_hw)
        size_hw = fit_short(sample.size_hw, declared.short_side, longest, rounding=declared.short_rounding)
    elif declared.keep_ratio:
        size_hw = fit(sample.size_hw, declared.size_hw, cover=declared.cover)
    if declared.interpolation != "bilinear" and declared.resize_as_float:
        raise UsageError("Pillow resizes 8-bit images", where="Preprocess", fix="set resize_as_float=False")
    view.resize(size_hw, _RESIZE[declared.interpolation])
    return view.to_sample(_follow(sample.target, view) if with_target else Target())


def fit(size_hw: tuple[int, int], frame_hw: tuple[int, int], *, cover: bool = False) -> tuple[int, int]:
    """The greatest size of the same aspect ratio inside a frame; sides are rounded half up, and at least 1.

    Args:
        size_hw: The picture.
        frame_hw: The frame.
        cover: The smallest size that covers the frame instead.
    """
    bound = max if cover else min
    factor = bound(frame_hw[0] / size_hw[0], frame_hw[1] / size_hw[1])
    height, width = (max(1, int(side * factor + 0.5)) for side in size_hw)
    return bound(height, frame_hw[0]), bound(width, frame_hw[1])


def fit_short(
    size_hw: tuple[int, int], short: int, longest: int, *, rounding: Literal["nearest", "down"] = "nearest"
) -> tuple[int, int]:
    """The size of the same aspect ratio with a given shorter side, as DETR computes it: the longer side is cut off.

    Args:
        size_hw: The picture.
        short: The shorter side.
        longest: Where the longer side would be more, the shorter one becomes less.
        rounding: How the shorter side is rounded then.
    """
    least, most = min(size_hw), max(size_hw)
    if most / least * short > longest:
        exact = longest * least / most
        short = max(1, round(exact) if rounding == "nearest" else int(exact))
    height, width = (short if side == least else int(short * side / least) for side in size_hw)
    return height, width


def _follow(target: Target, view: View) -> Target:
    """The target in the frame of the view; crowds stay, contours do not."""
    moved = dataclasses.replace(target, contours=None)
    if target.boxes is not None:
        moved.boxes = boxes_tensor(view.boxes, view.size_hw)
    if target.masks is not None and target.masks.is_floating_point():
        moved.masks = mask_tensor(resize_soft(target.masks.as_subclass(Tensor).numpy(), view.size_hw))
    elif target.masks is not None:
        moved.masks = mask_tensor(view.gather_masks())
    if target.semantic is not None:
        moved.semantic = mask_tensor(view.gather(target.semantic.as_subclass(Tensor).numpy()))
    if target.panoptic is not None:
        moved.panoptic = mask_tensor(view.gather(target.panoptic.as_subclass(Tensor).numpy()))
    if target.depth_m is not None:
        moved.depth_m = torch.from_numpy(np.ascontiguousarray(view.gather(target.depth_m.numpy())))
    if target.ignored is not None:
        moved.ignored = mask_tensor(view.gather(target.ignored.as_subclass(Tensor).numpy()))
    if target.areas is not None:
        height, width = view.size_hw
        original_height, original_width = view.original_size_hw
        moved.areas = target.areas * (height * width / (original_height * original_width))
    return moved


def normalize(image: Tensor, declared: Preprocess) -> Tensor:
    """``(image - mean) / std`` in float32.

    Args:
        image: ``[3, H, W]`` uint8 or float32, 0..255, RGB.
        declared: Mean and standard deviation.
    """
    mean = torch.tensor(declared.mean, dtype=torch.float32).view(3, 1, 1)
    std = torch.tensor(declared.std, dtype=torch.float32).view(3, 1, 1)
    return image.as_subclass(Tensor).to(torch.float32).sub(mean).div_(std)


def collate(samples: Sequence[Sample], declared: Preprocess) -> Batch:
    """Normalises, pads at the bottom and right, and stacks.

    Images are padded with zeros after normalisation (or ``pad_value``), label maps with :data:`IGNORE_LABEL`, masks
    with False, depth with 0 (unknown), all to the greatest height and width of the batch rounded up to
    ``pad_multiple``.

    Args:
        samples: Of one task, in the frame of the network input.
        declared: What the model declares.

    Raises:
        DataError: No samples, several tasks, or several class lists.
    """
    if not samples:
        raise DataError("a batch needs at least one sample")
    tasks = {sample.task for sample in samples}
    if len(tasks) > 1:
        raise DataError(f"a batch holds one task, not {sorted(tasks)}")
    task = samples[0].task
    step = declared.pad_multiple
    sizes = [sample.size_hw for sample in samples]
    height = -(-max(size[0] for size in sizes) // step) * step
    width = -(-max(size[1] for size in sizes) // step) * step
    images = torch.zeros(len(samples), 3, height, width)
    if declared.pad_value is not None:
        images += normalize(torch.full((3, 1, 1), declared.pad_value), declared)
    for row, sample in zip(images, samples, strict=True):
        row[:, : sample.size_hw[0], : sample.size_hw[1]] = normalize(sample.image, declared)
    prompt = TASKS[task].prompt
    phrases = None
    if prompt == "phrase":
        phrases = [_phrase(sample) for sample in samples]
    return Batch(
        images=images,
        task=task,
        targets=[_pad_target(sample.target, (height, width)) for sample in samples],
        origins=[sample.origin for sample in samples],
        input_sizes_hw=sizes,
        classes=same_classes(samples) if prompt == "classes" else None,
        phrases=phrases,
    )


def _phrase(sample: Sample) -> str:
    if not sample.phrase:
        raise DataError("a grounding sample without a phrase", where=sample.origin.path or sample.origin.image_id)
    return sample.phrase


def _pad_target(target: Target, size_hw: tuple[int, int]) -> Target:
    padded = dataclasses.replace(target)
    if target.masks is not None:
        padded.masks = tv_tensors.Mask(_pad(target.masks, size_hw, 0))
    if target.semantic is not None:
        padded.semantic = tv_tensors.Mask(_pad(target.semantic, size_hw, IGNORE_LABEL))
    if target.panoptic is not None:
        padded.panoptic = tv_tensors.Mask(_pad(target.panoptic, size_hw, 0))
    if target.depth_m is not None:
        padded.depth_m = _pad(target.depth_m, size_hw, 0)
    if target.ignored is not None:
        padded.ignored = tv_tensors.Mask(_pad(target.ignored, size_hw, 1))
    if target.boxes is not None:
        padded.boxes = boxes_tensor(target.boxes.as_subclass(Tensor).numpy(), size_hw)
    return padded


def _pad(array: Tensor, size_hw: tuple[int, int], value: int) -> Tensor:
    array = array.as_subclass(Tensor)
    missing = (size_hw[0] - array.shape[-2], size_hw[1] - array.shape[-1])
    if missing == (0, 0):
        return array
    out = array.new_full((*array.shape[:-2], *size_hw), value)
    out[..., : array.shape[-2], : array.shape[-1]] = array
    return out
