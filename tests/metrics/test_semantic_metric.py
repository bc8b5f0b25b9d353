"""Semantic scores against a plain confusion matrix, and the lesion scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers_metrics import sample, through_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from saccade.errors import DataError, UsageError
from saccade.metrics import SemanticMetric, build_metrics
from saccade.metrics.semantic import Areas, class_scores, summary
from saccade.results import Caption, SemanticMap
from saccade.samples import ClassList, Sample, Target
from saccade.tasks import Task

CLASSES = ClassList.from_names(["sky", "sea", "sand"])
LESION = ClassList.from_names(["background", "lesion"])

labels = st.lists(st.sampled_from([0, 1, 2, 255]), min_size=12, max_size=12)
predictions = st.lists(st.integers(0, 2), min_size=12, max_size=12)


def _pair(
    label: list[int], pred: list[int], image_id: int | str = 1, classes: ClassList = CLASSES
) -> tuple[Sample, SemanticMap]:
    truth = tv_tensors.Mask(torch.tensor(label).reshape(2, -1))
    target = sample(Task.SEMANTIC, image_id, Target(semantic=truth), size_hw=(2, len(label) // 2), classes=classes)
    return target, SemanticMap(labels=torch.tensor(pred).reshape(2, -1), classes=classes)


@settings(deadline=None)
@given(labels, predictions)
def test_areas_are_the_margins_of_the_confusion_matrix(label: list[int], pred: list[int]) -> None:
    confusion = np.zeros((3, 3), int)
    for true, said in zip(label, pred, strict=True):
        if true != 255:
            confusion[true, said] += 1
    areas = Areas.of(np.array(label), np.array(pred), 3)
    assert areas.intersect.tolist() == confusion.diagonal().tolist()
    assert areas.label.tolist() == confusion.sum(axis=1).tolist()
    assert areas.pred.tolist() == confusion.sum(axis=0).tolist()
    scores = class_scores(areas)
    for k in range(3):
        union = confusion[k].sum() + confusion[:, k].sum() - confusion[k, k]
        if union:
            iou = confusion[k, k] / union
            assert scores["IoU"][k] == pytest.approx(iou)
            assert scores["Dice"][k] == pytest.approx(2 * iou / (1 + iou))
        else:
            assert math.isnan(scores["IoU"][k])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(labels, predictions), min_size=1, max_size=6), st.data())
def test_ranks_together_equal_one_process(images: list[tuple[list[int], list[int]]], data: st.DataObject) -> None:
    whole, ranks = SemanticMetric(CLASSES), [SemanticMetric(CLASSES) for _ in range(3)]
    for image_id, (label, pred) in enumerate(images):
        pair = _pair(label, pred, image_id)
        whole.update(*pair)
        ranks[data.draw(st.integers(0, 2))].update(*pair)
    merged = through_ranks(ranks, SemanticMetric(CLASSES))
    assert merged.compute() == pytest.approx(whole.compute(), abs=1e-12, nan_ok=True)


def test_perfect_map_and_absent_classes() -> None:
    metric = build_metrics(Task.SEMANTIC, CLASSES)
    metric.update(*_pair([0, 0, 1, 255], [0, 0, 1, 2]))
    scores = metric.compute()
    assert scores["aAcc"] == scores["mIoU"] == scores["mDice"] == scores["image_mIoU"] == 1
    rows = metric.per_class()
    assert [row["pixels"] for row in rows] == [2, 1, 0]
    assert math.isnan(rows[2]["IoU"])  # predicted only where the truth is ignored


def test_class_that_is_only_predicted_has_iou_zero_but_no_accuracy() -> None:
    areas = Areas.of(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), 3)
    scores = class_scores(areas)
    assert scores["IoU"].tolist() == [0.5, 1.0, 0.0]
    assert math.isnan(scores["Acc"][2])
    assert summary(areas)["mAcc"] == pytest.approx(0.75)
    assert summary(areas, nan_to_num=0.0)["mAcc"] == pytest.approx(0.5)


def test_lesion_scores_over_the_set_and_per_image() -> None:
    metric = SemanticMetric(LESION)
    metric.update(*_pair([1, 1, 1, 1], [1, 1, 0, 0], 1, LESION))  # IoU 1/2, Dice 2/3
    metric.update(*_pair([0, 0, 0, 0], [0, 0, 0, 0], 2, LESION))  # no lesion, none predicted: 1
    metric.update(*_pair([0, 0, 0, 0], [0, 0, 0, 1], 3, LESION))  # no lesion, one predicted: 0
    scores = metric.compute()
    assert scores["IoU"] == pytest.approx(2 / 5)
    assert scores["Dice"] == pytest.approx(4 / 7)
    assert scores["image_IoU"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores["image_Dice"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    swapped = SemanticMetric(ClassList.from_names(["lesion", "background"]))
    swapped.update(*_pair([0, 0, 0, 0], [0, 0, 1, 1], 1, swapped.classes))
    assert swapped.compute()["IoU"] == pytest.approx(1 / 2)


def test_image_that_comes_twice_counts_once() -> None:
    metric = SemanticMetric(CLASSES)
    metric.update(*_pair([0, 0], [0, 0]))
    metric.update(*_pair([0, 0], [1, 1]))
    assert metric.compute()["aAcc"] == 1
    assert metric.notes


def test_no_images_and_wrong_pairs() -> None:
    metric = SemanticMetric(CLASSES)
    assert all(math.isnan(value) for value in metric.compute().values())
    target, prediction = _pair([0, 0], [0, 0])
    with pytest.raises(UsageError):
        metric.update(target, Caption(text="", score=0.0))
    with pytest.raises(DataError, match="frame"):
        metric.update(target, SemanticMap(labels=torch.zeros(3, 3, dtype=torch.int64), classes=CLASSES))
    with pytest.raises(DataError, match="same class list"):
        metric.update(*_pair([0, 0], [0, 0], 5, ClassList.from_names(["sea", "sky", "sand"])))
    target.target.semantic = None
    with pytest.raises(DataError, match="no semantic map"):
        metric.update(target, prediction)
