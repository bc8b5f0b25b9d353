"""The detection head: padding, layouts of the classes, pictures without objects, assignments."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import generalized_box_iou

from saccade.errors import ConfigError, DataError
from saccade.layers.boxes import generalized_iou
from saccade.layers.detr import DETRConfig
from saccade.layers.matching import assign
from saccade.models.visft.detection import DetectionHead, DetectionHeadConfig, decode
from saccade.samples import Batch, ClassList, Origin, Target
from saccade.tasks import Task

PATCH, WIDTH = 14, 20
TINY = DETRConfig(
    encoder_width=16, decoder_width=24, heads=2, mlp_width=20, encoder_layers=2, decoder_layers=3, task_tokens=4
)
CLASSES = ClassList(names=("cup", "cat", "car"), category_ids=(2, 5, 3))


def make_head(layout: str = "ours", **kwargs: object) -> DetectionHead:
    torch.manual_seed(0)
    config = DetectionHeadConfig(
        detr=TINY,
        queries=6,
        num_classes=3,
        classes=CLASSES.names,
        category_ids=CLASSES.category_ids,
        layout=layout,  # type: ignore[arg-type]
        **kwargs,  # type: ignore[arg-type]
    )
    return DetectionHead(config, WIDTH).eval()


def make_batch(sizes: list[tuple[int, int]], objects: list[list[int]], classes: ClassList = CLASSES) -> Batch:
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    targets = []
    for (h, w), ids in zip(sizes, objects, strict=True):
        torch.manual_seed(len(ids) + h)
        corners = torch.rand(len(ids), 4) * torch.tensor([w, h, w, h]) / 2
        corners[:, 2:] += corners[:, :2] + 1
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width))
        targets.append(Target(boxes=boxes, class_ids=torch.tensor(ids, dtype=torch.long)))
    return Batch(
        images=torch.zeros(len(sizes), 3, height, width),
        task=Task.DETECTION,
        origins=[Origin(dataset="d", image_id=i, path=None, size_hw=(2 * h, 2 * w)) for i, (h, w) in enumerate(sizes)],
        input_sizes_hw=sizes,
        targets=targets,
        classes=classes,
    )


def make_map(batch: Batch) -> Tensor:
    torch.manual_seed(1)
    height, width = (side // PATCH for side in batch.images.shape[-2:])
    return torch.randn(len(batch), height, width, WIDTH)


def test_a_padded_picture_is_answered_as_it_is_alone() -> None:
    head = make_head()
    batch = make_batch([(70, 84), (56, 42)], [[0], [1, 2]])
    x_BHWC = make_map(batch)
    alone = make_batch([(56, 42)], [[1, 2]])
    both, single = head.predict(x_BHWC, batch)[1], head.predict(x_BHWC[1:, :4, :3], alone)[0]
    torch.testing.assert_close(both.scores, single.scores)
    torch.testing.assert_close(both.boxes_xyxy, single.boxes_xyxy, atol=1e-4, rtol=1e-4)
    assert torch.equal(both.class_ids, single.class_ids)


def test_the_loss_of_a_batch_is_normalised_over_all_its_objects() -> None:
    head = make_head()
    batch = make_batch([(70, 84), (56, 42)], [[0], [1, 2, 0]])
    x_BHWC = make_map(batch)
    whole = head.loss(x_BHWC, batch)
    first = head.loss(x_BHWC[:1], make_batch([(70, 84)], [[0]]))
    second = head.loss(x_BHWC[1:, :4, :3], make_batch([(56, 42)], [[1, 2, 0]]))
    assert len(whole) == 9
    for name in ("loss_bbox", "loss_giou_0"):
        torch.testing.assert_close(whole[name], (first[name] + 3 * second[name]) / 4)


def test_official_layout_has_a_logit_for_every_category_id() -> None:
    head = make_head("official")
    assert head.class_logits.out_features == 5 + 2
    logits = torch.full((1, 7), -9.0)
    logits[0, 4] = 9.0  # an id that the data set leaves out
    logits[0, 5] = 3.0
    scores, class_ids, boxes = decode(
        logits, torch.tensor([[0.5, 0.5, 1.0, 0.5]]), torch.tensor(head.config.logit_of_class), (40, 60)
    )
    assert class_ids.tolist() == [1]
    assert float(scores) == pytest.approx(float(logits.softmax(-1)[0, 5]))
    assert boxes.tolist() == [[0.0, 10.0, 60.0, 30.0]]


def test_it_learns_boxes_and_classes() -> None:
    head = make_head("official").train()
    for module in head.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.MultiheadAttention):
            setattr(module, "p" if isinstance(module, torch.nn.Dropout) else "dropout", 0.0)
    batch = make_batch([(70, 84), (56, 42)], [[0], [1, 2]])
    x_BHWC = make_map(batch)
    optimiser = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(120):
        optimiser.zero_grad()
        torch.stack(list(head.loss(x_BHWC, batch).values())).sum().backward()
        optimiser.step()
    head.eval()
    for found, target in zip(head.predict(x_BHWC, batch), batch.targets, strict=True):
        assert target.boxes is not None and target.class_ids is not None
        wanted = len(target.class_ids)
        assert sorted(found.class_ids[:wanted].tolist()) == sorted(target.class_ids.tolist())
        order = [int((found.class_ids[:wanted] == k).nonzero()[0, 0]) for k in target.class_ids]
        overlap = generalized_box_iou(found.boxes_xyxy[order] / 2, target.boxes.as_subclass(Tensor)).diagonal()
        assert float(overlap.detach().min()) > 0.7


def test_a_picture_without_objects_teaches_no_object_only() -> None:
    head = make_head()
    batch = make_batch([(70, 84)], [[]])
    losses = head.loss(make_map(batch), batch)
    for name, value in losses.items():
        assert torch.isfinite(value) and (float(value) > 0) == name.startswith("loss_ce"), name
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_crowds_are_left_out_and_other_class_lists_are_mapped_by_name() -> None:
    head = make_head()
    batch = make_batch([(70, 84)], [[0, 1]])
    x_BHWC = make_map(batch)
    crowd = make_batch([(70, 84)], [[0, 1]])
    crowd.targets[0].is_crowd = torch.tensor([False, True])
    only = make_batch([(70, 84)], [[0, 1]])
    assert only.targets[0].boxes is not None and only.targets[0].class_ids is not None
    only.targets[0].boxes = tv_tensors.wrap(only.targets[0].boxes[:1], like=only.targets[0].boxes)
    only.targets[0].class_ids = only.targets[0].class_ids[:1]
    assert head.loss(x_BHWC, crowd) == head.loss(x_BHWC, only) != head.loss(x_BHWC, batch)
    renamed = make_batch([(70, 84)], [[1, 0]], ClassList.from_names(("cat", "cup")))
    assert float(head.loss(x_BHWC, renamed)["loss_ce"].detach()) == pytest.approx(
        float(head.loss(x_BHWC, batch)["loss_ce"].detach())
    )
    found = head.predict(x_BHWC, renamed)[0]
    assert found.classes.names == ("cat", "cup") and set(found.class_ids.tolist()) <= {0, 1}


def test_bad_input_is_refused() -> None:
    head = make_head()
    batch = make_batch([(70, 84)], [[0]])
    batch.targets[0].boxes = None
    with pytest.raises(DataError, match="no boxes"):
        head.loss(make_map(batch), batch)
    with pytest.raises(ConfigError, match="category ids"):
        DetectionHeadConfig(layout="official")
    with pytest.raises(ConfigError, match="2 class names"):
        DetectionHeadConfig(num_classes=3, classes=("a", "b"))
    with pytest.raises(ConfigError, match="multiple of heads"):
        DETRConfig(encoder_width=20, heads=8)


def test_weights_start_as_published() -> None:
    head = make_head()
    first, last = head.transformer.decoder[0].state_dict(), head.transformer.decoder[-1].state_dict()
    assert all(torch.equal(first[name], last[name]) for name in first)
    weight = head.transformer.encoder[0].mlp.layers[0].weight  # type: ignore[union-attr,index]
    bound = (6 / sum(weight.shape)) ** 0.5
    assert 0.9 * bound < float(weight.detach().abs().max()) <= bound


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**31))
def test_assignments_are_the_cheapest(rows: int, columns: int, seed: int) -> None:
    cost = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    ((chosen, served),) = assign([cost])
    assert len(chosen) == min(rows, columns) and chosen.tolist() == sorted(chosen.tolist())
    table = cost if rows >= columns else cost.T
    cheapest = min(
        sum(float(table[r, c]) for c, r in enumerate(order))
        for order in permutations(range(len(table)), table.shape[1])
    )
    assert float(cost[chosen, served].sum()) == pytest.approx(cheapest, abs=1e-5)


def test_generalized_iou_is_that_of_torchvision() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(5, 4), torch.rand(3, 4)
    a[:, 2:] += a[:, :2]
    b[:, 2:] += b[:, :2]
    torch.testing.assert_close(generalized_iou(a[:, None], b), generalized_box_iou(a, b))
    assert float(generalized_iou(torch.zeros(4), torch.zeros(4))) == 0
