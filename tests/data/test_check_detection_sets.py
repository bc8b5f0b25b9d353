"""The check of public detection sets: sound miniatures have no defect but unused classes, each defect is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helpers_detection_sets as sets
import numpy as np
import pytest
from helpers_layouts import save_image, save_mask, write_json

from saccade.cli import main
from saccade.data.check import Report, check_dataset
from saccade.data.sources import SourceSpec
from saccade.tasks import Task


def check(reader: str, root: Path, task: Task = Task.DETECTION, **options: Any) -> Report:
    return check_dataset(SourceSpec(task=task, reader=reader, root=str(root), **options))


def kinds(report: Report) -> dict[str, int]:
    """Defects other than classes that a miniature lacks."""
    return {finding.kind: finding.count for finding in report.findings if finding.kind != "unused_class"}


def example(report: Report, kind: str) -> str:
    return next(finding.examples[0] for finding in report.findings if finding.kind == kind)


def test_sets_in_coco_form(tmp_path: Path) -> None:
    sets.write_lvis(tmp_path / "lvis")
    report = check("lvis", tmp_path / "lvis", split="val")
    assert report.ok and report.counts == {"images": 2, "annotations": 3, "classes": 3}
    (tmp_path / "lvis" / "val2017" / "000000397133.jpg").unlink()
    report = check("lvis", tmp_path / "lvis", split="val")
    assert kinds(report) == {"missing_image": 1} and "val2017/000000397133.jpg" in example(report, "missing_image")
    for whole in (False, True):
        sets.write_objects365(tmp_path / f"o365{whole}", whole_names=whole)
        report = check("objects365", tmp_path / f"o365{whole}")
        assert report.ok and report.counts["images"] == 2
        assert report.notes["image that is listed but not shipped"] == 1
    write_json(tmp_path / "v3det/annotations/v3det_2023_v1_train.json", sets.coco_objects(["images/a/b.jpg"], ["jay"]))
    save_image(tmp_path / "v3det/images/a/b.jpg")
    assert check("v3det", tmp_path / "v3det").ok


def test_a_leak_between_splits_is_seen(tmp_path: Path) -> None:
    sets.write_lvis(tmp_path / "lvis")
    sets.write_lvis(tmp_path / "lvis", split="train")
    assert kinds(check("lvis", tmp_path / "lvis", split="val")) == {"image_in_both_splits": 2}
    for split in ("train", "val"):
        sets.write_crowdhuman(tmp_path / "crowd", split)
    assert kinds(check("crowdhuman_visible", tmp_path / "crowd")) == {"image_in_both_splits": 2}
    named = check("crowdhuman", tmp_path / "crowd", annotations="annotation_train.odgt")
    assert "image_in_both_splits" not in kinds(named)


def test_crowdhuman_and_wider_face(tmp_path: Path) -> None:
    sets.write_crowdhuman(tmp_path / "crowd")
    report = check("crowdhuman_visible", tmp_path / "crowd")
    assert report.ok and report.counts == {"images": 2, "annotations": 4, "classes": 1}
    assert report.notes == {"ignored region": 2, "image without annotations": 1}
    assert kinds(check("crowdhuman", tmp_path / "crowd")) == {"degenerate_box": 1}
    (tmp_path / "crowd" / "annotation_train.odgt").write_text("{")
    assert kinds(check("crowdhuman", tmp_path / "crowd")) == {"unreadable_annotations": 1}
    sets.write_wider_text(tmp_path / "wider")
    report = check("wider_face", tmp_path / "wider")
    assert kinds(report) == {"degenerate_box": 1} and "1_Handshaking_1_2" in example(report, "degenerate_box")
    sets.write_wider_xml(tmp_path / "xml")
    assert check("wider_face", tmp_path / "xml").ok


def test_openimages(tmp_path: Path) -> None:
    sets.write_openimages(tmp_path)
    assert kinds(check("openimages", tmp_path)) == {"degenerate_box": 1}
    masks = check("openimages", tmp_path, Task.INSTANCE)
    assert kinds(masks) == {} and masks.counts == {"images": 2, "annotations": 2, "classes": 3}
    table = tmp_path / "annotations" / "oidv6-train-annotations-bbox.csv"
    sets.rewrite_csv(table, 4, "XMax", "0.5")
    assert kinds(check("openimages", tmp_path)) == {}
    sets.rewrite_csv(table, 2, "XMax", "1.5")
    sets.rewrite_csv(table, 1, "LabelName", "/m/none")
    assert kinds(check("openimages", tmp_path)) == {"box_out_of_frame": 1, "unknown_category": 1}
    (tmp_path / "masks/train/00bb_m0cmf2_2.png").unlink()
    (tmp_path / "masks/train/00aa_m01g317_1.png").write_text("no mask")
    (tmp_path / "train" / "00bb.jpg").unlink()
    report = check("openimages", tmp_path, Task.INSTANCE)
    assert kinds(report) == {"missing_mask": 1, "unreadable_mask": 1, "missing_image": 1}


def test_bdd100k(tmp_path: Path) -> None:
    sets.write_bdd_frames(tmp_path)
    sets.write_bdd_10k(tmp_path)
    report = check("bdd100k", tmp_path)
    assert kinds(report) == {"degenerate_box": 1} and report.notes["label without a box"] == 1
    report = check("bdd100k", tmp_path, Task.INSTANCE)
    assert kinds(report) == {} and report.counts == {"images": 1, "annotations": 4, "classes": 8}
    assert report.notes == {"ignored region": 2}
    assert kinds(check("bdd100k", tmp_path, Task.SEMANTIC)) == {}
    save_mask(tmp_path / "labels/sem_seg/masks/train/c1.png", np.full((30, 40), 19))
    assert kinds(check("bdd100k", tmp_path, Task.SEMANTIC)) == {"value_outside_classes": 1}
    save_mask(tmp_path / "labels/ins_seg/bitmasks/train/c1.png", np.zeros((30, 40)))
    assert kinds(check("bdd100k", tmp_path, Task.INSTANCE)) == {"unreadable_mask": 1}
    frames = sets.bdd_frames()
    frames[0]["labels"][0]["category"] = "cat"
    sets.write_bdd_frames(tmp_path, frames)
    assert kinds(check("bdd100k", tmp_path)) == {"degenerate_box": 1, "unknown_category": 1}


def test_nuimages_and_cityscapes(tmp_path: Path) -> None:
    sets.write_nuimages(tmp_path / "n")
    assert kinds(check("nuimages", tmp_path / "n", Task.INSTANCE)) == {}
    assert kinds(check("nuimages", tmp_path / "n", Task.SEMANTIC)) == {}
    (tmp_path / "n/annotations/semantic_masks/samples/CAM_BACK/n2.png").unlink()
    assert kinds(check("nuimages", tmp_path / "n", Task.SEMANTIC)) == {"missing_mask": 1}
    sets.write_cityscapes(tmp_path / "c")
    for task in (Task.INSTANCE, Task.SEMANTIC):
        report = check("cityscapes", tmp_path / "c", task)
        assert kinds(report) == {} and report.counts["images"] == 2
    folder = tmp_path / "c/gtFine/train"
    save_mask(folder / "aachen/aachen_000000_000019_gtFine_instanceIds.png", np.zeros((60, 80)))
    (folder / "bochum/bochum_000000_000313_gtFine_instanceIds.png").rename(
        folder / "bochum/bochum_000000_000999_gtFine_instanceIds.png"
    )
    report = check("cityscapes", tmp_path / "c", Task.INSTANCE)
    assert kinds(report) == {"mask_size_mismatch": 1, "missing_mask": 1, "missing_image_of_mask": 1}
    assert "80 x 60" in example(report, "mask_size_mismatch")


def test_the_command_takes_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets.write_bdd_frames(tmp_path)
    sets.write_bdd_10k(tmp_path)
    for task, images in (("detection", 3), ("instance", 1), ("semantic", 1)):
        out = tmp_path / f"{task}.json"
        main(["data", "check", str(tmp_path), "--format", "bdd100k", "--task", task, "--json", str(out)])
        (split,) = json.loads(out.read_text())["splits"]
        assert split["counts"]["images"] == images
    capsys.readouterr()
