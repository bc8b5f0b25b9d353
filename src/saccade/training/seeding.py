"""Random numbers that depend on where a run is, never on how it got there."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(*entropy: int) -> None:
    """Seeds the random generators of Python, numpy and torch (CPU and CUDA) from a tuple of numbers.

    The trainer calls it before every forward pass with (seed, step, position of the batch in the step). Dropout, drop
    path and the random choice of grid points then repeat exactly after a resume without any saved generator state.

    Args:
        entropy: Non-negative integers; different tuples give independent streams.
    """
    words = np.random.SeedSequence(entropy).generate_state(3, np.uint64)
    torch.manual_seed(int(words[0]))
    random.seed(int(words[1]))
    # Libraries that a model may call still draw from numpy's global generator.
    np.random.seed(int(words[2]) % 2**32)  # noqa: NPY002
