"""ISIC 2018, CVC-ClinicDB and LiTS in miniature: official layouts, the published splits, bad input."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_layouts import save_image, save_mask
from PIL import Image

from saccade.cli import main
from saccade.data.check import check_dataset
from saccade.data.sources import SourceSpec, open_source
from saccade.data.sources.object_masks import tenths
from saccade.errors import DataError, MissingDataError, MissingExtraError, UsageError
from saccade.hub.checkpoint import save_model
from saccade.layers.unet import UNetConfig
from saccade.models.polar.config import SegmenterConfig
from saccade.models.systems import build
from saccade.recipes import get_recipe
from saccade.tasks import Task


def disc(size_hw: tuple[int, int], center: tuple[int, int], radius: int, value: int = 255) -> np.ndarray:
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    return (((x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2) * value).astype(np.uint8)


def write_isic(root: Path, *, train: int = 18, val: int = 2) -> None:
    number = 0
    for part, count in (("Validation", val), ("Training", train)):
        for _ in range(count):
            stem = f"ISIC_{number:07d}"
            save_image(root / f"ISIC2018_Task1-2_{part}_Input" / f"{stem}.jpg", seed=number)
            mask = disc((30, 40), (12 + number % 9, 14), 5)
            save_mask(root / f"ISIC2018_Task1_{part}_GroundTruth" / f"{stem}_segmentation.png", mask)
            number += 1
        for folder in (f"ISIC2018_Task1-2_{part}_Input", f"ISIC2018_Task1_{part}_GroundTruth"):
            (root / folder / "LICENSE.txt").write_text("CC-0")


def open_(reader: str, root: Path, task: Task = Task.SEMANTIC, split: str = "train", **changes: object):
    return open_source(SourceSpec(task=task, reader=reader, root=str(root), split=split, **changes))


def ids(source) -> list[str]:
    return [source[index].origin.image_id for index in range(len(source))]


# --- ISIC 2018


def test_isic_has_the_published_split(tmp_path: Path) -> None:
    write_isic(tmp_path)
    parts = {split: ids(open_("isic2018", tmp_path, split=split)) for split in ("train", "val", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 16, "val": 2, "test": 2}
    files = [f"ISIC_{number:07d}" for number in range(20)]  # validation first
    shuffled = np.array([[name, name] for name in files])
    np.random.seed(42)  # noqa: NPY002 (what the published split was drawn by)
    np.random.shuffle(shuffled)  # noqa: NPY002
    assert parts["train"] + parts["val"] + parts["test"] == shuffled[:, 0].tolist()


def test_isic_of_the_published_size_is_divided_as_published() -> None:
    parts = tenths(range(2594 + 100))
    assert [len(parts[name]) for name in ("train", "val", "test")] == [2156, 269, 269]


def test_isic_official_folders(tmp_path: Path) -> None:
    write_isic(tmp_path)
    assert ids(open_("isic2018", tmp_path, split="official_val")) == ["ISIC_0000000", "ISIC_0000001"]
    assert len(open_("isic2018", tmp_path, split="official_train")) == 18
    assert len(open_("isic2018", tmp_path, split="all")) == 20
    with pytest.raises(MissingDataError, match="Test_Input"):
        open_("isic2018", tmp_path, split="official_test")
    with pytest.raises(UsageError, match="no split 'dev'"):
        open_("isic2018", tmp_path, split="dev")


@pytest.mark.parametrize("task", [Task.SEMANTIC, Task.CENTER, Task.DETECTION, Task.INSTANCE])
def test_a_lesion_as_every_task_wants_it(tmp_path: Path, task: Task) -> None:
    write_isic(tmp_path)
    source = pickle.loads(pickle.dumps(open_("isic2018", tmp_path, task, "official_val")))
    sample = source[1]
    assert sample.size_hw == (30, 40) and sample.origin.size_hw == (30, 40)
    mask = torch.from_numpy(disc((30, 40), (13, 14), 5) > 0)
    if task in (Task.SEMANTIC, Task.CENTER):
        assert sample.classes.names == ("background", "lesion")
        assert torch.equal(sample.target.semantic.as_subclass(torch.Tensor), mask.long())
    else:
        assert sample.classes.names == ("lesion",) and sample.classes.category_ids == (1,)
        assert sample.target.boxes.tolist() == [[8, 9, 19, 20]]
        assert (sample.target.masks is not None) == (task is Task.INSTANCE)
    named = open_("isic2018", tmp_path, task, "official_val", classes=("background", "naevus"))
    assert named.classes.names[-1] == "naevus"
    with pytest.raises(UsageError, match="one class"):
        open_("isic2018", tmp_path, task, classes=("a", "b"))


def test_isic_without_partners(tmp_path: Path) -> None:
    write_isic(tmp_path)
    (tmp_path / "ISIC2018_Task1_Validation_GroundTruth/ISIC_0000000_segmentation.png").unlink()
    (tmp_path / "ISIC2018_Task1-2_Validation_Input/ISIC_0000001.jpg").unlink()
    with pytest.raises(DataError, match="no image is left"):
        open_("isic2018", tmp_path, split="official_val")
    source = open_("isic2018", tmp_path, split="all")
    assert len(source) == 18 and source.skipped == {"image without a mask": 1, "mask without an image": 1}
    report = check_dataset(SourceSpec(task=Task.SEMANTIC, reader="isic2018", root=str(tmp_path), split="all"))
    assert {finding.kind: finding.count for finding in report.findings} == {
        "missing_mask": 1,
        "missing_image_of_mask": 1,
    }
    assert [finding.examples for finding in report.findings] == [
        ["ISIC_0000000.jpg"],
        ["ISIC_0000001_segmentation.png"],
    ]


def test_files_without_a_partner_are_named_once_for_all_splits(tmp_path: Path, capsys) -> None:
    write_isic(tmp_path / "isic")
    (tmp_path / "isic/ISIC2018_Task1_Training_GroundTruth/ISIC_0000007_segmentation.png").unlink()
    assert main(["data", "check", str(tmp_path / "isic"), "--format", "isic2018"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("missing_mask: ISIC_0000007.jpg") == 1 and "1 defects" in shown
    assert "note: image without a mask, named with the split 'train' (1)" in shown
    assert "other than the 2694 of the published ones (19)" in shown


def test_the_check_of_a_named_format_passes_the_error_of_its_reader_on(tmp_path: Path, capsys) -> None:
    write_isic(tmp_path / "isic")
    (tmp_path / "isic/ISIC2018_Task1-2_Validation_Input").rename(tmp_path / "elsewhere")
    assert main(["data", "check", str(tmp_path / "isic"), "--format", "isic2018"]) == 2
    shown = capsys.readouterr().err
    assert "split=official_train" in shown and "no data set is recognised" not in shown
    assert main(["data", "check", str(tmp_path / "isic"), "--format", "isic2018", "--split", "official_train"]) == 0


def test_masks_without_any_object_are_a_defect(tmp_path: Path) -> None:
    write_cvc(tmp_path, 10)
    for path in (tmp_path / "Ground Truth").iterdir():
        save_mask(path, np.zeros((24, 32)))
    report = check_dataset(SourceSpec(task=Task.SEMANTIC, reader="cvc_clinicdb", root=str(tmp_path), split="all"))
    assert [finding.kind for finding in report.findings] == ["unused_class"]
    assert report.notes == {"image without an object": 10}


def test_an_empty_mask_and_one_of_another_size(tmp_path: Path) -> None:
    write_isic(tmp_path)
    folder = tmp_path / "ISIC2018_Task1_Validation_GroundTruth"
    save_mask(folder / "ISIC_0000000_segmentation.png", np.zeros((30, 40)))
    save_mask(folder / "ISIC_0000001_segmentation.png", disc((20, 20), (9, 9), 3))
    source = open_("isic2018", tmp_path, Task.INSTANCE, "official_val")
    assert len(source[0].target.boxes) == 0 and source[0].target.masks.shape == (0, 30, 40)
    assert not open_("isic2018", tmp_path, split="official_val")[0].target.semantic.any()
    with pytest.raises(DataError, match="another size"):
        source[1]


def test_isic_becomes_coco_on_the_command_line(tmp_path: Path) -> None:
    write_isic(tmp_path / "isic")
    words = ["data", "convert", str(tmp_path / "isic"), "--from", "isic2018", "--to", "coco"]
    assert main([*words, "--out", str(tmp_path / "coco")]) == 0
    for split, count in (("train", 16), ("val", 2), ("test", 2)):
        told = json.loads((tmp_path / "coco/annotations" / f"instances_{split}.json").read_text())
        assert len(told["images"]) == len(told["annotations"]) == count
        assert told["categories"] == [{"id": 1, "name": "lesion"}]
    back = open_("coco", tmp_path / "coco", Task.INSTANCE, "val")
    again = open_("isic2018", tmp_path / "isic", Task.INSTANCE, "val")
    for k in range(2):
        assert torch.equal(back[k].target.masks, again[k].target.masks)
        assert torch.equal(back[k].image, again[k].image)


# --- CVC-ClinicDB


def write_cvc(root: Path, count: int = 12) -> None:
    for number in range(1, count + 1):
        save_image(root / "Original" / f"{number}.tif", (24, 32), seed=number)
        mask = disc((24, 32), (10, 10), 4) + disc((24, 32), (24, 15), 3)
        save_mask(root / "Ground Truth" / f"{number}.tif", mask)


def test_cvc_has_the_published_split(tmp_path: Path) -> None:
    write_cvc(tmp_path)
    parts = {split: ids(open_("cvc_clinicdb", tmp_path, split=split)) for split in ("train", "test", "val")}
    order = torch.randperm(12, generator=torch.Generator().manual_seed(42)).tolist()
    names = sorted(str(number) for number in range(1, 13))  # as text: 1, 10, 11, 12, 2, ...
    assert parts["train"] + parts["test"] + parts["val"] == [names[index] for index in order]
    assert len(parts["test"]) == len(parts["val"]) == 1
    source = open_("cvc_clinicdb", tmp_path, Task.INSTANCE, "all")
    assert len(source) == 12 and source.classes.names == ("polyp",)
    assert len(source[0].target.boxes) == 2


def test_cvc_as_png_and_bad_input(tmp_path: Path) -> None:
    write_cvc(tmp_path / "data/PNG", 10)
    assert len(open_("cvc_clinicdb", tmp_path / "data", split="train")) == 8
    with pytest.raises(UsageError, match="no split"):
        open_("cvc_clinicdb", tmp_path / "data", split="dev")
    with pytest.raises(MissingDataError, match="Ground Truth"):
        open_("cvc_clinicdb", tmp_path)
    Image.fromarray(disc((24, 32), (9, 9), 4) // 2 + 60).save(tmp_path / "data/PNG/Ground Truth/3.tif")
    report = check_dataset(
        SourceSpec(task=Task.SEMANTIC, reader="cvc_clinicdb", root=str(tmp_path / "data"), split="all")
    )
    assert {finding.kind for finding in report.findings} == {"value_outside_classes"}


def test_soft_edges_of_a_mask_are_cut_in_the_middle(tmp_path: Path) -> None:
    write_cvc(tmp_path, 10)
    values = disc((24, 32), (10, 10), 4)
    values[10, 14], values[10, 15] = 127, 128
    save_mask(tmp_path / "Ground Truth/1.tif", values)
    (sample,) = (one for one in open_("cvc_clinicdb", tmp_path, split="all") if one.origin.image_id == "1")
    assert sample.target.semantic[10, 14] == 0 and sample.target.semantic[10, 15] == 1


# --- LiTS


def write_lits(root: Path, count: int = 6, *, ending: str = ".nii", axes: tuple[int, int] = (1, 1)) -> None:
    """Volumes of 20 x 16 x 5 voxels; slices 1 to 3 have a liver on the patient's right, in front."""
    nib = pytest.importorskip("nibabel")
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        units = np.full((20, 16, 5), -1000, np.int16)
        labels = np.zeros((20, 16, 5), np.uint8)
        # In memory first to the right, then to the front.
        units[12:18, 10:14, 1:4], labels[12:18, 10:14, 1:4] = 100, 1
        labels[14, 12, 2], units[14, 12, 2] = 2, 400
        for kind, values in (("volume", units), ("segmentation", labels)):
            stored = values[:: axes[0], :: axes[1]]
            affine = np.diag([axes[0], axes[1], 2.5, 1.0])
            nib.save(nib.Nifti1Image(stored, affine), root / f"{kind}-{number}{ending}")


@pytest.mark.parametrize("axes", [(1, 1), (-1, -1), (-1, 1)])
def test_slices_stand_upright_however_they_are_stored(tmp_path: Path, axes: tuple[int, int]) -> None:
    write_lits(tmp_path, 2, axes=axes)
    source = pickle.loads(pickle.dumps(open_("lits", tmp_path, split="all")))
    assert len(source) == 10 and source.classes.names == ("background", "liver")
    sample = source[2]
    assert sample.size_hw == (16, 20) and sample.origin.image_id == "volume-0-2"
    expected = torch.zeros(16, 20, dtype=torch.int64)
    expected[2:6, 2:8] = 1  # front at the top, the patient's right on the left
    assert torch.equal(sample.target.semantic.as_subclass(torch.Tensor), expected)
    assert sample.image[:, 4, 4].tolist() == [128] * 3 or sample.image[:, 4, 4].tolist() == [127] * 3
    assert sample.image.max() == 255 and sample.image[:, 0, 0].tolist() == [0] * 3


def test_slices_without_liver_and_the_parts(tmp_path: Path) -> None:
    write_lits(tmp_path / "flat", 8, ending=".nii.gz")
    source = open_("lits", tmp_path / "flat", split="train", drop_empty=True)
    other = open_("lits", tmp_path / "flat", split="val", drop_empty=True)
    assert len(source) + len(other) == 24
    assert not {name.rsplit("-", 1)[0] for name in ids(source)} & {name.rsplit("-", 1)[0] for name in ids(other)}
    assert source.skipped["slice without liver"] * 3 == 2 * len(source)
    write_lits(tmp_path / "parted/train", 2)
    write_lits(tmp_path / "parted/valid", 1)
    assert len(open_("lits", tmp_path / "parted", split="val")) == 5
    report = check_dataset(SourceSpec(task=Task.SEMANTIC, reader="lits", root=str(tmp_path / "parted"), split="train"))
    assert report.ok and report.counts["images"] == 10 and report.counts["volumes"] == 2


def test_an_evaluation_scores_the_slices_that_training_validates_on(tmp_path: Path, capsys) -> None:
    write_lits(tmp_path / "lits", 8)
    config = SegmenterConfig(network=UNetConfig(features=2, levels=1), classes=("background", "liver"), input_hw=(8, 8))
    save_model(build(config), tmp_path / "model", classes={}, provenance={})
    told = tmp_path / "told.json"
    words = ["--data", "lits", "--root", str(tmp_path / "lits"), "--task", "semantic", "--protocol", "polar"]
    assert main(["eval", str(tmp_path / "model"), *words, "--json", str(told), "--device", "cpu"]) == 0
    result = json.loads(told.read_text())[str(Task.SEMANTIC)]
    validated = get_recipe("polar.unet")(data=str(tmp_path / "lits"), reader="lits").val[0]
    source = open_source(validated)
    assert result["images"] == len(source) > 0
    assert result["left_out"] == source.skipped == {"slice without liver": len(source) * 2 // 3}
    assert f"left out: {len(source) * 2 // 3} (slice without liver)" in capsys.readouterr().err
    for other in get_recipe("polar.git")(data=str(tmp_path / "lits"), reader="lits", steps=2).val:
        assert len(open_source(other)) == len(source)


def test_damaged_volumes(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    write_lits(tmp_path, 2)
    sagittal = np.zeros((5, 20, 16), np.int16)
    affine = np.array([[0, 1.0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    for kind in ("volume", "segmentation"):
        nib.save(nib.Nifti1Image(sagittal, affine), tmp_path / f"{kind}-1.nii")
    with pytest.raises(DataError, match="does not run along the body"):
        open_("lits", tmp_path, split="all")[5]
    (tmp_path / "segmentation-1.nii").unlink()
    with pytest.raises(MissingDataError, match="no segmentation"):
        open_("lits", tmp_path, split="all")
    (tmp_path / "volume-1.nii").unlink()
    (tmp_path / "volume-0.nii").write_bytes(b"no volume")
    with pytest.raises(DataError, match="cannot be read"):
        open_("lits", tmp_path, split="all")


def test_without_nibabel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("volume", "segmentation"):
        (tmp_path / f"{kind}-0.nii").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(MissingExtraError, match=r"saccade\[medical\]"):
        open_("lits", tmp_path, split="all")
