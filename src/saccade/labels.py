"""Where the objects of a label map are: their pixels, their regions, and their centres.

Positions (x, y) are in pixels, and (0, 0) is the middle of the first pixel.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from saccade.samples import IGNORE_LABEL, ClassList

_BACKGROUND = "background"


def background_of(classes: ClassList | None) -> int:
    """The class that is no object: the one called ``background``, else the first."""
    names = () if classes is None else tuple(name.lower() for name in classes.names)
    return names.index(_BACKGROUND) if _BACKGROUND in names else 0


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


def regions(mask_HW: Tensor) -> list[Tensor]:
    """The connected regions of a mask (8 neighbours), in reading order, each ``[H, W]`` bool."""
    numbered, count = ndimage.label(mask_HW.as_subclass(Tensor).cpu().numpy(), structure=np.ones((3, 3)))
    labels = torch.from_numpy(np.asarray(numbered)).to(mask_HW.device)
    return [labels == number for number in range(1, int(count) + 1)]


def centers_of(mask_HW: Tensor, objects: Literal["one", "each"]) -> Tensor:
    """Centres of a mask, ``[N, 2]`` float32: of all of it, or of every region; without an object none."""
    parts = [mask_HW] if objects == "one" else regions(mask_HW)
    found = [center for part in parts if (center := centroid(part)) is not None]
    return torch.stack(found) if found else torch.zeros(0, 2)
