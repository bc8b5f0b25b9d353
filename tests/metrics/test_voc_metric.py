"""VOC mAP against a plain reading of the development kit's rule."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from helpers_metrics import boxes, sample, through_ranks

from saccade.errors import DataError
from saccade.metrics import VocMetric, build_metrics
from saccade.metrics.voc import average_precision
from saccade.results import Instances
from saccade.samples import ClassList, Sample, Target
from saccade.tasks import Task

SIZE = (80, 80)
CLASSES = ClassList(names=("cat", "dog", "owl"), category_ids=(3, 7, 90))
Image = tuple[list[tuple[int, list[int], bool]], list[tuple[int, list[int], float]]]
"""Objects (class, box, difficult) and detections (class, box, score); boxes with the last pixel, as in VOC."""


def _random_images(seed: int, count: int = 8) -> list[Image]:
    rng = random.Random(seed)

    def box() -> list[int]:
        x, y = rng.randrange(30), rng.randrange(30)
        return [x, y, x + rng.randrange(4, 40), y + rng.randrange(4, 40)]

    def near(box: list[int]) -> list[int]:
        return [side + rng.randrange(-3, 4) for side in box[:2]] + [side + rng.randrange(0, 4) for side in box[2:]]

    images = []
    for _ in range(count):
        objects = [(rng.randrange(2), box(), rng.random() < 0.3) for _ in range(rng.randrange(5))]
        found = [(class_id, near(at)) for class_id, at, _ in objects for _ in range(rng.randrange(3))]
        found += [(rng.randrange(3), box()) for _ in range(rng.randrange(3))]
        images.append((objects, [(*one, rng.randrange(20) / 20) for one in found]))
    return images


def _overlap(a: list[int], b: list[int]) -> float:
    wide, high = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) + 1 for k in (0, 1))
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def _reference(images: list[Image], class_id: int, eleven_points: bool) -> float:
    """AP of one class, in the words of the kit; NaN without objects."""
    number = sum(k == class_id and not difficult for objects, _ in images for k, _, difficult in objects)
    if not number:
        return math.nan
    found = [(-score, at, box) for at, (_, said) in enumerate(images) for k, box, score in said if k == class_id]
    found.sort(key=lambda row: row[0])
    detected: set[tuple[int, int]] = set()
    tp = fp = 0
    recalls, precisions = [], []
    for _, at, box in found:
        best, which = -math.inf, -1
        for index, (k, truth, _) in enumerate(images[at][0]):
            if k == class_id and _overlap(box, truth) > best:
                best, which = _overlap(box, truth), index
        if best >= 0.5:
            if images[at][0][which][2]:
                continue
            if (at, which) in detected:
                fp += 1
            else:
                tp += 1
                detected.add((at, which))
        else:
            fp += 1
        recalls.append(tp / number)
        precisions.append(tp / (tp + fp))
    if eleven_points:
        total = 0.0
        for threshold in np.arange(0, 1.1, 0.1)[:11]:
            total += max((p for r, p in zip(recalls, precisions, strict=True) if r >= threshold), default=0.0)
        return total / 11
    recalls, precisions = [0.0, *recalls, 1.0], [0.0, *precisions, 0.0]
    for at in range(len(precisions) - 2, -1, -1):
        precisions[at] = max(precisions[at], precisions[at + 1])
    return sum((recalls[at] - recalls[at - 1]) * precisions[at] for at in range(1, len(recalls)))


def _ours(rows: list[list[int]]) -> torch.Tensor:
    """Boxes that end behind the last pixel."""
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4) + torch.tensor([0, 0, 1, 1])


def _pair(image: Image, image_id: int) -> tuple[Sample, Instances]:
    objects, said = image
    target = Target(
        boxes=boxes(_ours([box for _, box, _ in objects]), SIZE),
        class_ids=torch.tensor([k for k, _, _ in objects], dtype=torch.int64),
        is_crowd=torch.tensor([difficult for _, _, difficult in objects], dtype=torch.bool),
    )
    prediction = Instances(
        boxes_xyxy=_ours([box for _, box, _ in said]),
        scores=torch.tensor([score for _, _, score in said], dtype=torch.float64),
        class_ids=torch.tensor([k for k, _, _ in said], dtype=torch.int64),
        classes=CLASSES,
        size_hw=SIZE,
    )
    return sample(Task.DETECTION, image_id, target, size_hw=SIZE, classes=CLASSES), prediction


def _score(images: list[Image], eleven_points: bool) -> VocMetric:
    metric = VocMetric(CLASSES, eleven_points=eleven_points)
    for image_id, image in enumerate(images):
        metric.update(*_pair(image, image_id))
    return metric


@pytest.mark.parametrize("eleven_points", [True, False])
def test_random_images(eleven_points: bool) -> None:
    seen = []
    for seed in range(60):
        images = _random_images(seed)
        metric = _score(images, eleven_points)
        wanted = [_reference(images, class_id, eleven_points) for class_id in range(3)]
        assert [row["AP"] for row in metric.per_class()] == pytest.approx(wanted, abs=1e-12, nan_ok=True), seed
        defined = [value for value in wanted if not math.isnan(value)]
        if defined:
            assert metric.compute()["mAP"] == pytest.approx(np.mean(defined), abs=1e-12)
            seen += defined
    assert min(seen) < 0.2 and max(seen) > 0.7 and len(set(seen)) > 60


def test_eleven_points_and_area_by_hand() -> None:
    right = np.array([True, False, True])
    assert average_precision(right, 4, eleven_points=True) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    assert average_precision(right, 4, eleven_points=False) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert average_precision(np.zeros(0, bool), 4, eleven_points=True) == 0
    assert average_precision(np.zeros(0, bool), 4, eleven_points=False) == 0


def test_an_overlap_of_exactly_a_half_is_enough_and_a_second_hit_is_wrong() -> None:
    half = ([(0, [0, 0, 19, 9], False)], [(0, [0, 0, 9, 9], 0.9), (0, [0, 0, 19, 9], 0.8)])
    metric = _score([half], False)
    assert metric.compute()["mAP"] == 1
    metric = _score([(half[0], [*half[1], (0, [50, 50, 60, 60], 0.95)])], False)
    assert metric.compute()["mAP"] == pytest.approx(0.5)


def test_difficult_objects_neither_count_nor_cost() -> None:
    difficult = ([(0, [0, 0, 19, 9], True), (0, [40, 40, 59, 59], False)],
                 [(0, [0, 0, 19, 9], 0.9), (0, [0, 0, 19, 9], 0.8), (0, [40, 40, 59, 59], 0.1)])  # fmt: skip
    metric = _score([difficult], True)
    assert metric.compute()["mAP"] == 1
    assert [row["objects"] for row in metric.per_class()] == [1, 0, 0]
    assert math.isnan(metric.per_class()[1]["AP"])
    assert math.isnan(_score([], True).compute()["mAP"])


def test_ranks_notes_and_the_choice_of_protocol() -> None:
    images = _random_images(3)
    ranks = [VocMetric(CLASSES, eleven_points=True) for _ in range(2)]
    for image_id, image in enumerate(images):
        ranks[image_id % 2].update(*_pair(image, image_id))
    merged = through_ranks(ranks, VocMetric(CLASSES, eleven_points=True))
    assert merged.compute() == pytest.approx(_score(images, True).compute())
    merged.update(*_pair(images[0], 0))
    assert "more than once" in merged.notes[0]
    for name, eleven_points in (("voc07", True), ("voc10", False)):
        metric: Any = build_metrics(Task.DETECTION, CLASSES, protocol=name)
        assert isinstance(metric, VocMetric) and metric.eleven_points is eleven_points
    target, prediction = _pair(images[0], 0)
    prediction.size_hw = (1, 1)
    with pytest.raises(DataError, match="frame"):
        merged.update(target, prediction)
