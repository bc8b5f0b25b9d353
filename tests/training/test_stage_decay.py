"""Parameter groups and schedules of AiT, against what the originals computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saccade.models.ait.convert import our_key
from saccade.models.ait.model import AiT
from saccade.models.ait.presets import PRESETS
from saccade.training.config import LayerDecay, OptimConfig
from saccade.training.optim import layer_multiplier, parameter_groups
from saccade.training.schedule import learning_rate

SHARED = Path(__file__).resolve().parents[3] / "shared"
NO_DECAY = (
    "*.logit_scale",
    "*.attn.position.*",
    "transformer.task_embed",
    "transformer.position_embed",
    "transformer.token_embed",
    "transformer.parallel_embed",
)
# Manifest: preset, rate, weight decay, decay per layer.
CASES = {
    "swinv2b_480reso_depthonly": ("depth-b", 2e-4, 0.05, 0.9),
    "swinv2b_480reso_depthonly_wosoft": ("depth-b-hard", 2e-4, 0.05, 0.9),
    "swinv2b_480reso_parallel_depthonly": ("depth-b-parallel", 2e-4, 0.05, 0.9),
    "swinv2l_480reso_depthonly": ("depth-l", 1e-4, 0.075, 0.9),
    "swinv2l_480reso_parallel_depthonly": ("depth-l-parallel", 1e-4, 0.075, 0.9),
    "swinv2b_640reso_detonly": ("detection-b", 1e-3, 0.05, 0.85),
    "swinv2b_640reso_inssegonly": ("instance-b", 1e-4, 0.05, 0.85),
    "swinv2b_640reso_inssegonly_wosoft": ("instance-b-hard", 1e-4, 0.05, 0.85),
    "swinv2b_640reso_joint": ("joint-b", 8e-4, 0.05, 0.85),
}


@pytest.mark.parametrize("manifest", list(CASES))
def test_every_parameter_has_the_published_rate_and_decay(manifest: str) -> None:
    path = SHARED / f"manifests/ait/optimizer_groups_{manifest}.json"
    if not path.is_file():
        pytest.skip("../shared/manifests/ait is absent")
    preset, lr, weight_decay, rate = CASES[manifest]
    with torch.device("meta"):
        model = AiT(PRESETS[preset]())
    optim = OptimConfig(
        lr=lr,
        weight_decay=weight_decay,
        decay_matrices_only=True,
        no_decay=NO_DECAY,
        layer_rates=LayerDecay(rate=rate, layers=27, stages=(2, 2, 18, 2)),
    )
    ours = {
        name: (group["multiplier"] * lr, group["weight_decay"])
        for group in parameter_groups(model.named_parameters(), optim)
        for name in group["names"]
    }
    rows = {our_key(key): (base, decay) for key, _, base, decay in json.loads(path.read_text())["rows"]}
    assert set(rows) == set(ours)
    for name, (base, decay) in rows.items():
        assert ours[name] == (pytest.approx(base, rel=1e-9), decay), name


def test_stages_are_counted_through() -> None:
    rates = LayerDecay(rate=0.5, layers=27, stages=(2, 2, 18, 2))
    level = {
        "backbone.patch_norm.weight": 0,
        "backbone.stages.0.blocks.1.mlp.fc1.weight": 2,
        "backbone.stages.0.downsample.norm.bias": 3,
        "backbone.stages.1.blocks.0.norm1.weight": 4,
        "backbone.stages.2.blocks.17.norm1.weight": 24,
        "backbone.stages.2.downsample.reduction.weight": 25,
        "backbone.stages.3.blocks.1.norm1.weight": 27,
        "backbone.norms.3.weight": 28,
        "transformer.norm.weight": 28,
    }
    assert {name: layer_multiplier(name, rates) for name in level} == {n: 0.5 ** (28 - id_) for n, id_ in level.items()}


@pytest.mark.parametrize(
    ("name", "steps", "warmup", "schedule", "milestones"),
    [
        ("swinv2b_480reso_depthonly", 25_250, 500, "steps", (18_180,)),
        ("swinv2b_640reso_detonly", 183_300, 18_330, "linear", ()),
        ("swinv2b_640reso_inssegonly", 366_500, 14_660, "linear", ()),
        ("swinv2b_640reso_joint", 302_875, 12_115, "linear", ()),
    ],
)
def test_schedules_are_those_of_mmcv(
    name: str, steps: int, warmup: int, schedule: str, milestones: tuple[int, ...]
) -> None:
    path = SHARED / "parity/ait/functions/values.json"
    if not path.is_file():
        pytest.skip("../shared/parity/ait is absent")
    told = json.loads(path.read_text())[f"lr_{name}"]["multiplier_of_group_lr"]
    optim = OptimConfig(
        lr=1.0,
        schedule=schedule,
        milestones=milestones,
        warmup_steps=warmup,
        warmup_start=0.1,  # type: ignore[arg-type]
    )
    for step, value in told.items():
        assert learning_rate(int(step), steps=steps, optim=optim) == pytest.approx(value, rel=1e-9)
