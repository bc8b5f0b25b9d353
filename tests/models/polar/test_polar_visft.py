"""A ViSFT behind the polar wrapper, and as what finds the centre."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers_polar import CLASSES, TINY_CENTERS, TINY_UNET, TINY_VISFT, make_batch, overlap
from torch import Tensor

from saccade.configs import from_dict, to_dict
from saccade.errors import ConfigError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.models.polar.config import PolarConfig
from saccade.models.polar.model import PolarSegmenter
from saccade.models.systems import build, fixed_classes, input_size, offers, reader_of, reading_config, width_of
from saccade.tasks import Task

SIDE = TINY_VISFT.vit.image_size
DISCS = [[(20.0, 22.0, 10.0)], [(30.0, 20.0, 8.0)]]
CENTERS = [torch.tensor([[20.0, 22.0]]), torch.tensor([[30.0, 20.0]])]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model(**changes: object) -> PolarSegmenter:
    torch.manual_seed(0)
    built = build(PolarConfig(segmenter=TINY_VISFT, **changes))
    assert isinstance(built, PolarSegmenter)
    return built


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_it_learns_from_unrolled_pictures() -> None:
    net, pictures = model(jitter=0.0).train(), make_batch(DISCS, (SIDE, SIDE))
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3)
    values = []
    for _ in range(70):
        losses = net.loss(pictures)
        optimiser.zero_grad()
        total(losses).backward()
        optimiser.step()
        values.append(float(total(losses).detach()))
    assert sum(values[-5:]) < 0.3 * sum(values[:5]), values
    assert not [name for name, p in net.named_parameters() if p.grad is None]
    found = net.eval().predict(pictures, centers_xy=CENTERS)
    for one, target in zip(found, pictures.targets, strict=True):
        assert overlap(one, target.semantic.as_subclass(Tensor) == 1) > 0.85


def test_scores_of_several_views_lie_between_0_and_1() -> None:
    net, pictures = model().eval(), make_batch(DISCS, (SIDE, SIDE), original_hw=(60, 96))
    both = torch.tensor([[40.0, 30.0], [60.0, 20.0]])
    with torch.inference_mode():
        scores = net.class_scores(pictures, [both, both[:1]])
    assert scores.shape == (2, 2, SIDE, SIDE)
    torch.testing.assert_close(scores.sum(1), torch.ones(2, SIDE, SIDE))
    assert [one.labels.shape for one in net.predict(pictures, centers_xy=[both, both[:1]])] == [(60, 96)] * 2


def test_a_checkpoint_says_the_same(tmp_path: Path) -> None:
    net = model(finder=TINY_CENTERS).eval()
    classes = fixed_classes(net)
    assert classes is not None and classes.names == CLASSES.names
    saved = save_model(net, tmp_path / "saved", classes={Task.SEMANTIC: classes}, provenance={})
    loaded = load_folder(saved).model
    assert isinstance(loaded, PolarSegmenter) and loaded.config == net.config
    pictures = make_batch(DISCS, (SIDE, SIDE))
    pairs = zip(net.predict(pictures, centers_xy=CENTERS), loaded.predict(pictures, centers_xy=CENTERS), strict=True)
    assert all(torch.equal(one.labels, other.labels) for one, other in pairs)
    assert from_dict(PolarConfig, to_dict(net.config)) == net.config
    assert offers(net.config, Task.SEMANTIC) and input_size(net.config, Task.SEMANTIC) == SIDE
    assert width_of(net.config) == 32


def test_it_finds_centres_for_another_segmenter() -> None:
    net = build(PolarConfig(segmenter=TINY_UNET, finder=TINY_VISFT)).eval()
    assert isinstance(net, PolarSegmenter)
    task, declared = net.finder_input()
    assert task is Task.SEMANTIC and declared.size_hw == (SIDE, SIDE)
    assert len(net.find(make_batch(DISCS, (SIDE, SIDE)))) == 2


def test_only_a_head_that_speaks_reads_a_vocabulary() -> None:
    from saccade.hub.resolve import load_model

    git = load_model("git-nano").model
    config = PolarConfig(segmenter=TINY_VISFT, finder=git.config)
    assert reading_config(config) == git.config and reading_config(TINY_VISFT) is None
    net = build(config, git.vocabulary)
    assert isinstance(net, PolarSegmenter) and reader_of(net) is net.finder


@pytest.mark.parametrize("part", ["segmenter", "finder"])
def test_a_visft_without_label_maps_is_refused(part: str) -> None:
    without = dataclasses.replace(TINY_VISFT, semantic=None)
    with pytest.raises(ConfigError, match="this ViSFT does not label pixels"):
        PolarConfig(**{part: without})
