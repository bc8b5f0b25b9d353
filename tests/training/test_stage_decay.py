"""Layer decay over the stages of a Swin; the whole tables of AiT are in tests/recipes/test_ait_recipes.py."""

from __future__ import annotations

from saccade.training.config import LayerDecay
from saccade.training.optim import layer_multiplier


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
