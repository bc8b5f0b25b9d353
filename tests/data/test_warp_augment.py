"""Warps: pictures and labels move together, within the limits, as the generator says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_data import make_sample
from torchvision import tv_tensors

from saccade.data.warp_augment import WarpAugment, warp
from saccade.errors import DataError
from saccade.samples import Sample
from saccade.tasks import Task

STILL = {"flip": 0.0, "flip_vertical": 0.0, "move_probability": 0.0, "distort_probability": 0.0}


def bright(number: int = 0) -> Sample:
    """A smooth picture whose bright half is labelled."""
    sample = make_sample(number, Task.SEMANTIC, size_hw=(64, 64))
    y, x = np.mgrid[:64, :64]
    values = 128 + 100 * np.sin(x / 12) * np.cos(y / 15)
    sample.image = tv_tensors.Image(torch.from_numpy(values.astype(np.uint8)).expand(3, -1, -1).contiguous())
    sample.target.semantic = tv_tensors.Mask(torch.from_numpy((values > 128).astype(np.int64)))
    return sample


def test_nothing_happens_where_nothing_is_asked_for() -> None:
    sample = bright()
    done = WarpAugment(**STILL).build(64)(sample, np.random.default_rng(0))
    assert torch.equal(done.image, sample.image) and torch.equal(done.target.semantic, sample.target.semantic)
    assert WarpAugment(**STILL).build(32)(sample, np.random.default_rng(0)).size_hw == (32, 32)


@pytest.mark.parametrize(
    "changes", [{"flip": 1.0}, {"flip_vertical": 1.0}, {"move_probability": 1.0}, {"distort_probability": 1.0}, {}]
)
def test_labels_follow_the_picture(changes: dict[str, float]) -> None:
    augment = (
        WarpAugment(**(STILL | changes)) if changes else WarpAugment(move_probability=1.0, distort_probability=1.0)
    )
    moved = 0
    for seed in range(8):
        sample = bright(seed)
        done = augment.build(64)(sample, np.random.default_rng(seed))
        assert done.image.dtype == torch.uint8 and done.image.shape == (3, 64, 64)
        wanted = done.image[0] > 128
        assert (wanted == (done.target.semantic == 1)).float().mean() > 0.95
        moved += not torch.equal(done.image, sample.image)
        again = augment.build(64)(bright(seed), np.random.default_rng(seed))
        assert torch.equal(again.image, done.image)
    assert moved == 8


def test_distortion_keeps_the_corners_and_rotation_the_middle() -> None:
    y, x = np.mgrid[:33, :33].astype(np.float64)
    places = np.stack([x, y], axis=-1)
    distorted = WarpAugment()._distort(places, 33, np.random.default_rng(0))
    for corner in ((0, 0), (0, 32), (32, 0), (32, 32)):
        assert distorted[corner] == pytest.approx(places[corner])
    assert np.abs(distorted - places).max() > 0.5
    assert (np.diff(distorted[0, :, 0]) > 0).all()
    turned = WarpAugment(shift=0.0)._move(places, 33, np.random.default_rng(0))
    assert turned[16, 16] == pytest.approx([16, 16])


def test_the_border_is_mirrored() -> None:
    maps = np.arange(5, dtype=np.int64)[None, None].repeat(2, axis=1)
    places = np.array([[[-1.0, 0.0], [-2.0, 0.0], [5.0, 0.0], [2.0, 0.0]]])
    assert warp(maps, places, nearest=True)[0, 0].tolist() == [1, 2, 3, 2]


def test_boxes_cannot_be_warped() -> None:
    with pytest.raises(DataError, match="without a label map"):
        WarpAugment().build(32)(make_sample(0, Task.DETECTION), np.random.default_rng(0))
