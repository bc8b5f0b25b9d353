"""Boxes as bins: rounding, clamping, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.tokens.boxes import cxcywh_to_xyxy, decode_boxes, encode_boxes, quantize, xyxy_to_cxcywh


def unit(lower: float = 0.0, upper: float = 1.0) -> st.SearchStrategy[float]:
    return st.floats(lower, upper, width=32)


@settings(max_examples=200, deadline=None)
@given(
    size_hw=st.tuples(st.integers(16, 1400), st.integers(16, 1400)),
    num_bins=st.integers(16, 4096),
    corners=st.tuples(unit(), unit(), unit(), unit()),
    offset=st.tuples(unit(-0.4375, 0.4375), unit(-0.4375, 0.4375)),
)
def test_round_trip_is_within_half_a_bin(
    size_hw: tuple[int, int],
    num_bins: int,
    corners: tuple[float, float, float, float],
    offset: tuple[float, float],
) -> None:
    """Any box, from any point within half an image of its centre: each number comes back within half a bin."""
    h, w = size_hw
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    boxes = torch.tensor([[x0 * w, y0 * h, x1 * w, y1 * h]])
    points = torch.tensor([[(x0 + x1) / 2 + offset[0], (y0 + y1) / 2 + offset[1]]])
    tokens = encode_boxes(boxes, points, size_hw, num_bins)
    assert tokens.dtype is torch.int64
    assert bool(((tokens >= 0) & (tokens <= num_bins)).all())
    back = decode_boxes(tokens, points, num_bins)
    truth = xyxy_to_cxcywh(boxes / torch.tensor([w, h, w, h]))
    assert float((back - truth).abs().max()) <= 0.5 / num_bins + 1e-6


def test_box_on_its_point_has_the_middle_bin() -> None:
    boxes = torch.tensor([[40.0, 10.0, 60.0, 30.0]])
    tokens = encode_boxes(boxes, torch.tensor([[0.25, 0.2]]), (100, 200), 400)
    # Width is measured in widths (20 / 200) and height in heights (20 / 100).
    assert tokens.tolist() == [[200, 200, 40, 80]]


def test_far_boxes_and_large_boxes_are_clamped() -> None:
    boxes = torch.tensor([[90.0, 0.0, 110.0, 10.0], [-300.0, -300.0, 300.0, 300.0]])
    points = torch.tensor([[0.1, 0.9], [0.5, 0.5]])
    tokens = encode_boxes(boxes, points, (100, 100), 100)
    assert tokens[0].tolist() == [100, 0, 20, 10]
    assert tokens[1, 2:].tolist() == [100, 100]
    assert quantize(torch.tensor([-3.0, 7.0]), 10).tolist() == [0, 10]


def test_halves_are_rounded_to_even() -> None:
    values = torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5]) / 8  # exact in binary
    assert quantize(values, 8).tolist() == [0, 2, 2, 4, 4]


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_corner_and_centre_forms_are_inverse(shape: tuple[int, ...]) -> None:
    boxes: Tensor = torch.rand(shape, dtype=torch.float64)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    torch.testing.assert_close(xyxy_to_cxcywh(torch.tensor([1.0, 2.0, 5.0, 4.0])), torch.tensor([3.0, 3.0, 4.0, 2.0]))


def test_no_boxes_give_no_tokens() -> None:
    assert encode_boxes(torch.zeros(0, 4), torch.zeros(0, 2), (10, 10), 20).shape == (0, 4)
