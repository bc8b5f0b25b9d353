"""What the windows of a padded and rolled map hold of it, so that attention can leave the padding out.

Shape legend: K windows, w their side, n heads, N places of a window that hold the map, rows first, S = N, or N + 1
where there is padding.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

OTHER_REGION = -100.0
"""Added to the logits of pairs from both ends of a rolled map."""


@dataclass(frozen=True)
class Axis:
    """A kind of windows, along one axis.

    Attributes:
        runs: First place and end of neighbouring places that hold the map; two where the map begins again in between.
        split: Where the rolled map begins again, which keeps pairs from both sides apart; the side where it does not.
    """

    runs: tuple[tuple[int, int], ...]
    split: int


def axis_kinds(length: int, side: int, shift: int) -> dict[Axis, Tensor]:
    """The windows along an axis of a map that is padded to whole windows and rolled.

    Args:
        length: Of the map.
        side: Of the windows.
        shift: By how much the map is rolled.

    Returns:
        Every kind, with the places of the map that its windows hold, ``[windows, places]``.
    """
    padded = length + -length % side
    rolled = (torch.arange(padded) + shift) % padded
    found: dict[Axis, list[Tensor]] = defaultdict(list)
    for begin in range(0, padded, side):
        holds = rolled[begin : begin + side]
        split = side - shift if begin + side == padded else side
        # Before and behind the split the map comes first, then padding.
        counts = [(start, int((holds[start:stop] < length).sum())) for start, stop in ((0, split), (split, side))]
        runs = tuple((start, start + count) for start, count in counts if count)
        found[Axis(runs, split)].append(holds[holds < length])
    return {kind: torch.stack(windows) for kind, windows in found.items()}


class _Block(NamedTuple):
    """A rectangle of the map in a window: where in the window, where among the places that hold the map, its region."""

    rows: slice
    columns: slice
    own_rows: slice
    own_columns: slice
    region: int


class WindowKind:
    """Windows of a map that hold it in the same places.

    Args:
        rows: Their kind along the rows.
        columns: Their kind along the columns.
        places_KN: What they hold, as places of the flattened map.
        side: Of the windows.
    """

    def __init__(self, rows: Axis, columns: Axis, places_KN: Tensor, side: int) -> None:
        self.places_KN = places_KN
        self._own_hw = own_hw = (_held(rows), _held(columns))
        self._keys = _blocks(rows, columns)
        self._queries = [
            _Block(
                _mirrored(block.rows, side),
                _mirrored(block.columns, side),
                _mirrored(block.own_rows, own_hw[0]),
                _mirrored(block.own_columns, own_hw[1]),
                block.region,
            )
            for block in self._keys
        ]
        self._padding: Tensor | None = None
        if places_KN.shape[1] < side**2:
            place = torch.arange(side)
            region = 2 * (place >= rows.split).long()[:, None] + (place >= columns.split).long()
            # For each region that a query may be in: padding counts, the map does not.
            self._padding = (region != torch.arange(4)[:, None, None]).float() * OTHER_REGION
            for block in self._keys:
                self._padding[:, block.rows, block.columns] = -torch.inf

    def write_bias(self, bias_wwww: Tensor, out_NS: Tensor) -> None:
        """Writes the bias between places that hold the map, and what keeps them apart; queries in reverse order.

        Args:
            bias_wwww: Of a head, queries in reverse order first.
            out_NS: What is written to, less its last column where there is padding.
        """
        out = out_NS[:, : len(out_NS)].unflatten(1, self._own_hw).unflatten(0, self._own_hw)
        for query, key in product(self._queries, self._keys):
            part = out[query.own_rows, query.own_columns, key.own_rows, key.own_columns]
            part.copy_(bias_wwww[query.rows, query.columns, key.rows, key.columns])
            if query.region != key.region:
                part.add_(OTHER_REGION)

    def padding_logits(self, bias_nwwww: Tensor) -> Tensor | None:
        """``[n, N]``: logarithm of the sum of all padding of a window, queries in reverse order; None without padding.

        The keys of padding are 0, so that their logits are the bias alone.
        """
        if self._padding is None:
            return None
        out = bias_nwwww.new_empty(len(bias_nwwww), *self._own_hw)
        for head, query in product(range(len(out)), self._queries):
            logits = bias_nwwww[head, query.rows, query.columns] + self._padding[query.region]
            out[head, query.own_rows, query.own_columns] = logits.logsumexp((2, 3))
        return out.flatten(1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is made during an evaluation must serve later ones of any kind
def window_kinds(size_hw: tuple[int, int], side: int, shift: int) -> list[WindowKind]:
    """All windows of a map that is padded to whole windows and rolled, by kind.

    Args:
        size_hw: The map.
        side: Of the windows.
        shift: By how much the map is rolled.
    """
    every_row, every_column = (axis_kinds(length, side, shift) for length in size_hw)
    kinds = []
    for (rows, ys), (columns, xs) in product(every_row.items(), every_column.items()):
        places = ys[:, None, :, None] * size_hw[1] + xs[None, :, None, :]
        kinds.append(WindowKind(rows, columns, places.flatten(2).flatten(0, 1), side))
    return kinds


def _held(axis: Axis) -> int:
    return sum(stop - start for start, stop in axis.runs)


def _blocks(rows: Axis, columns: Axis) -> list[_Block]:
    along = []
    for axis in (rows, columns):
        spans, held = [], 0
        for start, stop in axis.runs:
            spans.append((slice(start, stop), slice(held, held + stop - start), int(start >= axis.split)))
            held += stop - start
        along.append(spans)
    return [
        _Block(of_rows, of_columns, own_rows, own_columns, 2 * below + right)
        for (of_rows, own_rows, below), (of_columns, own_columns, right) in product(*along)
    ]


def _mirrored(span: slice, length: int) -> slice:
    return slice(length - span.stop, length - span.start)
