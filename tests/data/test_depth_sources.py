"""Readers of depth: lists of NYU, folders of pairs, every kind of file, scenes; what the check says of each defect."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_layouts import SHARED, save_image, save_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.data.check import Report, check_dataset
from saccade.data.images import read_grey
from saccade.data.scenes import draw_scene, write_scenes
from saccade.data.sources import Source, SourceSpec, open_source
from saccade.data.sources.depth_maps import read_depth
from saccade.data.sources.scenes import ScenesSource
from saccade.errors import DataError, ImageError, MissingExtraError, UsageError
from saccade.tasks import Task

SIZE_HW = (30, 40)


def open_(reader: str, root: Path, **options: Any) -> Source:
    return open_source(SourceSpec(task=Task.DEPTH, reader=reader, root=str(root), **options))


def check(reader: str, root: Path, **options: Any) -> Report:
    return check_dataset(SourceSpec(task=Task.DEPTH, reader=reader, root=str(root), **options))


def kinds(report: Report) -> dict[str, int]:
    return {finding.kind: finding.count for finding in report.findings}


def millimetres(seed: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """A room with a hole."""
    depth = np.random.default_rng(seed).integers(500, 9500, size_hw).astype(np.uint16)
    depth[3, 4] = 0
    return depth


def save_depth(path: Path, depth: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    depth = millimetres() if depth is None else depth
    if path.suffix == ".npy":
        np.save(path, depth)
    elif path.suffix == ".pgm":
        path.write_bytes(b"P5 %d %d 65535\n" % depth.shape[::-1] + depth.astype(">u2").tobytes())
    else:
        Image.fromarray(depth).save(path)
    return path


def write_nyu_layout(root: Path) -> None:
    lists: dict[str, list[str]] = {"train": [], "test": []}
    seed = 0
    for split, folder, rooms in (
        ("train", root, ("kitchen", "bath")),
        ("test", root / "official_splits/test", ("bar",)),
    ):
        for room in rooms:
            for number in (0, 7):
                seed += 1
                names = f"{room}/rgb_{number:05d}.jpg", f"{room}/sync_depth_{number:05d}.png"
                save_image(folder / names[0], seed=seed)
                save_depth(folder / names[1], millimetres(seed))
                lists[split].append(f"/{names[0]} /{names[1]}")
    for split, lines in lists.items():
        (root / f"{split}_list.txt").write_text("\n".join(lines) + "\n")


# ------------------------------------------------------------------------------------------ NYU Depth v2


def test_nyu_lists(tmp_path: Path) -> None:
    write_nyu_layout(tmp_path)
    train, test = open_("nyu", tmp_path), open_("nyu", tmp_path, split="test")
    assert (len(train), len(test)) == (4, 2) and train.classes is None and not train.skipped
    sample = train[1]
    assert sample.task is Task.DEPTH and sample.image.shape == (3, *SIZE_HW)
    assert sample.target.depth_m.dtype == torch.float32
    assert np.array_equal(sample.target.depth_m.numpy(), millimetres(2).astype(np.float32) / np.float32(1000))
    assert sample.target.depth_m[3, 4] == 0
    ids = [train[k].origin.image_id for k in range(4)]
    assert ids[1] == "kitchen/rgb_00007" and len(set(ids)) == 4, "rooms number their pictures alike"
    assert test[0].origin.path == str(tmp_path / "official_splits/test/bar/rgb_00000.jpg")
    assert pickle.loads(pickle.dumps(train))[3].origin.image_id == ids[3]


def test_nyu_other_places(tmp_path: Path) -> None:
    """GLPDepth keeps the rooms in ``sync``; BTS adds focal lengths to the lines."""
    write_nyu_layout(tmp_path / "whole")
    root = tmp_path / "other"
    root.mkdir()
    for room in ("kitchen", "bath"):
        (tmp_path / "whole" / room).rename(root / room)
    (root / "lists").mkdir()
    lines = (tmp_path / "whole/train_list.txt").read_text().splitlines()
    (root / "lists/eigen.txt").write_text("".join(f"{line} 518.8579\n" for line in lines))
    for folder in ("sync", "rooms"):
        (root / folder).mkdir()
        for room in ("kitchen", "bath"):
            here = root if folder == "sync" else root / "sync"
            (here / room).rename(root / folder / room)
        source = open_("nyu", root, annotations="lists/eigen.txt", images="" if folder == "sync" else folder)
        assert source[0].origin.path == str(root / folder / "kitchen/rgb_00000.jpg")


def test_nyu_wrong_choices(tmp_path: Path) -> None:
    write_nyu_layout(tmp_path)
    with pytest.raises(UsageError, match="no split 'val'"):
        open_("nyu", tmp_path, split="val")
    with pytest.raises(UsageError, match="not detection"):
        open_source(SourceSpec(task=Task.DETECTION, reader="nyu", root=str(tmp_path)))
    with pytest.raises(UsageError, match="depth_scale"):
        open_("nyu", tmp_path, depth_scale=0.0)
    (tmp_path / "train_list.txt").write_text("/kitchen/rgb_00000.jpg /kitchen/sync_depth_00000.png\n/lonely.jpg\n")
    with pytest.raises(DataError, match="entry 2"):
        open_("nyu", tmp_path)
    (tmp_path / "train_list.txt").write_text("\n")
    with pytest.raises(DataError, match="empty"):
        open_("nyu", tmp_path)
    (tmp_path / "train_list.txt").unlink()
    with pytest.raises(UsageError, match="list of the split does not exist"):
        open_("nyu", tmp_path)


def test_nyu_written_from_scenes(tmp_path: Path) -> None:
    write_scenes(tmp_path, format="nyu", count=2, split="train", size=96)
    write_scenes(tmp_path, format="nyu", count=2, split="test", size=96)
    for split, word in (("train", 0), ("test", 2)):
        source = open_("nyu", tmp_path, split=split)
        for index in range(2):
            scene = draw_scene((0, word, index), (96, 128))
            assert len(source) == 2
            assert np.abs(source[index].target.depth_m.numpy() - scene.depth_m).max() <= 6e-4
    assert check("nyu", tmp_path).ok and check("nyu", tmp_path, split="test").ok


# ------------------------------------------------------------------------------------------ folders of pairs

LAYOUTS = {
    "folders": ("images/{}.jpg", "depth/{}.png"),
    "split first": ("train/rgb/{}.jpg", "train/depth/{}.png"),
    "split last": ("images/train/{}.png", "depth/train/{}.npy"),
    "tum": ("rgb/rgb_{}.png", "depth/depth_{}.png"),
    "one folder, words before": ("color_{}.png", "depth_{}.pgm"),
    "one folder, words behind": ("train/frame-{}.color.jpg", "train/frame-{}.depth.png"),
    "one folder, nyu": ("rgb_{}.jpg", "sync_depth_{}.png"),
    "one folder, arrays": ("{}.jpg", "{}.npy"),
}


def write_layout(root: Path, layout: str, count: int = 12) -> None:
    image, depth = LAYOUTS[layout]
    for number in range(count):
        save_image(root / image.format(f"{number:03d}"), seed=number)
        save_depth(root / depth.format(f"{number:03d}"), millimetres(number))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_depth_folders(tmp_path: Path, layout: str) -> None:
    write_layout(tmp_path, layout)
    parts = {split: open_("depth_folder", tmp_path, split=split) for split in ("train",)}
    if "train" not in LAYOUTS[layout][0]:
        parts |= {split: open_("depth_folder", tmp_path, split=split) for split in ("val", "all")}
        assert len(parts["train"]) + len(parts["val"]) == len(parts["all"]) == 12
    for source in parts.values():
        assert not source.skipped
        for index in range(len(source)):
            sample = source[index]
            number = int("".join(character for character in Path(sample.origin.path).stem if character.isdigit()))
            want = millimetres(number).astype(np.float32) / np.float32(1000)
            assert np.array_equal(sample.target.depth_m.numpy(), want)
    whole = "train" if "train" in LAYOUTS[layout][0] else "all"
    assert check("depth_folder", tmp_path, split=whole).ok


def test_depth_folder_by_name_scale_and_split_file(tmp_path: Path) -> None:
    for number in range(3):
        save_image(tmp_path / f"left/{number}.jpg", seed=number)
        save_depth(tmp_path / f"range/{number}.png", np.full(SIZE_HW, 10_000, np.uint16))
    (tmp_path / "train.txt").write_text("0\n2.jpg\n")
    source = open_("depth_folder", tmp_path, images="left", annotations="range", depth_scale=5000.0)
    assert [source[k].origin.image_id for k in range(len(source))] == ["0", "2"]
    assert source[0].target.depth_m.unique().tolist() == [2.0]
    with pytest.raises(UsageError, match="no split 'val'"):
        open_("depth_folder", tmp_path, images="left", annotations="range", split="val")
    with pytest.raises(UsageError, match="folder of the depth maps does not exist"):
        open_("depth_folder", tmp_path, images="left", annotations="depht")


def test_what_has_no_partner_is_counted(tmp_path: Path) -> None:
    write_layout(tmp_path, "folders", 3)
    (tmp_path / "images/000.jpg").unlink()
    (tmp_path / "depth/001.png").unlink()
    source = open_("depth_folder", tmp_path, split="all")
    assert len(source) == 1 and source.skipped == {"image without a depth map": 1, "depth map without an image": 1}


def test_folders_without_pairs(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.jpg")
    with pytest.raises(UsageError, match="no image has a depth map"):
        open_("depth_folder", tmp_path, split="all")
    save_depth(tmp_path / "depth/b.png")
    with pytest.raises(UsageError, match=r"images like a\.jpg, depth maps like b\.png"):
        open_("depth_folder", tmp_path, split="all")
    save_depth(tmp_path / "depth/a.png")
    save_depth(tmp_path / "depth/a.npy")
    with pytest.raises(UsageError, match=r"a\.npy and a\.png"):
        open_("depth_folder", tmp_path, split="all")


def test_another_size_than_the_image(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.jpg")
    save_depth(tmp_path / "depth/a.png", millimetres(0, (15, 20)))
    with pytest.raises(DataError, match="a depth map has another size"):
        open_("depth_folder", tmp_path, split="all")[0]


# ------------------------------------------------------------------------------------------ files


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 65535), min_size=6, max_size=6), st.sampled_from([".png", ".pgm", ".tif", ".npy"]))
def test_sixteen_bit_files_keep_every_number(
    tmp_path_factory: pytest.TempPathFactory, row: list[int], suffix: str
) -> None:
    stored = np.array([row] * 4, np.uint16)
    path = save_depth(tmp_path_factory.mktemp("depth") / f"a{suffix}", stored)
    want = np.where(stored == 65535, 0, stored).astype(np.float32)
    assert np.array_equal(read_depth(path, 1.0), want)
    assert np.array_equal(read_depth(path, 256.0), want / np.float32(256))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_of_metres(tmp_path: Path, dtype: type) -> None:
    stored = np.array([[1.5, 0.0, -1.0], [np.nan, np.inf, -np.inf]], dtype)
    path = save_depth(tmp_path / "a.npy", stored)
    assert read_depth(path, 1000.0).tolist() == [[1.5, 0, 0], [0, 0, 0]]
    assert read_depth(save_depth(path, stored[None])).shape == (2, 3)


@pytest.mark.parametrize("greatest", [300, 10_000, 65_535])
def test_grey_levels_of_pgm_files_are_not_stretched(tmp_path: Path, greatest: int) -> None:
    numbers = np.linspace(0, greatest, 12).astype(np.uint16).reshape(3, 4)
    content = b"P5\n# a comment 7\n4 3\n%d\n" % greatest + numbers.astype(">u2").tobytes()
    path = tmp_path / "a.pgm"
    path.write_bytes(content)
    assert np.array_equal(read_grey(path), numbers)
    assert np.array_equal(read_grey(content), numbers)


def test_files_that_are_no_depth(tmp_path: Path) -> None:
    eight = save_mask(tmp_path / "eight.png", np.arange(12).reshape(3, 4))
    with pytest.raises(DataError, match="8 bits are too few"):
        read_depth(eight)
    for dtype in (np.uint8, np.int8):
        with pytest.raises(DataError, match="8 bits are too few"):
            read_depth(save_depth(tmp_path / "bytes.npy", np.ones((3, 4), dtype)))
    with pytest.raises(ImageError, match="no whole numbers"):
        read_depth(save_image(tmp_path / "colours.png"))
    with pytest.raises(DataError, match="numbers of type bool"):
        read_depth(save_depth(tmp_path / "a.npy", np.ones((3, 4), bool)))
    with pytest.raises(DataError, match="wrong shape"):
        read_depth(save_depth(tmp_path / "b.npy", np.ones((3, 4, 3))))
    (tmp_path / "c.npy").write_bytes(b"no array")
    with pytest.raises(ImageError, match="cannot be read as an array"):
        read_depth(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ImageError, match="cannot be read as an array"):
        read_depth(tmp_path / "d.npy")
    for name in ("gone.png", "gone.npy"):
        with pytest.raises(ImageError, match="no such file"):
            read_depth(tmp_path / name)


def test_exr(tmp_path: Path) -> None:
    path = tmp_path / "a.exr"
    if importlib.util.find_spec("OpenEXR") is None:
        with pytest.raises(MissingExtraError, match=r"pip install 'saccade\[exr\]'"):
            read_depth(path)
        return
    import OpenEXR

    def save(**channels: np.ndarray) -> Path:
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        with OpenEXR.File(header, channels) as file:
            file.write(str(path))
        return path

    depth = np.array([[1.5, np.inf], [0.0, 2.25]], np.float32)
    for channels in ({"Z": depth}, {"Y": depth.astype(np.float16)}, {"Z": depth, "A": np.zeros_like(depth)}):
        assert read_depth(save(**channels)).tolist() == [[1.5, 0], [0, 2.25]]
    assert read_depth(save(R=depth, G=depth, B=depth)).tolist() == [[1.5, 0], [0, 2.25]]
    with pytest.raises(DataError, match="several channels"):
        read_depth(save(R=depth, G=depth * 2))
    path.write_bytes(b"no picture")
    with pytest.raises(ImageError, match="cannot be read as EXR"):
        read_depth(path)


# ------------------------------------------------------------------------------------------ scenes


def test_scenes_have_depth() -> None:
    source = ScenesSource(task=Task.DEPTH, split="val", size=96)
    scene = draw_scene((0, 1, 3), (96, 96))
    sample = source[3]
    assert sample.target.depth_m.dtype == torch.float32 and source.classes is None
    assert np.array_equal(sample.target.depth_m.numpy(), scene.depth_m)


# ------------------------------------------------------------------------------------------ the check


def test_each_defect_of_depth_is_found(tmp_path: Path) -> None:
    write_layout(tmp_path, "folders", 10)
    depth = tmp_path / "depth"
    save_depth(depth / "000.png", millimetres(0, (15, 20)))
    save_mask(depth / "001.png", np.ones(SIZE_HW))
    save_depth(depth / "002.png", np.zeros(SIZE_HW, np.uint16))
    save_depth(depth / "003.png", np.full(SIZE_HW, 65535, np.uint16))
    save_depth(depth / "004.png", np.full(SIZE_HW, 20, np.uint16))
    (depth / "005.png").write_bytes(b"no picture")
    (depth / "006.png").unlink()
    (tmp_path / "images/007.jpg").unlink()
    (tmp_path / "images/008.jpg").write_bytes(b"no picture")
    report = check("depth_folder", tmp_path, split="all")
    assert kinds(report) == {
        "unreadable_image": 1,
        "missing_depth": 1,
        "missing_image_of_depth": 1,
        "unreadable_depth": 1,
        "depth_size_mismatch": 1,
        "depth_number_type": 1,
        "unknown_depth": 2,
        "implausible_depth": 1,
    }
    where = {finding.kind: finding.examples[0] for finding in report.findings}
    assert "20 x 15, image 40 x 30" in where["depth_size_mismatch"] and "uint8" in where["depth_number_type"]
    assert "0.02" in where["implausible_depth"] and "006" in where["missing_depth"]
    assert report.counts["depth_maps"] == 8 and report.counts["images"] == 9
    assert kinds(check("depth_folder", tmp_path, split="all", depth_scale=5.0))["implausible_depth"] > 1


def test_each_defect_of_nyu_is_found(tmp_path: Path) -> None:
    write_nyu_layout(tmp_path)
    sound = check("nyu", tmp_path)
    assert sound.ok and sound.counts == {"depth_maps": 4, "percent_unknown": 0, "images": 4}
    (tmp_path / "kitchen/rgb_00000.jpg").unlink()
    (tmp_path / "kitchen/sync_depth_00007.png").unlink()
    test_picture = tmp_path / "official_splits/test/bar/rgb_00000.jpg"
    (tmp_path / "bath/rgb_00000.jpg").write_bytes(test_picture.read_bytes())
    assert kinds(check("nyu", tmp_path)) == {"missing_image": 1, "missing_depth": 1, "image_in_both_splits": 1}
    (tmp_path / "train_list.txt").write_text("/lonely.jpg\n")
    assert kinds(check("nyu", tmp_path)) == {"unreadable_annotations": 1}


def test_a_depth_folder_without_splits_says_so(tmp_path: Path) -> None:
    write_layout(tmp_path, "one folder, words before")
    assert any(note.startswith("data set without splits") for note in check("depth_folder", tmp_path).notes)
    (tmp_path / "train.txt").write_text("color_000\nghost\n")
    assert kinds(check("depth_folder", tmp_path)) == {"missing_image": 1}


# ------------------------------------------------------------------------------------------ real pictures


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_real_pairs() -> None:
    rooms = open_("depth_folder", SHARED / "depth_7scenes_nc")
    assert (len(rooms), len(open_("depth_folder", SHARED / "depth_7scenes_nc", split="val"))) == (50, 11)
    depth_m = rooms[0].target.depth_m
    assert depth_m.shape == (480, 640) and 0 < depth_m.max() < 10, "65535 is no measurement"
    dining = open_("depth_folder", SHARED / "depth_small/nyu_dining", split="all")
    assert len(dining) == 5 and 9 < dining[0].target.depth_m.max() < 10
    desk = open_("depth_folder", SHARED / "depth_small/tum_fr2_desk", split="all", depth_scale=5000.0)
    assert len(desk) == 2 and 0.3 < desk[0].target.depth_m[desk[0].target.depth_m > 0].min() < 9
    for name, split in (("depth_7scenes_nc", "val"), ("depth_small/nyu_dining", "all")):
        report = check("depth_folder", SHARED / name, split=split)
        assert report.ok and report.counts["percent_unknown"] > 0
