"""Which samples a training step sees: a pure function of (seed, step, rank).

Every step draws one source by weight, or takes the sources in rounds, and reads the next positions of that source's own
endless shuffled stream (specs/git.md 6.7). Nothing is remembered from one step to the next, so a run continues exactly
by starting at step N, and neither the number of workers nor a crash changes the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saccade.errors import UsageError

MAX_SHUFFLED = 2**26
"""Sources longer than this are read in order: a permutation of them would not fit, and endless ones need none."""

_BLOCK = 4096  # steps whose sources are drawn together
_ORDER, _CHOICE, _SAMPLE = 1, 2, 3  # first word of the seed of each kind of draw, so that they never coincide


@dataclass(kw_only=True, frozen=True)
class StepPlan:
    """What one rank reads in one step.

    Attributes:
        source: Number of the source.
        positions: Positions in that source's stream, one per sample of the batch.
    """

    source: int
    positions: tuple[int, ...]


class Mixture:
    """The plan of all steps.

    Args:
        lengths: Samples of each source.
        weights: Probability weight of each source; 0 = never drawn.
        batch_sizes: Samples per rank and step of each source.
        factors: How often each sample of a source is seen per pass on average; None = once. Factors between whole
            numbers are rounded up or down anew in every pass.
        rounds: Steps of each source in a round, one source after the other, instead of draws by weight.
        repeat: Steps in a row that a drawn source is kept for.
        seed: Seeds the choice of sources, the order and the augmentation.
        rank: This process.
        world_size: Number of processes; all see the same source in the same step.

    Raises:
        UsageError: No source, an empty one, a negative weight, or a batch size below 1.
    """

    def __init__(
        self,
        *,
        lengths: Sequence[int],
        weights: Sequence[float],
        batch_sizes: Sequence[int],
        factors: Sequence[Sequence[float] | None] | None = None,
        rounds: Sequence[int] | None = None,
        repeat: int = 1,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not any(weight > 0 for weight in weights):
            raise UsageError("a mixture needs at least one source with a weight above 0")
        for number, (length, weight, size) in enumerate(zip(lengths, weights, batch_sizes, strict=True)):
            if length < 1:
                raise UsageError("a source without samples", where=f"source {number}")
            if not 0 <= weight < np.inf:
                raise UsageError(
                    f"the weight of a source must be a number from 0 up, not {weight}", where=f"source {number}"
                )
            if size < 1:
                raise UsageError(f"the batch size must be at least 1, not {size}", where=f"source {number}")
        # A source with factors is a line of that many units, of which every sample covers its factor.
        self._ends = [None if each is None else np.cumsum(each) for each in factors or [None] * len(lengths)]
        self._lengths = [
            length if ends is None else int(ends[-1]) for length, ends in zip(lengths, self._ends, strict=True)
        ]
        self._batch_sizes = tuple(batch_sizes)
        self._seed, self._rank, self._world_size, self._repeat = seed, rank, world_size, repeat
        self._cumulative = np.cumsum(np.asarray(weights, np.float64) / np.sum(weights))
        self._round = None if rounds is None else np.repeat(np.arange(len(lengths)), rounds)
        self._before: list[NDArray[np.int64]] = [np.zeros(len(lengths), np.int64)]
        self._block: tuple[int, NDArray[np.intp]] = (-1, np.zeros(0, np.intp))
        self._orders: dict[int, tuple[int, NDArray[np.int32]]] = {}

    def plan(self, step: int) -> StepPlan:
        """What this rank reads in the given step (0-based)."""
        turn, within = divmod(step, self._repeat)
        block, offset = divmod(turn, _BLOCK)
        sources = self._sources_of_block(block)
        source = int(sources[offset])
        turns = int(self._draws_before(block)[source]) + int(np.count_nonzero(sources[:offset] == source))
        earlier = turns * self._repeat + within
        size = self._batch_sizes[source]
        first = earlier * size * self._world_size + self._rank
        return StepPlan(source=source, positions=tuple(range(first, first + size * self._world_size, self._world_size)))

    def index(self, source: int, position: int) -> int:
        """Sample of the source at a position of its stream: a new permutation in every pass."""
        length, ends = self._lengths[source], self._ends[source]
        turn, offset = divmod(position, length)
        if length > MAX_SHUFFLED:
            return offset
        if self._orders.get(source, (-1, None))[0] != turn:
            generator = np.random.default_rng([_ORDER, self._seed, source, turn])
            order = np.arange(length, dtype=np.int32)
            generator.shuffle(order)
            if ends is not None:
                # Evenly spaced points from a random start meet each sample as often as its factor asks on average.
                points = (np.arange(length) + generator.random()) * (ends[-1] / length)
                met = np.searchsorted(ends, points, side="right")
                order = np.minimum(met, len(ends) - 1).astype(np.int32)[order]
            self._orders[source] = (turn, order)
        return int(self._orders[source][1][offset])

    def generator(self, source: int, position: int) -> np.random.Generator:
        """The generator of all random draws for the sample at that position."""
        return np.random.default_rng([_SAMPLE, self._seed, source, position])

    def _sources_of_block(self, block: int) -> NDArray[np.intp]:
        if self._block[0] != block and self._round is not None:
            self._block = (block, self._round[np.arange(block * _BLOCK, (block + 1) * _BLOCK) % len(self._round)])
        elif self._block[0] != block:
            draws = np.random.default_rng([_CHOICE, self._seed, block]).random(_BLOCK)
            # Rounding may leave the last sum below 1: a draw above it belongs to the last source that has a weight.
            last = int(np.flatnonzero(np.diff(self._cumulative, prepend=0.0))[-1])
            chosen = np.searchsorted(self._cumulative, draws, side="right")
            self._block = (block, np.minimum(chosen, last))
        return self._block[1]

    def _draws_before(self, block: int) -> NDArray[np.int64]:
        """How often each source was drawn before the block."""
        while len(self._before) <= block:
            counts = np.bincount(self._sources_of_block(len(self._before) - 1), minlength=len(self._lengths))
            self._before.append(self._before[-1] + counts)
        return self._before[block]
