"""The random numbers of a scene: a stream that stays the same across machines and numpy versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from saccade.errors import UsageError

T = TypeVar("T")

_BLOCK = 128


def seed_words(seed: int | tuple[int, ...]) -> tuple[int, ...]:
    """The words of a seed.

    Raises:
        UsageError: The seed is neither a non-negative integer nor a non-empty tuple of them.
    """
    words = seed if isinstance(seed, tuple) else (seed,)
    if not words or any(not isinstance(word, int | np.integer) or word < 0 for word in words):
        raise UsageError("a scene seed is a non-negative integer or a tuple of them", where=repr(seed))
    return tuple(int(word) for word in words)


class Dice:
    """Seeded numbers taken from the raw words of PCG64.

    numpy promises that the raw words of a bit generator never change, but not what ``Generator.normal`` and its like
    make of them: everything here is therefore derived from the words.

    Args:
        seed: A non-negative integer or a tuple of such integers.

    Raises:
        UsageError: A negative or non-integer seed.
    """

    def __init__(self, seed: int | tuple[int, ...]) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed_words(seed)))
        self._units: list[float] = []

    def unit(self) -> float:
        """A number in [0, 1)."""
        if not self._units:
            words = np.atleast_1d(self._bits.random_raw(_BLOCK))
            self._units = ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()
        return self._units.pop()

    def units(self, count: int) -> list[float]:
        """A list of numbers in [0, 1)."""
        return [self.unit() for _ in range(count)]

    def uniform(self, low: float, high: float) -> float:
        """A number between low and high."""
        return low + (high - low) * self.unit()

    def index(self, count: int) -> int:
        """An integer in 0..count-1."""
        return min(int(self.unit() * count), count - 1)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.index(len(options))]

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.unit() < probability

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """``[count]`` uint8, uniform. The order of the bytes does not depend on the machine's byte order."""
        words = np.atleast_1d(self._bits.random_raw((count + 7) // 8))
        return words.astype("<u8", copy=False).view(np.uint8)[:count]
