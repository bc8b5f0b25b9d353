"""Random choices as the original GSVA makes them: some from numpy's stream, some from Python's.

Which of the two a choice comes from, and their order, is part of the facts: recorded draws can be played back by an
object of the same form (tests/parity/gsva_data.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

T = TypeVar("T")


class Draws(Protocol):
    """What is drawn."""

    def subset(self, total: int, count: int) -> list[int]:
        """``count`` different ones of ``range(total)``, in the order drawn (the original: numpy)."""

    def below(self, total: int) -> int:
        """One of ``range(total)`` (the original: numpy)."""

    def pick(self, options: Sequence[T]) -> T:
        """One of the options (the original: Python)."""

    def share(self) -> float:
        """A number in [0, 1) (the original: Python)."""


class GeneratorDraws:
    """All of them from one numpy generator.

    Args:
        rng: The generator.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def subset(self, total: int, count: int) -> list[int]:
        """See :class:`Draws`."""
        return [int(index) for index in self._rng.choice(total, size=count, replace=False)]

    def below(self, total: int) -> int:
        """See :class:`Draws`."""
        return int(self._rng.integers(total))

    def pick(self, options: Sequence[T]) -> T:
        """See :class:`Draws`."""
        return options[self.below(len(options))]

    def share(self) -> float:
        """See :class:`Draws`."""
        return float(self._rng.random())
