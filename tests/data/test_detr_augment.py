"""The pipeline of detection transformers: sizes, boxes that follow, what is dropped. Exact values: parity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from saccade.data.detr_augment import DETRAugment
from saccade.samples import Origin, Sample, Target
from saccade.tasks import Task

SMALL = DETRAugment(short_sides=(40, 48), crop_short_sides=(50, 60), crop_range=(30, 50))


def make_sample(height: int, width: int, boxes: list[list[float]], crowd: list[bool] | None = None) -> Sample:
    """A dark picture in which the boxes are bright."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for x0, y0, x1, y1 in boxes:
        image[:, max(0, int(y0)) : int(y1), max(0, int(x0)) : int(x1)] = 255
    return Sample(
        image=tv_tensors.Image(image),
        task=Task.DETECTION,
        origin=Origin(dataset="d", image_id=1, path=None, size_hw=(height, width)),
        target=Target(
            boxes=tv_tensors.BoundingBoxes(torch.tensor(boxes).view(-1, 4), format="XYXY", canvas_size=(height, width)),
            class_ids=torch.arange(len(boxes)),
            is_crowd=None if crowd is None else torch.tensor(crowd),
        ),
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 120), st.integers(20, 120), st.integers(0, 2**31), st.floats(0, 1))
def test_boxes_follow_the_picture(height: int, width: int, seed: int, resize_probability: float) -> None:
    sample = make_sample(height, width, [[width * 0.3, height * 0.2, width * 0.8, height * 0.7]])
    augment = DETRAugment(
        short_sides=(40, 48), crop_short_sides=(50, 60), crop_range=(30, 50), resize_probability=resize_probability
    )
    done = augment.build(64)(sample, np.random.default_rng(seed))
    # The short side is rounded, and the long one follows it.
    assert max(done.size_hw) <= 64 + 0.5 * max(done.size_hw) / min(done.size_hw)
    assert done.target.boxes is not None
    bright = done.image.as_subclass(Tensor)[0] > 127
    if not len(done.target.boxes):
        assert bright.float().mean() < 0.1  # no more than what the resize smears over the border
        return
    x0, y0, x1, y1 = done.target.boxes.as_subclass(Tensor)[0].tolist()
    rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
    tolerance = 3 * max(*done.size_hw, 64) / min(height, width)
    if len(rows):
        edges = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        assert edges == pytest.approx([x0, y0, x1, y1], abs=tolerance)


def test_crowds_and_boxes_outside_the_picture_are_dropped() -> None:
    boxes = [[5.0, 5.0, 30.0, 30.0], [-20.0, 3.0, -2.0, 9.0], [10.0, 10.0, 40.0, 40.0], [30.0, 30.0, 90.0, 70.0]]
    sample = make_sample(50, 60, boxes, [False, False, True, False])
    done = DETRAugment(resize_probability=1.0, flip=0.0, short_sides=(50,)).build(64)(sample, np.random.default_rng(0))
    assert done.target.class_ids is not None and done.target.class_ids.tolist() == [0, 3]
    assert done.target.boxes is not None and done.target.boxes[1].tolist() == [30.0, 30.0, 60.0, 50.0]


def test_a_picture_may_lose_all_its_boxes() -> None:
    sample = make_sample(80, 80, [[0.0, 0.0, 1.0, 1.0]])
    augment = DETRAugment(resize_probability=0.0, short_sides=(40,), crop_short_sides=(60,), crop_range=(30, 31))
    counts = set()
    for seed in range(8):
        boxes = augment.build(64)(sample, np.random.default_rng(seed)).target.boxes
        assert boxes is not None
        counts.add(len(boxes))
    assert 0 in counts


def test_the_draws_come_from_the_generator() -> None:
    sample = make_sample(70, 90, [[5.0, 5.0, 60.0, 50.0]])
    first, again = (SMALL.build(64)(sample, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert len({tuple(SMALL.build(64)(sample, np.random.default_rng(seed)).size_hw) for seed in range(10)}) > 2
