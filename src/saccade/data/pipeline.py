"""What a training pipeline is, and how it refuses a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from saccade.samples import Sample

Transform: TypeAlias = Callable[[Sample, np.random.Generator], Sample]
"""A sample of a source and a generator of all random draws, to a sample in the frame of the network input."""


class Redraw(Exception):
    """This sample cannot be used with these draws; take another one.

    Args:
        reason: A few words, used as the key under which the loader counts it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
