"""The segmentation head: pictures of different size, layouts of the classes, pictures without objects, masks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from saccade.errors import ConfigError, DataError
from saccade.layers.mask2former import MaskedDecoderConfig, PixelDecoderConfig
from saccade.models.visft.segmentation import (
    ImageMasks,
    MaskTruths,
    SegmentationHead,
    SegmentationHeadConfig,
    resize_masks,
    set_loss,
)
from saccade.samples import Batch, ClassList, Origin, Target
from saccade.tasks import Task

PATCH, WIDTH, STEP = 14, 20, 32
CLASSES = ClassList(names=("cup", "cat", "car"), category_ids=(2, 5, 3))


def make_head(**kwargs: object) -> SegmentationHead:
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "pixels": PixelDecoderConfig(width=16, mask_width=12, heads=2, points=2, mlp_width=24, layers=2, groups=4),
        "decoder": MaskedDecoderConfig(heads=2, mlp_width=24, layers=2, queries=6),
        "num_classes": 3,
        "classes": CLASSES.names,
        "category_ids": CLASSES.category_ids,
        "points": 64,
    }
    return SegmentationHead(SegmentationHeadConfig(**(settings | kwargs)), WIDTH).eval()  # type: ignore[arg-type]


def make_batch(
    sizes: list[tuple[int, int]], objects: list[list[int]], *, soft: bool = False, classes: ClassList = CLASSES
) -> Batch:
    height, width = (-(-max(size[axis] for size in sizes) // STEP) * STEP for axis in (0, 1))
    targets = []
    for (h, w), ids in zip(sizes, objects, strict=True):
        rng = torch.Generator().manual_seed(len(ids) + h)
        masks = torch.zeros(len(ids), height, width)
        for mask in masks:
            y, x = (int(torch.randint(0, side // 2, (1,), generator=rng)) for side in (h, w))
            mask[y : y + h // 2, x : x + w // 2] = 0.75 if soft else 1.0
        wrapped = tv_tensors.Mask(masks if soft else masks.bool())
        targets.append(Target(masks=wrapped, class_ids=torch.tensor(ids, dtype=torch.long)))
    return Batch(
        images=torch.zeros(len(sizes), 3, height, width),
        task=Task.INSTANCE,
        origins=[Origin(dataset="d", image_id=i, path=None, size_hw=(2 * h, h + w)) for i, (h, w) in enumerate(sizes)],
        input_sizes_hw=sizes,
        targets=targets,
        classes=classes,
    )


def make_map(batch: Batch) -> Tensor:
    torch.manual_seed(1)
    height, width = (side // PATCH for side in batch.images.shape[-2:])
    return torch.randn(len(batch), height, width, WIDTH)


class Fixed:
    """The same points for everyone, whatever is asked before."""

    def __call__(self, rows: int, points: int, device: torch.device) -> Tensor:
        return torch.rand(1, points, 2, generator=torch.Generator().manual_seed(points)).expand(rows, -1, -1)


def test_a_picture_in_a_batch_is_answered_as_it_is_alone() -> None:
    head = make_head()
    batch = make_batch([(120, 140), (60, 90), (110, 150)], [[], [], []])
    x_BHWC = make_map(batch)
    alone = make_batch([(60, 90)], [[]])
    # 64 x 96 pixels with the padding that it would have alone: 4 x 6 cells.
    together, single = head.predict(x_BHWC, batch), head.predict(x_BHWC[1:2, :4, :6], alone)[0]
    assert len(together) == 3 and together[1].size_hw == (120, 150)
    torch.testing.assert_close(together[1].scores, single.scores)
    assert together[1].masks == single.masks
    assert together[0].size_hw == (240, 260) and together[0].masks != together[2].masks


def test_the_loss_of_a_batch_is_normalised_over_all_its_objects() -> None:
    head = make_head()
    sizes, objects = [(120, 140), (60, 90)], [[0], [1, 2, 1]]
    batch = make_batch(sizes, objects)
    x_BHWC = make_map(batch)
    both = head.loss(x_BHWC, batch, draw=Fixed())
    cells = [(9, 11), (4, 6)]
    alone = [
        head.loss(x_BHWC[i : i + 1, : cells[i][0], : cells[i][1]], make_batch([size], [ids]), draw=Fixed())
        for i, (size, ids) in enumerate(zip(sizes, objects, strict=True))
    ]
    assert set(both) == {f"loss_{kind}{end}" for kind in ("ce", "mask", "dice") for end in ("", "_0", "_1")}
    for name in both:
        if name.startswith("loss_ce"):  # weights: 1 per object, 0.1 per query without
            shares = [1 + 0.5, 3 + 0.3]
            expected = sum(one[name] * share for one, share in zip(alone, shares, strict=True)) / sum(shares)
        else:
            expected = (alone[0][name] + 3 * alone[1][name]) / 4
        torch.testing.assert_close(both[name], torch.as_tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objects", [[[], []], [[], [1]]])
def test_pictures_without_objects_are_learned_from(objects: list[list[int]]) -> None:
    head = make_head().train()
    batch = make_batch([(120, 140), (60, 90)], objects)
    x_BHWC = make_map(batch).requires_grad_()
    losses = head.loss(x_BHWC, batch)
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    assert any(objects) or all(not value for name, value in losses.items() if not name.startswith("loss_ce"))
    total.backward()
    assert x_BHWC.grad is not None and x_BHWC.grad.any()
    missing = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert not missing


def test_more_objects_than_queries_are_no_error() -> None:
    head = make_head()
    batch = make_batch([(120, 140)], [[0, 1, 2] * 3])
    assert all(torch.isfinite(value) for value in head.loss(make_map(batch), batch).values())


def test_crowds_are_left_out() -> None:
    head = make_head()
    batch = make_batch([(120, 140)], [[0, 1]])
    x_BHWC = make_map(batch)
    batch.targets[0].is_crowd = torch.tensor([False, True])
    masks = batch.targets[0].masks
    assert masks is not None
    own = Target(masks=tv_tensors.Mask(masks[:1]), class_ids=torch.tensor([0]))
    without = dataclasses.replace(batch, targets=[own])
    first, second = (head.loss(x_BHWC, one, draw=Fixed()) for one in (batch, without))
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_soft_masks_are_taken_as_they_are() -> None:
    head = make_head()
    hard, soft = (make_batch([(120, 140)], [[0, 1]], soft=soft) for soft in (False, True))
    x_BHWC = make_map(hard)
    first, second = (head.loss(x_BHWC, batch, draw=Fixed())["loss_mask"] for batch in (hard, soft))
    assert first != second


def test_the_official_layout_begins_at_one_and_loses_its_last_class() -> None:
    ours, official = make_head(), make_head(layout="official")
    official.load_state_dict(ours.state_dict())
    batch = make_batch([(120, 140)], [[0]])
    x_BHWC = make_map(batch)
    last = make_batch([(120, 140)], [[2]])
    nothing = make_batch([(120, 140)], [[]])
    # Class 0 of the one is class 1 of the other; the last class of the official one is "no object" (weight 0.1).
    shifted = make_batch([(120, 140)], [[1]])
    shifted.targets[0].masks = batch.targets[0].masks
    one, two = official.loss(x_BHWC, batch, draw=Fixed()), ours.loss(x_BHWC, shifted, draw=Fixed())
    torch.testing.assert_close(one["loss_ce"], two["loss_ce"])
    three, four = (official.loss(x_BHWC, which, draw=Fixed()) for which in (last, nothing))
    torch.testing.assert_close(three["loss_ce"], four["loss_ce"])
    assert three["loss_mask"] > 0 and four["loss_mask"] == 0
    with torch.no_grad():
        official.decoder.class_logits.bias.copy_(torch.tensor([0.0, 0.0, 30.0, 0.0]))
        assert official.predict(x_BHWC, batch)[0].class_ids.tolist() == [1] * 6
        official.decoder.class_logits.bias.copy_(torch.tensor([30.0, 0.0, 0.0, 0.0]))
        assert len(official.predict(x_BHWC, batch)[0]) == 0


def test_predictions_describe_the_original_picture() -> None:
    head = make_head()
    batch = make_batch([(100, 120)], [[]])
    with torch.inference_mode():
        (result,) = head.predict(make_map(batch), batch)
    assert result.size_hw == (200, 220) and result.dense_masks().shape == (6, 200, 220)
    assert (result.scores.diff() <= 0).all() and result.classes == CLASSES
    for box, mask in zip(result.boxes_xyxy.tolist(), result.dense_masks(), strict=True):
        y, x = mask.nonzero(as_tuple=True)
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0] * 4
        assert box == [float(value) for value in expected]
    asked = ClassList(names=("car",), category_ids=(9,))
    with torch.inference_mode():
        (chosen,) = head.predict(make_map(batch), dataclasses.replace(batch, classes=asked))
    assert len(chosen) == int((result.class_ids == 2).sum()) and set(chosen.category_ids) <= {9}


@settings(max_examples=20, deadline=None)
@given(
    cells=st.tuples(*[st.integers(1, 6)] * 2),
    padded=st.tuples(*[st.integers(8, 40)] * 2),
    cut=st.tuples(*[st.floats(0.1, 1)] * 2),
    original=st.tuples(*[st.integers(1, 60)] * 2),
)
def test_masks_are_resized_twice(
    cells: tuple[int, int], padded: tuple[int, int], cut: tuple[float, float], original: tuple[int, int]
) -> None:
    masks = torch.randn(2, *cells, generator=torch.Generator().manual_seed(3))
    inside = max(1, int(padded[0] * cut[0])), max(1, int(padded[1] * cut[1]))
    whole = F.interpolate(masks[None], size=padded, mode="bilinear")[..., : inside[0], : inside[1]]
    plain = F.interpolate(whole, size=original, mode="bilinear")[0]
    torch.testing.assert_close(resize_masks(masks, padded, inside, original), plain, atol=1e-5, rtol=1e-4)


def test_the_loss_falls() -> None:
    head = make_head().train()
    batch = make_batch([(120, 140)], [[0, 2]])
    x_BHWC = make_map(batch)
    optimiser = torch.optim.AdamW(head.parameters(), lr=3e-3)
    totals = []
    for _ in range(40):
        total = torch.stack(list(head.loss(x_BHWC, batch).values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(float(total.detach()))
    assert sum(totals[-5:]) < 0.5 * sum(totals[:5])


def test_points_are_drawn_in_the_order_that_is_written_down() -> None:
    config = make_head().config
    image = ImageMasks(torch.randn(3, 6, 4), torch.randn(3, 6, 4, 5), (64, 96))
    truths = MaskTruths(torch.tensor([0, 1]), torch.rand(2, 64, 96))
    calls: list[tuple[int, int]] = []

    def draw(rows: int, points: int, device: torch.device) -> Tensor:
        calls.append((rows, points))
        return torch.rand(rows, points, 2)

    set_loss([image, image], [truths, MaskTruths(truths.labels_G[:0], truths.masks_GHW[:0])], config, draw=draw)
    assert calls == [(3, 64), *[(2, 192), (2, 16)] * 3]


def test_bad_input_is_named() -> None:
    head = make_head()
    batch = make_batch([(120, 140)], [[0]])
    x_BHWC = make_map(batch)
    with pytest.raises(DataError, match="no masks"):
        head.loss(x_BHWC, dataclasses.replace(batch, targets=[Target(class_ids=torch.tensor([0]))]))
    stranger = ClassList(names=("cup", "cat", "cow"), category_ids=(1, 2, 3))
    with pytest.raises(DataError, match="cow"):
        head.loss(x_BHWC, dataclasses.replace(batch, classes=stranger))
    with pytest.raises(ConfigError, match="class names"):
        SegmentationHeadConfig(num_classes=2, classes=("a",))
    with pytest.raises(ConfigError, match="cannot be chosen"):
        SegmentationHeadConfig(oversample=0.5)
