"""Pictures as the tower is shown them.

The two ways to a fixed size are those of the published evaluations, on Pillow's bicubic resize. Shape legend: C H W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from saccade.data.images import read_image
from saccade.data.resize import resize_bicubic
from saccade.errors import DataError

Fit: TypeAlias = Callable[[Tensor], Tensor]
"""A uint8 picture ``[3, H, W]`` to a network input, float32."""


class Pictures(Protocol):
    """A sized, indexable collection of uint8 pictures ``[3, H, W]``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


@dataclass(kw_only=True, frozen=True)
class Files:
    """Pictures in files.

    Attributes:
        paths: The files.
        boxes_xyxy: A part of each, in pixels; None = all of it.
        border: Pixels cut off every side.
    """

    paths: Sequence[Path]
    boxes_xyxy: Sequence[tuple[float, float, float, float] | None] | None = None
    border: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Reads one.

        Raises:
            ImageError: The file cannot be read.
            DataError: Nothing is left of it.
        """
        image = read_image(self.paths[index])
        edge = self.border
        image = image[:, edge : image.shape[1] - edge, edge : image.shape[2] - edge]
        box = None if self.boxes_xyxy is None else self.boxes_xyxy[index]
        if box is not None:
            x0, y0, x1, y1 = (max(0, round(value)) for value in box)
            image = image[:, y0:y1, x0:x1]
        if 0 in image.shape:
            raise DataError("nothing is left of the picture", where=self.paths[index], why=f"box {box}, border {edge}")
        return image


@dataclass(kw_only=True, frozen=True)
class CentreCrop:
    """CLIP's: the shorter side to the input size, and the middle cut out.

    Attributes:
        side: Of the square network input in pixels.
        mean: RGB, 0..255.
        std: RGB, 0..255.
    """

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Tensor) -> Tensor:
        """The network input ``[3, side, side]``."""
        height, width = image.shape[-2:]
        short, long = min(height, width), max(height, width)
        longer = int(self.side * long / short)
        size_hw = (self.side, longer) if height <= width else (longer, self.side)
        resized = torch.from_numpy(resize_bicubic(image.numpy(), size_hw))
        top, left = (round((side - self.side) / 2) for side in size_hw)
        return _normalised(resized[:, top : top + self.side, left : left + self.side], self.mean, self.std)


@dataclass(kw_only=True, frozen=True)
class Squash:
    """The whole picture to a fixed size, whatever its form.

    Attributes:
        size_hw: Of the network input in pixels.
        mean: RGB, 0..255.
        std: RGB, 0..255.
    """

    size_hw: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Tensor) -> Tensor:
        """The network input ``[3, H, W]``."""
        return _normalised(torch.from_numpy(resize_bicubic(image.numpy(), self.size_hw)), self.mean, self.std)


def _normalised(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    middle, spread = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))
    return image.to(torch.float32).sub(middle).div_(spread)
