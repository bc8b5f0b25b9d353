"""Heads that look beside, by positions alone."""

from __future__ import annotations

import pytest
import torch

from saccade.errors import UsageError
from saccade.layers.local_start import look_around, neighbour_head, sinusoids_2d


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


def test_patches_leave_the_channels_alone_that_tell_places() -> None:
    torch.manual_seed(0)
    patches, positions = torch.randn(64, 3, 8, 8), torch.zeros(1, 6, 6, 64)
    queries, keys = torch.randn(64, 64), torch.randn(64, 64)
    look_around(patches, positions, [(queries, keys)], heads=4)
    tokens = torch.nn.functional.conv2d(torch.randn(1, 3, 48, 48), patches, stride=8).permute(0, 2, 3, 1)[0]
    assert float(tokens.square().mean()) > 0.01
    for weights in (queries, keys):
        assert float((tokens @ weights.T).abs().max()) == 0
    right = slice(16, 32)  # the second head
    alone = (positions.flatten(0, 2) @ queries[right].T) @ (positions.flatten(0, 2) @ keys[right].T).T
    assert alone.view(6, 6, 36)[2, 3].argmax() == 2 * 6 + 4


def test_one_head_cannot_look_around() -> None:
    with pytest.raises(UsageError, match=r"2 heads or more, of a multiple of 4 channels, not 1 of 64"):
        look_around(torch.zeros(64, 3), torch.zeros(36, 64), [], heads=1)
