"""Drawing: sizes are kept, labels stay in the frame and apart, colours are stable and distinct."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.drawing import (
    class_colour,
    colour_table,
    draw_caption,
    draw_grounding,
    draw_instances,
    draw_semantic,
    place_labels,
    to_pil,
)
from saccade.errors import SaccadeError, UsageError

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))  # width, height


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def test_colours_are_distinct_and_stable() -> None:
    assert len({class_colour(k) for k in range(48)}) == 48
    assert class_colour(0) == (230, 159, 0) == class_colour(48)
    assert colour_table(50).shape == (50, 3)
    assert colour_table(0).shape == (0, 3)


@settings(deadline=None, max_examples=40)
@given(size=SIZES, count=st.integers(0, 6), with_masks=st.booleans(), data=st.data())
def test_drawing_instances_keeps_the_size_whatever_the_boxes(
    size: tuple[int, int], count: int, with_masks: bool, data: st.DataObject
) -> None:
    width, height = size
    numbers = st.floats(-50, 400, width=32)  # outside the frame and inside out, too
    boxes = np.array([data.draw(st.tuples(*[numbers] * 4)) for _ in range(count)], dtype=np.float32).reshape(-1, 4)
    masks = [np.random.default_rng(k).random((height, width)) > 0.5 for k in range(count)] if with_masks else None
    image = Image.new("RGB", size, (90, 90, 90))
    drawn = draw_instances(
        image,
        boxes_xyxy=boxes,
        class_ids=list(range(count)),
        labels=[f"a long\nname of class {k} 0.99" for k in range(count)],
        masks=masks,
    )
    assert drawn.size == size and drawn.mode == "RGB"
    assert image.getpixel((0, 0)) == (90, 90, 90), "the given picture must stay as it is"
    if count == 0:
        assert np.array_equal(np.asarray(drawn), np.asarray(image))


@settings(deadline=None, max_examples=30)
@given(size=SIZES, text=st.text(max_size=120))
def test_strips_go_below_and_leave_the_picture_alone(size: tuple[int, int], text: str) -> None:
    image = Image.effect_noise(size, 60).convert("RGB")
    drawn = draw_caption(image, text=text, note="a note")
    assert drawn.width == size[0] and drawn.height > size[1]
    assert np.array_equal(np.asarray(drawn)[: size[1]], np.asarray(image))
    labels = (np.arange(size[0] * size[1]).reshape(size[1], size[0]) // 7) % 3
    legend = draw_semantic(image, labels=labels, names=["sky", "a very long\nclass name", "ground"])
    assert legend.width == size[0] and legend.height > size[1]
    box = np.array([0, 0, *size], dtype=np.float32)
    assert draw_grounding(image, box_xyxy=box, phrase=text, label="0.50").width == size[0]


@settings(deadline=None, max_examples=60)
@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 400)] * 4), min_size=1, max_size=12),
    label=st.tuples(st.integers(10, 80), st.integers(8, 16)),
)
def test_labels_stay_inside_and_apart_while_there_is_room(
    boxes: list[tuple[int, int, int, int]], label: tuple[int, int]
) -> None:
    anchors = [(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d in boxes]
    corner = (340, 384, 400, 400)
    places = place_labels(anchors, [label] * len(anchors), (400, 400), taken=[corner])
    for x0, y0, x1, y1 in places:
        assert x0 >= 0 and y0 >= 0 and x1 <= 400 and y1 <= 400
        assert (x1 - x0, y1 - y0) == label
    # Twelve labels of at most 80 x 16 cover a tenth of the frame: there is always room.
    assert all(overlap(a, b) == 0 for a, b in itertools.combinations([*places, corner], 2))


def test_a_single_label_sits_on_top_of_its_box() -> None:
    assert place_labels([(50, 60, 90, 95)], [(30, 12)], (200, 200)) == [(50, 48, 80, 60)]


@pytest.mark.parametrize("side", [64, 4000])
def test_text_and_lines_scale_with_the_picture(side: int) -> None:
    box = np.array([[0.2, 0.4, 0.8, 0.9]], dtype=np.float32) * side
    image = Image.new("RGB", (side, side), (128, 128, 128))
    drawn = np.asarray(draw_instances(image, boxes_xyxy=box, class_ids=[1], labels=["dog 0.91"]))
    coloured = (drawn == np.array(class_colour(1))).all(-1)
    column = coloured[int(0.4 * side) :, side // 2]  # crosses the top and the bottom line, below the label
    assert 2 * max(1, side // 500) <= column.sum() <= 2 * side // 30
    label_rows = coloured[: int(0.4 * side), round(0.2 * side) + 1].sum()
    assert side / 100 <= label_rows <= side / 4


def test_mask_is_tinted_and_outlined_and_the_rest_untouched() -> None:
    image = Image.new("RGB", (100, 80), (100, 100, 100))
    mask = np.zeros((80, 100), dtype=bool)
    mask[30:60, 40:90] = True
    drawn = np.asarray(
        draw_instances(
            image,
            boxes_xyxy=np.array([[40, 30, 90, 60]], dtype=np.float32),
            class_ids=[4],
            labels=["x"],
            masks=iter([mask]),
        )
    )
    colour = np.array(class_colour(4))
    assert (drawn[30, 70] == colour).all(), "outline"
    assert (np.abs(drawn[45, 65] - (0.58 * 100 + 0.42 * colour)) <= 1).all(), "translucent inside"
    assert (drawn[70, 10] == 100).all()


def test_ignored_pixels_keep_their_colour() -> None:
    image = Image.new("RGB", (64, 64), (100, 100, 100))
    labels = np.zeros((64, 64), dtype=np.int64)
    labels[:, 32:] = 255
    drawn = np.asarray(draw_semantic(image, labels=labels, names=["lesion"], ignore=255))
    assert (drawn[10, 50] == 100).all()
    assert not (drawn[2, 2] == 100).all()


def test_the_background_keeps_its_colour_and_has_no_name_on_it() -> None:
    image = Image.new("RGB", (300, 200), (100, 100, 100))
    labels = np.zeros((200, 300), dtype=np.int64)
    labels[60:140, 100:200] = 1
    for names, background in ((["background", "lesion"], 0), (["skin", "lesion"], None)):
        drawn = np.asarray(draw_semantic(image, labels=labels, names=names, background=background))
        around = drawn[:55].reshape(-1, 3)
        assert bool((around == 100).all()) == (background is not None)
        assert not (drawn[62:138, 102:198] == 100).all(axis=-1).any()
        assert len(drawn) > 200, "the legend lists both"


def test_what_can_be_drawn_on() -> None:
    array = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(to_pil(array)), array)
    assert np.array_equal(np.asarray(to_pil(torch.from_numpy(array).permute(2, 0, 1))), array)
    assert to_pil(Image.new("L", (9, 8))).mode == "RGB"
    for wrong in (array.astype(np.float32), array[..., 0], torch.zeros(8, 9, 3, dtype=torch.uint8)):
        with pytest.raises(UsageError, match="cannot draw"):
            to_pil(wrong)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_box_without_numbers_is_an_error(bad: float) -> None:
    boxes = np.array([[1, 2, bad, 9]], dtype=np.float32)
    with pytest.raises(SaccadeError, match="NaN or infinity"):
        draw_instances(Image.new("RGB", (64, 64)), boxes_xyxy=boxes, class_ids=[0], labels=["a"])
