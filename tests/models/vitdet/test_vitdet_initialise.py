"""The published start of both families: deviations and forms of the fresh weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers_vitdet import FORMS
from torch import Tensor, nn

from saccade.layers.vit import ViTConfig
from saccade.models.vitdet.initialise import initialise_published
from saccade.models.vitdet.model import ViTDet
from saccade.recipes import get_recipe
from saccade.training.start import build_model


def made(form: str) -> ViTDet:
    torch.manual_seed(0)
    base = FORMS[form]
    assert isinstance(base.backbone, ViTConfig)
    wide = dataclasses.replace(base.backbone, width=64, mlp_width=256)
    roi = dataclasses.replace(base.roi, hidden=256, conv_channels=32)
    net = ViTDet(dataclasses.replace(base, backbone=wide, roi=roi))
    initialise_published(net)
    return net


def is_uniform(weight: Tensor, bound: float) -> bool:
    """Whether values fill -bound..bound evenly."""
    deviation = bound / math.sqrt(3)
    return float(weight.abs().max()) <= bound and abs(float(weight.std()) / deviation - 1) < 0.1


@pytest.mark.parametrize("form", ["vitae_repo", "detectron2", "vitae_b"])
def test_linear_layers_of_the_backbone(form: str) -> None:
    net = made(form)
    for module in net.backbone.modules():
        if isinstance(module, nn.Linear):
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()


def test_the_pyramid_of_the_vitae_repository_is_xavier_uniform() -> None:
    conv = made("vitae_repo").pyramid.output[0].conv
    fan = sum(conv.weight.shape[:2]) * 9
    assert is_uniform(conv.weight, math.sqrt(6 / fan))
    other = made("detectron2").pyramid.output[0].conv
    assert not is_uniform(other.weight, math.sqrt(6 / fan))


def test_heads_of_detectron2() -> None:
    net = made("detectron2")
    fc, logits = net.roi.box_heads[0].fc, net.roi.mask_heads[0].logits
    assert is_uniform(fc.weight, math.sqrt(3 / fc.weight.shape[1]))
    assert float(logits.weight.std()) == pytest.approx(0.001, rel=0.3)
    repo = made("vitae_repo").roi.mask_heads[0].logits
    assert float(repo.weight.std()) > 0.05


def test_training_starts_that_way() -> None:
    config = get_recipe("vitdet.mask_rcnn_vit_b")()
    small = dataclasses.replace(config.model.backbone, width=64, heads=2, mlp_width=128, depth=2, global_blocks=(1,))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=small))
    torch.manual_seed(0)
    model, _ = build_model(config)
    assert float(model.backbone.blocks[1].mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.1)
