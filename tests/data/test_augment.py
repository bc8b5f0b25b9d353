"""The training pipelines: frames agree, filters hold, all randomness comes from the generator."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers_data import make_sample, tight_boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.data.augment import (
    Augment,
    CaptionAugment,
    DetectionAugment,
    GroundingAugment,
    LightAugment,
    Redraw,
    ScaleJitterAugment,
    SemanticAugment,
    draw_area_crop,
)
from saccade.data.geometry import View, boxes_tensor, mask_tensor
from saccade.data.resize import resize_nearest
from saccade.errors import DataError
from saccade.samples import Sample
from saccade.tasks import Task
from saccade.tokens.contours import encode_contours

PIPELINES: list[tuple[Augment, Task]] = [
    (DetectionAugment(short_sides=(60, 80), crop_range=(40, 60)), Task.DETECTION),
    (DetectionAugment(short_sides=(60, 80), crop_range=(40, 60), resize_as_float=True), Task.INSTANCE),
    (SemanticAugment(), Task.SEMANTIC),
    (CaptionAugment(), Task.CAPTION),
    (GroundingAugment(), Task.GROUNDING),
    (LightAugment(rotate=True, flip_vertical=0.5), Task.DETECTION),
    (LightAugment(rotate=True, flip_vertical=0.5, resize_as_float=True), Task.INSTANCE),
    (LightAugment(rotate=True, flip_vertical=0.5), Task.SEMANTIC),
]
SIZE = 64


@pytest.mark.parametrize(("augment", "task"), PIPELINES)
def test_output_has_the_size_and_depends_only_on_the_generator(augment: Augment, task: Task) -> None:
    transform = augment.build(SIZE)
    differs = False
    for number in range(12):
        results = []
        for global_seed in (0, 1):
            np.random.seed(global_seed)  # noqa: NPY002 - global state must not matter
            torch.manual_seed(global_seed)
            try:
                results.append(transform(make_sample(number, task), np.random.default_rng(number)))
            except Redraw:
                results.append(None)
        first, second = results
        assert (first is None) == (second is None)
        if first is None or second is None:
            continue
        assert first.size_hw == (SIZE, SIZE)
        assert torch.equal(first.image, second.image)
        for field in dataclasses.fields(first.target):
            one, two = getattr(first.target, field.name), getattr(second.target, field.name)
            assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
        other = None
        try:
            other = transform(make_sample(number, task), np.random.default_rng(1000 + number))
        except Redraw:
            continue
        differs |= not torch.equal(first.image, other.image)
    assert differs


@settings(deadline=None, max_examples=60)
@given(
    number=st.integers(0, 10**6),
    operations=st.lists(st.sampled_from(["flip_horizontal", "flip_vertical", "rotate90"]), max_size=6),
    size_hw=st.tuples(st.integers(20, 260), st.integers(20, 260)),
)
def test_boxes_stay_the_tight_boxes_of_the_masks(number: int, operations: list[str], size_hw: tuple[int, int]) -> None:
    view = View(make_sample(number, Task.INSTANCE))
    for name in operations:
        getattr(view, name)()
    turned = view.size_hw
    assert np.array_equal(view.boxes, tight_boxes(view.gather_masks())), "flips and turns are exact"
    view.resize(size_hw)
    masks = view.gather_masks()
    assert masks.shape == (3, *size_hw)
    seen = masks.any(axis=(1, 2))  # a small mask may fall between the pixels when the picture shrinks
    error = np.abs(view.boxes[seen] - tight_boxes(masks[seen]))
    # A nearest-neighbour edge is off by at most one pixel of the picture, or by one pixel of the source enlarged.
    assert (error[:, [0, 2]] <= max(1.0, size_hw[1] / turned[1]) + 1e-3).all()
    assert (error[:, [1, 3]] <= max(1.0, size_hw[0] / turned[0]) + 1e-3).all()


def test_flips_and_four_quarter_turns_are_the_identity() -> None:
    sample = make_sample(3, Task.INSTANCE)
    for operations in (["flip_horizontal"] * 2, ["flip_vertical"] * 2, ["rotate90"] * 4):
        view = View(sample)
        for name in operations:
            getattr(view, name)()
        assert np.array_equal(view.image, sample.image.numpy())
        assert np.array_equal(view.boxes, sample.target.boxes.numpy())
        assert np.array_equal(view.gather_masks(), sample.target.masks.numpy())


def test_quarter_turn_is_clockwise_for_image_boxes_and_masks() -> None:
    sample = make_sample(4, Task.INSTANCE)
    view = View(sample)
    view.rotate90()
    assert np.array_equal(view.image, np.rot90(sample.image.numpy(), -1, axes=(1, 2)))
    assert np.array_equal(view.gather_masks(), np.rot90(sample.target.masks.numpy(), -1, axes=(1, 2)))
    assert np.array_equal(view.boxes, tight_boxes(view.gather_masks()))


def test_gathered_masks_equal_the_chain_of_operations() -> None:
    sample = make_sample(5, Task.INSTANCE)
    view = View(sample)
    view.flip_horizontal()
    view.resize((90, 77))
    view.crop(11, 7, 50, 60)
    view.resize((33, 41))
    step = resize_nearest(sample.target.masks.numpy()[:, :, ::-1], (90, 77))[:, 11:61, 7:67]
    assert np.array_equal(view.gather_masks(), resize_nearest(step, (33, 41)))


def test_detection_without_crop_or_flip_only_scales() -> None:
    sample = make_sample(1, size_hw=(50, 100))
    out = DetectionAugment(flip=0.0, crop_probability=0.0).build(200)(sample, np.random.default_rng(0))
    assert torch.allclose(out.target.boxes, sample.target.boxes * torch.tensor([2.0, 4.0, 2.0, 4.0]))
    assert torch.equal(out.target.class_ids, sample.target.class_ids)


def test_crowds_and_flat_boxes_are_no_targets() -> None:
    sample = make_sample(1, Task.DETECTION)
    sample.target.is_crowd = torch.tensor([False, True, False])
    boxes = sample.target.boxes.as_subclass(torch.Tensor).clone()
    boxes[2, 2] = boxes[2, 0]
    sample.target.boxes = boxes_tensor(boxes.numpy(), sample.size_hw)
    out = DetectionAugment(flip=0.0, crop_probability=0.0).build(SIZE)(sample, np.random.default_rng(0))
    assert len(out.target.boxes) == 1
    assert out.target.class_ids.tolist() == [int(sample.target.class_ids[0])]


def test_all_filtered_asks_for_another_sample_and_an_empty_image_does_not() -> None:
    augment = DetectionAugment(flip=0.0, crop_probability=0.0)
    sample = make_sample(1, objects=1)
    sample.target.boxes = boxes_tensor(np.array([[5, 5, 5, 9]], np.float32), sample.size_hw)
    with pytest.raises(Redraw):
        augment.build(SIZE)(sample, np.random.default_rng(0))
    kept = dataclasses.replace(augment, filter_boxes=False).build(SIZE)(sample, np.random.default_rng(0))
    assert len(kept.target.boxes) == 0
    empty = augment.build(SIZE)(make_sample(1, objects=0), np.random.default_rng(0))
    assert empty.target.boxes.shape == (0, 4) and empty.target.class_ids.shape == (0,)


def test_a_mask_that_vanishes_takes_its_box_along() -> None:
    sample = make_sample(2, Task.INSTANCE, size_hw=(100, 100))
    sample.target.masks[1] = False
    out = DetectionAugment(flip=0.0, crop_probability=0.0).build(SIZE)(sample, np.random.default_rng(0))
    assert out.target.masks.shape == (2, SIZE, SIZE)
    assert out.target.class_ids.tolist() == sample.target.class_ids[[0, 2]].tolist()


def test_contours_are_traced_in_the_network_frame() -> None:
    sample = make_sample(2, Task.INSTANCE)
    plain = DetectionAugment(flip=0.0, crop_probability=0.0).build(SIZE)(sample, np.random.default_rng(0))
    traced = DetectionAugment(flip=0.0, crop_probability=0.0, contour_rays=24).build(SIZE)(
        sample, np.random.default_rng(0)
    )
    assert traced.target.masks is None
    assert torch.equal(traced.target.contours, encode_contours(plain.target.masks.as_subclass(torch.Tensor), 24))
    with pytest.raises(DataError, match="no masks"):
        DetectionAugment(contour_rays=24, crop_probability=0.0).build(SIZE)(make_sample(2), np.random.default_rng(0))


def test_semantic_crop_keeps_the_most_frequent_class_down() -> None:
    sample = make_sample(0, Task.SEMANTIC, size_hw=(64, 64))
    labels = np.zeros((64, 64), np.int64)
    labels[:, 40:] = 1

    def shares_of_class_0(max_class_share: float) -> list[float]:
        augment = SemanticAugment(
            crop_probability=1.0, scales=(20, 20), distort=False, flip=0.0, max_class_share=max_class_share
        )
        sample.target.semantic[:] = torch.from_numpy(labels)
        outputs = [augment.build(SIZE)(sample, np.random.default_rng(seed)) for seed in range(40)]
        return [(output.target.semantic == 0).float().mean().item() for output in outputs]

    # About half of all windows of the doubled image hold at least a quarter of class 1.
    assert max(shares_of_class_0(0.75)) < 0.75
    assert max(shares_of_class_0(1.1)) > 0.9


def test_caption_without_crop_or_flip_is_the_test_resize_and_one_caption_is_drawn() -> None:
    from saccade.data.resize import resize_bicubic

    sample = make_sample(7, Task.CAPTION)
    transform = CaptionAugment(flip=0.0, min_area=1.0).build(SIZE)
    drawn = {transform(sample, np.random.default_rng(seed)).target.captions for seed in range(10)}
    assert drawn == {("caption 7 a",), ("caption 7 b",)}
    image = transform(sample, np.random.default_rng(0)).image
    assert np.array_equal(image.numpy(), resize_bicubic(sample.image.numpy(), (SIZE, SIZE)))
    bright = CaptionAugment(flip=0.0, min_area=1.0, brightness=0.2).build(SIZE)
    ratios = [
        bright(sample, np.random.default_rng(seed)).image.float().mean() / image.float().mean() for seed in range(20)
    ]
    assert 0.79 < min(ratios) < 0.9 and 1.1 < max(ratios) < 1.21
    sample.target.captions = ()
    with pytest.raises(DataError, match="without a caption"):
        transform(sample, np.random.default_rng(0))


def test_grounding_redraws_where_the_crop_loses_the_box() -> None:
    sample = make_sample(1, Task.GROUNDING, size_hw=(100, 100))
    sample.target.boxes = boxes_tensor(np.array([[0, 0, 3, 3]], np.float32), (100, 100))
    transform = GroundingAugment(jitter_probability=0.0, min_side=0.5).build(SIZE)
    outcomes = []
    for seed in range(40):
        try:
            boxes = transform(sample, np.random.default_rng(seed)).target.boxes
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            outcomes.append(True)
        except Redraw:
            outcomes.append(False)
    assert any(outcomes) and not all(outcomes)


def test_light_augment_drops_what_the_crop_hides() -> None:
    sample = make_sample(1, size_hw=(100, 100))
    transform = LightAugment(crop_probability=1.0, min_area=0.3, min_visible=1.0, flip=0.0).build(100)
    kept = []
    for seed in range(30):
        try:
            kept.append(len(transform(sample, np.random.default_rng(seed)).target.boxes))
        except Redraw:
            kept.append(-1)
    assert -1 not in kept, "boxes outside the crop are not filtered boxes"
    assert set(kept) == {0} or 0 in kept


@pytest.mark.parametrize("size_hw", [(50, 400), (400, 50), (64, 64), (1, 1)])
def test_area_crops_lie_inside(size_hw: tuple[int, int]) -> None:
    for seed in range(50):
        top, left, height, width = draw_area_crop(
            size_hw, np.random.default_rng(seed), min_area=0.08, aspect_range=(3 / 4, 4 / 3)
        )
        assert top >= 0 and left >= 0 and height >= 1 and width >= 1
        assert top + height <= size_hw[0] and left + width <= size_hw[1]


# ------------------------------------------------------------------------------------------ large-scale jitter of AiT


def _jitter(sample: Sample, rules: str, **changes: object) -> Sample:
    """As it is, at the scale of the input: what the rules do with boxes is all that changes."""
    augment = ScaleJitterAugment(flip=0.0, scales=(1.0, 1.0), rules=rules)  # type: ignore[arg-type]
    return dataclasses.replace(augment, **changes).build(SIZE)(sample, np.random.default_rng(0))  # type: ignore[arg-type]


def test_ait_keeps_the_boxes_of_annotations() -> None:
    """mmdet and detectron2 take the boxes of the masks; in AiT an annotation may be wider than its mask."""
    sample = make_sample(0, Task.INSTANCE, size_hw=(SIZE, SIZE), objects=1)
    mask = np.zeros((1, SIZE, SIZE), bool)
    mask[0, 20:40, 10:30] = True
    sample.target.masks = mask_tensor(mask)
    sample.target.boxes = boxes_tensor(np.array([[6.5, 18.25, 33.0, 44.0]], np.float32), (SIZE, SIZE))
    for rules, box in (("ait", [6.5, 18.25, 33, 44]), ("mmdet", [10, 20, 30, 40]), ("detectron2", [10, 20, 30, 40])):
        assert _jitter(sample, rules).target.boxes.tolist() == [box], rules


def test_ait_keeps_an_object_whose_mask_the_crop_has_lost() -> None:
    """Its box reaches into the crop, its mask does not: it is said with the code of an empty mask."""
    sample = make_sample(0, Task.INSTANCE, size_hw=(SIZE, SIZE), objects=1)
    sample.target.masks = mask_tensor(np.zeros((1, SIZE, SIZE), bool))
    sample.target.boxes = boxes_tensor(np.array([[2, 3, 30, 40]], np.float32), (SIZE, SIZE))
    kept = _jitter(sample, "ait").target
    assert kept.boxes.tolist() == [[2, 3, 30, 40]] and not kept.masks.any() and len(kept.class_ids) == 1
    assert len(_jitter(sample, "detectron2").target.boxes) == 0
    with pytest.raises(Redraw):
        _jitter(sample, "mmdet")


def test_ait_learns_from_crops_of_background() -> None:
    sample = make_sample(0, Task.INSTANCE, size_hw=(SIZE, SIZE), objects=0)
    for rules in ("ait", "detectron2"):
        target = _jitter(sample, rules).target
        assert target.boxes.shape == (0, 4) and target.masks.shape == (0, SIZE, SIZE)
    with pytest.raises(Redraw):
        _jitter(sample, "mmdet")
    # A crop beside all objects is background, too; none is drawn again for it.
    sample = make_sample(0, Task.INSTANCE, size_hw=(SIZE, SIZE), objects=1)
    mask = np.zeros((1, SIZE, SIZE), bool)
    mask[0, :4, :4] = True
    sample.target.masks = mask_tensor(mask)
    sample.target.boxes = boxes_tensor(np.array([[0, 0, 4, 4]], np.float32), (SIZE, SIZE))
    augment = ScaleJitterAugment(flip=0.0, scales=(3.0, 3.0), rules="ait").build(SIZE)
    counts = [len(augment(sample, np.random.default_rng(seed)).target.boxes) for seed in range(30)]
    assert 0 in counts


def test_ait_draws_again_where_only_slivers_are_left() -> None:
    """Objects that the crop keeps, but that are below a hundredth of a pixel: the original takes another picture."""
    sample = make_sample(0, Task.INSTANCE, size_hw=(SIZE, SIZE), objects=1)
    sample.target.boxes = boxes_tensor(np.array([[5, 5, 5.005, 9]], np.float32), (SIZE, SIZE))
    with pytest.raises(Redraw, match="every box was filtered"):
        _jitter(sample, "ait")


def test_ait_drops_crowds_and_so_annotations_below_a_pixel() -> None:
    sample = make_sample(0, Task.INSTANCE, size_hw=(SIZE, SIZE), objects=3)
    sample.target.is_crowd = torch.tensor([False, True, False])
    kept = _jitter(sample, "ait").target
    assert torch.equal(kept.class_ids, sample.target.class_ids[[0, 2]]) and len(kept.masks) == 2
