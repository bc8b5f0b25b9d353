"""Polygons as OpenCV draws them; the numbers of whole masks are those of tests/parity/gsva_data.py."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.data.polygons import draw_polygon


def rows(mask: np.ndarray) -> list[str]:
    return ["".join(".#"[int(value)] for value in row) for row in mask]


def test_outline_and_inside() -> None:
    square = draw_polygon(np.array([[1.9, 1], [4, 1.2], [4, 3], [1, 3]]), (5, 6))
    assert rows(square) == ["......", ".####.", ".####.", ".####.", "......"]
    assert rows(draw_polygon(np.array([[2, 1], [2, 1]]), (3, 4))) == ["....", "..#.", "...."]


def test_halves_are_rounded() -> None:
    # The edge from (4, 0) to (5, 2) passes column 4.5: its line stays left, the filling reaches the right one.
    assert rows(draw_polygon(np.array([[1, 0], [4, 0], [5, 2], [1, 2]]), (3, 7))) == [".####..", ".#####.", ".#####."]


def test_what_is_covered_twice_is_a_hole() -> None:
    outer, inner = [[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]], [[2, 2], [6, 2], [6, 6], [2, 6], [2, 2]]
    mask = draw_polygon(np.array(outer + inner), (9, 9))
    assert mask[1, 1] and not mask[4, 4] and mask[2, 4]


def test_what_lies_outside_is_not_drawn() -> None:
    mask = draw_polygon(np.array([[-5, -5], [3, -5], [3, 20], [-5, 20]]), (4, 6))
    assert rows(mask) == ["####.."] * 4
    assert not draw_polygon(np.array([[10, 1], [12, 1], [12, 3]]), (4, 6)).any()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 11)), min_size=1, max_size=7))
def test_every_corner_is_drawn_and_direction_does_not_matter(points: list[tuple[int, int]]) -> None:
    forwards = draw_polygon(np.array(points, float), (12, 16))
    assert all(forwards[y, x] for x, y in points)
    assert np.array_equal(forwards, draw_polygon(np.array(points[::-1], float), (12, 16)))
    columns, lines = [x for x, _ in points], [y for _, y in points]
    outside = forwards.copy()
    outside[min(lines) : max(lines) + 1, min(columns) : max(columns) + 1] = False
    assert not outside.any()
