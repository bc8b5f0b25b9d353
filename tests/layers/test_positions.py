"""Sine positions: their values, and that padding does not move them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from saccade.layers.positions import padded_cells, sine_positions


def test_values_by_hand() -> None:
    out = sine_positions(torch.ones(1, 4, 5, dtype=torch.bool), 8)[0]
    assert out.shape == (4, 5, 16)
    row, column, k = 2, 3, 3
    period = 10_000 ** (2 * (k // 2) / 8)
    assert float(out[row, column, k]) == pytest.approx(math.cos((row + 1) / 4 * 2 * math.pi / period), abs=1e-5)
    assert float(out[row, column, 8 + 2]) == pytest.approx(math.sin((column + 1) / 5 * 2 * math.pi / period), abs=1e-5)


def test_padding_does_not_move_the_valid_part() -> None:
    valid = torch.zeros(2, 6, 7, dtype=torch.bool)
    valid[0], valid[1, :4, :5] = True, True
    out = sine_positions(valid, 6)
    torch.testing.assert_close(out[1, :4, :5], sine_positions(torch.ones(1, 4, 5, dtype=torch.bool), 6)[0])
    assert torch.isfinite(out).all()


def test_padded_cells_are_those_of_nearest_resizing() -> None:
    assert padded_cells([(70, 61)], (70, 61), (5, 4), torch.device("cpu")) is None
    sizes = [(70, 61), (33, 50), (70, 20)]
    mask = torch.ones(3, 1, 70, 61)
    for row, (height, width) in zip(mask, sizes, strict=True):
        row[0, :height, :width] = 0
    expected = F.interpolate(mask, size=(5, 4))[:, 0].bool()
    found = padded_cells(sizes, (70, 61), (5, 4), torch.device("cpu"))
    assert found is not None and torch.equal(found, expected)
