"""Public detection sets: official layouts in miniature, every field of the truth, what is left out, typical defects."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import helpers_detection_sets as sets
import numpy as np
import pytest
import torch
from helpers_layouts import save_image, save_mask, write_json
from PIL import Image

from saccade.data.class_names import CLASS_NAMES
from saccade.data.sources import Source, SourceSpec, open_source
from saccade.errors import DataError, ImageError, SaccadeError, UsageError
from saccade.samples import ClassList
from saccade.tasks import Task


def open_(reader: str, root: Path, task: Task = Task.DETECTION, **options: Any) -> Source:
    return open_source(SourceSpec(task=task, reader=reader, root=str(root), **options))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# --------------------------------------------------------------------------------------------------- LVIS


def test_lvis_carries_what_its_metric_and_its_loss_need(tmp_path: Path) -> None:
    sets.write_lvis(tmp_path)
    source = open_("lvis", tmp_path, Task.INSTANCE, split="val")
    assert source.classes == ClassList(
        names=("aardvark", "air_conditioner", "aerosol_can"),
        category_ids=(1, 2, 7),
        frequencies=("r", "f", "c"),
        image_counts=(1, 364, 64),
    )
    first, second = source[0], source[1]
    assert first.origin.path.endswith("val2017/000000397133.jpg") and first.origin.image_id == 397133
    assert second.origin.path.endswith("train2017/000000000025.jpg")
    assert first.target.boxes.tolist() == [[5, 5, 15, 15], [0, 0, 4, 6]]
    assert first.target.class_ids.tolist() == [2, 0] and first.target.areas.tolist() == [100, 24]
    assert first.target.is_crowd.tolist() == [False, False]
    assert first.target.masks[0].sum() == 100 and first.target.masks[0, 5:15, 5:15].all()
    assert first.target.absent_class_ids.tolist() == [1] and first.target.partial_class_ids.tolist() == [2]
    assert second.target.absent_class_ids.tolist() == [] and second.target.absent_class_ids.dtype == torch.int64
    assert first.target.to("cpu").absent_class_ids.tolist() == [1]
    assert source.skipped == {}


def test_lvis_facts_survive_selection_balance_and_choice(tmp_path: Path) -> None:
    sets.write_lvis(tmp_path)
    source = open_("lvis", tmp_path, split="val", limit=1, repeat_threshold=1e-3, classes=("aerosol_can", "aardvark"))
    assert source.classes is not None
    assert (source.classes.frequencies, source.classes.image_counts) == (("c", "r"), (64, 1))
    target = pickle.loads(pickle.dumps(source))[0].target
    assert target.absent_class_ids.tolist() == [] and target.partial_class_ids.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["categories"][0].pop("frequency"), r"lacks its frequency[\s\S]*lvis_v1_val\.json"),
        (lambda c: c["images"][1].pop("neg_category_ids"), r"no list 'neg_category_ids'[\s\S]*image 25"),
        (lambda c: c["images"][1].update(not_exhaustive_category_ids=None), r"not_exhaustive[\s\S]*image 25"),
        (lambda c: c["annotations"][0].update(category_id=9), "category id 9 is not declared"),
    ],
)
def test_lvis_defects(tmp_path: Path, change: Any, words: str) -> None:
    content = sets.lvis_content()
    change(content)
    sets.write_lvis(tmp_path, content)
    with pytest.raises(DataError, match=words):
        open_("lvis", tmp_path, split="val")


def test_lvis_that_is_not_there(tmp_path: Path) -> None:
    sets.write_lvis(tmp_path)
    with pytest.raises(UsageError, match=r"split 'train'[\s\S]*lvis_v1_val\.json"):
        open_("lvis", tmp_path)
    shutil.rmtree(tmp_path / "val2017")
    shutil.rmtree(tmp_path / "train2017")
    with pytest.raises(UsageError, match=r"val2017/000000397133\.jpg"):
        open_("lvis", tmp_path, split="val")


def test_class_lists_refuse_facts_of_another_length() -> None:
    with pytest.raises(DataError, match="2 class names but 1 image counts"):
        ClassList(names=("a", "b"), category_ids=(0, 1), image_counts=(5,))
    assert ClassList.from_names("ab").frequencies == ()


# --------------------------------------------------------------------------------------------------- Objects365, V3Det


@pytest.mark.parametrize("whole_names", [False, True])
@pytest.mark.parametrize("images", ["", "train"])
def test_objects365(tmp_path: Path, whole_names: bool, images: str) -> None:
    sets.write_objects365(tmp_path, whole_names=whole_names)
    source = open_("objects365", tmp_path, images=images)
    assert source.classes is not None and source.classes.names == ("Person", "Sneakers")
    assert len(source) == 2 and source.skipped == {"image that is listed but not shipped": 1}
    target = source[0].target
    assert target.boxes.tolist() == [[1.5, 2, 11.5, 10], [0, 0, 40, 30]]
    assert target.class_ids.tolist() == [1, 0] and target.is_crowd.tolist() == [False, True]
    assert source[1].origin.image_id == 2
    with pytest.raises(UsageError, match="boxes only"):
        open_("objects365", tmp_path, Task.INSTANCE)


def test_objects365_without_its_images(tmp_path: Path) -> None:
    sets.write_objects365(tmp_path)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(UsageError, match=r"images/v1/patch8/objects365_v1_00420917\.jpg"):
        open_("objects365", tmp_path)


def test_v3det(tmp_path: Path) -> None:
    file = "images/a00000066/1_2.jpg"
    write_json(tmp_path / "annotations" / "v3det_2023_v1_val.json", sets.coco_objects([file], ["jay", "wren"]))
    save_image(tmp_path / file)
    source = open_("v3det", tmp_path, split="val")
    assert source[0].target.class_ids.tolist() == [1] and source[0].origin.path.endswith(file)
    assert source.classes is not None and source.classes.category_ids == (1, 2)
    (tmp_path / file).unlink()
    with pytest.raises(UsageError, match="a00000066"):
        open_("v3det", tmp_path, split="val")


def test_annotations_marked_ignore_are_ignored_regions(tmp_path: Path) -> None:
    content = sets.coco_objects(["a.jpg"], ["jay"])
    content["annotations"][0]["ignore"] = 1
    write_json(tmp_path / "annotations" / "instances_train.json", content)
    save_image(tmp_path / "images" / "a.jpg")
    assert open_("coco", tmp_path)[0].target.is_crowd.tolist() == [True]


# --------------------------------------------------------------------------------------------------- OpenImages


def test_openimages_boxes(tmp_path: Path) -> None:
    sets.write_openimages(tmp_path)
    source = open_("openimages", tmp_path)
    assert source.classes is not None and source.classes.names == ("Tortoise", "Airplane", "Person")
    assert len(source) == 2 and source.skipped == {"box without extent": 1}
    target = source[0].target
    assert source[0].origin.image_id == "00aa"
    assert target.boxes.tolist() == [[10, 3, 30, 15], [0, 15, 20, 30]]
    assert target.class_ids.tolist() == [2, 0] and target.is_crowd.tolist() == [False, True]
    assert target.areas.tolist() == [240, 300] and target.masks is None
    assert source[1].target.boxes.tolist() == [[0, 0, 40, 30]]
    assert source.class_ids_of(0) == {2}  # type: ignore[attr-defined]
    chosen = open_("openimages", tmp_path, classes=("Airplane",))
    assert chosen.skipped == {"object of another class": 3} and len(chosen[0].target.boxes) == 0
    assert chosen.classes == ClassList(names=("Airplane",), category_ids=(1,))
    assert open_("openimages", tmp_path, repeat_threshold=1.0).factors == (2, 2)  # type: ignore[attr-defined]


def test_openimages_masks_are_brought_to_the_size_of_the_image(tmp_path: Path) -> None:
    sets.write_openimages(tmp_path, "validation")
    source = open_("openimages", tmp_path, Task.INSTANCE, split="val")
    masks = source[0].target.masks
    assert masks.shape == (1, 30, 40) and masks.dtype == torch.bool
    assert masks.sum() == 200 and masks[0, 4:14, 10:30].all()
    assert source[0].target.areas.tolist() == [200] and source[0].target.boxes.tolist() == [[10, 3, 30, 15]]
    assert source[1].target.masks.all() and source[1].target.class_ids.tolist() == [1]
    (tmp_path / "masks" / "validation" / "00bb_m0cmf2_2.png").unlink()
    with pytest.raises(ImageError, match="00bb_m0cmf2_2"):
        source[1]


def test_openimages_descriptions_with_a_heading(tmp_path: Path) -> None:
    sets.write_openimages(tmp_path)
    path = tmp_path / "annotations" / "class-descriptions-boxable.csv"
    path.write_text("LabelName,DisplayName\n" + path.read_text())
    source = open_("openimages", tmp_path)
    assert source.classes is not None and len(source.classes) == 3


def test_openimages_defects(tmp_path: Path) -> None:
    sets.write_openimages(tmp_path)
    table = tmp_path / "annotations" / "oidv6-train-annotations-bbox.csv"
    sound = table.read_text()
    sets.rewrite_csv(table, 2, "LabelName", "/m/none")
    with pytest.raises(DataError, match=r"'/m/none' is not described[\s\S]*line 3"):
        open_("openimages", tmp_path)
    table.write_text(sound)
    sets.rewrite_csv(table, 1, "XMin", "left")
    with pytest.raises(DataError, match=r"row of the table is damaged[\s\S]*line 2"):
        open_("openimages", tmp_path)
    table.write_text(sound.replace("IsGroupOf", "Group", 1))
    with pytest.raises(DataError, match="no column IsGroupOf"):
        open_("openimages", tmp_path)
    table.write_text(sound)
    with pytest.raises(UsageError, match=r"OpenImages table .* of the split 'test' is not found"):
        open_("openimages", tmp_path, split="test")
    shutil.rmtree(tmp_path / "masks")
    with pytest.raises(UsageError, match=r"masks are in none[\s\S]*00aa_m01g317_1"):
        open_("openimages", tmp_path, Task.INSTANCE)
    (tmp_path / "annotations" / "class-descriptions-boxable.csv").unlink()
    with pytest.raises(UsageError, match="class descriptions"):
        open_("openimages", tmp_path)


# --------------------------------------------------------------------------------------------------- CrowdHuman


def test_crowdhuman_full_and_visible(tmp_path: Path) -> None:
    sets.write_crowdhuman(tmp_path)
    full = open_("crowdhuman", tmp_path)
    assert full.classes == ClassList(names=("person",), category_ids=(1,))
    assert len(full) == 2 and full.skipped == {"box without extent": 1}
    target = full[0].target
    assert target.boxes.tolist() == [[-5, 2, 15, 27], [10, 2, 18, 27], [30, 0, 40, 30]]
    assert target.is_crowd.tolist() == [False, True, True] and target.class_ids.tolist() == [0, 0, 0]
    assert target.areas.tolist() == [500, 200, 300]
    assert full[0].origin.image_id == "273271,c9db000d5146c15"
    visible = open_("crowdhuman_visible", tmp_path)
    assert visible.skipped == {}
    assert visible[0].target.boxes.tolist() == [[0, 2, 10, 22], [10, 2, 15, 7], [30, 0, 40, 30], [1, 1, 4, 6]]
    assert len(open_("crowdhuman", tmp_path, drop_empty=True)) == 1
    with pytest.raises(UsageError, match="plain boxes serve detection"):
        open_("crowdhuman", tmp_path, Task.INSTANCE)


def test_crowdhuman_defects(tmp_path: Path) -> None:
    sets.write_crowdhuman(tmp_path)
    path = tmp_path / "annotation_train.odgt"
    sound = path.read_text()
    path.write_text(sound + '{"ID": "x", "gtbo')
    with pytest.raises(DataError, match=r"damaged[\s\S]*annotation_train\.odgt, line 3"):
        open_("crowdhuman", tmp_path)
    path.write_text(sound.replace('"tag"', '"label"', 1))
    with pytest.raises(DataError, match=r"line 1[\s\S]*tag"):
        open_("crowdhuman", tmp_path)
    path.rename(tmp_path / "train.odgt")
    with pytest.raises(UsageError, match=r"annotation_train\.odgt"):
        open_("crowdhuman", tmp_path)
    (tmp_path / "train.odgt").write_text(sound)
    assert len(open_("crowdhuman", tmp_path, annotations="train.odgt")) == 2


# --------------------------------------------------------------------------------------------------- WIDER FACE


def test_wider_face_official_text(tmp_path: Path) -> None:
    sets.write_wider_text(tmp_path)
    source = open_("wider_face", tmp_path)
    assert source.classes is not None and source.classes.names == ("face",)
    assert len(source) == 3 and source.skipped == {"box without extent": 1}
    target = source[0].target
    assert target.boxes.tolist() == [[10, 5, 30, 23], [1, 1, 6, 7], [20, 20, 29, 29]]
    assert target.is_crowd.tolist() == [False, False, True] and target.areas.tolist() == [360, 30, 81]
    assert source[0].origin.image_id == "0_Parade_marchingband_1_849"
    assert len(source[1].target.boxes) == 0 and source[2].origin.path.endswith("1_Handshaking_1_2.jpg")
    small = open_("wider_face", tmp_path, min_box=18)
    assert small[0].target.is_crowd.tolist() == [False, True, True]
    assert open_("wider_face", tmp_path, min_box=18.5)[0].target.is_crowd.tolist() == [True, True, True]
    kept = open_("wider_face", tmp_path, drop_empty=True, min_side=30)
    assert len(kept) == 1 and kept.skipped == {"box without extent": 1, "image without annotations": 2}
    with pytest.raises(DataError, match="image smaller than 31 pixels"):
        open_("wider_face", tmp_path, min_side=31)


def test_wider_face_without_the_line_of_zeros(tmp_path: Path) -> None:
    sets.write_wider_text(tmp_path)
    replace(tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt", "\n0 0 0 0 0 0 0 0 0 0 \n", "\n")
    assert len(open_("wider_face", tmp_path)) == 3


def test_wider_face_as_xml(tmp_path: Path) -> None:
    sets.write_wider_xml(tmp_path)
    source = open_("wider_face", tmp_path, annotations="train.txt", min_box=17)
    assert source[0].target.boxes.tolist() == [[10, 5, 30, 23], [1, 1, 6, 7]]
    assert source[0].target.is_crowd.tolist() == [False, True]
    assert source[0].origin.path.endswith("WIDER_train/0--Parade/0_Parade_marchingband_1_849.jpg")
    assert len(open_("wider_face", tmp_path, drop_empty=True)) == 1
    sets.write_wider_text(tmp_path)
    assert len(open_("wider_face", tmp_path)) == 3  # the official file is read where both are there
    (tmp_path / "WIDER_train" / "Annotations" / "0_Parade_Parade_0_452.xml").unlink()
    with pytest.raises(DataError, match=r"damaged[\s\S]*0_Parade_Parade_0_452\.xml"):
        open_("wider_face", tmp_path, annotations="train.txt")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\n3\n", "\n4\n", "line 1"),
        ("\n1\n3 3 0 9", "\n5\n3 3 0 9", r"5 faces are announced, 1 lines follow"),
        ("1 1 5 6 2 0 0 0 2 0", "1 1 5 6", "fewer than 8 numbers"),
        ("0_Parade_Parade_0_452.jpg", "0_Parade", r"line 6[\s\S]*no image file"),
    ],
)
def test_wider_face_defects(tmp_path: Path, old: str, new: str, words: str) -> None:
    sets.write_wider_text(tmp_path)
    replace(tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt", old, new)
    with pytest.raises(DataError, match=words):
        open_("wider_face", tmp_path)


def test_wider_face_that_is_not_there(tmp_path: Path) -> None:
    sets.write_wider_text(tmp_path)
    with pytest.raises(UsageError, match=r"split 'val'[\s\S]*wider_face_val_bbx_gt"):
        open_("wider_face", tmp_path, split="val")


# --------------------------------------------------------------------------------------------------- BDD100K


def test_bdd100k_official_frames(tmp_path: Path) -> None:
    sets.write_bdd_frames(tmp_path)
    source = open_("bdd100k", tmp_path)
    assert source.classes is not None
    assert source.classes.names == CLASS_NAMES["bdd100k_boxes"] and source.classes.category_ids == tuple(range(1, 11))
    assert len(source) == 3 and source.skipped == {"label without a box": 1, "box without extent": 1}
    target = source[0].target
    # The last row and column of a frame's box belong to it.
    assert target.boxes.tolist() == [[1, 2, 12, 23], [3, 3, 10, 21], [0, 0, 40, 30], [5, 5, 7, 10], [8, 8, 13, 13]]
    assert [source.classes.names[k] for k in target.class_ids.tolist()] == [
        "car", "pedestrian", "car", "rider", "motorcycle"
    ]  # fmt: skip
    assert target.is_crowd.tolist() == [False, False, True, True, False]
    assert len(source[1].target.boxes) == len(source[2].target.boxes) == 0
    cars = open_("bdd100k", tmp_path, classes=("car",), drop_empty=True)
    assert len(cars) == 1 and cars.classes == ClassList(names=("car",), category_ids=(3,))
    with pytest.raises(UsageError, match=r"no class 'cat'[\s\S]*'car'"):
        open_("bdd100k", tmp_path, classes=("cat",))


def test_bdd100k_in_coco_form_comes_first(tmp_path: Path) -> None:
    sets.write_bdd_frames(tmp_path)
    content = sets.coco_objects(["b1.jpg"], ["pedestrian", "rider"])
    write_json(tmp_path / "jsons" / "det_train_cocofmt.json", content)
    assert len(open_("bdd100k", tmp_path)) == 1
    assert len(open_("bdd100k", tmp_path, annotations="labels/det_20/det_train.json")) == 3
    write_json(tmp_path / "jsons" / "ins_seg_train_cocofmt.json", content)
    save_image(tmp_path / "images" / "10k" / "train" / "b1.jpg")
    instances = open_("bdd100k", tmp_path, Task.INSTANCE)
    assert instances[0].target.masks.sum() == 100 and instances[0].target.class_ids.tolist() == [1]


def test_bdd100k_bit_masks(tmp_path: Path) -> None:
    sets.write_bdd_10k(tmp_path)
    source = open_("bdd100k", tmp_path, Task.INSTANCE)
    assert source.classes is not None and source.classes.names == CLASS_NAMES["bdd100k_instances"]
    assert source.classes.category_ids == tuple(range(1, 9))
    target = source[0].target
    assert target.boxes.tolist() == [[0, 10, 10, 20], [12, 2, 16, 8], [4, 2, 12, 8], [30, 25, 40, 30]]
    assert [source.classes.names[k] for k in target.class_ids.tolist()] == ["pedestrian", "car", "car", "truck"]
    assert target.is_crowd.tolist() == [True, False, False, True] and target.areas.tolist() == [100, 24, 48, 50]
    assert target.masks.sum((1, 2)).tolist() == [100, 24, 48, 50] and target.masks[2, 2:8, 4:12].all()
    cars = open_("bdd100k", tmp_path, Task.INSTANCE, classes=("car",))
    assert cars[0].target.masks.shape == (2, 30, 40) and cars[0].target.class_ids.tolist() == [0, 0]
    with pytest.raises(DataError, match="image without annotations"):
        open_("bdd100k", tmp_path, Task.INSTANCE, classes=("bus",), drop_empty=True)
    assert pickle.loads(pickle.dumps(source))[0].target.boxes.tolist() == target.boxes.tolist()


def test_bdd100k_label_maps(tmp_path: Path) -> None:
    sets.write_bdd_10k(tmp_path)
    source = open_("bdd100k", tmp_path, Task.SEMANTIC)
    semantic = source[0].target.semantic
    assert semantic.dtype == torch.int64
    assert semantic[0, 0] == 13 and semantic[0, 25] == 18 and (semantic[:, 30:] == 255).all()
    assert source.classes is not None and source.classes.names == CLASS_NAMES["cityscapes"]


def test_bdd100k_defects(tmp_path: Path) -> None:
    frames = sets.bdd_frames()
    del frames[0]["labels"][1]["box2d"]["x2"]
    sets.write_bdd_frames(tmp_path, frames)
    with pytest.raises(DataError, match=r"det_train\.json, frame 0[\s\S]*x2"):
        open_("bdd100k", tmp_path)
    sets.write_bdd_frames(tmp_path, {"frames": []})
    with pytest.raises(DataError, match="no list of frames"):
        open_("bdd100k", tmp_path)
    with pytest.raises(DataError, match="neither a list of frames"):
        open_("bdd100k", tmp_path, annotations="labels/det_20/det_train.json")
    with pytest.raises(UsageError, match=r"split 'val'[\s\S]*det_val"):
        open_("bdd100k", tmp_path, split="val")
    sets.write_bdd_10k(tmp_path)
    path = tmp_path / "labels" / "ins_seg" / "bitmasks" / "train" / "c1.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(ImageError, match=r"four channels[\s\S]*c1\.png"):
        open_("bdd100k", tmp_path, Task.INSTANCE)[0]


# --------------------------------------------------------------------------------------------------- nuImages


def test_nuimages_objects_and_label_maps(tmp_path: Path) -> None:
    sets.write_nuimages(tmp_path)
    objects = open_("nuimages", tmp_path, Task.INSTANCE, classes=CLASS_NAMES["nuimages"])
    assert objects.classes is not None and objects.classes.category_ids == tuple(range(10))
    assert len(objects) == 2 and objects[1].origin.path.endswith("samples/CAM_BACK/n2.jpg")
    assert objects[0].target.class_ids.tolist() == [9] and objects[0].target.masks.sum() == 100
    maps = open_("nuimages", tmp_path, Task.SEMANTIC)
    assert maps.classes is not None and len(maps.classes) == 31
    assert len(maps) == 2 and maps.skipped == {}  # the picture of another split is not among them
    semantic = maps[0].target.semantic
    assert (semantic[:, :5] == 255).all() and (semantic[:, 5:10] == 0).all() and (semantic[:, 10:] == 30).all()
    (tmp_path / "annotations/semantic_masks/samples/CAM_BACK/n2.png").unlink()
    assert open_("nuimages", tmp_path, Task.SEMANTIC).skipped == {"image without a mask": 1}


def test_nuimages_defects(tmp_path: Path) -> None:
    sets.write_nuimages(tmp_path)
    path = tmp_path / "annotations/semantic_masks/samples/CAM_FRONT/n1.png"
    save_mask(path, np.full((30, 40), 32))
    with pytest.raises(DataError, match=r"beyond the 31 classes[\s\S]*n1\.png[\s\S]*\[32\]"):
        open_("nuimages", tmp_path, Task.SEMANTIC)[0]
    save_mask(path, np.zeros((40, 30)))
    with pytest.raises(DataError, match=r"another size[\s\S]*n1\.png"):
        open_("nuimages", tmp_path, Task.SEMANTIC)[0]
    with pytest.raises(UsageError, match="3 class names for the 31 classes"):
        open_("nuimages", tmp_path, Task.SEMANTIC, classes=("a", "b", "c"))
    shutil.rmtree(tmp_path / "annotations" / "semantic_masks")
    with pytest.raises(UsageError, match="no image has a label map"):
        open_("nuimages", tmp_path, Task.SEMANTIC)
    (tmp_path / "annotations" / "nuimages_v1.0-train.json").write_text(json.dumps({"images": [{"id": 1}]}))
    with pytest.raises(DataError, match="no file name"):
        open_("nuimages", tmp_path, Task.SEMANTIC)


# --------------------------------------------------------------------------------------------------- Cityscapes


def test_cityscapes_instances(tmp_path: Path) -> None:
    sets.write_cityscapes(tmp_path)
    source = open_("cityscapes", tmp_path, Task.INSTANCE)
    assert source.classes is not None and source.classes.category_ids == (24, 25, 26, 27, 28, 31, 32, 33)
    assert len(source) == 2 and source.skipped == {}
    target = source[1].target
    assert "bochum" in source[1].origin.path
    assert target.boxes.tolist() == [[0, 10, 10, 20], [4, 2, 12, 8]]
    assert [source.classes.names[k] for k in target.class_ids.tolist()] == ["person", "car"]
    assert target.is_crowd.tolist() == [True, False] and target.areas.tolist() == [100, 48]
    assert target.masks[1].sum() == 48 and target.masks[1, 2:8, 4:12].all()
    assert open_("cityscapes", tmp_path)[0].target.masks is None
    cars = open_("cityscapes", tmp_path, classes=("car",))
    assert cars[0].target.class_ids.tolist() == [0] and cars[0].target.boxes.tolist() == [[4, 2, 12, 8]]


@pytest.mark.parametrize("train_ids", [True, False])
def test_cityscapes_label_maps(tmp_path: Path, train_ids: bool) -> None:
    sets.write_cityscapes(tmp_path, train_ids=train_ids)
    source = open_("cityscapes", tmp_path, Task.SEMANTIC, classes=CLASS_NAMES["cityscapes"])
    semantic = source[0].target.semantic
    assert len(source) == 2 and source.skipped == {}
    assert (semantic[0] == 255).all() and semantic[1, 39] == 0
    assert (semantic[2:8, 4:12] == 13).all() and (semantic[10:20, :10] == 11).all()
    assert (semantic[20:, 20:30] == 255).all()  # a caravan is not evaluated


def test_cityscapes_in_coco_form(tmp_path: Path) -> None:
    sets.write_cityscapes(tmp_path)
    file = "aachen/aachen_000000_000019_leftImg8bit.png"
    content = sets.coco_objects([file], list(CLASS_NAMES["cityscapes_instances"]), first_id=24)
    write_json(tmp_path / "annotations" / "instancesonly_filtered_gtFine_train.json", content)
    assert len(open_("cityscapes", tmp_path)) == 2
    named = open_("cityscapes", tmp_path, annotations="annotations/instancesonly_filtered_gtFine_train.json")
    assert len(named) == 1 and named[0].target.class_ids.tolist() == [7]
    shutil.rmtree(tmp_path / "gtFine")
    assert len(open_("cityscapes", tmp_path, Task.INSTANCE)) == 1


def test_cityscapes_defects(tmp_path: Path) -> None:
    sets.write_cityscapes(tmp_path)
    folder = tmp_path / "gtFine" / "train" / "aachen"
    save_mask(folder / "aachen_000000_000019_gtFine_labelTrainIds.png", np.full((30, 40), 19))
    with pytest.raises(DataError, match=r"beyond the 19 classes[\s\S]*aachen_000000_000019[\s\S]*\[19\]"):
        open_("cityscapes", tmp_path, Task.SEMANTIC)[0]
    save_mask(folder / "aachen_000000_000019_gtFine_instanceIds.png", np.zeros((60, 80)))
    with pytest.raises(DataError, match=r"another size[\s\S]*60, 80"):
        open_("cityscapes", tmp_path, Task.INSTANCE)[0]
    (folder / "aachen_000000_000019_gtFine_instanceIds.png").unlink()
    (tmp_path / "leftImg8bit/train/bochum/bochum_000000_000313_leftImg8bit.png").unlink()
    with pytest.raises(UsageError, match=r"no image has a mask[\s\S]*instanceIds"):
        open_("cityscapes", tmp_path, Task.INSTANCE)
    assert open_("cityscapes", tmp_path, Task.SEMANTIC).skipped == {"mask without an image": 1}
    with pytest.raises(UsageError, match=r"folder of the images[\s\S]*leftImg8bit/val"):
        open_("cityscapes", tmp_path, split="val")


# --------------------------------------------------------------------------------------------------- VOC's new options


def test_voc_takes_gits_filters(tmp_path: Path) -> None:
    from helpers_layouts import write_voc_layout

    write_voc_layout(tmp_path)
    source = open_("voc", tmp_path, min_box=16)
    assert source[0].target.is_crowd.tolist() == [True, True]  # 15 pixels wide; difficult
    assert len(open_("voc", tmp_path, split="all", drop_empty=True)) == 2
    with pytest.raises(SaccadeError, match="image smaller than 31 pixels"):
        open_("voc", tmp_path, min_side=31)


# --------------------------------------------------------------------------------------------------- recipes


def test_the_published_recipes_find_their_data(tmp_path: Path) -> None:
    from saccade.recipes import get_recipe

    sets.write_lvis(tmp_path / "coco", split="train")
    sets.write_objects365(tmp_path / "objects365v2")
    sets.write_openimages(tmp_path / "openimages")
    sets.write_nuimages(tmp_path / "nuimages")
    sets.write_bdd_frames(tmp_path / "bdd100k")
    sets.write_bdd_10k(tmp_path / "bdd100k")
    readers = ("lvis", "objects365", "openimages", "nuimages", "bdd100k")
    found = [
        source for source in get_recipe("git.universal_base")(data=str(tmp_path)).train if source.reader in readers
    ]
    # The miniatures are smaller than the 32 pixels that the published filter asks for.
    opened = [(s.reader, s.task, open_source(dataclasses.replace(s, min_side=0))) for s in found]
    assert [(reader, task) for reader, task, _ in opened] == [
        ("objects365", Task.DETECTION), ("openimages", Task.DETECTION), ("lvis", Task.DETECTION),
        ("nuimages", Task.DETECTION), ("bdd100k", Task.DETECTION), ("lvis", Task.INSTANCE),
        ("openimages", Task.INSTANCE), ("nuimages", Task.INSTANCE), ("bdd100k", Task.INSTANCE),
        ("nuimages", Task.SEMANTIC),
    ]  # fmt: skip
    for reader, _, source in opened:
        assert len(source) and source[0].image.shape == (3, 30, 40), reader
    boxed = [s for s in found if s.task is not Task.SEMANTIC and s.reader != "openimages"]
    assert {(s.drop_empty, s.min_side) for s in boxed} == {(True, 32)}


def test_the_transfer_recipes_find_their_data(tmp_path: Path) -> None:
    from saccade.recipes import get_recipe

    for split in ("train", "val"):
        sets.write_wider_xml(tmp_path / "WIDERFace", split)
    config = get_recipe("git.few_shot_widerface_base")(data=str(tmp_path))
    train = open_source(dataclasses.replace(config.train[0], min_side=0))
    assert len(train) == 1 and train[0].target.is_crowd.tolist() == [False, True]
    (val,) = config.val
    assert len(open_source(val)) == 2 and open_source(val)[0].target.is_crowd.tolist() == [False, False]
    sets.write_cityscapes(tmp_path / "cityscapes")
    for path in (tmp_path / "cityscapes").glob("*/train"):
        path.rename(path.parent / "val")
    file = "aachen/aachen_000000_000019_leftImg8bit.png"
    content = sets.coco_objects([file], list(CLASS_NAMES["cityscapes_instances"]), first_id=24)
    write_json(tmp_path / "cityscapes/annotations/instancesonly_filtered_gtFine_val.json", content)
    for which, images in (("det", 1), ("ins", 1), ("seg", 2)):
        (source,) = get_recipe(f"git.zero_shot_cityscapes_{which}_base")(data=str(tmp_path)).val
        assert len(open_source(source)) == images
