"""The polar paper's scores and the centre error; the paper's own numbers are in tests/parity."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from saccade.errors import DataError, UsageError
from saccade.metrics import CenterMetric, LesionMetric, SemanticMetric, build_metrics
from saccade.metrics.center import SCORE_NAMES as CENTER_SCORES
from saccade.metrics.lesion import SCORE_NAMES, lesion_scores
from saccade.results import Caption, Centers, SemanticMap, from_truth
from saccade.samples import ClassList, Origin, Sample, Target
from saccade.tasks import Task
from saccade.training.config import METRICS

CLASSES = ClassList.from_names(("background", "lesion"))


def sample(labels: torch.Tensor, number: int = 0, task: Task = Task.SEMANTIC) -> Sample:
    size_hw = (int(labels.shape[0]), int(labels.shape[1]))
    return Sample(
        image=tv_tensors.Image(torch.zeros(3, *size_hw, dtype=torch.uint8)),
        task=task,
        origin=Origin(dataset="tests", image_id=number, path=None, size_hw=size_hw),
        target=Target(semantic=tv_tensors.Mask(labels)),
        classes=CLASSES,
    )


def square(top: int, left: int, side: int, size: int = 40) -> torch.Tensor:
    labels = torch.zeros(size, size, dtype=torch.int64)
    labels[top : top + side, left : left + side] = 1
    return labels


def said(labels: torch.Tensor) -> SemanticMap:
    return SemanticMap(labels=labels, classes=CLASSES)


def mask(pixels: int) -> torch.Tensor:
    found = torch.zeros(40, dtype=torch.bool)
    found[:pixels] = True
    return found


@pytest.mark.parametrize(
    ("predicted", "wanted", "scores"),
    [
        (0, 0, (0.0, 1.0, 1.0, 1.0)),
        (5, 0, (0.0, 0.0, 1.0, 1.0)),
        (6, 0, (0.0, 0.0, 0.0, 0.0)),
        (5, 5, (1.0, 1.0, 1.0, 1.0)),
        (6, 5, (10 / 11, 5 / 6, 0.0, 0.0)),
        (5, 6, (10 / 11, 5 / 6, 0.0, 0.0)),
        (6, 12, (12 / 18, 0.5, 1.0, 0.5)),
        (12, 6, (12 / 18, 0.5, 0.5, 1.0)),
    ],
)
def test_the_conventions(predicted: int, wanted: int, scores: tuple[float, ...]) -> None:
    assert lesion_scores(mask(predicted), mask(wanted)) == pytest.approx(scores)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 40), st.integers(0, 40))
def test_dice_and_iou_say_the_same(predicted: int, wanted: int) -> None:
    dice, iou, _, _ = lesion_scores(mask(predicted), mask(wanted))
    assert dice == pytest.approx(2 * iou / (1 + iou)) or predicted + wanted == 0


def test_means_over_pictures_in_both_spaces_and_between_ranks() -> None:
    truths = [square(10, 10, 12), square(14, 12, 10), square(0, 0, 0)]
    answers = [square(10, 10, 12), square(14, 17, 10), square(0, 0, 0)]
    whole, parts = LesionMetric(CLASSES), [LesionMetric(CLASSES), LesionMetric(CLASSES)]
    for number, (truth, answer) in enumerate(zip(truths, answers, strict=True)):
        whole.update(sample(truth, number), said(answer))
        parts[number % 2].update(sample(truth, number), said(answer))
    scores = whole.compute()
    assert tuple(scores) == SCORE_NAMES and set(scores) <= set(METRICS[Task.SEMANTIC])
    assert scores["mean_Dice"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert scores["mean_IoU"] == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert scores["polar_IoU"] != scores["mean_IoU"] and 0 < scores["polar_Dice"] < 1
    parts[0].merge([part.state() for part in parts])
    assert parts[0].compute() == pytest.approx(scores)
    assert whole.per_class() == [] and whole.notes == []
    whole.update(sample(truths[0], 0), said(answers[0]))
    assert "more than once" in whole.notes[0]
    assert all(math.isnan(value) for value in LesionMetric(CLASSES).compute().values())


def test_ignored_pixels_count_in_neither_map() -> None:
    truth, answer = square(10, 10, 10), square(10, 10, 10)
    truth[10:15, 10:20], answer[0:5] = 255, 1
    truth[0:5] = 255
    metric = LesionMetric(CLASSES)
    metric.update(sample(truth), said(answer))
    assert metric.compute()["mean_IoU"] == 1


def test_what_does_not_fit_is_refused() -> None:
    metric = LesionMetric(CLASSES)
    with pytest.raises(DataError, match="frame of the original"):
        metric.update(sample(square(0, 0, 3)), said(square(0, 0, 3, 20)))
    with pytest.raises(UsageError, match="SemanticMap"):
        metric.update(sample(square(0, 0, 3)), Caption(text="", score=0.0))
    with pytest.raises(DataError, match="no semantic map"):
        empty = sample(square(0, 0, 3))
        empty.target.semantic = None
        metric.update(empty, said(square(0, 0, 3)))


def test_the_protocol_is_asked_for_by_name() -> None:
    assert isinstance(build_metrics(Task.SEMANTIC, CLASSES, protocol="polar"), LesionMetric)
    assert isinstance(build_metrics(Task.SEMANTIC, CLASSES), SemanticMetric)
    assert isinstance(build_metrics(Task.CENTER, CLASSES), CenterMetric)
    with pytest.raises(UsageError, match="did you mean 'polar'"):
        build_metrics(Task.SEMANTIC, CLASSES, protocol="pollar")


def centers(*points: tuple[float, float]) -> Centers:
    found = torch.tensor(points).reshape(-1, 2)
    return Centers(points_xy=found, scores=torch.ones(len(found)), size_hw=(40, 40))


def test_centre_errors() -> None:
    metric = CenterMetric()
    metric.update(sample(square(10, 10, 3), 0, Task.CENTER), centers((11.0, 12.0), (0.0, 0.0)))  # a pixel too low
    metric.update(sample(square(10, 10, 3), 1, Task.CENTER), centers((14.0, 15.0)))  # 3, 4 and 5
    metric.update(sample(square(0, 0, 0), 2, Task.CENTER), centers((3.0, 3.0)))
    scores = metric.compute()
    assert tuple(scores) == CENTER_SCORES == METRICS[Task.CENTER]
    assert scores == pytest.approx({"mse_px": (1 + 25) / 2, "distance_px": 3.0, "within": 0.5})
    assert metric.notes == [
        "1 of 3 images have no object; they are not scored",
        "the middle of every picture would score 12.7 px, 0.000 within",  # (20, 20) and twice (11, 11)
    ]
    other = CenterMetric()
    other.merge([metric.state()])
    assert other.compute() == scores
    assert all(math.isnan(value) for value in CenterMetric().compute().values())
    perfect = CenterMetric()
    truth = sample(square(10, 10, 3), 0, Task.CENTER)
    perfect.update(truth, from_truth(truth))
    assert perfect.compute()["mse_px"] == 0
    for wrong, kind in ((centers(), DataError), (Caption(text="", score=0.0), UsageError)):
        with pytest.raises(kind):
            perfect.update(truth, wrong)


def test_centres_describe_themselves() -> None:
    found = centers((11.0, 12.0))
    assert found.to_dict()["centers"] == [{"point_xy": [11.0, 12.0], "score": 1.0}]
    import numpy as np

    drawn = np.asarray(found.draw(np.full((40, 40, 3), 200, np.uint8)))
    assert drawn.shape == (40, 40, 3) and (drawn[12, 11] != 200).any() and (drawn[30, 30] == 200).all()
    with pytest.raises(UsageError, match="no COCO form"):
        found.to_coco(1)
