"""Scenes written as files say what the scenes say, in the official layouts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from saccade.data.scenes import FORMATS, SEMANTIC_CLASSES, THING_CLASSES, Scene, draw_scene, write_scenes
from saccade.data.scenes.refer_writers import rectangles
from saccade.errors import DataError, UsageError

COUNT = 4


def scene_of(index: int, word: int = 1, size_hw: tuple[int, int] = (96, 96)) -> Scene:
    return draw_scene((0, word, index), size_hw)


def write(out: Path, format: str, **options: Any) -> dict[str, Any]:
    return write_scenes(out, format=format, count=COUNT, **{"split": "val", "size": 96, **options})


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_coco_instances_and_captions(tmp_path: Path) -> None:
    summary = write(tmp_path, "coco")
    coco = COCO(tmp_path / "annotations" / "instances_val2017.json")
    assert sorted(coco.cats) == list(range(1, len(THING_CLASSES) + 1))
    assert summary["images"] == len(coco.imgs) == COUNT
    captions = COCO(tmp_path / "annotations" / "captions_val2017.json")
    for index, image_id in enumerate(sorted(coco.imgs)):
        scene = scene_of(index)
        with Image.open(tmp_path / "val2017" / coco.imgs[image_id]["file_name"]) as image:
            assert np.abs(np.asarray(image).astype(int) - scene.image).mean() < 4
        annotations = coco.imgToAnns[image_id]
        assert len(annotations) == len(scene)
        for k, annotation in enumerate(annotations):
            assert np.array_equal(coco.annToMask(annotation), scene.masks[k])
            x, y, width, height = annotation["bbox"]
            assert [x, y, x + width, y + height] == scene.boxes_xyxy[k].tolist()
            assert annotation["area"] == scene.areas[k]
            assert coco.cats[annotation["category_id"]]["name"] == THING_CLASSES[scene.class_ids[k]]
        assert tuple(a["caption"] for a in captions.imgToAnns[image_id]) == scene.captions


def test_coco_panoptic(tmp_path: Path) -> None:
    write(tmp_path, "coco", split="train")
    panoptic = load(tmp_path / "annotations" / "panoptic_train2017.json")
    names = {category["id"]: category["name"] for category in panoptic["categories"]}
    assert list(names.values()) == list(SEMANTIC_CLASSES)
    for index, entry in enumerate(panoptic["annotations"]):
        scene = scene_of(index, word=0)
        with Image.open(tmp_path / "annotations" / "panoptic_train2017" / entry["file_name"]) as image:
            channels = np.asarray(image).astype(np.int64)
        numbers = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
        assert set(np.unique(numbers)) == {info["id"] for info in entry["segments_info"]}
        for info, segment in zip(entry["segments_info"], scene.segments, strict=True):
            inside = numbers == info["id"]
            assert np.array_equal(inside, scene.panoptic == segment.id)
            assert info["area"] == inside.sum()
            assert names[info["category_id"]] == SEMANTIC_CLASSES[segment.label]
            rows, columns = np.nonzero(inside)
            size = [columns.max() - columns.min() + 1, rows.max() - rows.min() + 1]
            assert info["bbox"] == [columns.min(), rows.min(), *size]


def test_ade(tmp_path: Path) -> None:
    write(tmp_path, "ade")
    for index in range(COUNT):
        assert (tmp_path / "images" / "validation" / f"ADE_val_{index + 1:08d}.jpg").is_file()
        with Image.open(tmp_path / "annotations" / "validation" / f"ADE_val_{index + 1:08d}.png") as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), scene_of(index).semantic + 1)
    rows = [line.split("\t") for line in (tmp_path / "objectInfo150.txt").read_text().splitlines()]
    assert rows[0] == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    assert [row[-1] for row in rows[1:]] == list(SEMANTIC_CLASSES)
    assert sum(float(row[1]) for row in rows[1:]) == pytest.approx(1, abs=0.01)


def test_karpathy(tmp_path: Path) -> None:
    write(tmp_path, "karpathy", split="train")
    write(tmp_path, "karpathy", split="test")
    train = load(tmp_path / "annotations" / "coco_karpathy_train.json")
    assert len(train) == 5 * COUNT
    assert train[6]["caption"] == scene_of(1, word=0).captions[1]
    test = load(tmp_path / "annotations" / "coco_karpathy_test.json")
    truth = load(tmp_path / "annotations" / "coco_karpathy_test_gt.json")
    assert [tuple(entry["caption"]) for entry in test] == [scene_of(k, word=2).captions for k in range(COUNT)]
    for entry in (*train, *test):
        assert (tmp_path / entry["image"]).is_file()
    # The number in a file name is the image id of the ground truth, as caption evaluation expects.
    numbers = [int(Path(entry["image"]).stem.split("_")[-1]) for entry in test]
    assert numbers == [image["id"] for image in truth["images"]]
    assert [a["caption"] for a in truth["annotations"] if a["image_id"] == numbers[2]] == test[2]["caption"]


def targets_of(scene: Scene, text: str) -> list[int]:
    from helpers_scenes import Reader

    return sorted(Reader(scene).meaning(text))


def test_refcoco(tmp_path: Path) -> None:
    write(tmp_path, "refcoco", split="val")
    write(tmp_path, "refcoco", split="test")
    refs = pickle.loads((tmp_path / "refcoco" / "refs(unc).p").read_bytes())
    coco = COCO(tmp_path / "refcoco" / "instances.json")
    assert len(coco.imgs) == 2 * COUNT
    assert {ref["split"] for ref in refs} == {"val", "testA"}
    for key in ("ref_id", "ann_id"):
        assert len({ref[key] for ref in refs}) == len(refs)
    for ref in refs:
        word, index = divmod(ref["image_id"] - 1, 10**9)
        scene = scene_of(index, word)
        annotation = coco.anns[ref["ann_id"]]
        mask = coco.annToMask(annotation).astype(bool)
        (k,) = [k for k in range(len(scene)) if np.array_equal(scene.masks[k], mask)]
        assert annotation["category_id"] == ref["category_id"] == scene.class_ids[k] + 1
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        for sentence in ref["sentences"]:
            assert targets_of(scene, sentence["sent"]) == [k]
            assert sentence["tokens"] == sentence["sent"].split()
        name = coco.imgs[ref["image_id"]]["file_name"]
        assert (tmp_path / "images" / "mscoco" / "images" / "train2014" / name).is_file()


def test_grefcoco(tmp_path: Path) -> None:
    summary = write(tmp_path, "grefcoco")
    refs = load(tmp_path / "grefcoco" / "grefs(unc).json")
    coco = COCO(tmp_path / "grefcoco" / "instances.json")
    assert summary["references"] == len(refs)
    numbers = set()
    for ref in refs:
        scene = scene_of(ref["image_id"] - 10**9 - 1)
        (sentence,) = ref["sentences"]
        meant = targets_of(scene, sentence["sent"])
        numbers.add(min(len(meant), 2))
        if not meant:
            assert ref["no_target"] is True
            assert ref["ann_id"] == ref["category_id"] == [-1]
            continue
        assert "no_target" not in ref
        masks = [coco.annToMask(coco.anns[ann_id]).astype(bool) for ann_id in ref["ann_id"]]
        assert np.array_equal(np.any(masks, axis=0), scene.masks[meant].any(axis=0))
        assert [coco.anns[ann_id]["category_id"] for ann_id in ref["ann_id"]] == ref["category_id"]
    assert numbers == {0, 1, 2}


def test_nyu(tmp_path: Path) -> None:
    write(tmp_path, "nyu", split="train", size=120)
    write(tmp_path, "nyu", split="test", size=120)
    lists = (("train_list.txt", tmp_path, 0), ("test_list.txt", tmp_path / "official_splits" / "test", 2))
    for listing, base, word in lists:
        lines = (tmp_path / listing).read_text().splitlines()
        assert len(lines) == COUNT
        for index, line in enumerate(lines):
            scene = scene_of(index, word, (120, 160))
            picture, depth = line.split()
            with Image.open(base / picture.lstrip("/")) as image:
                assert image.size == (160, 120)
            with Image.open(base / depth.lstrip("/")) as image:
                assert image.mode == "I;16"
                metres = np.asarray(image).astype(np.float64) / 1000
            assert np.allclose(metres, scene.depth_m, atol=0.00051)


def test_rectangles_rasterise_to_the_same_pixels() -> None:
    ring = np.hypot(*(np.indices((40, 40)) - 20)) < 15
    ring &= np.hypot(*(np.indices((40, 40)) - 20)) > 7
    edge = np.zeros((9, 12), dtype=bool)
    edge[6:, :4] = True
    edge[0, 10:] = True
    noise = np.random.default_rng(0).random((30, 21)) < 0.5
    for mask in (ring, edge, noise, np.ones((3, 4), dtype=bool), np.zeros((3, 4), dtype=bool)):
        polygons = rectangles(mask)
        if not mask.any():
            assert polygons == []
            continue
        run_lengths = coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape))
        assert np.array_equal(coco_mask.decode(run_lengths).astype(bool), mask)


@pytest.mark.parametrize("format", FORMATS)
def test_progress_and_no_overwriting(tmp_path: Path, format: str) -> None:
    seen: list[int] = []
    summary = write_scenes(tmp_path, format=format, count=2, size=64, progress=seen.append)
    assert seen == [0, 1]
    assert summary["format"] == format
    assert all(Path(name).is_file() for name in summary["files"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="already there"):
        write_scenes(tmp_path, format=format, count=2, size=64, seed=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_wrong_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'coco'"):
        write_scenes(tmp_path, format="cocoo", count=1)
    with pytest.raises(UsageError, match="no split"):
        write_scenes(tmp_path, format="coco", count=1, split="vall")
    with pytest.raises(UsageError, match="10000 scenes"):
        write_scenes(tmp_path, format="coco", count=10_001)
    with pytest.raises(UsageError, match="64 to 1120"):
        write_scenes(tmp_path / "small", format="coco", count=1, size=10)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UsageError, match="folder"):
        write_scenes(file, format="coco", count=1)


class Harmful:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("harm"),))


@pytest.mark.parametrize("content", [pickle.dumps([Harmful()]), b"", b"junk"])
def test_a_damaged_or_hostile_pickle_is_not_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refcoco" / "refs(unc).p"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be added to"):
        write(tmp_path, "refcoco")
    assert not Path("harm").exists()
