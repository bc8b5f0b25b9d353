"""The check finds each defect by its kind and names where; sound data has none; conversion keeps everything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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
from PIL import Image

from saccade.data.check import CHECKS, DEFECTS, Report, check_dataset
from saccade.data.sources import DRAWN, READERS, SourceSpec, open_source
from saccade.data.writers import write_coco
from saccade.errors import DataError, UsageError
from saccade.tasks import Task

TASK_OF = {"karpathy": Task.CAPTION, "refcoco": Task.GROUNDING, "mask_folder": Task.SEMANTIC, "ade20k": Task.SEMANTIC}


def check(reader: str, root: Path, **options: Any) -> Report:
    task = TASK_OF.get(reader, Task.DETECTION)
    decode = options.pop("decode", True)
    return check_dataset(SourceSpec(task=task, reader=reader, root=str(root), **options), decode=decode)


def kinds(report: Report) -> dict[str, int]:
    return {finding.kind: finding.count for finding in report.findings}


def _sound_content() -> dict[str, Any]:
    content = coco_content()
    content["images"].pop()  # the empty image stays a note, not a defect, but has no part here
    return content


def test_sound_coco_is_ok(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    report = check("coco", tmp_path)
    assert report.ok and kinds(report) == {}
    assert report.counts == {"annotations": 3, "classes": 3, "images": 3}
    assert report.notes == {"crowd region": 1, "image without annotations": 1}
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def _annotation(index: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][index].update(changes)


def _add(content: dict[str, Any], changes: dict[str, Any]) -> None:
    content["annotations"].append(content["annotations"][0] | changes)


COCO_DEFECTS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("duplicate_image_id", lambda c: c["images"].append(c["images"][1] | {"file_name": "empty2.png"}), "id 9"),
    ("duplicate_annotation_id", _annotation(2, id=1), "annotation 1"),
    ("duplicate_file", lambda c: c["images"][2].update(file_name="a.png"), "a.png"),
    ("duplicate_category", lambda c: c["categories"].append({"id": 90, "name": "bird"}), "90"),
    ("dangling_annotation", lambda c: _add(c, {"id": 8, "image_id": 1}), "image 1"),
    ("unknown_category", lambda c: _add(c, {"id": 8, "category_id": 5}), "5"),
    ("degenerate_box", lambda c: _add(c, {"id": 8, "bbox": [3, 3, 0, 5]}), "8"),
    ("degenerate_box", lambda c: _add(c, {"id": 8, "bbox": [3, 3, 2, -5]}), "8"),
    ("box_out_of_frame", lambda c: _add(c, {"id": 8, "bbox": [30, 3, 20, 5]}), "8"),
    ("box_out_of_frame", lambda c: _add(c, {"id": 8, "bbox": [-5, 3, 9, 5]}), "8"),
    ("nan_box", _annotation(0, bbox=[float("nan"), 5, 10, 10]), "annotation 1 of image 7"),
    ("nan_box", _annotation(0, bbox=[5, 5, float("inf"), 10]), "annotation 1 of image 7"),
    ("missing_box", _annotation(0, bbox=[5, 5, 10]), "annotation 1"),
    ("missing_box", _annotation(0, bbox=None), "annotation 1"),
    ("empty_polygon", _annotation(0, segmentation=[]), "annotation 1"),
    ("short_polygon", _annotation(0, segmentation=[[1, 2, 3, 4]]), "[1, 2, 3, 4]"),
    ("short_polygon", _annotation(0, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 1"),
    ("invalid_polygon", _annotation(0, segmentation=[[1, 2, 3, float("nan"), 5, 6]]), "annotation 1"),
    ("invalid_polygon", _annotation(0, segmentation=[[1, 2, 3, 1e8, 5, 6]]), "annotation 1"),
    ("bad_rle", _annotation(1, segmentation={"size": [60, 80], "counts": [0, 4800]}), "[60, 80]"),
    ("bad_rle", _annotation(1, segmentation={"size": [30, 40], "counts": [0, 1199]}), "1199"),
    ("bad_rle", _annotation(1, segmentation={"size": [30, 40], "counts": "##"}), "annotation 2"),
    ("bad_rle", _annotation(1, segmentation={"size": [30, 40]}), "annotation 2"),
    ("unused_class", lambda c: c["categories"].append({"id": 5, "name": "cow"}), "cow"),
    ("image_size_mismatch", lambda c: c["images"][2].update(height=40, width=30), "empty.png"),
    ("invalid_entry", lambda c: c["images"][2].pop("height"), "4"),
    ("invalid_entry", lambda c: c["annotations"].append("what"), "what"),
    ("invalid_entry", _annotation(0, id=None), "annotation None"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "damage", "example"), COCO_DEFECTS)
def test_each_defect_of_coco_is_found_alone(
    tmp_path: Path, kind: str, damage: Callable[[dict[str, Any]], Any], example: str
) -> None:
    content = coco_content()
    write_coco_layout(tmp_path, content)
    save_image(tmp_path / "images" / "empty2.png")
    damage(content)
    write_json(tmp_path / "annotations" / "instances_train.json", content)
    report = check("coco", tmp_path)
    assert not report.ok
    assert kinds(report) == {kind: 1}
    assert example in report.findings[0].examples[0]
    assert report.findings[0].fix


def test_damaged_and_missing_images(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    whole = (tmp_path / "images" / "a.png").read_bytes()
    (tmp_path / "images" / "a.png").write_bytes(whole[:-2000])
    (tmp_path / "images" / "b.png").unlink()
    report = check("coco", tmp_path)
    assert kinds(report) == {"missing_image": 1, "unreadable_image": 1}
    assert "a.png" in report.findings[1].examples[0] and "b.png" in report.findings[0].examples[0]
    assert kinds(check("coco", tmp_path, decode=False)) == {"missing_image": 1}
    shutil.rmtree(tmp_path / "images")
    assert "missing_image" in kinds(check("coco", tmp_path))


def test_examples_are_few_and_counts_are_whole(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"] += [content["annotations"][0] | {"id": 100 + k, "bbox": [1, 1, 0, 0]} for k in range(9)]
    write_coco_layout(tmp_path, content)
    (finding,) = check("coco", tmp_path).findings
    assert finding.count == 9 and len(finding.examples) == 5


def test_images_in_both_splits_by_name_and_by_content(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    val = _sound_content()
    val["images"] = [val["images"][0], val["images"][1] | {"file_name": "copy of b.png"}]
    write_json(tmp_path / "annotations" / "instances_val.json", val)
    shutil.copy(tmp_path / "images" / "b.png", tmp_path / "images" / "copy of b.png")
    report = check("coco", tmp_path)
    assert kinds(report) == {"image_in_both_splits": 2}
    assert "a.png" in report.findings[0].examples[0] and "copy of b.png" in report.findings[0].examples[1]
    assert kinds(check("coco", tmp_path, split="val")) == {"image_in_both_splits": 2}


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"images": 3}', '{"images": [1], "annotations": [2], "categories": [3]}']
)
def test_nonsense_is_a_finding_not_a_crash(tmp_path: Path, content: str) -> None:
    write_coco_layout(tmp_path)
    (tmp_path / "annotations" / "instances_train.json").write_text(content)
    report = check("coco", tmp_path)
    assert not report.ok
    assert set(kinds(report)) & {"unreadable_annotations", "invalid_entry"}


def test_voc_defects(tmp_path: Path) -> None:
    write_voc_layout(tmp_path)
    assert kinds(check("voc", tmp_path)) == {"degenerate_box": 1}
    assert kinds(check("voc", tmp_path, split="val")) == {}
    folder = tmp_path / "Annotations"
    objects: list[tuple[str, tuple[object, ...], int]] = [
        ("dog", (5, 5, 60, 20), 0), ("dog", ("nan", 5, 6, 20), 0), ("dog", ("", 5, 6, 20), 0), ("cow", (1, 1, 5, 5), 1),
    ]  # fmt: skip
    (folder / "one.xml").write_text(voc_xml("one.jpg", objects))
    (folder / "two.xml").write_text("<annotation>")
    save_image(tmp_path / "JPEGImages" / "one.jpg", (20, 20))
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("one\ntwo\nthree\nfour\n")
    (tmp_path / "JPEGImages" / "three.jpg").unlink()
    report = check("voc", tmp_path, classes=("dog", "bird"))
    assert kinds(report) == {
        "unreadable_annotations": 2,
        "missing_image": 1,
        "image_size_mismatch": 1,
        "unknown_category": 1,
        "nan_box": 2,
        "box_out_of_frame": 1,
        "unused_class": 1,
        "image_in_both_splits": 1,  # three is in val too
    }
    assert report.notes == {"difficult object": 1, "image without annotations": 1}


def test_the_union_of_two_splits_is_no_leak(tmp_path: Path) -> None:
    write_voc_layout(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("one\nthree\n")
    assert kinds(check("voc", tmp_path, split="trainval")) == {}


def _mask(values: tuple[int, ...] = (0, 255), size_hw: tuple[int, int] = (30, 40)) -> np.ndarray:
    return np.resize(np.array(values), size_hw)


def test_data_without_splits_says_so(tmp_path: Path) -> None:
    for number in range(20):
        save_image(tmp_path / "images" / f"{number}.jpg", seed=number)
        save_mask(tmp_path / "masks" / f"{number}.png", _mask())
        save_image(tmp_path / "voc" / f"{number}.jpg", seed=number)
        (tmp_path / "voc" / f"{number}.xml").write_text(voc_xml(f"{number}.jpg", [("dog", (1, 1, 5, 5), 0)]))
    for reader, root in (("mask_folder", tmp_path), ("voc", tmp_path / "voc")):
        train, val, whole = (check(reader, root, split=split) for split in ("train", "val", "all"))
        assert train.ok and val.ok and whole.ok
        assert train.counts["images"] + val.counts["images"] == whole.counts["images"] == 20
        assert any(note.startswith("data set without splits") for note in train.notes) and not whole.notes


def test_mask_folder_defects(tmp_path: Path) -> None:
    for number, stem in enumerate("abcdef"):
        save_image(tmp_path / "images" / f"{stem}.jpg", seed=number)
        save_mask(tmp_path / "masks" / f"{stem}_mask.png", _mask())
    assert check("mask_folder", tmp_path, split="all").ok
    assert check("mask_folder", tmp_path, split="all", classes=("lesion",)).ok
    save_mask(tmp_path / "masks" / "a_mask.png", _mask(size_hw=(60, 80)))
    save_mask(tmp_path / "masks" / "b_mask.png", _mask((0, 128, 255)))
    (tmp_path / "masks" / "c_mask.png").write_text("no mask")
    (tmp_path / "masks" / "d_mask.png").unlink()
    (tmp_path / "images" / "e.jpg").unlink()
    (tmp_path / "images" / "f.jpg").write_bytes(b"")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("a\nb\nc\nd\nf\nghost\n")
    report = check("mask_folder", tmp_path, classes=("lesion",))
    assert kinds(report) == {
        "mask_size_mismatch": 1,
        "value_outside_classes": 1,
        "unreadable_mask": 1,
        "missing_mask": 1,
        "missing_image_of_mask": 1,
        "unreadable_image": 1,
        "missing_image": 1,
    }
    where = {finding.kind: finding.examples[0] for finding in report.findings}
    assert "80 x 60" in where["mask_size_mismatch"] and "[128]" in where["value_outside_classes"]


def test_label_map_defects(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.jpg")
    save_mask(tmp_path / "masks" / "a.png", _mask((0, 1, 2, 7, 255)))
    report = check("mask_folder", tmp_path, split="all", classes=tuple("wxyz"))
    assert kinds(report) == {"value_outside_classes": 1, "unused_class": 1}
    assert check("mask_folder", tmp_path, split="all", classes=tuple("wxy"), ignore_labels=(7,)).ok
    numbered = check("mask_folder", tmp_path, split="all")
    assert kinds(numbered) == {"unused_class": 4}  # 3 to 6


def _folder(root: Path, masks: dict[str, np.ndarray]) -> None:
    for number, (stem, values) in enumerate(masks.items()):
        save_image(root / "images" / f"{stem}.jpg", values.shape, seed=number)
        save_mask(root / "masks" / f"{stem}.png", values)


def _disc(value: int = 255) -> np.ndarray:
    y, x = np.mgrid[:60, :80]
    return (((x - 40) ** 2 + (y - 30) ** 2 <= 15**2) * value).astype(np.uint8)


@pytest.mark.parametrize("classes", [(), ("lesion",), ("background", "lesion")])
def test_the_check_agrees_with_the_reader_on_binary_masks(tmp_path: Path, classes: tuple[str, ...]) -> None:
    _folder(tmp_path, {"a": _disc(1), "b": _disc(255), "c": _disc(), "d": _disc(0)})
    Image.fromarray(_disc()).save(tmp_path / "masks/c.jpg")
    (tmp_path / "masks/c.png").unlink()
    report = check("mask_folder", tmp_path, split="all", classes=classes)
    assert report.ok and report.counts["classes"] == 2
    assert report.notes == {
        "mask with soft edges: cut at half of white": 1,
        "image without an object": 1,
        "mask of 0 and 1 beside masks of 0 and 255: 1 is the object": 1,
    }
    ramp = (_disc(1) * np.linspace(0, 255, 80)).astype(np.uint8)
    save_mask(tmp_path / "masks/a.png", ramp)
    report = check("mask_folder", tmp_path, split="all", classes=classes)
    assert kinds(report) == {"value_outside_classes": 1} and "a.png" in report.findings[0].examples[0]
    source = open_source(SourceSpec(task=Task.SEMANTIC, reader="mask_folder", root=str(tmp_path), split="all"))
    with pytest.raises(DataError, match=r"a\.png"):
        source[0]


def test_masks_without_any_object_are_a_defect(tmp_path: Path) -> None:
    _folder(tmp_path, {"a": _disc(0), "b": _disc(0)})
    for classes in ((), ("lesion",), ("background", "lesion")):
        assert kinds(check("mask_folder", tmp_path, split="all", classes=classes)) == {"unused_class": 1}
    see_through = np.zeros((60, 80, 4), np.uint8)
    see_through[:, :, 3] = _disc()
    Image.fromarray(see_through).save(tmp_path / "masks/a.png")
    report = check("mask_folder", tmp_path, split="all")
    assert kinds(report) == {"unreadable_mask": 1, "unused_class": 1}
    assert "transparency" in report.findings[0].examples[0]


def test_label_maps_of_two_classes_with_ignored_pixels(tmp_path: Path) -> None:
    labels = _disc(1)
    labels[0] = 255
    _folder(tmp_path, {"a": labels, "b": _disc(1), "c": _disc(1)})
    for classes in (("lesion",), ("background", "lesion")):
        report = check("mask_folder", tmp_path, split="all", classes=classes)
        assert report.ok and not report.notes, kinds(report)


def test_pictures_that_are_there_twice_in_an_undivided_folder(tmp_path: Path) -> None:
    _folder(tmp_path, {stem: _disc() for stem in "abcd"})
    for twin in ("x", "y"):
        shutil.copy(tmp_path / "images/b.jpg", tmp_path / f"images/{twin}.jpg")
        save_mask(tmp_path / f"masks/{twin}.png", _disc())
    save_image(tmp_path / "images/c.png", (60, 80), seed=8)
    report = check("mask_folder", tmp_path, split="all")
    assert kinds(report) == {"duplicate_image": 2, "same_name": 1}
    where = {finding.kind: finding.examples for finding in report.findings}
    assert where["duplicate_image"] == ["images/x.jpg is images/b.jpg", "images/y.jpg is images/b.jpg"]
    assert where["same_name"] == ["images/c.jpg"]


def test_small_objects_are_left_out_of_coco_where_asked(tmp_path: Path) -> None:
    specked = _disc()
    specked[2, 2] = 255
    _folder(tmp_path, {"a": specked})
    spec = SourceSpec(task=Task.INSTANCE, reader="mask_folder", root=str(tmp_path), split="all")
    assert write_coco(open_source(spec), tmp_path / "all")["annotations"] == 2
    written = write_coco(open_source(spec), tmp_path / "large", least_region=0.001)
    assert (written["annotations"], written["left_out"]) == (1, 1)
    (kept,) = json.loads((tmp_path / "large/annotations/instances_train.json").read_text())["annotations"]
    assert kept["area"] == (_disc() > 0).sum()


def test_ade20k_is_checked_with_its_classes(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "training" / "x.jpg")
    save_mask(tmp_path / "annotations" / "training" / "x.png", _mask((0, 1, 150)))
    assert kinds(check("ade20k", tmp_path, split="train")) == {"unused_class": 148}
    save_mask(tmp_path / "annotations" / "training" / "x.png", _mask((0, 1, 151)))
    assert kinds(check("ade20k", tmp_path, split="training"))["value_outside_classes"] == 1


def test_caption_defects(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.png")
    content = {
        "images": [
            {"id": 7, "file_name": "a.png"},
            {"id": 8, "file_name": "gone.png"},
            {"id": 9, "file_name": "c.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "x"},
            {"id": 1, "image_id": 8, "caption": "y"},
            {"id": 2, "image_id": 9, "caption": " "},
            {"id": 3, "image_id": 10, "caption": "z"},
        ],
    }
    write_json(tmp_path / "annotations" / "captions_train.json", content)
    assert kinds(check("karpathy", tmp_path)) == {
        "duplicate_annotation_id": 1,
        "missing_image": 1,
        "dangling_annotation": 1,
        "blank_caption": 1,
        "image_without_caption": 1,
    }


def test_reference_defects(tmp_path: Path) -> None:
    write_refcoco_layout(tmp_path)
    assert check("refcoco", tmp_path).ok
    bad = refs()
    bad[0]["ann_id"] = 77
    bad[0]["sentences"][0]["sent"] = bad[0]["sentences"][0]["raw"] = " "
    bad.append(bad[0] | {"ref_id": 3, "image_id": 123, "ann_id": 1})
    write_json(tmp_path / "grefs(x).json", bad)
    (tmp_path / "train2014" / "a.png").unlink()
    write_json(tmp_path / "instances.json", coco_content())
    report = check("refcoco", tmp_path, annotations="grefs(x).json", images="train2014")
    assert kinds(report) == {"missing_image": 1, "dangling_reference": 2, "empty_phrase": 2}


def test_every_reader_can_be_checked_and_scenes_need_not() -> None:
    assert set(CHECKS) == set(READERS) - DRAWN
    for reader in DRAWN:
        with pytest.raises(UsageError, match="drawn"):
            check_dataset(SourceSpec(task=Task.REFERRING, reader=reader))
    for kind, (what, fix) in DEFECTS.items():
        assert kind.isidentifier() and what and fix


def test_progress_is_told(tmp_path: Path) -> None:
    write_coco_layout(tmp_path)
    seen: list[tuple[int, int]] = []
    spec = SourceSpec(task=Task.DETECTION, reader="coco", root=str(tmp_path))
    check_dataset(spec, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_real_data() -> None:
    assert check("coco", SHARED / "dsb2018", split="val").ok
    assert kinds(check("coco", SHARED / "coco_mini", decode=False)) == {"unused_class": 28}
    both = check("voc", SHARED / "bccd", split="trainval", decode=False)
    assert kinds(both) == {"degenerate_box": 2}
    assert "BloodImage_00338" in both.findings[0].examples[0] and "BloodImage_00343" in both.findings[0].examples[1]
    assert check("mask_folder", SHARED / "isic2018_512", split="val", classes=("lesion",), decode=False).ok
    for reader, name in (("karpathy", "coco_mini"), ("refcoco", "coco_mini"), ("refcoco", "bccd")):
        assert check(reader, SHARED / name, decode=False).ok


# --------------------------------------------------------------------------------------------------- writing


def test_coco_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    write_coco_layout(tmp_path / "in")
    spec = SourceSpec(task=Task.INSTANCE, reader="coco", root=str(tmp_path / "in"))
    source = open_source(spec)
    assert write_coco(source, tmp_path / "out") == {"images": 3, "annotations": 3, "categories": 3}
    spec.root = str(tmp_path / "out")
    again = open_source(spec)
    assert again.classes == source.classes and check("coco", tmp_path / "out").ok
    for k in range(3):
        one, two = source[k], again[k]
        assert one.origin.image_id == two.origin.image_id and torch.equal(one.image, two.image)
        for name in ("boxes", "class_ids", "masks", "is_crowd", "areas"):
            assert torch.equal(getattr(one.target, name), getattr(two.target, name)), name
    with pytest.raises(UsageError, match="exists already"):
        write_coco(source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_masks_become_instances_and_pictures_become_files(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("val", 1)):
        save_image(tmp_path / "in" / "images" / split / "same name.jpg", seed=seed)
        save_mask(tmp_path / "in" / "masks" / split / "same name.png", _mask((0, 0, 255)))
        spec = SourceSpec(task=Task.INSTANCE, reader="mask_folder", root=str(tmp_path / "in"), split=split)
        spec.classes = ("lesion",)
        source = open_source(spec)
        write_coco(source, tmp_path / "out", split=split)
        back = open_source(SourceSpec(task=Task.INSTANCE, reader="coco", root=str(tmp_path / "out"), split=split))
        assert back.classes == source.classes
        assert torch.equal(back[0].target.masks, source[0].target.masks)
        assert torch.equal(back[0].image, source[0].image)


def test_drawn_pictures_and_captions_are_written(tmp_path: Path) -> None:
    write_coco(MadeSource(Task.CAPTION, 3), tmp_path, split="val")  # type: ignore[arg-type]
    back = open_source(SourceSpec(task=Task.CAPTION, reader="karpathy", root=str(tmp_path), split="val"))
    assert len(back) == 3 and back[2].target.captions == ("caption 2 a", "caption 2 b")
    assert torch.equal(back[1].image, MadeSource(Task.CAPTION, 3)[1].image)
    with pytest.raises(UsageError, match="no file for the task"):
        write_coco(MadeSource(Task.SEMANTIC, 1), tmp_path)  # type: ignore[arg-type]
