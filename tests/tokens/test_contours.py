"""Contours: equal to the original's numbers, and equal to themselves after the way to polygons and back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from torch import Tensor

from saccade.errors import UsageError
from saccade.tokens.contours import (
    NO_BORDER_LENGTH,
    decode_polygons,
    encode_contours,
    mass_center,
    rasterize,
    ray_lengths,
    trace_contours,
)

PARITY = Path(__file__).parents[2].parent / "shared/parity/git"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="the parity fixtures (../shared/parity/git) are absent")


def _picture(rows: list[str]) -> Tensor:
    return torch.tensor([[character == "#" for character in row] for row in rows])


def _unpack(packed: Tensor, height: int, width: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1)).reshape(-1, height, width).bool()


def _decode(rles: list[dict]) -> Tensor:
    return torch.from_numpy(np.stack([coco_mask.decode(rle) for rle in rles])).bool()


def _disk(height: int, width: int, cx: float, cy: float, radius: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def _iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


# --- order and geometry of the borders -------------------------------------------------------------------------------


def test_borders_come_in_tree_order() -> None:
    # Two frames side by side, the left one with an island in its hole, and a dot below (the youngest outer border).
    # Expected order (as OpenCV gives it): the dot, the right frame, its hole, the left frame, its hole, the island.
    mask = _picture(
        [
            "#####.###",
            "#...#.#.#",
            "#.#.#.###",
            "#...#....",
            "#####....",
            ".........",
            "...#.....",
        ]
    )
    contours = trace_contours(mask)
    assert [len(contour) for contour in contours] == [1, 8, 4, 16, 12, 1]
    assert contours[0].tolist() == [[3, 6]]
    assert contours[1].tolist() == [[6, 0], [6, 1], [6, 2], [7, 2], [8, 2], [8, 1], [8, 0], [7, 0]]
    assert contours[2].tolist() == [[6, 1], [7, 0], [8, 1], [7, 2]]  # a hole is cut at its corners (8-connected)
    assert contours[5].tolist() == [[2, 2]]
    assert all(contour.dtype == torch.int32 for contour in contours)


def test_line_is_walked_forth_and_back() -> None:
    assert trace_contours(_picture(["....", ".###"]))[0].tolist() == [[1, 1], [2, 1], [3, 1], [2, 1]]


def test_mask_on_the_frame_is_closed() -> None:
    contours = trace_contours(torch.ones(3, 4, dtype=torch.bool))
    assert len(contours) == 1
    assert len(contours[0]) == 10
    assert len({tuple(point) for point in contours[0].tolist()}) == 10


def test_empty_mask_has_no_border() -> None:
    assert trace_contours(torch.zeros(5, 7, dtype=torch.bool)) == []
    assert trace_contours(torch.zeros(0, 7, dtype=torch.bool)) == []


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.integers(1, 24), st.floats(0.05, 0.95))
def test_borders_are_the_border_pixels(seed: int, height: int, width: int, fill: float) -> None:
    """The traced pixels are exactly the inside pixels that have an empty 4-neighbour; outer borders count the parts."""
    mask = torch.from_numpy(np.random.default_rng(seed).random((height, width)) < fill)
    contours = trace_contours(mask)
    padded = torch.nn.functional.pad(mask, (1, 1, 1, 1))
    empty_beside = ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])
    border = torch.zeros_like(mask)
    for contour in contours:
        x, y = contour.long().T
        border[y, x] = True
        steps = (contour - contour.roll(1, 0)).abs()
        assert len(contour) == 1 or steps.amax(1).eq(1).all()  # a closed chain of neighbours
    assert torch.equal(border, mask & empty_beside)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 9))
def test_borders_move_with_the_mask(seed: int, right: int, down: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).random((12, 15)) < 0.6)
    moved = torch.nn.functional.pad(mask, (right, 3, down, 2))
    shifted = [contour + torch.tensor([right, down]) for contour in trace_contours(mask)]
    found = trace_contours(moved)
    assert len(found) == len(shifted)
    assert all(torch.equal(a, b.int()) for a, b in zip(found, shifted, strict=True))


# --- centre and rays -------------------------------------------------------------------------------------------------


def test_mass_center_of_a_rectangle_and_of_degenerate_lists() -> None:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[4:15, 6:27] = True
    assert mass_center(torch.cat(trace_contours(mask))) == (16, 9)
    assert mass_center(torch.tensor([[3, 8], [4, 8], [5, 8], [4, 8]])) == (4, 8)  # no area: the mean
    assert mass_center(torch.empty(0, 2, dtype=torch.int32)) == (0, 0)


def test_rays_point_down_first_then_right() -> None:
    mask = torch.zeros(41, 61, dtype=torch.bool)
    mask[10:31, 15:46] = True  # centre (30, 20): 15 to the sides, 10 up and down
    down, right, up, left = ray_lengths(torch.cat(trace_contours(mask)), (30, 20), 4).tolist()
    assert (down, right, up, left) == (10.0, 15.0, 10.0, 15.0)


def test_rays_look_three_degrees_aside_but_not_across_zero() -> None:
    beside = torch.tensor([[3, 100]])  # 1.7 degrees: whole degree 1
    assert ray_lengths(beside, (0, 0), 4)[0] == pytest.approx(math.hypot(3, 100))
    across = torch.tensor([[-1, 100]])  # 359.4 degrees: not found from 0
    assert ray_lengths(across, (0, 0), 4)[0] == pytest.approx(NO_BORDER_LENGTH)
    near_and_far = torch.tensor([[100, 0], [101, 1], [200, -4]])  # degrees 90, 89 and 91: 90 itself wins
    assert ray_lengths(near_and_far, (0, 0), 4)[1] == 100
    plus_before_minus = torch.tensor([[101, 1], [200, -4]])
    assert ray_lengths(plus_before_minus, (0, 0), 4)[1] == pytest.approx(math.hypot(200, 4))


def test_too_many_rays_are_refused() -> None:
    with pytest.raises(UsageError, match="361 rays"):
        ray_lengths(torch.tensor([[1, 1]]), (0, 0), 361)
    with pytest.raises(UsageError, match="0 rays"):
        decode_polygons(torch.zeros(1, 2), torch.zeros(1, 0))


def test_edge_masks() -> None:
    masks = torch.zeros(3, 9, 9, dtype=torch.bool)
    masks[1, 4, 6] = True
    masks[2] = True
    empty, dot, full = encode_contours(masks, 24)
    assert empty[:2].tolist() == [0, 0]
    assert torch.all(empty[2:] == NO_BORDER_LENGTH)
    assert dot[:2].tolist() == [6, 4]
    assert dot[2] == 0  # the only point lies on the centre: angle 0
    assert torch.all(dot[3:] == NO_BORDER_LENGTH)
    assert full[:2].tolist() == [4, 4]
    assert full[2:].max() == pytest.approx(math.hypot(4, 4))
    assert encode_contours(masks[:0], 24).shape == (0, 26)


# --- way there and back ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.floats(12, 60), st.floats(-8, 8), st.floats(-8, 8))
def test_disk_survives_the_round_trip(radius: float, dx: float, dy: float) -> None:
    disk = _disk(150, 160, 80 + dx, 75 + dy, radius)
    encoded = encode_contours(disk[None], 24)
    # Rays end at pixel centres, polygons have their origin at pixel corners: half a pixel to both.
    back = _decode(rasterize(decode_polygons(encoded[:, :2] + 0.5, encoded[:, 2:] + 0.5), (150, 160)))
    assert _iou(disk, back[0]) > 0.95 if radius > 20 else _iou(disk, back[0]) > 0.9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_star_shaped_polygon_survives_the_round_trip(seed: int) -> None:
    """A smooth star drawn from its rays gives the rays back."""
    random = np.random.default_rng(seed)
    angles = np.arange(24) * math.pi / 12
    lengths = 40 * (1 + 0.12 * np.cos(2 * angles + random.uniform(0, 6)) + 0.08 * np.sin(3 * angles))
    center = torch.tensor([[70.0, 64.0]])
    polygon = decode_polygons(center, torch.from_numpy(lengths).float()[None])
    star = _decode(rasterize(polygon, (128, 140)))
    encoded = encode_contours(star, 24)
    back = _decode(rasterize(decode_polygons(encoded[:, :2], encoded[:, 2:]), (128, 140)))
    assert _iou(star, back) > 0.93


def test_hole_is_part_of_the_code_but_not_of_the_polygon() -> None:
    ring = _disk(100, 100, 50, 50, 40) & ~_disk(100, 100, 50, 50, 20)
    assert len(trace_contours(ring)) == 2
    encoded = encode_contours(ring[None], 24)[0]
    assert encoded[[2, 8, 14, 20]].tolist() == [40.0] * 4  # where both borders meet a degree, the farther one counts
    assert encoded[2 + 4] == pytest.approx(20.59, abs=0.01)  # where only the hole does (60 degrees), the hole


# --- parity with the original ----------------------------------------------------------------------------------------


@needs_parity
def test_pure_functions_equal_the_original() -> None:
    expected = load_file(PARITY / "io_pure.safetensors")
    height, width = expected["mask/hw"].tolist()
    masks = _unpack(expected["mask/masks_packed"], height, width)
    contours = [torch.cat(trace_contours(mask)) for mask in masks]
    assert [len(contour) for contour in contours] == expected["mask/contour_lengths"].tolist()
    assert torch.equal(torch.cat(contours), expected["mask/contour_points"])
    num_rays = expected["mask/ray_distances"].shape[1]
    encoded = encode_contours(masks, num_rays)
    assert torch.equal(encoded[:, :2].long(), expected["mask/mass_centers"])
    assert torch.equal(encoded[:, 2:], expected["mask/ray_distances"])

    polygons = decode_polygons(expected["mask/dec_centers"], expected["mask/dec_distances"])
    torch.testing.assert_close(polygons, expected["mask/dec_polygons"], rtol=1e-6, atol=1e-4)
    filled = _decode(rasterize(expected["mask/dec_polygons"], (height, width)))
    assert torch.equal(filled, _unpack(expected["mask/dec_masks_packed"], height, width))
    assert filled.sum((1, 2)).tolist() == expected["mask/dec_mask_areas"].tolist()
    assert torch.equal(_decode(rasterize(polygons, (height, width))), filled)


@needs_parity
@pytest.mark.parametrize("image", [0, 1])
def test_training_contours_equal_the_original(image: int) -> None:
    expected = load_file(PARITY / "io_instance_segmentation_train.safetensors")
    contours = [torch.cat(trace_contours(mask)) for mask in expected[f"gt{image}_masks"]]
    assert [len(contour) for contour in contours] == expected[f"gt{image}_contour_lengths"].tolist()
    assert torch.equal(torch.cat(contours), expected[f"gt{image}_contour_points"])
