"""A view of a sample: flips, crops and resizes applied to the image and boxes at once, to masks and labels at the end.

Nearest-neighbour resizing, cropping and flipping only choose rows and columns. A view therefore carries one list of
source rows and one of source columns, and each mask or label map is gathered a single time however long the chain is.
The values equal those of the step-by-step operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from saccade.data.resize import nearest_indices, resize_bilinear
from saccade.samples import Sample, Target

ResizeImage = Callable[[NDArray, tuple[int, int]], NDArray]


class View:
    """What the chain of geometric operations has made of a sample so far.

    Attributes:
        image: ``[3, H, W]`` uint8 (float32 if ``as_float``) in the frame of the view.
        boxes: ``[N, 4]`` float32 pixels of the view, XYXY, not clipped unless :meth:`clip_boxes` is called.
    """

    def __init__(self, sample: Sample, *, as_float: bool = False) -> None:
        self._sample = sample
        self.image: NDArray = sample.image.as_subclass(torch.Tensor).numpy()
        if as_float:
            self.image = self.image.astype(np.float32)
        boxes = sample.target.boxes
        self.boxes: NDArray[np.float32] = (
            np.zeros((0, 4), np.float32)
            if boxes is None
            else np.array(boxes.as_subclass(torch.Tensor).numpy(), np.float32).reshape(-1, 4)
        )
        height, width = sample.size_hw
        self._rows = np.arange(height)
        self._cols = np.arange(width)
        self._transposed = False

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the view in pixels."""
        return int(self.image.shape[1]), int(self.image.shape[2])

    @property
    def original_size_hw(self) -> tuple[int, int]:
        """Height and width of the sample that the view began with."""
        return self._sample.size_hw

    def flip_horizontal(self) -> None:
        """Mirrors left and right."""
        width = np.float32(self.size_hw[1])
        self.image = self.image[:, :, ::-1]
        self._cols = self._cols[::-1]
        self.boxes[:, [0, 2]] = width - self.boxes[:, [2, 0]]

    def flip_vertical(self) -> None:
        """Mirrors top and bottom."""
        height = np.float32(self.size_hw[0])
        self.image = self.image[:, ::-1]
        self._rows = self._rows[::-1]
        self.boxes[:, [1, 3]] = height - self.boxes[:, [3, 1]]

    def rotate90(self) -> None:
        """Turns a quarter clockwise."""
        self.image = self.image.swapaxes(1, 2)
        self._rows, self._cols = self._cols, self._rows
        self._transposed = not self._transposed
        self.boxes = self.boxes[:, [1, 0, 3, 2]]
        self.flip_horizontal()

    def resize(self, size_hw: tuple[int, int], resize_image: ResizeImage = resize_bilinear) -> None:
        """Resizes to the given height and width; masks and labels by nearest neighbour."""
        height, width = self.size_hw
        if (height, width) == tuple(size_hw):
            return
        self.image = resize_image(np.ascontiguousarray(self.image), size_hw)
        self._rows = self._rows[nearest_indices(height, size_hw[0])]
        self._cols = self._cols[nearest_indices(width, size_hw[1])]
        scale_x, scale_y = size_hw[1] / width, size_hw[0] / height
        self.boxes *= np.array([scale_x, scale_y, scale_x, scale_y], np.float32)

    def crop(self, top: int, left: int, height: int, width: int) -> None:
        """Cuts a window out; boxes are shifted, not clipped."""
        self.image = self.image[:, top : top + height, left : left + width]
        self._rows = self._rows[top : top + height]
        self._cols = self._cols[left : left + width]
        self.boxes -= np.array([left, top, left, top], np.float32)

    def clip_boxes(self) -> None:
        """Clips the boxes to the view."""
        height, width = self.size_hw
        self.boxes[:, 0::2] = self.boxes[:, 0::2].clip(0, width)
        self.boxes[:, 1::2] = self.boxes[:, 1::2].clip(0, height)

    def gather(self, array: NDArray) -> NDArray:
        """A mask or label map ``[..., H, W]`` of the original image, in the frame of the view."""
        if self._transposed:
            array = array.swapaxes(-1, -2)
        return array[..., self._rows[:, None], self._cols]

    def gather_masks(self, keep: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """The instance masks (of the kept instances), ``[N, h, w]`` bool."""
        masks = self._sample.target.masks
        if masks is None:
            return np.zeros((0, *self.size_hw), bool)
        array = masks.as_subclass(torch.Tensor).numpy()
        return self.gather(array if keep is None else array[keep])

    def to_sample(self, target: Target) -> Sample:
        """The sample in the frame of the view, with the given target."""
        image = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(self.image)))
        return dataclasses.replace(self._sample, image=image, target=target)


def boxes_tensor(boxes: NDArray[np.float32], size_hw: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Wraps ``[N, 4]`` XYXY pixels for a canvas of the given size."""
    return tv_tensors.BoundingBoxes(
        torch.from_numpy(np.ascontiguousarray(boxes, np.float32)).reshape(-1, 4),
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=size_hw,
    )


def mask_tensor(array: NDArray) -> tv_tensors.Mask:
    """Wraps masks (bool) or a label map (int64)."""
    return tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(array)))
