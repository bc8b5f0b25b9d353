"""Binary masks: which numbers they are stored in, and which of their pixels are the object.

The object is stored as 1, as 255, or, in 16 bits, as 65535. A mask that went through JPEG or a resize has greys
besides; it is cut at half of white.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

MaskKind: TypeAlias = Literal["empty", "ones", "white", "soft", "map"]
"""Only 0; 0 and 1; 0 and 255 (or 65535); white with a few greys; anything else: a label map, or no mask at all."""

SOFT_EDGE = 0.05
"""Greatest share of greys in a binary mask."""

_WHITES = (1, 255, 65535)
_NEAR = 8 / 255  # share of white that JPEG may move a black or white pixel by


def values_in(labels: NDArray[np.int32]) -> set[int]:
    """The values of a label map."""
    return set(np.flatnonzero(np.bincount(labels.ravel())).tolist())


def white_of(labels: NDArray[np.int32]) -> int:
    """What the object is stored as if this is a binary mask: 1, 255 or 65535."""
    most = labels.max(initial=0)
    return next(white for white in _WHITES if most <= white)


def object_of(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """The pixels of the object in a binary mask ``[H, W]``: those of at least half of white."""
    pixels: NDArray[np.bool_] = labels >= (white_of(labels) + 1) // 2
    return pixels


def greys_of(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """The pixels ``[H, W]`` that are neither black nor white, nor as good as these."""
    white = white_of(labels)
    near = int(white * _NEAR)
    pixels: NDArray[np.bool_] = (labels > near) & (labels < white - near)
    return pixels


def kind_of(labels: NDArray[np.int32]) -> MaskKind:
    """What a mask is by its values alone."""
    values, white = values_in(labels), white_of(labels)
    if values <= {0, white}:
        return "empty" if white not in values else "ones" if white == 1 else "white"
    # The classes of a label map are small numbers; light greys are what tells a soft edge from them.
    light = any(white // 2 < value < white for value in values)
    return "soft" if light and greys_of(labels).mean() <= SOFT_EDGE else "map"


def are_binary(kinds: Iterable[MaskKind]) -> bool:
    """Whether masks of one data set are binary.

    They are where every one is, be it of 0 and 1 or of 0 and 255. They also are where most are of 0 and 255: read as
    label maps these would be nothing but ignored pixels. The others are errors then.
    """
    counts = Counter(kinds)
    return not counts["map"] or 2 * (counts["white"] + counts["soft"]) > counts.total() - counts["empty"]
