"""Boxes: deltas, overlap, suppression, pasting; matching and sampling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import nms

from saccade.layers import matching
from saccade.layers.boxes import (
    best_per_class,
    box_iou,
    clip_boxes,
    decode_deltas,
    encode_deltas,
    paste_masks,
    soft_nms,
)
from saccade.layers.matching import choose_randomly, match_boxes, sample_labels
from saccade.layers.roi import level_of, mask_targets, pool_regions

STDS = (0.1, 0.1, 0.2, 0.2)


def some_boxes(count: int, seed: int = 0, size: float = 100.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corner, corner + 2 + torch.rand(count, 2, generator=generator) * size / 2], dim=1)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), clamp=st.booleans())
def test_deltas_round_trip(seed: int, clamp: bool) -> None:
    boxes, targets = some_boxes(8, seed), some_boxes(8, seed + 1)
    moved = decode_deltas(boxes, encode_deltas(boxes, targets, STDS), STDS, clamp_shrink=clamp)
    torch.testing.assert_close(moved, targets, rtol=1e-4, atol=1e-3)


def test_deltas_are_clamped_above_and_for_mmdet_below() -> None:
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    huge, tiny = torch.tensor([[0.0, 0.0, 99.0, 99.0]]), torch.tensor([[0.0, 0.0, -99.0, -99.0]])
    side = decode_deltas(box, huge, (1, 1, 1, 1), clamp_shrink=False)
    assert float(side[0, 2] - side[0, 0]) == pytest.approx(16 * 1000 / 16)
    both = decode_deltas(box, tiny, (1, 1, 1, 1), clamp_shrink=True)
    assert float(both[0, 2] - both[0, 0]) == pytest.approx(16 * 16 / 1000, rel=1e-3)
    above = decode_deltas(box, tiny, (1, 1, 1, 1), clamp_shrink=False)
    assert float(above[0, 2] - above[0, 0]) == 0.0


def test_overlap_of_boxes_without_area_is_zero() -> None:
    flat = torch.tensor([[5.0, 5.0, 5.0, 9.0]])
    assert float(box_iou(flat, flat)) == 0.0
    boxes = some_boxes(6)
    torch.testing.assert_close(box_iou(boxes, boxes).diagonal(), torch.ones(6))


def test_clipping_keeps_height_and_width_apart() -> None:
    assert clip_boxes(torch.tensor([[-5.0, -5.0, 99.0, 99.0]]), (10, 20)).tolist() == [[0, 0, 20, 10]]


def plain_soft_nms(boxes: Tensor, scores: Tensor, iou: float, min_score: float) -> list[tuple[int, float]]:
    """The definition, one box at a time."""
    left = {i: float(s) for i, s in enumerate(scores)}
    out = []
    while left:
        best = max(left, key=lambda i: left[i])
        if left[best] < min_score:
            break
        out.append((best, left.pop(best)))
        for i in list(left):
            overlap = float(box_iou(boxes[best : best + 1], boxes[i : i + 1]))
            left[i] *= 1 - overlap if overlap >= iou else 1.0
    return out


def test_soft_nms_equals_its_definition() -> None:
    boxes, scores = some_boxes(40, size=40.0), torch.rand(40, generator=torch.Generator().manual_seed(1))
    index, lowered = soft_nms(boxes, scores, torch.zeros(40, dtype=torch.long), iou=0.3, min_score=0.05)
    expected = plain_soft_nms(boxes, scores, 0.3, 0.05)
    assert index.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(lowered, torch.tensor([s for _, s in expected]))


def test_gaussian_soft_nms_lowers_every_overlap_and_leaves_other_ids_alone() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 9.0]])
    index, scores = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]), method="gaussian")
    assert index.tolist() == [0, 2, 1]
    assert scores[1] == pytest.approx(0.7) and float(scores[2]) < 0.3


def test_best_per_class_equals_nms_class_by_class() -> None:
    boxes = some_boxes(30, size=40.0)
    scores = torch.rand(30, 3, generator=torch.Generator().manual_seed(2))
    kept, score, class_ids, rows = best_per_class(boxes, scores, min_score=0.2, iou=0.4, most=1000)
    for k in range(3):
        above = (scores[:, k] > 0.2).nonzero()[:, 0]
        expected = above[nms(boxes[above], scores[above, k], 0.4)]
        assert rows[class_ids == k].tolist() == expected.tolist()
    torch.testing.assert_close(kept, boxes[rows])
    assert bool((score[:-1] >= score[1:]).all())


def test_nothing_above_the_score_gives_empty_results() -> None:
    for soft in (None, "linear"):
        kept, score, class_ids, rows = best_per_class(
            some_boxes(5), torch.zeros(5, 2), min_score=0.5, iou=0.5, most=10, soft=soft
        )
        assert kept.shape == (0, 4) and len(score) == len(class_ids) == len(rows) == 0


def test_a_pasted_mask_fills_its_box() -> None:
    masks = torch.ones(1, 28, 28)
    masks[:, :, 14:] = 0
    out = paste_masks(masks, torch.tensor([[4.0, 6.0, 24.0, 16.0]]), (20, 30))
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[6:16, 4:14] = True
    assert torch.equal(out[0], expected)


def test_masks_outside_of_the_picture_are_empty() -> None:
    out = paste_masks(
        torch.ones(2, 28, 28), torch.tensor([[50.0, 50.0, 60.0, 60.0], [-9.0, -9.0, -3.0, -3.0]]), (20, 30)
    )
    assert not bool(out.any())


# ---------------------------------------------------------------------- matching


@pytest.mark.parametrize("low_quality", ["off", "keep", "reassign"])
def test_matching_block_by_block_equals_matching_at_once(
    low_quality: matching.LowQuality, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, truths = some_boxes(50, size=40.0), some_boxes(7, 9, size=40.0)
    settings_ = {"positive": 0.6, "negative": 0.3, "low_quality": low_quality, "low_quality_floor": 0.1}
    whole = match_boxes(boxes, truths, **settings_)
    monkeypatch.setattr(matching, "_ELEMENTS", 21)
    parts = match_boxes(boxes, truths, **settings_)
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])


def test_the_two_rules_for_low_quality_differ_in_the_ground_truth() -> None:
    """A box overlaps A better than B, but is B's best: mmdet gives it to B, detectron2 leaves it with A."""
    truths = torch.tensor([[0.0, 0.0, 10.0, 10.0], [6.0, 0.0, 26.0, 10.0]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [2.0, 0.0, 12.0, 10.0]])
    keep = match_boxes(boxes, truths, positive=0.9, negative=0.1, low_quality="keep")
    assert keep[0].tolist() == [0, 0] and keep[1].tolist() == [1, 1]
    reassign = match_boxes(boxes, truths, positive=0.9, negative=0.1, low_quality="reassign")
    assert reassign[0].tolist() == [0, 1] and reassign[1].tolist() == [1, 1]
    off = match_boxes(boxes, truths, positive=0.9, negative=0.1)
    assert off[1].tolist() == [1, -1]


def test_a_floor_leaves_hopeless_ground_truths_alone() -> None:
    truths, boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[9.0, 9.0, 20.0, 20.0]])
    low = match_boxes(boxes, truths, positive=0.7, negative=0.3, low_quality="reassign", low_quality_floor=0.3)
    assert low[1].tolist() == [0]


def test_sampling_fills_up_with_negatives() -> None:
    label = torch.tensor([1] * 10 + [0] * 20 + [-1] * 5)
    torch.manual_seed(0)
    positives, negatives = sample_labels(label, 16, 0.25)
    assert len(positives) == 4 and len(negatives) == 12
    assert bool((label[positives] == 1).all()) and bool((label[negatives] == 0).all())
    positives, negatives = sample_labels(label[8:], 16, 0.25)
    assert len(positives) == 2 and len(negatives) == 14
    draws = {tuple(sorted(choose_randomly(torch.arange(6), 3).tolist())) for _ in range(200)}
    assert len(draws) == 20


# ---------------------------------------------------------------------- regions


def test_levels_follow_the_size_of_the_region() -> None:
    sides = torch.tensor([10.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 2000.0])
    zero = torch.zeros_like(sides)
    assert level_of(torch.stack([zero, zero, sides, sides], 1), 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_regions_are_pooled_from_their_own_level_and_image() -> None:
    maps = [torch.full((2, 1, 256 // s, 256 // s), float(s)) for s in (4, 8, 16, 32)]
    maps = [x + torch.tensor([0.0, 100.0]).view(2, 1, 1, 1) for x in maps]
    regions = torch.tensor([[0, 0, 0, 50, 50], [1, 0, 0, 120, 120], [1, 0, 0, 250, 250]])
    pooled = pool_regions(maps, (4, 8, 16, 32), regions.float(), 7)
    assert pooled.shape == (3, 1, 7, 7)
    torch.testing.assert_close(pooled.mean((1, 2, 3)), torch.tensor([4.0, 108.0, 116.0]))


def test_mask_targets_are_the_part_inside_the_region() -> None:
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[1, :, 20:] = True
    inside = mask_targets(masks, torch.tensor([[10.0, 10.0, 30.0, 30.0]]), torch.tensor([1]), 28)
    assert inside.shape == (1, 28, 28)
    assert float(inside[0, :, 14:].mean()) == 1.0 and float(inside[0, :, :14].mean()) == 0.0
