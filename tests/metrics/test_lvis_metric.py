"""LVIS AP: real annotations through samples, and random problems against pycocotools with the federated rules added."""

from __future__ import annotations

import contextlib
import copy
import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from helpers_metrics import boxes, read_json, sample, through_ranks, to_samples
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from saccade.errors import DataError, UsageError
from saccade.metrics import DetectionMetric, LvisMetric, build_metrics
from saccade.metrics.lvis import MAX_DETECTIONS, lvis_ap
from saccade.results import Instances
from saccade.samples import ClassList, Sample, Target
from saccade.tasks import Task

SIZE = (80, 80)
CLASSES = ClassList(names=("cat", "dog", "owl"), category_ids=(3, 7, 90), frequencies=("r", "c", "f"))


def _load(name: str) -> Any:
    return read_json("lvis_det", name)


def _lvis_samples(
    truth: dict[str, Any], found: list[dict[str, Any]], iou_type: str
) -> tuple[ClassList, list[tuple[Sample, Instances]]]:
    truth = {**truth, "annotations": [{"iscrowd": 0, **annotation} for annotation in truth["annotations"]]}
    plain, pairs = to_samples(truth, found, iou_type)
    group = {category["id"]: category["frequency"] for category in truth["categories"]}
    classes = ClassList(
        names=plain.names, category_ids=plain.category_ids, frequencies=tuple(group[id_] for id_ in plain.category_ids)
    )
    for (target, prediction), image in zip(pairs, truth["images"], strict=True):
        target.classes = prediction.classes = classes
        target.target.absent_class_ids, target.target.partial_class_ids = (
            torch.tensor([classes.class_id(id_) for id_ in image[key]], dtype=torch.int64)
            for key in ("neg_category_ids", "not_exhaustive_category_ids")
        )
    return classes, pairs


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_real_annotations_through_samples_of_two_ranks(iou_type: str) -> None:
    wanted = _load("expected.json")[iou_type]
    classes, pairs = _lvis_samples(_load("input_gt.json"), _load(f"input_dt_{iou_type}.json"), iou_type)
    ranks = [LvisMetric(classes, masks=iou_type == "segm") for _ in range(2)]
    for at, pair in enumerate(pairs):
        ranks[at % 2].update(*pair)
    metric = through_ranks(ranks, LvisMetric(classes, masks=iou_type == "segm"))
    prefix = "mask_" if iou_type == "segm" else ""
    result = metric.evaluate(iou_type)
    assert {name: result.stats[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    if iou_type == "segm":
        scores = metric.compute()
        assert scores["mask_APf"] == result.stats["APf"] and "APf" in scores
    defined = [row[f"{prefix}AP"] for row in metric.per_class() if row[f"{prefix}AP"] >= 0]
    assert np.mean(defined) == pytest.approx(wanted["AP"], abs=1e-9)
    assert {row["frequency"] for row in metric.per_class()} == {"r", "c", "f"}


def _random_problem(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects on a coarse grid, scores with one decimal (many ties), some images without an object."""
    rng = random.Random(seed)
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [
            {"id": id_, "name": name, "frequency": frequency}
            for id_, name, frequency in zip(CLASSES.category_ids, CLASSES.names, CLASSES.frequencies, strict=True)
        ],
    }
    found = []

    def box() -> list[int]:
        return [4 * rng.randrange(5), 4 * rng.randrange(5), 4 * rng.randrange(1, 12), 4 * rng.randrange(1, 12)]

    for image_id in range(2, 30, 5):
        present = rng.sample(CLASSES.category_ids, rng.randrange(3))
        truth["images"].append(
            {
                "id": image_id,
                "height": SIZE[0],
                "width": SIZE[1],
                "neg_category_ids": [id_ for id_ in CLASSES.category_ids if id_ not in present and rng.random() < 0.5],
                "not_exhaustive_category_ids": [id_ for id_ in present if rng.random() < 0.3],
            }
        )
        for category_id in present:
            for _ in range(rng.randrange(1, 4)):
                x, y, w, h = box()
                entry = {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": category_id}
                truth["annotations"].append(entry | {"bbox": [x, y, w, h], "area": w * h})
        for _ in range(rng.randrange(12)):
            category_id, score = rng.choice(CLASSES.category_ids), rng.randrange(10) / 10
            found.append({"image_id": image_id, "category_id": category_id, "bbox": box(), "score": score})
    return truth, found


def _reference(truth: dict[str, Any], found: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Precision and recall of pycocotools where what LVIS leaves out is left out, and what it ignores is ignored."""
    partial = {image["id"]: image["not_exhaustive_category_ids"] for image in truth["images"]}
    known = {image["id"]: set(image["neg_category_ids"]) for image in truth["images"]}
    for annotation in truth["annotations"]:
        known[annotation["image_id"]].add(annotation["category_id"])
    kept = [dict(entry) for entry in found if entry["category_id"] in known[entry["image_id"]]]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **copy.deepcopy(truth)}
        for annotation in coco.dataset["annotations"]:
            annotation["iscrowd"] = 0
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(kept), "bbox")
        evaluator.params.maxDets = [MAX_DETECTIONS]
        evaluator.evaluate()
        for row in evaluator.evalImgs:
            if row is not None and row["category_id"] in partial[row["image_id"]]:
                row["dtIgnore"] = row["dtIgnore"] | (row["dtMatches"] == 0)
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def test_random_problems() -> None:
    differs = 0
    for seed in range(40):
        truth, found = _random_problem(seed)
        before = copy.deepcopy((truth, found))
        result = lvis_ap(truth, found, "bbox")
        assert (truth, found) == before
        precision, recall = _reference(truth, found)
        np.testing.assert_allclose(result.precision, precision, atol=1e-12)
        wanted = {"AP": precision[..., 0, 0], f"AR@{MAX_DETECTIONS}": recall[..., 0, 0], "APr": precision[:, :, 0, 0]}
        for name, values in wanted.items():
            defined = values[values > -1]
            assert result.stats[name] == pytest.approx(defined.mean() if defined.size else -1), (seed, name)
        for image in truth["images"]:
            image["not_exhaustive_category_ids"] = []
        differs += lvis_ap(truth, found, "bbox").stats["AP"] != result.stats["AP"]
    assert differs > 5  # the rule about partly annotated classes is at work


def _sample(
    rows: Any, class_ids: list[int], *, absent: list[int] | None = None, partial: list[int] | None = None
) -> Sample:
    target = Target(
        boxes=boxes(rows, SIZE),
        class_ids=torch.tensor(class_ids, dtype=torch.int64),
        absent_class_ids=torch.tensor(absent or [], dtype=torch.int64),
        partial_class_ids=torch.tensor(partial or [], dtype=torch.int64),
    )
    return sample(Task.DETECTION, 1, target, size_hw=SIZE, classes=CLASSES)


def _instances(rows: Any, scores: list[float], class_ids: list[int]) -> Instances:
    return Instances(
        boxes_xyxy=torch.tensor(rows, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores),
        class_ids=torch.tensor(class_ids, dtype=torch.int64),
        classes=CLASSES,
        size_hw=SIZE,
    )


@pytest.mark.parametrize(
    ("absent", "partial", "score"),
    [([], [], 1.0), ([1], [], 1.0), ([0], [], 1.0), ([], [0], 1.0)],
)
def test_what_was_not_looked_for_costs_nothing(absent: list[int], partial: list[int], score: float) -> None:
    metric = LvisMetric(CLASSES)
    said = _instances([[50, 50, 70, 70], [1, 1, 30, 30]], [0.9, 0.5], [1, 0])  # a dog that nobody looked for
    metric.update(_sample([[1, 1, 30, 30]], [0], absent=absent, partial=partial), said)
    scores = metric.compute()
    assert scores["AP"] == scores["APr"] == pytest.approx(score)
    assert scores["APc"] == scores["APf"] == -1


@pytest.mark.parametrize(("partial", "score"), [([], 0.5), ([0], 1.0)])
def test_false_positive_of_a_present_class_counts_unless_it_is_partly_annotated(
    partial: list[int], score: float
) -> None:
    metric = LvisMetric(CLASSES)
    said = _instances([[50, 50, 70, 70], [1, 1, 30, 30]], [0.9, 0.5], [0, 0])
    metric.update(_sample([[1, 1, 30, 30]], [0], partial=partial), said)
    assert metric.compute()["AP"] == pytest.approx(score)


@pytest.mark.parametrize(("others", "score"), [(MAX_DETECTIONS - 1, 1.0), (MAX_DETECTIONS, 0.0)])
def test_the_limit_is_over_all_classes_before_any_is_left_out(others: int, score: float) -> None:
    metric = LvisMetric(CLASSES)
    rows = [[50, 50, 70, 70]] * others + [[1, 1, 30, 30]]
    metric.update(_sample([[1, 1, 30, 30]], [0]), _instances(rows, [0.9] * others + [0.1], [2] * others + [0]))
    assert metric.compute()["AP"] == pytest.approx(score)


def test_a_class_list_with_frequencies_is_scored_as_lvis_and_others_are_not() -> None:
    plain = ClassList(names=CLASSES.names, category_ids=CLASSES.category_ids)
    assert isinstance(build_metrics(Task.INSTANCE, CLASSES), LvisMetric)
    assert type(build_metrics(Task.DETECTION, CLASSES, protocol="coco")) is DetectionMetric
    assert type(build_metrics(Task.DETECTION, plain)) is DetectionMetric
    with pytest.raises(UsageError, match="frequencies"):
        build_metrics(Task.DETECTION, plain, protocol="lvis")
    with pytest.raises(UsageError, match=r"did you mean 'lvis'"):
        build_metrics(Task.DETECTION, plain, protocol="lvs")
    with pytest.raises(UsageError, match="unknown protocol 'lvis'"):
        build_metrics(Task.SEMANTIC, plain, protocol="lvis")
    target = _sample([[1, 1, 30, 30]], [0])
    target.target.absent_class_ids = None
    with pytest.raises(DataError, match="looked for"):
        LvisMetric(CLASSES).update(target, _instances([], [], []))
    assert set(LvisMetric(CLASSES).compute().values()) == {-1}
