"""Heads that look beside, by positions alone."""

from __future__ import annotations

import pytest

from saccade.layers.local_start import neighbour_head, place_channels, sinusoids_2d


@pytest.mark.parametrize("step", [(0, -1), (0, 1), (-1, 0), (1, 0), (1, -1)])
@pytest.mark.parametrize(("width", "heads"), [(128, 4), (64, 2)])
def test_a_neighbour_head_attends_to_the_place_a_step_away(step: tuple[int, int], width: int, heads: int) -> None:
    side, size = 10, width // heads
    query, key = neighbour_head(width, size, step)
    tokens = sinusoids_2d(side, width).flatten(0, 1)
    weights = ((tokens @ query.T) @ (tokens @ key.T).T * size**-0.5).softmax(-1).view(side, side, side, side)
    for y in range(1, side - 1):
        for x in range(1, side - 1):
            assert weights[y, x, y + step[0], x + step[1]] > 0.8


def test_it_reads_positions_in_the_place_channels_alone() -> None:
    query, key = neighbour_head(128, 32, (0, 1))
    read = {int(channel) for weights in (query, key) for channel in weights.abs().sum(0).nonzero()[:, 0]}
    assert read == set(place_channels(128, 32).tolist()) and len(read) == 32
