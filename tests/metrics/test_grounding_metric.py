"""Grounding accuracy: what counts as a hit, and merging."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_metrics import boxes, sample, through_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import DataError, UsageError
from saccade.metrics import GroundingMetric, build_metrics
from saccade.metrics.grounding import accuracy, aligned_iou
from saccade.results import Caption, Grounding
from saccade.samples import Sample, Target
from saccade.tasks import Task

SIZE = (100, 200)
corner = st.integers(0, 90)
side = st.integers(1, 60)
box = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


def _pair(truth: list[float], said: list[float], phrase: str = "the left cat") -> tuple[Sample, Grounding]:
    target = sample(Task.GROUNDING, 1, Target(boxes=boxes([truth], SIZE)), size_hw=SIZE, phrase=phrase)
    return target, Grounding(phrase=phrase, box_xyxy=torch.tensor(said, dtype=torch.float32), score=0.5)


@settings(deadline=None)
@given(box, box)
def test_iou_counts_pixels(first: list[int], second: list[int]) -> None:
    masks = torch.zeros((2, 160, 160), dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, (first, second), strict=True):
        mask[y0:y1, x0:x1] = True
    wanted = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    a, b = torch.tensor([first]), torch.tensor([second])
    assert float(aligned_iou(a, b)) == pytest.approx(float(wanted), abs=1e-6)
    assert torch.equal(aligned_iou(a, b), aligned_iou(b, a))
    assert float(aligned_iou(a, a)) == 1


def test_exactly_half_is_a_hit_and_empty_boxes_are_not() -> None:
    metric = build_metrics(Task.GROUNDING)
    metric.update(*_pair([0, 0, 10, 10], [0, 0, 10, 5]))
    metric.update(*_pair([0, 0, 10, 10], [0, 0, 10, 4.99]))
    metric.update(*_pair([0, 0, 10, 10], [3, 3, 3, 3]))
    metric.update(*_pair([0, 0, 10, 10], [0, 0, 10, 10]))
    assert metric.compute() == pytest.approx({"Acc@0.5": 0.5, "mIoU": (0.5 + 0.499 + 0 + 1) / 4})
    assert float(aligned_iou(torch.zeros(1, 4), torch.zeros(1, 4))) == 0


def test_ranks_together_equal_one_process() -> None:
    pairs = [_pair([0, 0, 50, 50], [k, k, 50, 50]) for k in range(0, 50, 7)]
    whole, ranks = GroundingMetric(), [GroundingMetric(), GroundingMetric()]
    for at, pair in enumerate(pairs):
        whole.update(*pair)
        ranks[at % 2].update(*pair)
    merged = through_ranks(ranks, GroundingMetric())
    assert merged.compute() == pytest.approx(whole.compute())
    assert len(merged.ious()) == len(pairs)  # the same phrase about the same image counts each time
    assert accuracy(merged.ious(), 0.0) == 1


def test_wrong_pairs_are_refused() -> None:
    target, prediction = _pair([0, 0, 10, 10], [0, 0, 10, 5])
    metric = GroundingMetric()
    assert math.isnan(metric.compute()["mIoU"])
    with pytest.raises(UsageError, match="Grounding"):
        metric.update(target, Caption(text="", score=0.0))
    target.target.boxes = boxes([[0, 0, 1, 1], [1, 1, 2, 2]], SIZE)
    with pytest.raises(DataError, match="this one has 2"):
        metric.update(target, prediction)
