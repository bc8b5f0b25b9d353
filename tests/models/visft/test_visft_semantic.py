"""The head for label maps: what it learns, what its queries say about pixels, what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers_visft import MAP_CLASSES, SIZE, batch, map_batch, map_config, tiny_config, tiny_words
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from saccade.configs import from_dict, to_dict
from saccade.errors import ConfigError, DataError, UsageError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.layers.point_losses import draw_known, sample_masks
from saccade.models.systems import build, fixed_classes, input_size, offers
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.convert import to_official
from saccade.models.visft.model import ViSFT
from saccade.models.visft.presets import PRESETS
from saccade.models.visft.segmentation import ImageMasks, SegmentationHeadConfig, set_loss
from saccade.models.visft.semantic import class_masks, class_shares
from saccade.results import SemanticMap
from saccade.samples import IGNORE_LABEL, ClassList, Preprocess
from saccade.tasks import Task


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model(seed: int = 0, **changes: object) -> ViSFT:
    torch.manual_seed(seed)
    return ViSFT(map_config(**changes))


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def overlaps(said: Tensor, truth: Tensor) -> list[float]:
    pairs = [(said == class_id, truth == class_id) for class_id in range(len(MAP_CLASSES))]
    return [float((one & other).sum() / (one | other).sum().clamp(min=1)) for one, other in pairs]


# --- learning


def test_it_learns_label_maps() -> None:
    net, pictures = model().train(), map_batch()
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3)
    values = []
    for _ in range(90):
        losses = net.loss(pictures)
        optimiser.zero_grad()
        total(losses).backward()
        optimiser.step()
        values.append(float(total(losses).detach()))
    assert all(name.startswith("semantic_segmentation_loss_") for name in losses)
    assert sum(values[-5:]) < 0.3 * sum(values[:5]), values
    said = torch.stack([answer.labels for answer in net.eval().predict(pictures)])
    truth = torch.stack([target.semantic.as_subclass(Tensor) for target in pictures.targets])
    assert min(overlaps(said, truth)) > 0.85, overlaps(said, truth)


def test_every_parameter_learns_and_a_frozen_backbone_does_not() -> None:
    net = model().train()
    total(net.loss(map_batch())).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]
    still = model(trained=("semantic",)).train()
    total(still.loss(map_batch())).backward()
    reached = {name for name, p in still.named_parameters() if p.grad is not None}
    assert reached and all(name.startswith("semantic.") for name in reached)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bool(total(net.loss(map_batch())).isfinite()) and len(net.eval().predict(map_batch())) == 2


def test_the_classes_of_a_map_are_masks_without_the_ignored_pixels() -> None:
    labels = torch.tensor([[0, 2, 2], [IGNORE_LABEL, 0, 2]])
    truths = class_masks(labels)
    assert truths.labels_G.tolist() == [0, 2]
    assert truths.masks_GHW.tolist() == [
        [[True, False, False], [False, True, False]],
        [[False, True, True], [False, False, True]],
    ]
    assert truths.known_HW is not None and truths.known_HW.tolist() == [[True] * 3, [False, True, True]]


def test_masks_are_not_compared_at_ignored_pixels() -> None:
    config = SegmentationHeadConfig(num_classes=3, points=200)
    torch.manual_seed(0)
    labels = map_batch().targets[1].semantic.as_subclass(Tensor).clone()
    labels[28:, :] = IGNORE_LABEL
    masks = torch.randn(2, 6, 8, 8, requires_grad=True)
    logits = torch.randn(2, 6, 4, requires_grad=True)
    total(set_loss([ImageMasks(logits, masks, (SIZE, SIZE))], [class_masks(labels)], config)).backward()
    assert masks.grad is not None
    assert bool((masks.grad[..., :4, :] != 0).any()) and not bool(masks.grad[..., 5:, :].any())


def test_a_map_of_ignored_pixels_alone_has_no_mask() -> None:
    net, pictures = model().train(), map_batch()
    pictures.targets[0].semantic = tv_tensors.Mask(torch.full((SIZE, SIZE), IGNORE_LABEL))
    assert bool(total(net.loss(pictures)).isfinite())
    pictures.targets[1] = pictures.targets[0]
    losses = net.loss(pictures)
    assert float(losses["semantic_segmentation_loss_mask"].detach()) == 0
    total(losses).backward()


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_points_lie_in_the_middles_of_known_pixels(size: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(1, *size, generator=generator) + 1
    known = torch.rand(size, generator=generator) < 0.5
    known[0, 0] = True
    points = draw_known(known)(1, 40, torch.device("cpu"))
    assert points.shape == (1, 40, 2)
    found = sample_masks(values, points)[0]  # bilinear: exact at the middles alone
    assert bool(((found[:, None] - values[0][known]).abs().min(dim=1).values < 1e-5).all())


# --- what the queries say


def test_classes_by_hand() -> None:
    # Two queries: the first is class 1 for sure and holds the left, the second is class 0 or nothing, everywhere.
    logits = torch.tensor([[-30.0, 30.0, -30.0], [0.0, -30.0, 0.0]])
    left = torch.tensor([[40.0, -40.0]])
    masks = torch.stack([left, torch.full((1, 2), 40.0)])
    shares = class_shares(logits, masks, (1, 2))
    assert shares.shape == (2, 1, 2)
    torch.testing.assert_close(shares[:, 0, 0], torch.tensor([0.5, 1.0]) / 1.5)
    torch.testing.assert_close(shares[:, 0, 1], torch.tensor([1.0, 0.0]))
    # Half a mask: 0.5 x 1 for class 1 against 1 x 0.5 for class 0.
    half = class_shares(logits, torch.stack([torch.zeros(1, 2), masks[1]]), (1, 2))
    torch.testing.assert_close(half, torch.full((2, 1, 2), 0.5))
    assert class_shares(logits, masks, (3, 10)).shape == (2, 3, 10)
    nobody = class_shares(logits, torch.full((2, 1, 2), -500.0), (1, 2))
    assert bool(nobody.isfinite().all())


def test_scores_are_those_of_the_input_and_labels_those_of_the_picture() -> None:
    net, pictures = model().eval(), map_batch(original_hw=(40, 90))
    with torch.inference_mode():
        scores = net.class_scores(pictures)
    assert scores.shape == (2, 3, SIZE, SIZE) and bool((scores >= 0).all())
    torch.testing.assert_close(scores.sum(1), torch.ones(2, SIZE, SIZE))
    for number, answer in enumerate(net.predict(pictures)):
        assert isinstance(answer, SemanticMap) and answer.labels.shape == (40, 90)
        resized = torch.nn.functional.interpolate(scores[number : number + 1], size=(40, 90), mode="bilinear")
        assert torch.equal(answer.labels, resized[0].argmax(0)) and answer.classes.names == MAP_CLASSES
        alone = dataclasses.replace(
            pictures,
            images=pictures.images[number : number + 1],
            origins=pictures.origins[:1],
            input_sizes_hw=pictures.input_sizes_hw[:1],
            targets=[],
        )
        assert bool((net.predict(alone)[0].labels == answer.labels).float().mean() > 0.99)


def test_classes_are_compared_by_name() -> None:
    net, pictures = model().eval(), map_batch()
    turned = dataclasses.replace(pictures, classes=ClassList.from_names(("box", "background", "disc")))
    own, other = net.class_scores(pictures), net.class_scores(turned)
    torch.testing.assert_close(other, own[:, [2, 0, 1]])
    for target in turned.targets:
        target.semantic = tv_tensors.Mask((target.semantic.as_subclass(Tensor) + 1) % 3)
    losses = []
    for one in (map_batch(), turned):
        torch.manual_seed(0)
        losses.append(float(total(net.loss(one)).detach()))
    assert losses[0] == losses[1]
    wrong = dataclasses.replace(turned, classes=ClassList.from_names(("box", "disc", "cat")))
    with pytest.raises(UsageError, match="'cat'"):
        net.class_scores(wrong)
    with pytest.raises(DataError, match="'cat'"):
        net.loss(wrong)
    with pytest.raises(UsageError, match="tells all of"):
        net.class_scores(dataclasses.replace(turned, classes=ClassList.from_names(("box", "disc"))))


# --- the contract of a model


def test_only_a_head_for_label_maps_offers_them() -> None:
    released = ViSFT(tiny_config(), tiny_words())
    assert Task.SEMANTIC not in released.tasks and not offers(released.config, Task.SEMANTIC)
    assert not any(offers(make(), Task.SEMANTIC) for make in PRESETS.values())
    with pytest.raises(UsageError, match="does not offer"):
        released.class_scores(batch(Task.INSTANCE))
    net = model()
    assert net.tasks == (Task.SEMANTIC,) and offers(net.config, Task.SEMANTIC)
    assert net.preprocess(Task.SEMANTIC) == Preprocess(size_hw=(SIZE, SIZE), interpolation="pillow")
    assert input_size(net.config, Task.SEMANTIC) == SIZE
    assert from_dict(ViSFTConfig, to_dict(net.config)) == net.config
    with pytest.raises(UsageError, match="no head for label maps"):
        to_official(net.state_dict(), net.config)


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    net = build(map_config()).eval()
    classes = fixed_classes(net)
    assert classes is not None and classes.names == MAP_CLASSES
    loaded = load_folder(save_model(net, tmp_path / "m", classes={Task.SEMANTIC: classes}, provenance={})).model
    assert loaded.config == net.config
    for one, other in zip(net.predict(map_batch()), loaded.predict(map_batch()), strict=True):
        assert torch.equal(one.labels, other.labels)


def test_label_maps_that_are_wrong_are_refused() -> None:
    net, pictures = model(), map_batch()
    pictures.targets[0].semantic = None
    with pytest.raises(DataError, match="no label map"):
        net.loss(pictures)
    pictures.targets[0].semantic = tv_tensors.Mask(torch.full((SIZE, SIZE), 3))
    with pytest.raises(DataError, match="holds label 3 but there are 3 classes"):
        net.loss(pictures)


@pytest.mark.parametrize(
    ("head", "config", "what"),
    [
        ({"layout": "official"}, {}, "no object"),
        ({"num_classes": 1, "classes": ("lesion",)}, {}, "two classes"),
        ({"classes": ("a", "b", "a")}, {}, "two classes"),
        ({"stride": 14}, {}, "stride"),
        ({}, {"semantic_size": 57}, "whole number of patches"),
        ({}, {"semantic_size": 0}, "no patch"),
    ],
)
def test_heads_that_cannot_be_are_refused(head: dict[str, object], config: dict[str, object], what: str) -> None:
    plain = map_config()
    assert plain.semantic is not None
    with pytest.raises(ConfigError, match=what):
        dataclasses.replace(plain, semantic=dataclasses.replace(plain.semantic, **head), **config)


def test_a_model_has_one_list_of_class_names() -> None:
    config = tiny_config()
    assert config.instance is not None
    both = dataclasses.replace(config, semantic=config.instance, semantic_size=SIZE)
    assert set(ViSFT(both, tiny_words()).tasks) == {Task.DETECTION, Task.INSTANCE, Task.CAPTION, Task.SEMANTIC}
    assert both.named(("a", "b", "c")).semantic.classes == ("a", "b", "c")
    with pytest.raises(ConfigError, match="those of all its heads"):
        dataclasses.replace(config, semantic=dataclasses.replace(config.instance, classes=MAP_CLASSES))
