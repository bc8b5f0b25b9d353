"""Parameter groups and schedules of the plain-backbone detectors, against what the originals computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saccade.models.vitdet.convert import our_key
from saccade.models.vitdet.model import ViTDet
from saccade.recipes import get_recipe
from saccade.training.config import LayerDecay, OptimConfig, TrainConfig
from saccade.training.optim import layer_multiplier, parameter_groups
from saccade.training.schedule import learning_rate

MANIFESTS = Path(__file__).resolve().parents[3] / "shared/manifests/vitdet"
CASES = {
    "optim_vit_b": "vitdet.vitae_repo_vit-b",
    "optim_vitae_b": "vitdet.vitae_repo_vitae-b",
    "optim_vitae_s_training_log_num_layers17": "vitdet.vitae_repo_vitae-s",
    "optim_detectron2_mask_rcnn_vitdet_b_100ep": "vitdet.mask_rcnn_vit_b",
    "optim_detectron2_mask_rcnn_vitdet_l_100ep": "vitdet.mask_rcnn_vit_l",
    "optim_detectron2_mask_rcnn_vitdet_h_75ep": "vitdet.mask_rcnn_vit_h",
}


def told(manifest: str) -> dict:
    if not MANIFESTS.is_dir():
        pytest.skip("../shared/manifests/vitdet is absent")
    return json.loads((MANIFESTS / f"{manifest}.json").read_text())


def groups_of(config: TrainConfig) -> dict[str, tuple[float, float]]:
    with torch.device("meta"):
        model = ViTDet(config.model)
    return {
        name: (group["multiplier"], group["weight_decay"])
        for group in parameter_groups(model.named_parameters(), config.optim)
        for name in group["names"]
    }


@pytest.mark.parametrize(("manifest", "recipe"), CASES.items())
def test_every_parameter_has_the_published_rate_and_decay(manifest: str, recipe: str) -> None:
    record = told(manifest)
    config = get_recipe(recipe)()
    groups = groups_of(config)
    family = "detectron2" if "detectron2" in manifest else "vitae_repo"
    compared = 0
    for name, wanted in record["params"].items():
        if name.endswith((".q_bias", ".v_bias")):  # one bias of all three in ours
            name = name.replace("q_bias", "qkv.bias").replace("v_bias", "qkv.bias")
        ours = our_key(name, family)
        assert ours is not None
        if ours not in groups:
            assert ours.endswith("random_features"), ours  # frozen in the original, no parameter in ours
            continue
        multiplier, decay = groups[ours]
        assert config.optim.lr * multiplier == pytest.approx(wanted["lr"], rel=1e-6), name
        assert decay == pytest.approx(wanted["weight_decay"]), name
        compared += 1
    assert compared >= len(groups)


def test_the_step_schedule_is_that_of_mmcv() -> None:
    record = told("lr_schedule_mmdet")
    config = get_recipe("vitdet.vitae_repo_vit-b")()
    per_epoch = record["iters_per_epoch_used_here"]
    for when, rate in record["lr"].items():
        epoch, iteration = (
            int(part.removeprefix(word)) for part, word in zip(when.split("_"), ("epoch", "iter"), strict=True)
        )
        step = epoch * per_epoch + iteration
        assert learning_rate(step, steps=config.steps, optim=config.optim) == pytest.approx(rate, rel=1e-6), when


def test_milestones_are_those_of_detectron2() -> None:
    for manifest, recipe in CASES.items():
        if "detectron2" in manifest:
            record, config = told(manifest), get_recipe(recipe)()
            assert config.steps == record["max_iter"]
            assert list(config.optim.milestones) == record["milestones"]
            assert config.optim.warmup_steps == int(record["warmup_iters"])


def test_layers_are_counted_from_the_stem() -> None:
    decay = LayerDecay(rate=0.5, layers=4)
    assert layer_multiplier("backbone.pos_embed", decay) == 0.5**5
    assert layer_multiplier("backbone.blocks.0.norm1.weight", decay) == 0.5**4
    assert layer_multiplier("backbone.blocks.3.attn.proj.weight", decay) == 0.5
    assert layer_multiplier("backbone.blocks.3.residual.convs.0.conv.weight", decay) == 1.0
    assert layer_multiplier("backbone.norm.weight", decay) == 1.0
    assert layer_multiplier("pyramid.up8.weight", decay) == 1.0
    cells = LayerDecay(rate=0.5, layers=6, cells=3)
    assert layer_multiplier("backbone.cells.0.local.0.weight", cells) == 0.5**7
    assert layer_multiplier("backbone.cells.2.reduce.convs.0.weight", cells) == 0.5**5
    assert layer_multiplier("backbone.blocks.0.norm1.weight", cells) == 0.5**4


def test_patterns_exempt_from_weight_decay() -> None:
    layer = torch.nn.Linear(2, 2)
    groups = parameter_groups(layer.named_parameters(), OptimConfig(weight_decay=0.1, no_decay=("b*",)))
    assert {name: group["weight_decay"] for group in groups for name in group["names"]} == {"weight": 0.1, "bias": 0.0}
