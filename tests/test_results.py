"""Results: run lengths, class ids with gaps, COCO, truth as prediction."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools.coco import COCO
from torchvision import tv_tensors

from saccade.errors import DataError, UsageError
from saccade.results import (
    Caption,
    Grounding,
    Instances,
    Panoptic,
    SemanticMap,
    decode_masks,
    encode_masks,
    from_truth,
)
from saccade.samples import IGNORE_LABEL, ClassList, Origin, Sample, Segment, Target
from saccade.tasks import Task

GAPPED = ClassList(names=("cat", "dog", "sea horse"), category_ids=(3, 17, 90))


def some_instances(count: int, size_hw: tuple[int, int] = (20, 30), *, seed: int = 0, masks: bool = True) -> Instances:
    """Instances with rectangular masks that fill their boxes exactly."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    boxes = np.empty((count, 4), dtype=np.float32)
    dense = np.zeros((count, height, width), dtype=bool)
    for k in range(count):
        x0, y0 = rng.integers(0, width - 1), rng.integers(0, height - 1)
        x1, y1 = rng.integers(x0 + 1, width + 1), rng.integers(y0 + 1, height + 1)
        boxes[k] = x0, y0, x1, y1
        dense[k, y0:y1, x0:x1] = True
    return Instances(
        boxes_xyxy=torch.from_numpy(boxes),
        scores=torch.sort(torch.from_numpy(rng.random(count, dtype=np.float32)), descending=True).values,
        class_ids=torch.from_numpy(rng.integers(0, 3, count)),
        classes=GAPPED,
        size_hw=size_hw,
        masks=encode_masks(dense) if masks else None,
    )


def same(a: Instances, b: Instances) -> bool:
    return (
        torch.equal(a.boxes_xyxy, b.boxes_xyxy)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.class_ids, b.class_ids)
        and a.classes == b.classes
        and a.size_hw == b.size_hw
        and a.masks == b.masks
    )


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=20)))
def test_rle_round_trip(masks: np.ndarray) -> None:
    rles = encode_masks(masks)
    assert all(isinstance(rle["counts"], bytes) for rle in rles)
    assert torch.equal(decode_masks(rles, masks.shape[1:]), torch.from_numpy(masks))
    assert encode_masks(torch.from_numpy(masks)) == rles


def test_rle_of_no_masks_and_of_the_wrong_size() -> None:
    assert encode_masks(torch.zeros(0, 5, 6, dtype=torch.bool)) == []
    assert decode_masks([], (5, 6)).shape == (0, 5, 6)
    with pytest.raises(DataError, match=r"\(5, 6\).*\(6, 5\)"):
        decode_masks(encode_masks(torch.ones(1, 5, 6, dtype=torch.bool)), (6, 5))


def test_category_ids_and_names_follow_the_class_list() -> None:
    instances = some_instances(3)
    instances.class_ids = torch.tensor([2, 0, 1])
    assert instances.category_ids == [90, 3, 17]
    assert instances.class_names == ["sea horse", "cat", "dog"]
    assert len(instances) == 3


def test_filter_by_score_and_class_keeps_order_and_masks() -> None:
    instances = some_instances(12)
    kept = instances.filter(min_score=float(instances.scores[8]), class_ids=[0, 2])
    expected = [k for k in range(9) if int(instances.class_ids[k]) in (0, 2)]
    assert torch.equal(kept.boxes_xyxy, instances.boxes_xyxy[expected])
    assert torch.equal(kept.dense_masks(), instances.dense_masks()[expected])
    assert len(instances.filter(min_score=2.0)) == 0
    assert instances.filter(min_score=2.0).dense_masks().shape == (0, 20, 30)
    assert len(instances.filter(class_ids=[])) == 0


def test_the_better_score_lies_on_top_in_the_id_map() -> None:
    instances = some_instances(6)
    dense, ids = instances.dense_masks(), instances.id_map()
    first = torch.where(dense.any(0), dense.int().argmax(0) + 1, 0)
    assert torch.equal(ids, first)
    assert torch.equal(instances.union_mask(), dense.any(0))


def test_masks_of_boxes_only_is_an_error() -> None:
    with pytest.raises(UsageError, match="no masks"):
        some_instances(2, masks=False).dense_masks()


def test_to_dict_is_json_and_names_everything() -> None:
    instances = some_instances(4)
    read = json.loads(json.dumps(instances.to_dict(), allow_nan=False))
    assert read["size_hw"] == [20, 30]
    for k, item in enumerate(read["instances"]):
        assert item["id"] == k + 1
        assert GAPPED.names[item["class_id"]] == item["class_name"]
        assert GAPPED.category_ids[item["class_id"]] == item["category_id"]
        assert item["area"] == instances.dense_masks()[k].sum()
        assert isinstance(item["segmentation"]["counts"], str)
    assert "segmentation" not in some_instances(1, masks=False).to_dict()["instances"][0]


@settings(deadline=None, max_examples=30)
@given(count=st.integers(0, 8), seed=st.integers(0, 1000), masks=st.booleans())
def test_coco_round_trip(count: int, seed: int, masks: bool) -> None:
    instances = some_instances(count, seed=seed, masks=masks)
    records = json.loads(json.dumps(instances.to_coco(139)))
    assert {record["image_id"] for record in records} <= {139}
    rebuilt = Instances.from_coco(records, GAPPED, (20, 30))
    if count == 0 and masks:
        rebuilt.masks = []  # an empty list of records cannot tell
    assert same(rebuilt, instances)


def test_from_coco_refuses_an_unknown_category() -> None:
    records = some_instances(1).to_coco(1)
    records[0]["category_id"] = 4
    with pytest.raises(DataError, match="category id 4"):
        Instances.from_coco(records, GAPPED, (20, 30))


def test_supervision() -> None:
    pytest.importorskip("supervision")
    instances = some_instances(5)
    detections = instances.to_supervision()
    assert np.array_equal(detections.xyxy, instances.boxes_xyxy.numpy())
    assert np.array_equal(detections.mask, instances.dense_masks().numpy())
    assert list(detections.data["class_name"]) == instances.class_names
    assert len(some_instances(0).to_supervision()) == 0
    labels = torch.zeros(6, 8, dtype=torch.int64)
    labels[2:4, 3:7] = 2
    regions = SemanticMap(labels=labels, classes=GAPPED).to_supervision()
    assert list(regions.class_id) == [0, 2]
    assert np.array_equal(regions.mask[1], (labels == 2).numpy())


def test_semantic_map_describes_and_encodes_itself() -> None:
    labels = torch.zeros(6, 8, dtype=torch.int64)
    labels[2:4, 3:7] = 2
    labels[0, 0] = IGNORE_LABEL
    result = SemanticMap(labels=labels, classes=GAPPED)
    regions = result.to_dict()["regions"]
    assert [(r["class_name"], r["category_id"], r["area"]) for r in regions] == [("cat", 3, 39), ("sea horse", 90, 8)]
    assert sum(r["share"] for r in regions) == pytest.approx(47 / 48)
    json.dumps(result.to_coco(7))
    masks = decode_masks([record["segmentation"] for record in result.to_coco(7)], (6, 8))
    assert torch.equal(masks, torch.stack([labels == 0, labels == 2]))


@pytest.mark.parametrize(("count", "mode"), [(3, "P"), (300, "I;16")])
def test_semantic_png_holds_the_ids(count: int, mode: str) -> None:
    labels = torch.arange(20).reshape(4, 5) * (count - 1) // 19
    png = SemanticMap(labels=labels, classes=ClassList.from_names(f"class {k}" for k in range(count))).to_png()
    assert png.mode == mode
    assert np.array_equal(np.asarray(png), labels.numpy())


def test_caption_and_grounding_records() -> None:
    assert Caption(text="a cat", score=-0.5).to_coco(5) == [{"image_id": 5, "caption": "a cat"}]
    grounding = Grounding(phrase="the dog", box_xyxy=torch.tensor([1.0, 2.0, 5.0, 10.0]), score=0.5)
    assert grounding.to_coco("a") == [
        {
            "image_id": "a",
            "category_id": 1,
            "bbox": [1.0, 2.0, 4.0, 8.0],
            "score": 0.5,
            "phrase": "the dog",
            "area": 32.0,
        }
    ]
    assert json.loads(json.dumps(grounding.to_dict()))["box_xyxy"] == [1.0, 2.0, 5.0, 10.0]


def test_draw_refuses_another_picture() -> None:
    with pytest.raises(UsageError, match=r"30x20 pixels, the picture has 31x20"):
        some_instances(1).draw(Image.new("RGB", (31, 20)))


def truth_sample(task: Task, target: Target) -> Sample:
    return Sample(
        image=tv_tensors.Image(torch.zeros(3, 20, 30, dtype=torch.uint8)),
        task=task,
        target=target,
        classes=GAPPED,
        phrase="the cat",
        origin=Origin(dataset="test", image_id=1, path=None, size_hw=(20, 30)),
    )


def test_truth_becomes_the_perfect_prediction() -> None:
    want = some_instances(3)
    want.scores = torch.ones(3)
    target = Target(
        boxes=tv_tensors.BoundingBoxes(want.boxes_xyxy, format="XYXY", canvas_size=(20, 30)),
        class_ids=want.class_ids,
        masks=tv_tensors.Mask(want.dense_masks()),
        semantic=tv_tensors.Mask(torch.full((20, 30), 2)),
        captions=("a cat", "two cats"),
    )
    assert same(from_truth(truth_sample(Task.INSTANCE, target)), want)
    assert from_truth(truth_sample(Task.DETECTION, target)).masks is None
    assert from_truth(truth_sample(Task.SEMANTIC, target)).to_dict()["regions"][0]["area"] == 600
    assert from_truth(truth_sample(Task.CAPTION, target)).text == "a cat"
    assert torch.equal(from_truth(truth_sample(Task.GROUNDING, target)).box_xyxy, want.boxes_xyxy[0])
    for task in Task:
        with pytest.raises(DataError, match="no complete truth"):
            from_truth(truth_sample(task, Target()))


def some_panoptic() -> Panoptic:
    """A cat and a dog on an unlabelled ground, with ids that fill all three channels of a PNG."""
    ids = torch.zeros(20, 30, dtype=torch.int64)
    ids[2:8, 3:9], ids[10:20, 10:30] = 70000, 258
    classes = ClassList(names=GAPPED.names, category_ids=GAPPED.category_ids, things=(True, True, False))
    segments = (Segment(id=70000, class_id=2, score=0.5), Segment(id=258, class_id=1))
    return Panoptic(segment_ids=ids, segments=segments, classes=classes)


def test_panoptic_describes_itself() -> None:
    result = some_panoptic()
    assert result.size_hw == (20, 30)
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["segments"] == [
        {"id": 70000, "class_id": 2, "class_name": "sea horse", "category_id": 90, "is_thing": False, "score": 0.5,
         "area": 36},
        {"id": 258, "class_id": 1, "class_name": "dog", "category_id": 17, "is_thing": True, "score": 1.0, "area": 200},
    ]  # fmt: skip
    record = result.to_coco(9)[0]
    assert (record["image_id"], record["file_name"]) == (9, "9.png")
    assert [(one["id"], one["category_id"], one["isthing"]) for one in record["segments_info"]] == [
        (70000, 90, 0),
        (258, 17, 1),
    ]
    channels = np.asarray(result.to_png()).astype(np.int64)
    assert np.array_equal(channels @ [1, 256, 65536], result.segment_ids.numpy())
    result.segment_ids[0, 0] = 1 << 24
    with pytest.raises(DataError, match="three channels"):
        result.to_png()


def test_panoptic_is_drawn_by_class_with_a_line_around_each_segment() -> None:
    result = some_panoptic()
    result.segments = (Segment(id=70000, class_id=1), Segment(id=258, class_id=1))
    result.segment_ids[8:10, 3:30] = 70000  # the two touch, and are of one class
    drawn = np.asarray(result.draw(Image.new("RGB", (30, 20), (100, 100, 100))))
    assert drawn.shape[0] > 20 and drawn.shape[1] == 30
    assert (drawn[0, 0] == 100).all(), "pixels of no segment stay"
    assert (drawn[10, 20] == 255).all(), "the line between the two"
    assert not (drawn[3, 5] == 100).all()
    with pytest.raises(UsageError, match="original image"):
        result.draw(Image.new("RGB", (31, 20)))


def test_panoptic_for_supervision() -> None:
    pytest.importorskip("supervision")
    detections = some_panoptic().to_supervision()
    assert detections.class_id.tolist() == [2, 1] and detections.mask.sum(axis=(1, 2)).tolist() == [36, 200]
    assert list(detections.data["class_name"]) == ["sea horse", "dog"]
    empty = some_panoptic()
    empty.segments = ()
    assert len(empty.to_supervision()) == 0


def test_coco_records_load_in_pycocotools() -> None:
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": 139, "width": 30, "height": 20}],
        "categories": [{"id": c, "name": n} for c, n in zip(GAPPED.category_ids, GAPPED.names, strict=True)],
        "annotations": [],
    }
    coco.createIndex()
    instances = some_instances(4)
    loaded = coco.loadRes(instances.to_coco(139))
    annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[139]))
    assert [a["category_id"] for a in annotations] == instances.category_ids
    assert all(
        np.array_equal(loaded.annToMask(a).astype(bool), m.numpy())
        for a, m in zip(annotations, instances.dense_masks(), strict=True)
    )
