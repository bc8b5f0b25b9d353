"""Readers: official layouts in miniature, one class-id contract, nothing skipped in silence."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import MadeSource
from helpers_layouts import (
    SHARED,
    coco_content,
    refs,
    save_image,
    save_mask,
    voc_xml,
    write_coco_layout,
    write_json,
    write_refcoco_layout,
    write_voc_layout,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.data.sources import DRAWN, READERS, Source, SourceSpec, open_source
from saccade.data.sources.base import Repeated, balance_classes
from saccade.data.sources.layout import Records, hash_split
from saccade.errors import DataError, ImageError, SaccadeError, UsageError
from saccade.tasks import Task


def open_(reader: str, root: Path | str, task: Task, **options: Any) -> Source:
    return open_source(SourceSpec(task=task, reader=reader, root=str(root), **options))


# --------------------------------------------------------------------------------------------------- COCO


def test_coco_boxes_classes_and_crowds(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    source = open_("coco", tmp_path, Task.DETECTION)
    assert source.classes is not None
    assert source.classes.names == ("cat", "dog", "bird") and source.classes.category_ids == (1, 3, 90)
    assert len(source) == 3 and source.skipped == {}
    sample = source[0]
    assert sample.origin.image_id == 7 and sample.origin.size_hw == (30, 40) and sample.image.shape == (3, 30, 40)
    assert sample.target.boxes.tolist() == [[5, 5, 15, 15], [0, 0, 40, 30]]
    assert sample.target.class_ids.tolist() == [1, 2]
    assert sample.target.is_crowd.tolist() == [False, True]
    assert sample.target.areas.tolist() == [99.5, 1200]
    assert sample.target.masks is None
    assert source[2].target.boxes.shape == (0, 4)
    assert source.class_ids_of(0) == {1}  # type: ignore[attr-defined]


def test_coco_masks_from_polygons_and_runs(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    source = open_("coco", tmp_path, Task.INSTANCE)
    masks = source[0].target.masks
    assert masks.shape == (2, 30, 40) and masks.dtype == torch.bool
    assert masks[0].sum() == 100 and masks[0, 5:15, 5:15].all()
    assert masks[1].all()
    assert source[1].target.masks[0].sum() > 24  # two polygons are one object
    assert source[2].target.masks.shape == (0, 30, 40)


@settings(deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=6, unique=True), st.randoms())
def test_any_numbering_of_categories_gives_the_same_names(ids: list[int], random: Any) -> None:
    from saccade.data.sources.layout import choose_classes

    categories = {key: f"class of {key}" for key in ids}
    shuffled = list(categories.items())
    random.shuffle(shuffled)
    classes = choose_classes(dict(shuffled), (), Path("x.json"))
    assert list(classes.category_ids) == sorted(ids)
    assert all(classes.names[classes.class_id(key)] == name for key, name in categories.items())


def test_coco_chosen_classes_keep_their_order_and_drop_the_others(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    source = open_("coco", tmp_path, Task.DETECTION, classes=("bird", "cat"))
    assert source.classes is not None and source.classes.category_ids == (90, 1)
    assert source[0].target.class_ids.tolist() == [0]
    assert source.skipped == {"annotation of another class": 1}
    with pytest.raises(UsageError, match="did you mean 'bird'"):
        open_("coco", tmp_path, Task.DETECTION, classes=("brid",))


def test_coco_training_filter(tmp_path: Path) -> None:
    content = coco_content()
    content["images"].append({"id": 11, "file_name": "thin.png", "height": 8, "width": 40})
    write_coco_layout(tmp_path, content)
    save_image(tmp_path / "images" / "thin.png", (8, 40))
    content["annotations"].append({"id": 4, "image_id": 11, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9})
    write_json(tmp_path / "annotations" / "instances_train.json", content)
    source = open_("coco", tmp_path, Task.DETECTION, drop_empty=True, min_side=10)
    assert [source[k].origin.image_id for k in range(len(source))] == [7, 9]
    assert source.skipped == {"image without annotations": 1, "image smaller than 10 pixels": 1}


@pytest.mark.parametrize(
    ("annotation", "images", "split"),
    [
        ("annotations/instances_val2017.json", "val2017", "val"),
        ("annotations/instances_train2017.json", "train2017", "train2017"),
        ("annotations/instances_val2014.json", "images/val2014", "val"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("train/_annotations.coco.json", "train", "train"),
        ("annotations/instances_train.json", "images", "train"),
        ("annotations/train.json", "images/train", "train"),
        ("annotations/instances_test.json", ".", "test"),
    ],
)
def test_coco_layouts_are_found(tmp_path: Path, annotation: str, images: str, split: str) -> None:
    content = coco_content()
    write_json(tmp_path / annotation, content)
    for image in content["images"]:
        save_image(tmp_path / images / image["file_name"])
    source = open_("coco", tmp_path, Task.DETECTION, split=split)
    assert len(source) == 3 and source[1].origin.image_id == 9


def test_coco_without_splits_is_divided_by_name(tmp_path: Path) -> None:
    content = coco_content()
    content["images"] = [{"id": k, "file_name": f"{k}.png", "height": 30, "width": 40} for k in range(40)]
    write_json(tmp_path / "annotations.json", content | {"annotations": []})
    for k in range(40):
        save_image(tmp_path / "images" / f"{k}.png")
    parts = {split: open_("coco", tmp_path, Task.DETECTION, split=split) for split in ("train", "val", "all")}
    seen = {split: {source[k].origin.image_id for k in range(len(source))} for split, source in parts.items()}
    assert seen["train"] | seen["val"] == seen["all"] == set(range(40))
    assert not seen["train"] & seen["val"] and 2 <= len(seen["val"]) <= 16
    with pytest.raises(UsageError, match="no split 'test'"):
        open_("coco", tmp_path, Task.DETECTION, split="test")


def test_the_split_of_a_name_does_not_depend_on_the_others() -> None:
    names = [f"image_{k}" for k in range(200)]
    val = {names[k] for k in hash_split(names, "val", Path())}
    fewer = names[::3]
    assert {fewer[k] for k in hash_split(fewer, "val", Path())} == val & set(fewer)


def test_roboflow_heading_is_no_class(tmp_path: Path) -> None:
    content = coco_content()
    content["categories"] = [{"id": 0, "name": "cells", "supercategory": "none"}] + [
        {"id": k, "name": name, "supercategory": "cells"} for k, name in ((1, "cat"), (3, "dog"), (90, "bird"))
    ]
    write_coco_layout(tmp_path, content)
    source = open_("coco", tmp_path, Task.DETECTION)
    assert source.classes is not None and source.classes.category_ids == (1, 3, 90)
    assert source.skipped == {"heading category 0": 1}


def test_coco_category_zero_is_a_class_like_any_other(tmp_path: Path) -> None:
    content = coco_content()
    for entry in content["categories"]:
        entry["id"] = {1: 0, 3: 1, 90: 2}[entry["id"]]
    for entry in content["annotations"]:
        entry["category_id"] = {1: 0, 3: 1, 90: 2}[entry["category_id"]]
    write_coco_layout(tmp_path, content)
    source = open_("coco", tmp_path, Task.DETECTION)
    assert source[1].target.class_ids.tolist() == [0]
    assert source.classes is not None and source.classes.names == ("cat", "dog", "bird")


def _changed(tmp_path: Path, change: Any, task: Task = Task.INSTANCE) -> Source:
    content = coco_content()
    change(content)
    write_coco_layout(tmp_path, content)
    return open_("coco", tmp_path, task)


def test_what_coco_leaves_out_is_counted(tmp_path: Path) -> None:
    def damage(content: dict[str, Any]) -> None:
        good = content["annotations"][0]
        content["annotations"] += [
            good | {"id": 10, "bbox": [5, 5, 0, 10]},
            good | {"id": 11, "bbox": [float("nan"), 5, 3, 10]},
            good | {"id": 12, "bbox": [100, 5, 30, 10]},
            good | {"id": 13, "bbox": None},
            good | {"id": 14, "image_id": 12345},
            good | {"id": 15, "segmentation": []},
            good | {"id": 16, "segmentation": [[1, 2, 3, 4]]},
            good | {"id": 17, "segmentation": [[1, 2, 3, float("nan"), 5, 6]]},
            good | {"id": 18, "segmentation": [[1e9, 2, 3, 4, 5, 6], [5, 5, 15, 5, 15, 15]]},
        ]

    source = _changed(tmp_path, damage)
    assert source.skipped == {
        "box without extent in the image": 4,
        "annotation of an image that is not listed": 1,
        "instance without a mask": 3,
        "polygon with fewer than 3 points": 1,
        "polygon far outside the image": 2,
    }
    assert len(source[0].target.boxes) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["annotations"][0].update(category_id=2), r"category id 2 is not declared[\s\S]*annotation 1"),
        (lambda c: c["images"].append(c["images"][0]), "image id 7 occurs twice"),
        (lambda c: c["categories"].append({"id": 1, "name": "cow"}), "category id 1 is declared twice"),
        (lambda c: c["categories"].append({"id": 2, "name": "cat"}), "name is used twice"),
        (lambda c: c["annotations"][1]["segmentation"].update(size=[31, 40]), "another size than its image"),
        (lambda c: c["images"][0].pop("width"), "lacks a field"),
        (lambda c: c.pop("categories"), "no list 'categories'"),
        (lambda c: c["categories"].clear(), "declares no categories"),
        (lambda c: c["annotations"].append({"id": 5}), "no image id"),
    ],
)
def test_contradictions_in_coco_are_errors_that_name_the_file(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        _changed(tmp_path, change)
    assert "instances_train.json" in str(caught.value)


def test_damaged_runs_are_an_error_of_that_image(tmp_path: Path) -> None:
    for counts in ([0, 1199], [1, 2, 3], "!!!not runs", [-5, 1205], None):
        (tmp_path / str(counts)).mkdir()
        source = _changed(
            tmp_path / str(counts), lambda c, k=counts: c["annotations"][1]["segmentation"].update(counts=k)
        )
        with pytest.raises(DataError, match=r"a\.png"):
            source[0]


def test_the_size_must_be_as_declared(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    save_image(tmp_path / "images" / "a.png", (40, 30))
    with pytest.raises(DataError, match=r"another size[\s\S]*a\.png[\s\S]*30 x 40[\s\S]*40 x 30"):
        open_("coco", tmp_path, Task.DETECTION)[0]
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(ImageError, match=r"no such file[\s\S]*b\.png"):
        open_("coco", tmp_path, Task.DETECTION)[1]


def test_coco_files_that_are_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_("coco", tmp_path / "nowhere", Task.DETECTION)
    with pytest.raises(UsageError, match="no COCO annotation file"):
        open_("coco", tmp_path, Task.DETECTION)
    write_coco_layout(tmp_path)
    with pytest.raises(UsageError, match=r"instances_train\.json"):
        open_("coco", tmp_path, Task.DETECTION, split="test")
    with pytest.raises(UsageError, match="none of the usual folders"):
        (tmp_path / "images").rename(tmp_path / "photographs")
        open_("coco", tmp_path, Task.DETECTION)
    assert len(open_("coco", tmp_path, Task.DETECTION, images="photographs")) == 3
    (tmp_path / "annotations" / "instances_train.json").write_text('{"images": [')
    with pytest.raises(DataError, match="not valid JSON"):
        open_("coco", tmp_path, Task.DETECTION)
    with pytest.raises(UsageError, match="serve detection"):
        open_("coco", tmp_path, Task.CAPTION)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
@pytest.mark.parametrize(
    ("name", "split", "images", "objects"),
    [("coco_mini", "train", 39, 407), ("coco_mini", "val", 44, 304), ("dsb2018", "val", 50, 1350)],
)
def test_real_coco(name: str, split: str, images: int, objects: int) -> None:
    source = open_("coco", SHARED / name, Task.INSTANCE, split=split)
    assert len(source) == images and source.skipped == {}
    counted = 0
    for index in range(len(source)):
        target = source[index].target
        counted += len(target.boxes)
        # The annotated area is that of the polygon or of the runs: close to the number of pixels.
        pixels = target.masks.sum(dim=(1, 2)).double()
        assert ((pixels - target.areas).abs() <= 4 + 0.15 * target.areas).double().sum() >= 0.9 * len(pixels)
    assert counted == objects


# --------------------------------------------------------------------------------------------------- VOC


def test_voc(tmp_path: Path) -> None:
    write_voc_layout(tmp_path)
    source = open_("voc", tmp_path, Task.DETECTION)
    assert source.classes is not None and source.classes.names == ("bird", "cat", "dog")
    assert len(source) == 2 and source.skipped == {"box without extent": 1}
    sample = source[0]
    assert sample.origin.image_id == "one"
    assert sample.target.boxes.tolist() == [[5, 6, 20, 25], [1, 1, 9, 9]]
    assert sample.target.class_ids.tolist() == [2, 1] and sample.target.is_crowd.tolist() == [False, True]
    assert sample.target.areas.tolist() == [285, 64]
    assert len(open_("voc", tmp_path, Task.DETECTION, split="val")[0].target.boxes) == 0
    assert open_("voc", tmp_path, Task.DETECTION, split="val").classes == source.classes
    assert len(open_("voc", tmp_path, Task.DETECTION, split="all")) == 3
    chosen = open_("voc", tmp_path, Task.DETECTION, classes=("dog", "bird"))
    assert chosen[0].target.class_ids.tolist() == [0]
    assert chosen.skipped == {"object of another class": 1, "box without extent": 1}
    with pytest.raises(UsageError, match="did you mean 'dog'"):
        open_("voc", tmp_path, Task.DETECTION, classes=("dogs",))
    with pytest.raises(UsageError, match=r"no split 'tain'[\s\S]*'train'"):
        open_("voc", tmp_path, Task.DETECTION, split="tain")


def test_the_challenges_count_pixels_from_one(tmp_path: Path) -> None:
    write_voc_layout(tmp_path)
    text = voc_xml("one.jpg", [("dog", (1, 1, 40, 30), 0)], database="The VOC2007 Database")
    (tmp_path / "Annotations" / "one.xml").write_text(text)
    assert open_("voc", tmp_path, Task.DETECTION)[0].target.boxes.tolist() == [[0, 0, 40, 30]]


def test_voc_years_and_flat_folders(tmp_path: Path) -> None:
    write_voc_layout(tmp_path / "kit" / "VOC2007")
    write_voc_layout(tmp_path / "kit" / "VOC2012")
    assert len(open_("voc", tmp_path / "kit", Task.DETECTION)) == 4
    flat = tmp_path / "flat"
    for split in ("train", "valid"):
        (flat / split).mkdir(parents=True)
        save_image(flat / split / f"{split}.png")
        (flat / split / f"{split}.xml").write_text(voc_xml("another name.jpg", [(split, (1, 1, 9, 9), 0)]))
    source = open_("voc", flat, Task.DETECTION, split="val")
    assert len(source) == 1 and source[0].origin.path.endswith("valid.png")
    assert source.classes is not None and source.classes.names == ("train", "valid")


def test_damaged_voc_files_are_named(tmp_path: Path) -> None:
    write_voc_layout(tmp_path)
    (tmp_path / "Annotations" / "one.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match=r"damaged[\s\S]*one\.xml"):
        open_("voc", tmp_path, Task.DETECTION)
    (tmp_path / "Annotations" / "one.xml").unlink()
    with pytest.raises(DataError, match=r"1 annotation files[\s\S]*one\.xml"):
        open_("voc", tmp_path, Task.DETECTION)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no VOC annotations"):
        open_("voc", tmp_path / "empty", Task.DETECTION)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_real_voc() -> None:
    sizes, dropped = {}, 0
    for split in ("train", "val", "test"):
        source = open_("voc", SHARED / "bccd", Task.DETECTION, split=split)
        assert source.classes is not None and source.classes.names == ("Platelets", "RBC", "WBC")
        sizes[split] = len(source)
        dropped += sum(source.skipped.values())
    assert sizes == {"train": 205, "val": 87, "test": 72} and dropped == 2


# --------------------------------------------------------------------------------------------------- masks


def _write_masks(root: Path, masks: dict[str, np.ndarray], suffix: str = "") -> None:
    for number, (stem, values) in enumerate(masks.items()):
        save_image(root / "images" / f"{stem}.jpg", values.shape, seed=number)
        save_mask(root / "masks" / f"{stem}{suffix}.png", values)


def _lesion(value: int = 255) -> np.ndarray:
    mask = np.zeros((30, 40), np.uint8)
    mask[3:9, 4:12] = value
    mask[20:25, 30:38] = value
    return mask


def test_binary_lesions(tmp_path: Path) -> None:
    _write_masks(tmp_path, {"a": _lesion(), "b": np.zeros((30, 40))}, "_segmentation")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("a\n")
    (tmp_path / "splits" / "val.txt").write_text("b.jpg\n")
    source = open_("mask_folder", tmp_path, Task.SEMANTIC, classes=("lesion",))
    assert len(source) == 1
    assert source.classes is not None and source.classes.names == ("background", "lesion")
    semantic = source[0].target.semantic
    assert semantic.dtype == torch.int64 and semantic.unique().tolist() == [0, 1] and semantic.sum() == 88
    val = open_("mask_folder", tmp_path, Task.SEMANTIC, split="val")
    assert val.classes is not None and val.classes.names == ("background", "foreground")
    assert val[0].origin.image_id == "b" and val[0].target.semantic.sum() == 0
    instances = open_("mask_folder", tmp_path, Task.INSTANCE, classes=("lesion",))
    assert instances.classes is not None and instances.classes.names == ("lesion",)
    target = instances[0].target
    assert target.boxes.tolist() == [[4, 3, 12, 9], [30, 20, 38, 25]]
    assert target.areas.tolist() == [48, 40] and target.masks.sum((1, 2)).tolist() == [48, 40]
    assert open_("mask_folder", tmp_path, Task.DETECTION, classes=("lesion",))[0].target.masks is None


def test_label_maps(tmp_path: Path) -> None:
    labels = np.arange(1200).reshape(30, 40) % 4
    labels[0] = 255
    labels[1] = 9
    _write_masks(tmp_path, {"a": labels})
    source = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all", classes=tuple("wxyz"), ignore_labels=(9,))
    semantic = source[0].target.semantic
    assert semantic[:2].eq(255).all() and semantic[2, :5].tolist() == [0, 1, 2, 3, 0]
    with pytest.raises(DataError, match=r"values beyond[\s\S]*a\.png[\s\S]*\[3, 9\]"):
        open_("mask_folder", tmp_path, Task.SEMANTIC, split="all", classes=tuple("wxy"))[0]
    with pytest.raises(DataError, match="not binary"):
        open_("mask_folder", tmp_path, Task.SEMANTIC, split="all", classes=("lesion",))
    (tmp_path / "classes.txt").write_text("w\nx\ny\nz\n" + "\n".join("abcdef"))
    found = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all")
    assert found.classes is not None and found.classes.names == tuple("wxyzabcdef")
    (tmp_path / "classes.txt").unlink()
    numbered = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all")
    assert numbered.classes is not None and len(numbered.classes) == 10


def test_a_grey_mask_among_binary_ones_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saccade.data.sources.mask_folder._ENOUGH_MASKS", 2)
    odd = _lesion()
    odd[:2] = 130
    _write_masks(tmp_path, {"a": _lesion(), "b": _lesion(), "c": odd})
    source = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all")
    with pytest.raises(DataError, match=r"not binary[\s\S]*c\.png"):
        source[2]


def test_masks_of_ones_and_of_white_in_one_folder(tmp_path: Path) -> None:
    _write_masks(tmp_path, {"a": _lesion(1), "b": _lesion(255), "c": _lesion(0), "d": _lesion(1)})
    Image.fromarray(_lesion(1).astype(np.uint16) * 65535).save(tmp_path / "masks/d.png")
    for classes in ((), ("lesion",), ("background", "lesion")):
        source = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all", classes=classes)
        for index, value in enumerate((1, 255, 0, 1)):
            assert (source[index].target.semantic.numpy() == (_lesion(value) > 0)).all()
    ignoring = _lesion(1)
    ignoring[0] = 255
    save_mask(tmp_path / "masks/a.png", ignoring)
    (tmp_path / "masks/d.png").unlink()
    source = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all", classes=("background", "lesion"))
    assert (source[0].target.semantic.numpy() == ignoring).all()  # 0, 1 and 255 in one mask: a label map
    assert source[1].target.semantic.unique().tolist() == [0, 255]


def test_a_damaged_mask_does_not_make_white_lesions_ignored(tmp_path: Path) -> None:
    odd = _lesion(1)
    odd[0] = 255
    _write_masks(tmp_path, {"a": _lesion(), "b": _lesion(), "c": odd})
    source = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all", classes=("background", "lesion"))
    assert source[0].target.semantic.sum() == 88
    with pytest.raises(DataError, match=r"not binary[\s\S]*c\.png[\s\S]*ignore_labels=255"):
        source[2]
    options = {"classes": ("background", "lesion"), "ignore_labels": (255,)}
    source = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all", **options)
    assert (source[2].target.semantic.numpy() == odd).all()


def test_soft_masks_are_cut_at_half_of_white(tmp_path: Path) -> None:
    y, x = np.mgrid[:60, :80]
    disc = ((x - 40) ** 2 + (y - 30) ** 2 <= 15**2).astype(np.uint8)
    _write_masks(tmp_path, {"a": disc * 255, "b": disc * 255, "c": disc})
    Image.fromarray(disc * 255).save(tmp_path / "masks/a.jpg", quality=75)
    (tmp_path / "masks/a.png").unlink()
    large = Image.fromarray(np.kron(disc, np.ones((3, 3), np.uint8)) * 255)
    large.resize((80, 60), Image.Resampling.BICUBIC).save(tmp_path / "masks/b.png")
    for classes in ((), ("background", "lesion")):
        source = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all", classes=classes)
        for index in range(3):
            assert (source[index].target.semantic.numpy() == disc).mean() > 0.99, index
            assert source[index].target.semantic.max() == 1
    grey = (disc * np.linspace(0, 255, 80)).astype(np.uint8)
    for stem in "bc":
        save_mask(tmp_path / "masks" / f"{stem}.png", grey)
    with pytest.raises(DataError, match="masks of one object have 0 and 255"):
        open_("mask_folder", tmp_path, Task.SEMANTIC, split="all", classes=("background", "lesion"))[1]


def test_masks_with_hyphens_and_with_one_name_twice(tmp_path: Path) -> None:
    _write_masks(tmp_path, {"a": _lesion(), "b": _lesion()}, "-mask")
    save_image(tmp_path / "images/a.png", (30, 40), seed=9)
    save_mask(tmp_path / "masks/b-mask.bmp", _lesion())
    source = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all")
    assert len(source) == 2
    assert source.skipped == {"image with the name of another one": 1, "mask with the name of another one": 1}
    (tmp_path / "masks").rename(tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        save_mask(tmp_path / "masks" / f"{path.stem[0]}-nevus.png", _lesion())
    for suffix in ("-nevus", "nevus"):
        assert len(open_("mask_folder", tmp_path, Task.SEMANTIC, split="all", mask_suffix=suffix)) == 2
    with pytest.raises(UsageError, match="--mask-suffix"):
        open_("mask_folder", tmp_path, Task.SEMANTIC, split="all")


def test_mask_of_another_size_and_missing_partners(tmp_path: Path) -> None:
    _write_masks(tmp_path, {"a": _lesion(), "b": _lesion()})
    save_mask(tmp_path / "masks" / "b.png", np.zeros((60, 80)))
    save_image(tmp_path / "images" / "lonely.jpg")
    save_mask(tmp_path / "masks" / "orphan.png", _lesion())
    source = open_("mask_folder", tmp_path, Task.SEMANTIC, split="all")
    assert source.skipped == {"image without a mask": 1, "mask without an image": 1}
    with pytest.raises(DataError, match=r"another size[\s\S]*b\.png[\s\S]*60, 80"):
        source[1]


def test_mask_layouts_with_split_folders(tmp_path: Path) -> None:
    for split, number in (("train", 0), ("val", 1)):
        save_image(tmp_path / split / f"frame{number}.jpg")
        save_mask(tmp_path / f"{split}annot" / f"frame{number}.png", np.arange(1200).reshape(30, 40) % 5)
    source = open_("mask_folder", tmp_path, Task.SEMANTIC, split="val", classes=tuple("abcde"))
    assert len(source) == 1 and source[0].origin.image_id == "frame1"
    save_image(tmp_path / "cs" / "leftImg8bit" / "x.jpg")
    save_mask(tmp_path / "cs" / "gt" / "x_labelTrainIds.png", np.arange(1200).reshape(30, 40) % 5)
    listed = open_(
        "mask_folder", tmp_path / "cs", Task.SEMANTIC, split="all", images="leftImg8bit", classes=tuple("abcde")
    )
    assert len(listed) == 1
    with pytest.raises(UsageError, match="no mask has the name"):
        open_("mask_folder", tmp_path, Task.SEMANTIC, images="train", annotations="valannot")
    with pytest.raises(UsageError, match="folder of the images is not found"):
        (tmp_path / "void").mkdir()
        open_("mask_folder", tmp_path / "void", Task.SEMANTIC)


def test_ade20k(tmp_path: Path) -> None:
    labels = np.arange(1200).reshape(30, 40) % 151
    save_image(tmp_path / "images" / "validation" / "ADE_val_00000001.jpg")
    save_mask(tmp_path / "annotations" / "validation" / "ADE_val_00000001.png", labels)
    for split in ("val", "validation"):
        source = open_("ade20k", tmp_path, Task.SEMANTIC, split=split)
        assert source.classes is not None and len(source.classes) == 150 and source.classes.names[0] == "wall"
        semantic = source[0].target.semantic.numpy()
        assert (semantic == np.where(labels == 0, 255, labels - 1)).all()


def test_ade20k_with_classes_of_its_own(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "training" / "x.jpg")
    save_mask(tmp_path / "annotations" / "training" / "x.png", np.full((30, 40), 2))
    lines = [
        "Idx\tRatio\tTrain\tVal\tStuff\tName",
        "1\t0.1\t1\t0\t1\twall",
        "2\t0.9\t1\t0\t0\tswivel chair;seat, stool",
    ]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines))
    source = open_("ade20k", tmp_path, Task.SEMANTIC)
    assert source.classes is not None and source.classes.names == ("wall", "swivel chair")


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_real_masks() -> None:
    for split, count in (("train", 240), ("val", 60)):
        source = open_("mask_folder", SHARED / "isic2018_512", Task.SEMANTIC, split=split, classes=("lesion",))
        assert len(source) == count and source.skipped == {}
        assert set(source[0].target.semantic.unique().tolist()) == {0, 1}
    names = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "Sign", "Fence", "Car", "Pedestrian", "Bicyclist"]
    for split, count in (("train", 62), ("val", 17)):
        options = {"classes": tuple(names), "ignore_labels": (11,)}
        source = open_("mask_folder", SHARED / "camvid_nc", Task.SEMANTIC, split=split, **options)
        assert len(source) == count
        assert set(source[0].target.semantic.unique().tolist()) <= {*range(11), 255}


# --------------------------------------------------------------------------------------------------- captions


def test_karpathy_in_its_forms(tmp_path: Path) -> None:
    for number in (7, 9):
        save_image(tmp_path / "val2014" / f"COCO_val2014_{number:012d}.jpg")
    names = {number: f"val2014/COCO_val2014_{number:012d}.jpg" for number in (7, 9)}
    write_json(
        tmp_path / "annotations" / "coco_karpathy_train.json",
        [{"image": names[7], "caption": "A dog.", "image_id": "coco_7"}, {"image": names[9], "caption": "  "},
         {"image": names[7], "caption": "The dog sits.", "image_id": "coco_7"}],
    )  # fmt: skip
    write_json(tmp_path / "annotations" / "coco_karpathy_test.json", [{"image": names[9], "caption": ["a", "b", "c"]}])
    train = open_("karpathy", tmp_path, Task.CAPTION, per_caption=True)
    assert [train[k].target.captions for k in range(len(train))] == [("A dog.",), ("The dog sits.",)]
    assert train[0].origin.image_id == 7
    assert train.skipped == {"blank caption": 1, "image without a caption": 1}
    test = open_("karpathy", tmp_path, Task.CAPTION, split="test")
    assert len(test) == 1 and test[0].target.captions == ("a", "b", "c") and test[0].origin.image_id == 9
    images = [
        {"filepath": "val2014", "filename": Path(names[number]).name, "cocoid": number, "split": split,
         "sentences": [{"raw": f"caption of {number}"}]}
        for number, split in ((7, "restval"), (9, "test"))
    ]  # fmt: skip
    write_json(tmp_path / "dataset_coco.json", {"images": images})
    whole = open_("karpathy", tmp_path, Task.CAPTION, annotations="dataset_coco.json")
    assert len(whole) == 1 and whole[0].origin.image_id == 7 and whole[0].target.captions == ("caption of 7",)


def test_plain_coco_captions(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "x"}, {"id": 2, "image_id": 8, "caption": "y"}],
    }
    write_json(tmp_path / "annotations" / "captions_val.json", content)
    source = open_("karpathy", tmp_path, Task.CAPTION, split="val")
    assert source[0].target.captions == ("x",) and source.classes is None
    assert source.skipped == {"caption of an image that is not listed": 1}
    write_json(tmp_path / "annotations" / "captions_train.json", {"pictures": []})
    with pytest.raises(DataError, match=r"none of the known forms[\s\S]*captions_train"):
        open_("karpathy", tmp_path, Task.CAPTION)
    with pytest.raises(UsageError, match="the caption file of the split 'test' is not found"):
        open_("karpathy", tmp_path, Task.CAPTION, split="test")


# --------------------------------------------------------------------------------------------------- references


def test_refcoco_one_sample_per_sentence(tmp_path: Path) -> None:
    write_refcoco_layout(tmp_path)
    source = open_("refcoco", tmp_path, Task.GROUNDING)
    assert [source[k].phrase for k in range(len(source))] == ["the dog", "left"]
    assert source[0].target.boxes.tolist() == [[5, 5, 15, 15]] and source[0].origin.image_id == 7
    assert len(open_("refcoco", tmp_path, Task.GROUNDING, split="testA")) == 1
    with pytest.raises(UsageError, match="no record has this split"):
        open_("refcoco", tmp_path, Task.GROUNDING, split="testB")


def test_grefcoco_keeps_single_targets_and_counts_the_rest(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    several = refs()[0] | {"ref_id": 5, "ann_id": [1, 2], "no_target": False}
    nothing = refs()[0] | {"ref_id": 6, "ann_id": [-1], "no_target": True}
    single = refs()[0] | {"ref_id": 7, "ann_id": [1], "no_target": False}
    lost = refs()[0] | {"ref_id": 8, "ann_id": [777]}
    write_json(tmp_path / "refer" / "grefs_x.json", [several, nothing, single, lost])
    source = open_("refcoco", tmp_path, Task.GROUNDING)
    assert len(source) == 2
    assert source.skipped == {
        "phrase with several targets": 2,
        "phrase without a target": 2,
        "target without a box": 2,
    }


def test_lists_of_expressions(tmp_path: Path) -> None:
    save_image(tmp_path / "JPEGImages" / "a.png")
    base = {"split": "train", "file_name": "a.png", "width": 40, "height": 30}
    entries = [
        base | {"expression": "the cell", "boxes_xyxy": [[1, 2, 3, 4]]},
        base | {"expression": "all cells", "boxes_xyxy": [[1, 2, 3, 4], [5, 5, 9, 9]]},
        base | {"expression": "the sun", "boxes_xyxy": []},
    ]
    write_json(tmp_path / "derived" / "expressions.json", entries)
    source = open_("refcoco", tmp_path, Task.GROUNDING)
    assert len(source) == 1 and source[0].phrase == "the cell" and source[0].target.boxes.tolist() == [[1, 2, 3, 4]]
    assert source.skipped == {"phrase with several targets": 1, "phrase without a target": 1}


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/saccade_was_here"),))


def test_pickles_cannot_run_anything(tmp_path: Path) -> None:
    write_refcoco_layout(tmp_path)
    path = tmp_path / "refcoco" / "refs(unc).p"
    path.write_bytes(pickle.dumps([_Evil()]))
    with pytest.raises(DataError, match="more than plain data"):
        open_("refcoco", tmp_path, Task.GROUNDING)
    assert not Path("/tmp/saccade_was_here").exists()
    path.write_bytes(pickle.dumps(refs())[:50])
    with pytest.raises(DataError, match=r"damaged[\s\S]*refs"):
        open_("refcoco", tmp_path, Task.GROUNDING)
    path.unlink()
    with pytest.raises(UsageError, match="no file of references"):
        open_("refcoco", tmp_path, Task.GROUNDING)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_real_references_and_captions() -> None:
    for split, phrases in (("train", 197), ("val", 156)):
        source = open_("refcoco", SHARED / "coco_mini", Task.GROUNDING, split=split)
        assert len(source) == phrases
        total = phrases + sum(source.skipped.values())
        assert total == {"train": 361, "val": 316}[split]
    assert len(open_("refcoco", SHARED / "bccd", Task.GROUNDING)) == 382
    assert len(open_("karpathy", SHARED / "coco_mini", Task.CAPTION, per_caption=True)) == 195
    assert len(open_("karpathy", SHARED / "coco_mini", Task.CAPTION, split="val")) == 44


# --------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize(
    ("format_name", "reader", "task"),
    [
        ("coco", "coco", Task.INSTANCE),
        ("ade", "mask_folder", Task.SEMANTIC),
        ("karpathy", "karpathy", Task.CAPTION),
        ("refcoco", "refcoco", Task.GROUNDING),
        ("grefcoco", "refcoco", Task.GROUNDING),
    ],
)
def test_drawn_scenes_written_in_official_layouts_are_read_back(
    tmp_path: Path, format_name: str, reader: str, task: Task
) -> None:
    from saccade.data.scenes import SEMANTIC_CLASSES, write_scenes

    write_scenes(tmp_path, format=format_name, count=4, split="val", size=96)
    drawn = open_("scenes", "", task, split="val", size=96, limit=4)
    options: dict[str, Any] = {}
    if reader == "mask_folder":
        options = {"classes": SEMANTIC_CLASSES, "reduce_zero_label": True}
    elif reader == "refcoco":
        options = {"annotations": _only(tmp_path, "*refs*")}
    read = open_(reader, tmp_path, task, split="val", **options)
    if task is not Task.GROUNDING:
        assert len(read) == 4
    for k in range(len(read)):
        sample = read[k]
        twin = next(drawn[n] for n in range(4) if _close(drawn[n].image, sample.image))
        if task is Task.INSTANCE:
            assert read.classes is not None and drawn.classes is not None
            assert read.classes.names == drawn.classes.names
            assert torch.equal(sample.target.masks, twin.target.masks)
            assert torch.allclose(sample.target.boxes, twin.target.boxes)
            assert torch.equal(sample.target.class_ids, twin.target.class_ids)
        elif task is Task.SEMANTIC:
            assert torch.equal(sample.target.semantic, twin.target.semantic)
        elif task is Task.CAPTION:
            assert sample.target.captions == twin.target.captions
        else:
            assert sample.phrase


def _only(root: Path, pattern: str) -> str:
    (path,) = root.rglob(pattern)
    return str(path.relative_to(root))


def _close(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.shape == two.shape and (one.int() - two.int()).abs().float().mean().item() < 6


def test_ranges_and_unknown_readers(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    assert [
        open_("coco", tmp_path, Task.DETECTION, offset=1, limit=limit)[0].origin.image_id for limit in (0, 1, 50)
    ] == [9, 9, 9]
    assert len(open_("coco", tmp_path, Task.DETECTION, limit=2)) == 2
    with pytest.raises(UsageError, match="offset 3"):
        open_("coco", tmp_path, Task.DETECTION, offset=3)
    with pytest.raises(UsageError, match="did you mean 'coco'"):
        open_("cocoo", tmp_path, Task.DETECTION)
    with pytest.raises(UsageError, match="no folder"):
        open_("coco", "", Task.DETECTION)


def test_rare_classes_are_repeated() -> None:
    source = MadeSource(Task.DETECTION, 100)  # class 0 everywhere, class 1 in the first image only
    balanced = balance_classes(source, 0.04)  # sqrt(0.04 / 0.01) = 2
    assert isinstance(balanced, Repeated) and balanced.factors == (2, *[1] * 99)
    assert len(balanced) == 100 and balanced[1].origin.image_id == 1
    assert balance_classes(source, 0.0225).factors[0] == 2  # type: ignore[attr-defined]
    assert balance_classes(source, 0.0225, "random").factors[0] == pytest.approx(1.5)  # type: ignore[attr-defined]
    assert balance_classes(source, 0.0) is source


def test_limit_and_balance_work_together(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    source = open_("coco", tmp_path, Task.DETECTION, limit=2, repeat_threshold=1.0)
    # Classes 1 and 0 occur in one of two images each: ceil(sqrt(2)) = 2.
    assert [source[k].origin.image_id for k in range(len(source))] == [7, 9]
    assert source.factors == (2, 2)  # type: ignore[attr-defined]


def test_sources_can_be_sent_to_workers(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    source = open_("coco", tmp_path, Task.INSTANCE, limit=2)
    back = pickle.loads(pickle.dumps(source))
    assert torch.equal(back[0].target.masks, source[0].target.masks)


def test_records_are_the_list() -> None:
    values = [{"k": k, "a": np.arange(k)} for k in range(20)]
    records = Records(values)
    assert len(records) == 20 and records[0]["k"] == 0 and records[19]["a"].tolist() == list(range(19))
    with pytest.raises(IndexError):
        records[20]
    assert len(Records([])) == 0


@pytest.mark.parametrize("reader", sorted(set(READERS) - DRAWN))
def test_every_reader_refuses_an_empty_folder_with_one_clear_error(tmp_path: Path, reader: str) -> None:
    task = {"karpathy": Task.CAPTION, "refcoco": Task.GROUNDING, "ade20k": Task.SEMANTIC, "mask_folder": Task.SEMANTIC}
    task |= {"nyu": Task.DEPTH, "depth_folder": Task.DEPTH, "mask_crops": Task.INSTANCE}
    with pytest.raises(SaccadeError) as caught:
        open_(reader, tmp_path, task.get(reader, Task.DETECTION))
    assert str(tmp_path) in str(caught.value)


def test_json_is_read_with_its_nan(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"][2] = float("nan")
    write_coco_layout(tmp_path, content)
    assert "NaN" in (tmp_path / "annotations" / "instances_train.json").read_text()
    assert open_("coco", tmp_path, Task.DETECTION).skipped == {"box without extent in the image": 1}
    assert json.loads("NaN") != json.loads("NaN")
