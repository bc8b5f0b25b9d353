"""Large-scale jitter with soft masks, and what it rests on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_data import make_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.data.large_scale_jitter import LargeScaleJitterAugment
from saccade.data.resize import resize_soft
from saccade.data.sources import SourceSpec, open_source
from saccade.data.sources.coco import decode_soft
from saccade.data.transforms import collate, fit_short, preprocess
from saccade.errors import DataError
from saccade.samples import Preprocess
from saccade.tasks import Task


@settings(max_examples=25, deadline=None)
@given(number=st.integers(0, 50), seed=st.integers(0, 2**16), size=st.integers(20, 150))
def test_boxes_masks_and_picture_stay_together(number: int, seed: int, size: int) -> None:
    sample = make_sample(number, Task.INSTANCE)
    done = LargeScaleJitterAugment().build(size)(sample, np.random.default_rng(seed))
    target = done.target
    assert target.boxes is not None and target.masks is not None and target.class_ids is not None
    assert done.size_hw == (size, size) and done.image.dtype == torch.uint8
    assert target.masks.shape == (len(target.boxes), size, size) and len(target.class_ids) == len(target.boxes)
    assert target.masks.dtype == torch.float32 and ((target.masks >= 0) & (target.masks <= 1)).all()
    for box, mask in zip(target.boxes.tolist(), target.masks, strict=True):
        y, x = np.nonzero(mask.numpy() > 0.5)
        if len(x):  # half a pixel of the picture before the resize reaches beyond its box
            slack = 1 + size / 20
            assert box[0] - slack <= x.min() and x.max() + 1 <= box[2] + slack
            assert box[1] - slack <= y.min() and y.max() + 1 <= box[3] + slack


def test_what_is_smaller_is_padded_with_grey_at_the_bottom_and_right() -> None:
    sample = make_sample(1, Task.INSTANCE, size_hw=(40, 80))
    done = LargeScaleJitterAugment(flip=0.0, scales=(0.5, 0.5)).build(100)(sample, np.random.default_rng(0))
    assert (done.image[:, 25:] == 128).all() and (done.image[:, :, 50:] == 128).all()
    assert not (done.image[:, :25, :50] == 128).all()
    assert done.target.masks is not None
    assert not done.target.masks[:, 25:].any() and not done.target.masks[:, :, 50:].any()


def test_the_size_is_its_own_or_that_of_the_network_input() -> None:
    for augment, side in ((LargeScaleJitterAugment(), 64), (LargeScaleJitterAugment(size=48), 48)):
        done = augment.build(64)(make_sample(1, Task.INSTANCE), np.random.default_rng(0))
        assert done.size_hw == (side, side) and done.target.masks is not None
        assert done.target.masks.shape[1:] == (side, side)


def test_objects_that_are_cut_away_and_crowds_go_but_the_picture_stays() -> None:
    sample = make_sample(2, Task.INSTANCE)
    assert sample.target.boxes is not None
    sample.target.is_crowd = torch.tensor([True, True, True])
    done = LargeScaleJitterAugment().build(64)(sample, np.random.default_rng(0))
    assert done.target.boxes is not None and done.target.masks is not None
    assert len(done.target.boxes) == 0 and done.target.masks.shape == (0, 64, 64)
    with pytest.raises(DataError, match="no masks"):
        LargeScaleJitterAugment().build(64)(make_sample(2, Task.DETECTION), np.random.default_rng(0))


@settings(max_examples=20, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 20)] * 4), count=st.integers(0, 2), where=st.tuples(*[st.floats(0, 1)] * 4))
def test_a_window_of_a_soft_resize_is_the_part_of_the_whole(
    sizes: tuple[int, int, int, int], count: int, where: tuple[float, float, float, float]
) -> None:
    h, w, height, width = sizes
    masks = np.random.default_rng(h).random((count, h, w)).astype(np.float32)
    whole = resize_soft(masks, (height, width))
    if count:
        plain = F.interpolate(torch.from_numpy(masks)[None], size=(height, width), mode="bilinear")[0]
        assert np.array_equal(whole, plain.numpy())
    top, left = int(where[0] * (height - 1)), int(where[1] * (width - 1))
    rows, columns = 1 + int(where[2] * (height - top - 1)), 1 + int(where[3] * (width - left - 1))
    part = resize_soft(masks, (height, width), (top, left, rows, columns))
    assert np.array_equal(part, whole[:, top : top + rows, left : left + columns])


def test_a_soft_mask_is_the_plain_one_where_it_is_whole() -> None:
    # A square of pixels 2..5 whose right edge stands at a quarter of pixel 6.
    mask = decode_soft([np.array([2.0, 2, 6.25, 2, 6.25, 6, 2, 6])], (8, 8))
    assert mask.dtype == np.float32
    assert (mask[2:6, 2:6] == 1).all() and mask.sum() == pytest.approx(16 + mask[:, 6].sum())
    # Of its sixteen parts only the first column is covered, and the middle four are what counts.
    assert (mask[2:6, 6] == 0).all()
    half = decode_soft([np.array([2.0, 2, 6.5, 2, 6.5, 6, 2, 6])], (8, 8))
    assert (half[2:6, 6] == 0.5).all()


def test_run_length_masks_stay_hard() -> None:
    mask = decode_soft({"counts": [0, 3, 6], "size": [3, 3]}, (3, 3))
    assert mask.dtype == np.float32 and mask[:, 0].tolist() == [1.0] * 3 and mask.sum() == 3


def test_the_reader_draws_soft_masks_where_asked(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (12, 10)).save(tmp_path / "train" / "a.png")
    Image.new("RGB", (12, 10)).save(tmp_path / "train" / "b.png")
    content = {
        "images": [{"id": id_, "file_name": f"{name}.png", "height": 10, "width": 12} for id_, name in enumerate("ab")],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 0,
                "category_id": 7,
                "bbox": [2, 2, 4.5, 4],
                "segmentation": [[2, 2, 6.5, 2, 6.5, 6, 2, 6]],
                "iscrowd": 0,
            }
        ],
    }
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    spec = SourceSpec(task=Task.INSTANCE, reader="coco", root=str(tmp_path), soft_masks=True)
    soft, empty = (open_source(spec)[index].target.masks for index in range(2))
    assert soft is not None and empty is not None
    assert soft.dtype == empty.dtype == torch.float32 and empty.shape == (0, 10, 12)
    assert soft[0, 2:6, 6].tolist() == [0.5] * 4
    # They are resized bilinearly, too.
    moved = preprocess(open_source(spec)[0], Preprocess(size_hw=(20, 24))).target.masks
    assert moved is not None
    assert torch.equal(
        moved,
        F.interpolate(soft.as_subclass(torch.Tensor)[None], size=(20, 24), mode="bilinear")[0].as_subclass(type(moved)),
    )


@pytest.mark.parametrize(
    ("size_hw", "short", "longest", "rounding", "expected"),
    [
        ((480, 640), 800, 1333, "nearest", (800, 1066)),  # 1066.67, cut off
        ((640, 480), 800, 1333, "nearest", (1066, 800)),
        ((66, 91), 80, 100, "down", (72, 99)),
        ((66, 91), 80, 72, "nearest", (52, 71)),
        ((500, 500), 800, 1333, "down", (800, 800)),
        ((1, 5000), 800, 1333, "nearest", (1, 5000)),
    ],
)
def test_the_shorter_side_leads(
    size_hw: tuple[int, int], short: int, longest: int, rounding: str, expected: tuple[int, int]
) -> None:
    found = fit_short(size_hw, short, longest, rounding=rounding)  # type: ignore[arg-type]
    assert found == expected


def test_padding_may_have_a_value() -> None:
    sample = make_sample(3, Task.INSTANCE, size_hw=(30, 50))
    declared = Preprocess(size_hw=(30, 50), pad_multiple=32, pad_value=128)
    images = collate([sample], declared).images
    grey = (128 - torch.tensor(declared.mean)) / torch.tensor(declared.std)
    torch.testing.assert_close(images[0, :, 31, 63], grey)
    torch.testing.assert_close(images[0, :, :30, :50], collate([sample], Preprocess(size_hw=(30, 50))).images[0])
