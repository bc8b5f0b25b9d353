"""Sine positions: their values, and that padding does not move them."""

from __future__ import annotations

import math

import pytest
import torch

from saccade.layers.positions import sine_positions


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
