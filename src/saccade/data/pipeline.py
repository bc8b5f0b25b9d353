"""What a training pipeline is, and how it refuses a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from saccade.samples import Batch, Sample

Transform: TypeAlias = Callable[[Sample, np.random.Generator], Sample]
"""A sample of a source and a generator of all random draws, to a sample in the frame of the network input."""


class Extra(Protocol):
    """What a model is given besides pictures, made of the samples in the frame of the original image.

    A model that reads words, or a second picture, has one of these; loaders ask it for every sample, and for every
    batch.
    """

    def prepare(self, sample: Sample, rng: np.random.Generator | None = None) -> Any:
        """What belongs to one sample.

        Args:
            sample: In the frame of the original image.
            rng: Of all random draws in training; None = evaluation.
        """

    def join(self, batch: Batch, prepared: Sequence[Any], *, training: bool) -> Batch:
        """Adds it to the plain batch of the same samples, in their order."""


class Redraw(Exception):
    """This sample cannot be used with these draws; take another one.

    Args:
        reason: A few words, used as the key under which the loader counts it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
