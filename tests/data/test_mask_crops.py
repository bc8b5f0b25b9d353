"""Instance masks cut out by their boxes: the crop, its size, the files and what is left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import CLASSES, MadeSource, make_sample
from helpers_layouts import write_coco_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from saccade.data.check import check_dataset
from saccade.data.geometry import boxes_tensor, mask_tensor
from saccade.data.mask_crops import MaskCropAugment, fit_crop, instance_crops, write_mask_crops
from saccade.data.pipeline import Redraw
from saccade.data.sources import SourceSpec, open_source
from saccade.data.sources.scenes import ScenesSource
from saccade.data.writers import WRITERS
from saccade.errors import DataError, UsageError
from saccade.samples import Sample, Target
from saccade.tasks import Task


def sample_of(boxes: list[list[float]], masks: np.ndarray, *, crowd: list[bool] | None = None) -> Sample:
    size_hw = (int(masks.shape[1]), int(masks.shape[2]))
    sample = make_sample(0, Task.INSTANCE, size_hw=size_hw)
    sample.target = Target(
        boxes=boxes_tensor(np.array(boxes, np.float32), size_hw),
        masks=mask_tensor(masks),
        class_ids=torch.zeros(len(boxes), dtype=torch.int64),
        is_crowd=None if crowd is None else torch.tensor(crowd),
    )
    return sample


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 90), st.integers(2, 90), st.integers(8, 64), st.integers(0, 1000))
def test_fitting_is_torchvisions_resize_and_centre_crop(height: int, width: int, size: int, seed: int) -> None:
    crop = np.random.default_rng(seed).integers(0, 2, (height, width)).astype(np.uint8) * np.uint8(255)
    official = CenterCrop(size)(Resize(size, InterpolationMode.BILINEAR)(Image.fromarray(crop)))
    fitted = fit_crop(crop, size)
    assert fitted.shape == (3, size, size)
    assert all(np.array_equal(channel, np.asarray(official)) for channel in fitted)


def test_boxes_are_rounded_to_whole_pixels() -> None:
    masks = np.zeros((1, 20, 30), bool)
    masks[0, 4:9, 6:12] = True
    for box, shape in (
        ([6, 4, 12, 9], (5, 6)),
        ([5.6, 4.4, 11.6, 9.4], (5, 6)),
        ([6.5, 4.5, 11.5, 8.5], (4, 6)),  # halves to the even side: columns 6 to 12, rows 4 to 8
        ([-3.2, -1, 40, 25], (20, 30)),
    ):
        ((number, crop),) = instance_crops(sample_of([box], masks), Counter())
        assert number == 0 and crop.shape == shape
        y0, x0 = max(0, round(box[1])), max(0, round(box[0]))
        assert np.array_equal(crop, masks[0, y0 : y0 + shape[0], x0 : x0 + shape[1]] * np.uint8(255))


def test_what_gives_no_crop_is_counted() -> None:
    masks = np.ones((5, 20, 30), bool)
    masks[3] = False
    boxes = [[0, 0, 10, 10], [0, 0, 10, 1.4], [5, 5, 5, 9], [0, 0, 10, 10], [0, 0, 30, 20]]
    skipped: Counter[str] = Counter()
    crops = instance_crops(sample_of(boxes, masks, crowd=[False] * 4 + [True]), skipped)
    assert [number for number, _ in crops] == [0]
    assert skipped == {"box with a side below 2 pixels": 2, "no pixel of the mask in its box": 1, "crowd": 1}
    with pytest.raises(DataError, match="without masks"):
        instance_crops(make_sample(0, Task.DETECTION), skipped)


def test_cut_while_training() -> None:
    source = ScenesSource(task=Task.INSTANCE, size=96)
    augment = MaskCropAugment().build(64)
    seen = set()
    for seed in range(20):
        out = augment(source[5], np.random.default_rng(seed))
        assert out.size_hw == (64, 64) and out.image.dtype == torch.uint8 and out.target == Target()
        assert torch.equal(out.image[0], out.image[2]) and out.image.max() > 128
        seen.add(out.image.numpy().tobytes())
    possible = {fit_crop(crop, 64).tobytes() for _, crop in instance_crops(source[5], Counter())}
    assert seen <= possible and len(seen) > 1
    with pytest.raises(Redraw):
        augment(make_sample(0, Task.INSTANCE, objects=0), np.random.default_rng(0))
    with pytest.raises(DataError, match="without masks"):
        augment(make_sample(0, Task.DETECTION), np.random.default_rng(0))


def test_written_crops_are_read_again(tmp_path: Path) -> None:
    write_coco_layout(tmp_path / "in")
    source = open_source(SourceSpec(task=Task.INSTANCE, reader="coco", root=str(tmp_path / "in")))
    seen: list[tuple[int, int]] = []
    counts = write_mask_crops(source, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert counts == {"images": 3, "masks": 2, "crowd": 1} and seen == [(1, 3), (2, 3), (3, 3)]
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert files == ["instances_train2017/1/9_0.png", "instances_train2017/3/7_0.png"]
    spec = SourceSpec(task=Task.INSTANCE, reader="mask_crops", root=str(tmp_path / "out"))
    crops = open_source(spec)
    assert len(crops) == 2 and crops[1].origin.image_id == "3/7_0"
    assert crops[1].image.shape == (3, 10, 10) and (crops[1].image == 255).all()
    augment = MaskCropAugment().build(16)
    written = augment(crops[0], np.random.default_rng(0)).image
    drawn = augment(source[1], np.random.default_rng(0)).image
    assert torch.equal(written, drawn), "written or cut while training, the map is the same"
    write_mask_crops(source, tmp_path / "out", split="val")
    assert check_dataset(spec).ok, "equal masks in two splits are no leak"
    with pytest.raises(UsageError, match="exists already"):
        write_mask_crops(source, tmp_path / "out")
    with pytest.raises(UsageError, match="not detection"):
        open_source(SourceSpec(task=Task.DETECTION, reader="mask_crops", root=str(tmp_path / "out")))


def test_writing_refuses_what_would_be_lost(tmp_path: Path) -> None:
    assert WRITERS["mask_crops"] is write_mask_crops
    with pytest.raises(UsageError, match="no masks"):
        write_mask_crops(MadeSource(Task.DETECTION, 1), tmp_path / "a")  # type: ignore[arg-type]
    counts = write_mask_crops(MadeSource(Task.INSTANCE, 2), tmp_path / "b", split="val")  # type: ignore[arg-type]
    assert counts["masks"] == 6
    folders = {path.name for path in (tmp_path / "b/instances_val2017").iterdir()}
    assert folders <= {str(category) for category in CLASSES.category_ids}

    class Twins(MadeSource):
        def __getitem__(self, index: int) -> Sample:
            return make_sample(0, self.task)

    with pytest.raises(DataError, match="same id"):
        write_mask_crops(Twins(Task.INSTANCE, 2), tmp_path / "c")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="broken off"):
        write_mask_crops(MadeSource(Task.INSTANCE, 1), tmp_path / "c")  # type: ignore[arg-type]
