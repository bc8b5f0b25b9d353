"""Learning rates: the published numbers, and every parameter of the published sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from saccade.errors import CheckpointError, ConfigError
from saccade.models.git.convert import our_key
from saccade.training.config import LayerRates, OptimConfig, PartRate
from saccade.training.optim import (
    build_optimizer,
    layer_multiplier,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
)
from saccade.training.schedule import learning_rate

MANIFESTS = Path(__file__).parents[2].parent / "shared" / "manifests" / "git"
RATES = {
    "base": LayerRates(floor=0.1, frozen_until=5, first_full=12),
    "large": LayerRates(floor=0.1, frozen_until=12, first_full=24),
    "huge": LayerRates(floor=0.1, frozen_until=16, first_full=32),
}


def test_cosine_gives_the_published_numbers() -> None:
    optim = OptimConfig(lr=2e-4, min_lr=2e-6)
    assert learning_rate(30_000, steps=120_000, optim=optim) == pytest.approx(1.71004e-4, rel=1e-5)
    assert learning_rate(30_000, steps=120_000, optim=optim, multiplier=0.1) == pytest.approx(1.73640e-5, rel=1e-5)
    assert learning_rate(0, steps=120_000, optim=optim) == pytest.approx(2e-4)
    # The end is absolute: the same for every group.
    assert learning_rate(120_000, steps=120_000, optim=optim, multiplier=0.1) == pytest.approx(2e-6)


def test_warmup_rises_linearly_and_the_cosine_spans_the_rest() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=4)
    rates = [learning_rate(step, steps=12, optim=optim) for step in range(12)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0)
    assert rates[8] == pytest.approx((1 + math.cos(math.pi / 2)) / 2)
    constant = OptimConfig(lr=1.0, schedule="constant", warmup_steps=2)
    assert [learning_rate(step, steps=5, optim=constant, multiplier=0.5) for step in range(4)] == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.skipif(not MANIFESTS.is_dir(), reason="needs ../shared/manifests/git")
@pytest.mark.parametrize("size", sorted(RATES))
def test_multipliers_equal_the_official_ones(size: str) -> None:
    keys = json.loads((MANIFESTS / f"git_{size}.json").read_text())["keys"]
    parameters = [entry for entry in keys if entry["kind"] == "parameter"]
    assert len(parameters) > 200
    for entry in parameters:
        name = our_key(entry["key"])
        assert name is not None
        # The official base config writes its ramp with four digits (0.4858 where the line is at 0.48571).
        assert layer_multiplier(name, RATES[size]) == pytest.approx(entry["lr_mult"], abs=1e-4), name


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.pos_embed = nn.Parameter(torch.zeros(1, 2, 2, 3))
        self.backbone.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.head = nn.Linear(3, 3)
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)


def test_groups_hold_every_trainable_parameter_once() -> None:
    model = Toy()
    optim = OptimConfig(layer_rates=LayerRates(floor=0.2, frozen_until=0, first_full=2), decay_matrices_only=True)
    groups = parameter_groups(model.named_parameters(), optim)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    found = {name: (group["multiplier"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert found["backbone.pos_embed"] == (0.2, 0.0)
    assert found["backbone.blocks.0.weight"] == (0.2, 0.05)
    assert found["backbone.blocks.1.weight"] == (pytest.approx(0.6), 0.05)
    assert found["backbone.blocks.1.bias"] == (pytest.approx(0.6), 0.0)
    assert found["backbone.blocks.3.weight"] == (1.0, 0.05)
    assert found["head.weight"] == (1.0, 0.05)


def test_layer_rates_without_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="layer_rates"):
        parameter_groups(nn.Linear(2, 2).named_parameters(), OptimConfig(layer_rates=LayerRates()))


def test_optimizer_state_goes_by_parameter_name() -> None:
    model = Toy()
    optimizer = build_optimizer(model, OptimConfig())
    model.head(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors = {key: value.clone() for key, value in optimizer_tensors(optimizer).items()}
    assert set(tensors) == {f"head.{p}/{s}" for p in ("weight", "bias") for s in ("exp_avg", "exp_avg_sq", "step")}
    fresh = build_optimizer(model, OptimConfig())
    load_optimizer_tensors(fresh, tensors)
    for key, value in optimizer_tensors(fresh).items():
        assert torch.equal(value, tensors[key])
    with pytest.raises(CheckpointError, match="not trained"):
        load_optimizer_tensors(fresh, {"tail.weight/exp_avg": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="shape"):
        load_optimizer_tensors(fresh, {"head.weight/exp_avg": torch.zeros(4, 3)})


def test_parts_have_rates_of_their_own() -> None:
    net = nn.ModuleDict({"eye": nn.Linear(2, 2), "ear": nn.Linear(2, 2), "mouth": nn.Linear(2, 2)})
    net["ear"].requires_grad_(False)
    rates = (PartRate(names=("eye.*", "ear.*"), multiplier=0.1), PartRate(names=("*.bias",), multiplier=2.0))
    groups = parameter_groups(net.named_parameters(), OptimConfig(part_rates=rates))
    found = {name: group["multiplier"] for group in groups for name in group["names"]}
    assert found == {"eye.weight": 0.1, "eye.bias": 0.1, "mouth.weight": 1.0, "mouth.bias": 2.0}
    with pytest.raises(ConfigError, match=r"no parameter named like nose\.\*"):
        parameter_groups(net.named_parameters(), OptimConfig(part_rates=(PartRate(names=("nose.*",), multiplier=2.0),)))
