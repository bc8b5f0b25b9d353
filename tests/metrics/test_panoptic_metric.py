"""Panoptic quality: small maps worked out by hand, and random maps against a plain reading of the rules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers_metrics import sample, through_ranks
from torchvision import tv_tensors

from saccade.errors import DataError, UsageError
from saccade.metrics import PanopticMetric
from saccade.metrics.panoptic import match_segments
from saccade.results import Caption, Panoptic
from saccade.samples import ClassList, Sample, Segment, Target
from saccade.tasks import Task

CLASSES = ClassList(names=("cat", "dog", "sky"), category_ids=(3, 7, 90), things=(True, True, False))
Row = list[tuple[int, int]]
"""One-row picture as (segment id, pixels)."""


def _paint(row: Row) -> torch.Tensor:
    return torch.tensor([[id_ for id_, pixels in row for _ in range(pixels)]], dtype=torch.int64)


def _pair(
    truth: Row, segments: list[Segment], said: Row, predicted: list[Segment], image_id: int = 1
) -> tuple[Sample, Panoptic]:
    ids = _paint(truth)
    target = Target(panoptic=tv_tensors.Mask(ids), segments=tuple(segments))
    # No task gives panoptic maps yet: the metric looks at the target alone.
    item = sample(Task.SEMANTIC, image_id, target, size_hw=(1, ids.shape[1]), classes=CLASSES)
    return item, Panoptic(segment_ids=_paint(said), segments=tuple(predicted), classes=CLASSES)


def _score(*arguments: Any) -> dict[str, float]:
    metric = PanopticMetric(CLASSES)
    metric.update(*_pair(*arguments))
    return metric.compute()


CAT, DOG, SKY = (Segment(id=id_, class_id=k) for k, id_ in enumerate((500, 70000, 9)))


def test_a_perfect_map_scores_one_in_every_group() -> None:
    row = [(500, 5), (9, 5), (0, 3), (70000, 4)]
    scores = _score(row, [CAT, SKY, DOG], row, [CAT, SKY, DOG])
    assert set(scores) == {f"{name}{end}" for name in ("PQ", "SQ", "RQ") for end in ("", "_things", "_stuff")}
    assert set(scores.values()) == {1.0}


def test_matches_errors_and_averages_by_hand() -> None:
    truth = [(500, 10), (9, 10)]
    said = [(500, 7), (70000, 3), (9, 10)]  # 7 of 10 pixels of the cat, a dog that is not there, the sky
    metric = PanopticMetric(CLASSES)
    metric.update(*_pair(truth, [CAT, SKY], said, [CAT, DOG, SKY]))
    scores = metric.compute()
    assert scores["SQ_things"] == pytest.approx((0.7 + 0) / 2)  # the dog occurs in a prediction: it counts with 0
    assert scores["RQ_things"] == pytest.approx(0.5)
    assert scores["PQ"] == pytest.approx((0.7 + 0 + 1) / 3)
    assert (scores["PQ_things"], scores["PQ_stuff"]) == (pytest.approx(0.35), 1)
    rows = metric.per_class()
    assert [row["segments"] for row in rows] == [1, 0, 1]
    assert [row["is_thing"] for row in rows] == [True, True, False]
    assert [row["category_id"] for row in rows] == [3, 7, 90]


def test_an_iou_of_a_half_is_no_match() -> None:
    assert _score([(500, 10), (9, 10)], [CAT, SKY], [(500, 5), (0, 5), (9, 10)], [CAT, SKY])["PQ_things"] == 0
    assert _score([(500, 10)], [CAT], [(500, 6), (0, 4)], [CAT])["PQ_things"] == pytest.approx(0.6)


def test_unlabelled_pixels_are_left_out_of_the_union() -> None:
    assert _score([(500, 10), (0, 10)], [CAT], [(500, 20)], [CAT])["PQ"] == 1


@pytest.mark.parametrize(("void", "wrong"), [(6, 0), (5, 1), (4, 1)])
def test_a_prediction_mostly_on_unlabelled_pixels_is_no_error(void: int, wrong: int) -> None:
    truth = [(500, 10), (9, 10 - void), (0, void)]
    tallies = match_segments(
        _paint(truth).numpy(), [CAT, SKY], _paint([(500, 10), (70000, 10)]).numpy(), [CAT, DOG]
    )  # fmt: skip
    assert tallies.get(1) is None if not wrong else tallies[1].fp == 1


def test_crowds_are_neither_matched_nor_missed_and_excuse_their_own_class() -> None:
    crowd = Segment(id=8, class_id=0, is_crowd=True)
    row = [(500, 10), (8, 10)]
    metric = PanopticMetric(CLASSES)
    metric.update(*_pair(row, [CAT, crowd], [(500, 10), (6, 10)], [CAT, Segment(id=6, class_id=0)]))
    assert metric.compute()["PQ"] == 1
    metric.update(*_pair(row, [CAT, crowd], [(500, 10), (6, 10)], [CAT, Segment(id=6, class_id=1)], 2))
    assert metric.tallies()[1].fp == 1  # a dog on a crowd of cats
    metric.update(*_pair(row, [CAT, crowd], [(500, 10), (0, 10)], [CAT], 3))
    assert metric.tallies()[0].fn == 0


def _reference(truth: np.ndarray, segments: list[Segment], said: np.ndarray, predicted: list[Segment]) -> list[Any]:
    """(tp, fp, fn, sum of IoU) by class, segment by segment."""
    rows = [[0, 0, 0, 0.0] for _ in CLASSES.names]
    hit: set[tuple[str, int]] = set()
    for a in segments:
        for b in predicted:
            inside, other = truth == a.id, (said == b.id) & (truth != 0)
            iou = (inside & other).sum() / (inside | other).sum()
            if a.class_id == b.class_id and not a.is_crowd and iou > 0.5:
                rows[a.class_id][0] += 1
                rows[a.class_id][3] += iou
                hit |= {("truth", a.id), ("said", b.id)}
    for a in segments:
        rows[a.class_id][2] += not a.is_crowd and ("truth", a.id) not in hit
    for b in predicted:
        excused = truth == 0
        for a in segments:
            if a.is_crowd and a.class_id == b.class_id:
                excused = excused | (truth == a.id)
        inside = said == b.id
        rows[b.class_id][1] += ("said", b.id) not in hit and (inside & excused).sum() / inside.sum() <= 0.5
    return rows


def test_random_maps() -> None:
    seen = np.zeros(3)
    for seed in range(80):
        rng = np.random.default_rng(seed)
        truth = np.kron(rng.integers(0, 5, (4, 4)), np.ones((3, 3), np.int64))
        said = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 5, truth.shape), np.roll(truth, 1, axis=1))
        ids = [id_ for id_ in range(1, 5) if (truth == id_).any()]
        segments = [Segment(id=id_, class_id=int(rng.integers(3)), is_crowd=id_ == 4) for id_ in ids]
        known = {one.id: one.class_id for one in segments}
        predicted = [
            Segment(id=id_, class_id=known.get(id_, 0) if rng.random() < 0.7 else int(rng.integers(3)))
            for id_ in range(1, 5)
            if (said == id_).any()
        ]
        tallies = match_segments(truth, segments, said, predicted)
        wanted = _reference(truth, segments, said, predicted)
        for k, row in enumerate(wanted):
            tally = tallies.get(k)
            got = [0, 0, 0, 0.0] if tally is None else [tally.tp, tally.fp, tally.fn, tally.iou]
            assert got == pytest.approx(row), seed
            seen += row[:3]
    assert seen.min() > 20


def test_ranks_together_equal_one_process_and_repetitions_are_told() -> None:
    pairs = [_pair([(500, 10), (9, 10)], [CAT, SKY], [(500, 5 + at), (9, 15 - at)], [CAT, SKY], at) for at in range(5)]
    whole, ranks = PanopticMetric(CLASSES), [PanopticMetric(CLASSES) for _ in range(2)]
    for at, pair in enumerate(pairs):
        whole.update(*pair)
        ranks[at % 2].update(*pair)
    merged = through_ranks(ranks, PanopticMetric(CLASSES))
    assert merged.compute() == pytest.approx(whole.compute())
    merged.update(*pairs[0])
    assert "more than once" in merged.notes[0]


def test_nothing_and_wrong_pairs() -> None:
    metric = PanopticMetric(CLASSES)
    assert all(math.isnan(value) for value in metric.compute().values())
    target, prediction = _pair([(500, 10)], [CAT], [(500, 10)], [CAT])
    with pytest.raises(UsageError, match="Panoptic"):
        metric.update(target, Caption(text="", score=0.0))
    with pytest.raises(UsageError, match="things"):
        PanopticMetric(ClassList.from_names(["cat", "dog", "sky"]))
    with pytest.raises(DataError, match="frame"):
        metric.update(target, Panoptic(segment_ids=_paint([(500, 9)]), segments=(CAT,), classes=CLASSES))
    with pytest.raises(DataError, match="different ids"):
        metric.update(target, Panoptic(segment_ids=_paint([(500, 10)]), segments=(DOG,), classes=CLASSES))
    with pytest.raises(DataError, match="outside"):
        strange = Segment(id=500, class_id=3)
        metric.update(target, Panoptic(segment_ids=_paint([(500, 10)]), segments=(strange,), classes=CLASSES))
    with pytest.raises(DataError, match="no panoptic map"):
        metric.update(sample(Task.SEMANTIC, 1, Target(), classes=CLASSES), prediction)
