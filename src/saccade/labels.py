"""Where the objects of a label map are: their pixels, their regions, and their centres.

Positions (x, y) are in pixels, and (0, 0) is the middle of the first pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from saccade.errors import DataError
from saccade.samples import IGNORE_LABEL, ClassList, Origin, Target

Objects: TypeAlias = Literal["one", "each"]
"""What has a centre: all of a picture together (the polar paper), or every connected region by itself."""

BACKGROUND = "background"


def label_map(target: Target, origin: Origin) -> Tensor:
    """The label map of a sample, as a plain tensor.

    Raises:
        DataError: It has none.
    """
    if target.semantic is None:
        raise DataError(
            "a sample has no label map",
            where=origin.path or origin.image_id,
            fix="use a data set of label maps",
        )
    return target.semantic.as_subclass(Tensor)


def background_of(classes: ClassList | None) -> int:
    """The class that is no object: the one called ``background``, else the first."""
    names = () if classes is None else tuple(name.lower() for name in classes.names)
    return names.index(BACKGROUND) if BACKGROUND in names else 0


def object_mask(labels: Tensor, classes: ClassList | None) -> Tensor:
    """The pixels of objects in a label map, bool of the same shape; ignored pixels are none."""
    plain = labels.as_subclass(Tensor)
    return (plain != background_of(classes)) & (plain != IGNORE_LABEL)


def middle(size_hw: tuple[int, int]) -> Tensor:
    """The middle of a picture, ``[2]`` float32, which stands for the centre where there is no object."""
    return torch.tensor([size_hw[1] // 2, size_hw[0] // 2], dtype=torch.float32)


def centroid(mask_HW: Tensor) -> Tensor | None:
    """The mean position of a mask truncated to whole pixels, ``[2]`` float32; None for an empty mask."""
    places = mask_HW.as_subclass(Tensor).nonzero()
    return places.double().mean(dim=0).flip(0).floor().float().cpu() if len(places) else None


def number_regions(mask_HW: Tensor, least_region: float = 0.0) -> tuple[Tensor, int]:
    """The connected regions of a mask (8 neighbours) numbered from 1 in reading order, ``[H, W]``, and their count.

    Args:
        mask_HW: The mask.
        least_region: Least area of a region as a share of the picture's; smaller ones are 0, like what is outside.
    """
    numbered, _ = ndimage.label(mask_HW.as_subclass(Tensor).cpu().numpy(), structure=np.ones((3, 3)))
    large = np.bincount(numbered.ravel()) >= least_region * mask_HW.numel()
    large[0] = False  # what is outside
    numbers = large.cumsum() * large
    return torch.from_numpy(numbers[numbered]).to(mask_HW.device), int(large.sum())


def regions(mask_HW: Tensor, least_region: float = 0.0) -> Iterator[Tensor]:
    """The regions of :func:`number_regions` one after the other, each ``[H, W]`` bool."""
    numbered, count = number_regions(mask_HW, least_region)
    for number in range(1, count + 1):
        yield numbered == number


def centers_of(mask_HW: Tensor, objects: Objects, least_region: float = 0.0) -> Tensor:
    """Centres of a mask, ``[N, 2]`` float32; without an object none.

    Args:
        mask_HW: The mask.
        objects: ``one``: of all of it; ``each``: of every region.
        least_region: For ``each``: see :func:`number_regions`.
    """
    parts = [mask_HW] if objects == "one" else regions(mask_HW, least_region)
    found = [center for part in parts if (center := centroid(part)) is not None]
    return torch.stack(found) if found else torch.zeros(0, 2)
