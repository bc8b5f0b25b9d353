"""Depth errors against plain formulas, the pixels that count, and what is said about the ones that do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers_metrics import sample, through_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import DataError, UsageError
from saccade.metrics import DepthMetric, DepthProtocol, build_metrics, depth_protocol
from saccade.metrics.depth import SCORE_NAMES, depth_errors, valid_pixels
from saccade.results import Caption, DepthMap
from saccade.samples import Sample, Target
from saccade.tasks import Task

WHOLE = DepthProtocol(crop="none")
metres = st.floats(2**-6, 9.5, width=32)


def _pair(truth: object, predicted: object, image_id: int | str = 1) -> tuple[Sample, DepthMap]:
    true = torch.as_tensor(np.atleast_2d(np.asarray(truth, np.float32)))
    target = sample(Task.DEPTH, image_id, Target(depth_m=true), size_hw=(true.shape[0], true.shape[1]))
    return target, DepthMap(depth_m=torch.as_tensor(np.atleast_2d(np.asarray(predicted, np.float32))))


@settings(deadline=None)
@given(st.lists(st.tuples(metres, metres), min_size=1, max_size=20))
def test_errors_are_their_formulas(pairs: list[tuple[float, float]]) -> None:
    got = depth_errors(*(np.array(column, np.float32) for column in zip(*pairs, strict=True)))
    n = len(pairs)
    logs = [math.log(p / t) for p, t in pairs]
    want = {
        "abs_rel": sum(abs(p - t) / t for p, t in pairs) / n,
        "sq_rel": sum((p - t) ** 2 / t for p, t in pairs) / n,
        "rmse": math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n),
        "rmse_log": math.sqrt(sum(g * g for g in logs) / n),
        "log10": sum(abs(math.log10(p / t)) for p, t in pairs) / n,
        "silog": math.sqrt(sum(g * g for g in logs) / n - 0.5 * (sum(logs) / n) ** 2),
    }
    assert tuple(got) == SCORE_NAMES
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for power in (1, 2, 3):
        within = sum(max(p / t, t / p) < 1.25**power for p, t in pairs) / n
        assert got[f"d{power}"] == pytest.approx(within, abs=sum(_at_limit(p, t) for p, t in pairs) / n + 1e-12)


def _at_limit(p: float, t: float) -> bool:
    return any(abs(max(p / t, t / p) - 1.25**power) < 1e-5 for power in (1, 2, 3))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.tuples(metres, metres), min_size=1, max_size=5), min_size=1, max_size=6), st.data())
def test_ranks_together_equal_one_process(images: list[list[tuple[float, float]]], data: st.DataObject) -> None:
    whole, ranks = DepthMetric(), [DepthMetric() for _ in range(3)]
    for image_id, pairs in enumerate(images):
        pair = _pair([t for _, t in pairs], [p for p, _ in pairs], image_id)
        whole.update(*pair)
        ranks[data.draw(st.integers(0, 2))].update(*pair)
    merged = through_ranks(ranks, DepthMetric())  # type: ignore[arg-type]
    assert merged.compute() == pytest.approx(whole.compute(), abs=1e-12, nan_ok=True)
    assert merged.notes == whole.notes


def test_every_image_weighs_the_same() -> None:
    metric = build_metrics(Task.DEPTH)
    metric.update(*_pair([1.0] * 9, [2.0] * 9, 1))
    metric.update(*_pair([1.0], [1.0], 2))
    assert metric.compute()["abs_rel"] == pytest.approx(0.5)
    assert metric.compute()["d1"] == pytest.approx(0.5)
    assert metric.per_class() == []


def test_limits_are_strict_and_unknown_pixels_do_not_count() -> None:
    truth = np.array([[0.0, 1e-3, 2e-3, 9.9, 10.0, 11.0]], np.float32)
    assert valid_pixels(truth, WHOLE).tolist() == [[False, False, True, True, False, False]]
    far = DepthProtocol(crop="none", min_m=0.0, max_m=80.0)
    assert valid_pixels(truth, far).tolist() == [[False, True, True, True, True, True]]


def test_eigen_crop_is_rows_45_to_470_and_columns_41_to_600() -> None:
    counted = np.argwhere(valid_pixels(np.ones((480, 640), np.float32), DepthProtocol()))
    assert counted.min(0).tolist() == [45, 41] and counted.max(0).tolist() == [470, 600]
    assert len(counted) == 426 * 560
    metric = DepthMetric()
    wrong = torch.ones(480, 640)
    wrong[:45], wrong[471:], wrong[:, :41], wrong[:, 601:] = 5.0, 5.0, 5.0, 5.0
    metric.update(*_pair(np.ones((480, 640)), wrong))
    assert metric.compute()["rmse"] == 0
    assert metric.notes == [] and metric.protocol == str(DepthProtocol())


def test_other_sizes_are_scored_whole_and_say_so() -> None:
    metric = DepthMetric()
    metric.update(*_pair(np.ones((60, 50)), np.full((60, 50), 2.0)))
    assert metric.compute()["abs_rel"] == 1
    assert "1 of 1 images" in metric.notes[0] and "Eigen crop" in metric.notes[0]
    assert "1 of 1 images whole" in metric.protocol
    asked_whole = DepthMetric(WHOLE)
    asked_whole.update(*_pair(np.ones((60, 50)), np.full((60, 50), 2.0)))
    assert asked_whole.notes == []


def test_infinite_and_nan_predictions_become_the_limits() -> None:
    metric = DepthMetric()
    metric.update(*_pair([5.0, 5.0, 5.0], [math.inf, math.nan, -math.inf]))
    assert metric.compute()["rmse"] == pytest.approx(math.sqrt((25 + 4.999**2 + 25) / 3))
    assert any("infinite or NaN" in note for note in metric.notes)
    far = DepthMetric(DepthProtocol(max_m=80.0))
    far.update(*_pair([5.0], [math.inf]))
    assert far.compute()["rmse"] == 75


def test_predictions_that_are_not_positive_are_told() -> None:
    metric = DepthMetric()
    metric.update(*_pair([5.0, 5.0], [0.0, -1.0]))
    scores = metric.compute()
    assert scores["d1"] == 0 and scores["abs_rel"] == pytest.approx(1.1)
    assert not math.isfinite(scores["rmse_log"])
    assert any("0 m or less" in note for note in metric.notes)


def test_images_without_a_pixel_that_counts_are_counted_and_not_averaged() -> None:
    metric = DepthMetric()
    metric.update(*_pair([0.0, 20.0], [1.0, 1.0], 1))
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(*_pair([2.0, 0.0], [2.0, 9.0], 2))
    assert metric.compute()["d1"] == 1
    assert any(note.startswith("1 of 2 images have no pixel") for note in metric.notes)


def test_image_that_comes_twice_counts_once() -> None:
    metric = DepthMetric()
    metric.update(*_pair([1.0], [1.0]))
    metric.update(*_pair([1.0], [2.0]))
    assert metric.compute()["abs_rel"] == 0
    assert metric.notes[-1].startswith("1 images came more than once")
    merged = through_ranks([metric, metric], DepthMetric())  # type: ignore[list-item, arg-type]
    assert merged.notes[-1].startswith("3 images came more than once"), "within each rank, and between the two"


def test_every_deviation_stands_in_the_protocol() -> None:
    assert "not the official" not in str(DepthProtocol())
    assert depth_protocol() == depth_protocol("nyu") == DepthProtocol()
    chosen = depth_protocol("crop=none, max_m=80")
    assert chosen == DepthProtocol(crop="none", max_m=80.0)
    assert "crop is none, not eigen" in str(chosen) and "max_m is 80.0, not 10.0" in str(chosen)
    metric = build_metrics(Task.DEPTH, protocol="min_m=0.1")
    assert isinstance(metric, DepthMetric) and "min_m is 0.1" in metric.protocol


@pytest.mark.parametrize("asked", ["kitti", "crop", "crop=garg", "max_m=far", "min_m=5,max_m=2", "max_m=nan", "min_m="])
def test_protocols_that_do_not_exist(asked: str) -> None:
    with pytest.raises(UsageError):
        depth_protocol(asked)


def test_wrong_pairs() -> None:
    metric = DepthMetric()
    target, prediction = _pair([1.0, 1.0], [1.0, 1.0])
    with pytest.raises(UsageError, match="DepthMap"):
        metric.update(target, Caption(text="", score=0.0))
    with pytest.raises(DataError, match="frame"):
        metric.update(target, DepthMap(depth_m=torch.ones(3, 3)))
    target.target.depth_m = None
    with pytest.raises(DataError, match="no depth map"):
        metric.update(target, prediction)
    with pytest.raises(UsageError, match="detection, segmentation, phrases or depth, not caption"):
        build_metrics(Task.CAPTION, protocol="crop=none")
