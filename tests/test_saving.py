"""Saving: every format is read back and compared with what the model said."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from test_results import GAPPED, some_instances, some_panoptic

from saccade.errors import SaccadeError, UsageError
from saccade.results import Caption, Grounding, SemanticMap
from saccade.samples import ClassList, Origin
from saccade.saving import CocoCollector, check_formats, save
from saccade.tasks import Task

PICTURE = Image.new("RGB", (30, 20), (80, 90, 100))


def origin(image_id: int | str, path: str | None = None) -> Origin:
    return Origin(dataset="test", image_id=image_id, path=path, size_hw=(20, 30))


def test_instances_in_every_format(tmp_path: Path) -> None:
    instances = some_instances(4)
    collector = CocoCollector()
    formats = {"json", "coco", "png", "npy", "overlay"}
    files = save(instances, PICTURE, "sub/a", tmp_path, formats, origin=origin(5), collector=collector)
    names = ["a.json", "a_instances.png", "a_masks.npy", "a_overlay.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [f"sub/{name}" for name in names]
    assert all(path.is_file() for path in files)
    assert len(collector) == 1
    described = json.loads(files[0].read_text())
    assert described["origin"]["image_id"] == 5
    ids = np.asarray(Image.open(files[1]))
    assert ids.dtype == np.uint16 and np.array_equal(ids, instances.id_map().numpy())
    assert set(np.unique(ids)) - {0} <= {item["id"] for item in described["instances"]}
    masks = np.load(files[2])
    assert masks.dtype == bool and np.array_equal(masks, instances.dense_masks().numpy())
    assert Image.open(files[3]).size == PICTURE.size


def test_one_class_also_gives_a_binary_mask(tmp_path: Path) -> None:
    lesion = dataclasses.replace(
        some_instances(2), classes=ClassList.from_names(["lesion"]), class_ids=torch.zeros(2, dtype=torch.int64)
    )
    files = {path.name: path for path in save(lesion, PICTURE, "a", tmp_path, {"png", "npy"})}
    for mask in (np.asarray(Image.open(files["a_mask.png"])), np.load(files["a_mask.npy"])):
        assert mask.dtype == np.uint8 and np.array_equal(mask, lesion.union_mask().numpy())


def test_semantic_map_in_every_format(tmp_path: Path) -> None:
    labels = torch.zeros(20, 30, dtype=torch.int64)
    labels[5:, 10:] = 2
    result = SemanticMap(labels=labels, classes=GAPPED)
    files = {path.name: path for path in save(result, PICTURE, "a", tmp_path, {"png", "npy", "overlay", "coco"})}
    assert sorted(files) == ["a.json", "a_coco.json", "a_overlay.png", "a_semantic.npy", "a_semantic.png"]
    assert np.array_equal(np.asarray(Image.open(files["a_semantic.png"])), labels.numpy())
    assert np.array_equal(np.load(files["a_semantic.npy"]), labels.numpy())
    names = {item["id"]: item["class_name"] for item in json.loads(files["a.json"].read_text())["regions"]}
    assert names == {0: "cat", 2: "sea horse"}


def test_panoptic_in_every_format_and_as_panopticapi_reads_it(tmp_path: Path) -> None:
    result, collector = some_panoptic(), CocoCollector()
    formats = {"json", "coco", "npy", "overlay"}
    files = save(result, PICTURE, "sub/a", tmp_path, formats, origin=origin("x"), collector=collector)
    assert sorted(path.name for path in files) == ["a.json", "a_overlay.png", "a_panoptic.npy", "a_panoptic.png"]
    ids = np.load(tmp_path / "sub" / "a_panoptic.npy")
    assert ids.dtype == np.int32 and np.array_equal(ids, result.segment_ids.numpy())
    assert {one["id"] for one in json.loads(files[0].read_text())["segments"]} == set(np.unique(ids)) - {0}
    results, dataset = (json.loads(path.read_text()) for path in collector.write(tmp_path))
    assert results == {"annotations": dataset["annotations"]}
    record = results["annotations"][0]
    assert record["image_id"] == dataset["images"][0]["id"] == 1
    assert np.array_equal(np.asarray(Image.open(tmp_path / record["file_name"])).astype(int) @ [1, 256, 65536], ids)
    assert [category["isthing"] for category in dataset["categories"]] == [1, 1, 0]
    alone = save(result, PICTURE, "b", tmp_path, {"coco"}, origin=origin(3))
    assert [path.name for path in alone] == ["b_coco.json", "b_panoptic.png"]
    assert json.loads(alone[0].read_text())["annotations"][0]["file_name"] == "b_panoptic.png"


def test_no_instances_is_a_result_too(tmp_path: Path) -> None:
    files = save(some_instances(0), PICTURE, "a", tmp_path, {"json", "png", "npy", "overlay"})
    assert np.asarray(Image.open(files[1])).max() == 0
    assert np.load(files[2]).shape == (0, 20, 30)


def test_unknown_and_unfit_formats(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'overlya'(.|\n)*did you mean 'overlay'"):
        check_formats({"json", "overlya"})
    with pytest.raises(UsageError, match=r"'detection' gives no masks"):
        check_formats({"png"}, Task.DETECTION)
    assert check_formats(["png", "json"], Task.SEMANTIC) == {"png", "json"}
    for prediction in (some_instances(1, masks=False), Caption(text="a", score=0.0)):
        with pytest.raises(UsageError, match="without masks"):
            save(prediction, PICTURE, "a", tmp_path, {"npy", "json"})
    assert not list(tmp_path.iterdir()), "nothing may be written before the check"


def test_a_number_that_json_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match="NaN or infinity"):
        save(Caption(text="a", score=float("nan")), PICTURE, "a", tmp_path, {"json"})


def test_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (path,) = save(Caption(text="ein Kätzchen", score=0.0), PICTURE, "a", tmp_path, {"json"}, origin=origin(name))
    read = json.loads(path.read_text(encoding="utf-8"))
    assert os.fsencode(read["origin"]["image_id"]) == b"caf\xe9" and read["text"] == "ein Kätzchen"


def test_coco_files_of_a_run_load_in_pycocotools_and_category_ids_survive(tmp_path: Path) -> None:
    collector = CocoCollector()
    runs = {number: some_instances(3, seed=number) for number in (139, 7, 25)}
    for number, instances in runs.items():
        collector.add(instances, origin=origin(number, f"/data/images/{number:06d}.jpg"))
    results, dataset = collector.write(tmp_path / "out")
    truth = COCO(str(dataset))
    loaded = truth.loadRes(str(results))
    assert sorted(loaded.getImgIds()) == [7, 25, 139]
    assert {c["id"]: c["name"] for c in truth.loadCats(truth.getCatIds())} == {3: "cat", 17: "dog", 90: "sea horse"}
    assert truth.loadImgs([7])[0] == {"id": 7, "file_name": "000007.jpg", "width": 30, "height": 20}
    for number, instances in runs.items():
        for coco in (truth, loaded):
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
            assert [a["category_id"] for a in annotations] == instances.category_ids
            masks = np.stack([coco.annToMask(a) for a in annotations]).astype(bool)
            assert np.array_equal(masks, instances.dense_masks().numpy())


def test_images_without_a_number_get_free_ones(tmp_path: Path) -> None:
    collector = CocoCollector()
    for where in (origin("b", "/d/x/b.jpg"), origin(1, "/d/1.jpg"), origin(1, "/d/x/001.jpg"), origin(0, "/d/0.jpg")):
        collector.add(some_instances(1), origin=where)
    results, dataset = collector.write(tmp_path)
    images = {image["file_name"]: image["id"] for image in json.loads(dataset.read_text())["images"]}
    assert images == {"x/b.jpg": 2, "1.jpg": 1, "x/001.jpg": 3, "0.jpg": 0}
    assert sorted(record["image_id"] for record in json.loads(results.read_text())) == [0, 1, 2, 3]


def test_captions_phrases_and_maps_of_a_run_load_too(tmp_path: Path) -> None:
    captions = CocoCollector()
    captions.add(Caption(text="a cat", score=0.0), origin=origin(1))
    results, dataset = captions.write(tmp_path / "captions")
    assert COCO(str(dataset)).loadRes(str(results)).loadAnns([1])[0]["caption"] == "a cat"

    phrases = CocoCollector()
    for phrase in ("the left cat", "the right cat"):
        box = torch.tensor([1.0, 2.0, 5.0, 9.0])
        phrases.add(Grounding(phrase=phrase, box_xyxy=box, score=0.5), origin=origin(1))
    results, dataset = phrases.write(tmp_path / "phrases")
    loaded = COCO(str(dataset)).loadRes(str(results))
    assert [a["phrase"] for a in loaded.loadAnns([1, 2])] == ["the left cat", "the right cat"]
    assert len(COCO(str(dataset)).getImgIds()) == 1

    maps = CocoCollector()
    labels = torch.zeros(20, 30, dtype=torch.int64)
    labels[3:9, 4:6] = 1
    maps.add(SemanticMap(labels=labels, classes=GAPPED), origin=origin(1))
    results, dataset = maps.write(tmp_path / "maps")
    loaded = COCO(str(dataset)).loadRes(str(results))
    assert [(a["category_id"], a["area"]) for a in loaded.loadAnns([1, 2])] == [(3, 588), (17, 12)]


def test_a_run_cannot_mix_kinds_or_class_lists() -> None:
    collector = CocoCollector()
    collector.add(some_instances(1), origin=origin(1))
    with pytest.raises(UsageError, match="both Instances and Caption"):
        collector.add(Caption(text="a", score=0.0), origin=origin(2))
    other = dataclasses.replace(some_instances(1), classes=ClassList.from_names(["a", "b", "c"]))
    with pytest.raises(UsageError, match="two class lists"):
        collector.add(other, origin=origin(2))
