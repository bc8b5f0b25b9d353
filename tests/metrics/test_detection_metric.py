"""COCO AP through samples and predictions, and what must hold whatever the data."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from helpers_metrics import boxes, read_json, sample, through_ranks, to_samples
from pycocotools import mask as mask_utils
from torchvision import tv_tensors

from saccade.errors import DataError, UsageError
from saccade.metrics import DetectionMetric, build_metrics
from saccade.metrics.detection import STAT_NAMES, coco_ap
from saccade.results import Caption, Instances
from saccade.samples import ClassList, Sample, Target
from saccade.tasks import Task

CLASSES = ClassList(names=("cat", "dog", "owl"), category_ids=(3, 7, 90))
SIZE = (40, 60)


def _load(name: str) -> Any:
    return read_json("coco_det", name)


def _random_problem(seed: int, images: int = 6) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects on a coarse grid and scores with one decimal: many ties of overlap and of score, some crowds."""
    rng = random.Random(seed)

    def box() -> list[int]:
        return [4 * rng.randrange(5), 4 * rng.randrange(5), 4 * rng.randrange(1, 12), 4 * rng.randrange(1, 12)]

    truth: dict[str, Any] = {
        "images": [{"id": 5 * at + 2, "height": 80, "width": 80} for at in range(images)],
        "categories": [
            {"id": id_, "name": name} for id_, name in zip(CLASSES.category_ids, CLASSES.names, strict=True)
        ],
        "annotations": [],
    }
    found = []
    for image in truth["images"]:
        for _ in range(rng.randrange(5)):
            x, y, w, h = box()
            annotation = {
                "id": len(truth["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": rng.choice((3, 7)),
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": int(rng.random() < 0.15),
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            truth["annotations"].append(annotation)
        for _ in range(rng.randrange(8)):
            x, y, w, h = box()
            rle = mask_utils.merge(mask_utils.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], 80, 80))
            entry = {"image_id": image["id"], "category_id": rng.choice((3, 7, 90)), "score": rng.randrange(10) / 10}
            found.append(entry | {"bbox": [x, y, w, h], "segmentation": rle})
    return truth, found


def _for(iou_type: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    dropped = "bbox" if iou_type == "segm" else "segmentation"
    return [{name: value for name, value in entry.items() if name != dropped} for entry in found]


def _instances(rows: Any, scores: list[float], class_ids: list[int], masks: Any = None) -> Instances:
    return Instances(
        boxes_xyxy=torch.tensor(rows, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores),
        class_ids=torch.tensor(class_ids, dtype=torch.int64),
        classes=CLASSES,
        size_hw=SIZE,
        masks=masks,
    )


def _sample(rows: Any, class_ids: list[int], image_id: int | str = 1, masks: torch.Tensor | None = None) -> Sample:
    target = Target(boxes=boxes(rows, SIZE), class_ids=torch.tensor(class_ids, dtype=torch.int64))
    if masks is not None:
        target.masks = tv_tensors.Mask(masks)
    return sample(Task.DETECTION, image_id, target, size_hw=SIZE, classes=CLASSES)


@pytest.mark.parametrize("engine", ["pycocotools", "faster"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_real_annotations_through_samples(engine: Any, iou_type: str) -> None:
    truth, found, wanted = _load("input_gt.json"), _load(f"input_dt_{iou_type}.json"), _load("expected.json")[iou_type]
    classes, pairs = to_samples(truth, found, iou_type)
    metric = DetectionMetric(classes, masks=iou_type == "segm", engine=engine)
    for target, prediction in pairs:
        metric.update(target, prediction)
    prefix = "mask_" if iou_type == "segm" else ""
    scores = metric.compute()
    assert {name: scores[prefix + name] for name in STAT_NAMES} == pytest.approx(wanted["stats"], abs=1e-9)
    per_class = {str(row["category_id"]): row[f"{prefix}AP"] for row in metric.per_class()}
    assert per_class == pytest.approx(wanted["per_category_AP"], abs=1e-9)


@pytest.mark.parametrize("use_cats", [True, False])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_engines_agree(iou_type: Any, use_cats: bool) -> None:
    for seed in range(25):
        truth, found = _random_problem(seed)
        found = _for(iou_type, found)
        official = coco_ap(truth, found, iou_type, engine="pycocotools", use_cats=use_cats)
        faster = coco_ap(truth, found, iou_type, engine="faster", use_cats=use_cats)
        assert faster.stats == pytest.approx(official.stats, abs=1e-12), seed
        np.testing.assert_allclose(faster.precision, official.precision, atol=1e-12)
        assert faster.per_category == pytest.approx(official.per_category, abs=1e-12)


def test_arguments_stay_as_they_were_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = _random_problem(1)
    before = copy.deepcopy((truth, found))
    for engine in ("pycocotools", "faster"):
        coco_ap(truth, _for("segm", found), "segm", engine=engine)
        coco_ap(truth, found, "bbox", engine=engine)
    assert (truth, found) == before
    assert capsys.readouterr().out == ""


def test_halves_of_two_ranks_equal_the_whole_and_order_does_not_matter() -> None:
    truth, found = _random_problem(3, images=12)
    for entry, score in zip(found, np.random.default_rng(0).permutation(len(found)), strict=True):
        entry["score"] = float(score) / len(found)  # no ties: the order of images must not matter
    classes, pairs = to_samples(truth, _for("segm", found), "segm")
    whole = DetectionMetric(classes, masks=True)
    for pair in pairs:
        whole.update(*pair)
    ranks = [DetectionMetric(classes, masks=True) for _ in range(2)]
    for at, pair in enumerate(reversed(pairs)):
        ranks[at % 2].update(*pair)
    merged = through_ranks(ranks, DetectionMetric(classes, masks=True))
    assert merged.compute() == pytest.approx(whole.compute(), abs=1e-12)
    assert 0 < whole.compute()["mask_AP"] < 1
    assert merged.notes == []


def test_perfect_predictions_score_one() -> None:
    masks = torch.zeros((2, *SIZE), dtype=torch.bool)
    masks[0, 2:30, 3:20] = masks[1, 10:35, 25:55] = True
    rows = [[3, 2, 20, 30], [25, 10, 55, 35]]
    rles = list(mask_utils.encode(np.asfortranarray(masks.numpy().transpose(1, 2, 0).astype(np.uint8))))
    metric = build_metrics(Task.INSTANCE, CLASSES)
    metric.update(_sample(rows, [0, 2], masks=masks), _instances(rows, [0.9, 0.8], [0, 2], rles))
    metric.update(_sample([], [], image_id=2, masks=torch.zeros((0, *SIZE))), _instances([], [], [], []))
    scores = metric.compute()
    assert scores["AP"] == pytest.approx(1) and scores["mask_AP"] == pytest.approx(1)
    assert scores["mask_APl"] == scores["APl"] == -1  # no object of this size
    rows = metric.per_class()
    assert [row["objects"] for row in rows] == [1, 0, 1]
    assert [round(row["AP"], 6) for row in rows] == [1, -1, 1]
    assert [row["category_id"] for row in rows] == [3, 7, 90]


def test_boundary_ap_through_samples_and_ranks() -> None:
    truth, found, wanted = (
        read_json("boundary_ap", f"{name}.json") for name in ("input_gt", "input_dt_segm", "expected")
    )
    classes, pairs = to_samples(truth, found, "segm")
    ranks = [DetectionMetric(classes, masks=True, boundary=True) for _ in range(2)]
    for at, pair in enumerate(pairs):
        ranks[at % 2].update(*pair)
    metric = through_ranks(ranks, DetectionMetric(classes, masks=True, boundary=True))
    scores = metric.compute()
    assert {name: scores[f"boundary_{name}"] for name in STAT_NAMES} == pytest.approx(wanted["dilation_0.02"], abs=1e-9)
    assert scores["boundary_AP"] < scores["mask_AP"] <= 1
    defined = [row["boundary_AP"] for row in metric.per_class() if row["boundary_AP"] >= 0]
    assert np.mean(defined) == pytest.approx(scores["boundary_AP"])


def test_boundary_of_a_square_by_hand() -> None:
    """In 300 x 400 a boundary is 10 pixels wide; a square that lacks 4 columns of 200 keeps a mask IoU of 0.98."""

    def square(width: int) -> dict[str, Any]:
        mask = np.zeros((300, 400), np.uint8, order="F")
        mask[50:250, 50 : 50 + width] = 1
        return mask_utils.encode(mask)

    ring, own, common = 200**2 - 180**2, 200 * 196 - 180 * 176, 200 * 196 - 180**2
    assert 0.80 < common / (ring + own - common) < 0.85  # seven of the ten thresholds
    truth = {
        "images": [{"id": 1, "height": 300, "width": 400}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 200**2, "bbox": [50, 50, 200, 200]}
            | {"segmentation": square(200)}
        ],
    }
    found = [{"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": square(196)}]
    assert coco_ap(truth, found, "segm").stats["AP"] == pytest.approx(1)
    assert coco_ap(truth, found, "boundary").stats["AP"] == pytest.approx(0.7)
    assert coco_ap(truth, found, "boundary", dilation_ratio=1.0).stats["AP"] == pytest.approx(1)


def test_nothing_to_evaluate() -> None:
    metric = DetectionMetric(CLASSES)
    assert set(metric.compute().values()) == {-1}
    metric.update(_sample([], []), _instances([[1, 1, 5, 5]], [0.5], [0]))
    assert set(metric.compute().values()) == {-1}
    metric.update(_sample([[1, 1, 9, 9]], [1], image_id=2), _instances([], [], []))
    assert metric.compute()["AP"] == 0


def test_size_ranges_follow_the_annotated_area() -> None:
    """A target's own area decides small, medium or large, as in COCO: the box here is large, the object small."""
    target = _sample([[0, 0, 40, 40]], [0])
    target.target.areas = torch.tensor([100.0], dtype=torch.float64)
    metric = DetectionMetric(CLASSES)
    metric.update(target, _instances([[0, 0, 40, 40]], [0.5], [0]))
    assert metric.compute()["APs"] == pytest.approx(1)
    assert metric.compute()["APm"] == -1


def test_images_that_come_twice_count_once_and_are_reported() -> None:
    metric = DetectionMetric(CLASSES)
    right, wrong = _instances([[1, 1, 9, 9]], [0.5], [1]), _instances([[20, 1, 29, 9]], [0.5], [1])
    metric.update(_sample([[1, 1, 9, 9]], [1]), right)
    metric.update(_sample([[1, 1, 9, 9]], [1]), wrong)
    assert metric.compute()["AP"] == pytest.approx(1)
    assert "1 images came more than once" in metric.notes[0]


def test_wrong_pairs_are_refused() -> None:
    target, prediction = _sample([[1, 1, 9, 9]], [1]), _instances([[1, 1, 9, 9]], [0.5], [1])
    metric = DetectionMetric(CLASSES)
    with pytest.raises(UsageError, match="Instances"):
        metric.update(target, Caption(text="a cat", score=0.0))
    shifted = ClassList(names=("background", "cat", "dog"), category_ids=(3, 7, 90))
    with pytest.raises(DataError, match="same class list"):
        DetectionMetric(shifted).update(target, prediction)
    with pytest.raises(DataError, match="finite"):
        metric.update(target, _instances([[1, float("nan"), 9, 9]], [0.5], [1]))
    with pytest.raises(DataError, match="masks"):
        DetectionMetric(CLASSES, masks=True).update(target, prediction)
    prediction.size_hw = (60, 40)
    with pytest.raises(DataError, match="frame"):
        metric.update(target, prediction)
    with pytest.raises(UsageError, match="class list"):
        build_metrics(Task.DETECTION)
    with pytest.raises(UsageError, match="boundaries are those of masks"):
        build_metrics(Task.DETECTION, CLASSES, protocol="boundary")
    truth, found = _random_problem(0)
    with pytest.raises(DataError, match="does not have"):
        coco_ap(truth, [found[0] | {"image_id": 1}], "bbox")
    with pytest.raises(UsageError, match="pycocotools"):
        coco_ap(truth, found, "bbox", engine="pycocotool")  # type: ignore[arg-type]
