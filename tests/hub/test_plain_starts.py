"""Plain ViTs that label pixels start from the backbone of any checkpoint that has the same one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from saccade.errors import CheckpointError, ConfigError
from saccade.hub.checkpoint import save_model
from saccade.hub.resolve import load_model, resolve
from saccade.hub.starts import load_backbone
from saccade.layers.mask2former import MaskedDecoderConfig, PixelDecoderConfig
from saccade.layers.unet import UNetConfig
from saccade.layers.vit import ViTConfig
from saccade.models.polar.config import CentersConfig, PolarConfig, SegmenterConfig, ViTPixelsConfig
from saccade.models.polar.presets import centers_small
from saccade.models.systems import Model, build
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.presets import eva
from saccade.models.visft.segmentation import SegmentationHeadConfig

TOWER = eva(width=32, depth=2, heads=2, mlp_width=32, image_size=56)


def light(vit: ViTConfig) -> SegmenterConfig:
    step = 4 * vit.patch_size
    return SegmenterConfig(network=ViTPixelsConfig(vit=vit), input_hw=(step, step))


def visft(vit: ViTConfig) -> ViSFTConfig:
    head = SegmentationHeadConfig(
        pixels=PixelDecoderConfig(width=16, mask_width=8, heads=2, mlp_width=16, layers=1, groups=4),
        decoder=MaskedDecoderConfig(heads=2, mlp_width=16, layers=1, queries=4),
        num_classes=2,
        stride=vit.patch_size,
    )
    vit = dataclasses.replace(vit, final_norm=True)
    return ViSFTConfig(
        vit=vit, detection=None, instance=None, caption=None, semantic=head, semantic_size=4 * vit.patch_size
    )


def backbone(model: Model) -> dict[str, torch.Tensor]:
    return {
        key[key.index("backbone.") :]: value
        for key, value in model.state_dict().items()
        if "backbone." in key and not key.startswith("finder.")
    }


@pytest.mark.parametrize("source", ["git-nano", "vitdet-nano"])
def test_from_other_systems(source: str) -> None:
    start = load_model(source).model
    models = [light(start.config.vit), PolarConfig(segmenter=light(start.config.vit)), visft(start.config.vit)]
    for config in [*models, PolarConfig(segmenter=models[2])]:
        torch.manual_seed(0)
        model = build(config)
        report = load_backbone(model, resolve(source))
        assert report.missing == [] or set(report.missing) == {"backbone.norm.weight", "backbone.norm.bias"}
        own = backbone(model)
        assert all(torch.equal(own[key], value) for key, value in backbone(start).items())


@pytest.mark.parametrize("polar", [False, True])
def test_from_a_tower_and_back(polar: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tower, other = visft(TOWER), light(TOWER)
    first = build(PolarConfig(segmenter=other, finder=light(TOWER)) if polar else other)
    folder = save_model(first, tmp_path / "light", classes={}, provenance={})
    second = build(PolarConfig(segmenter=tower) if polar else tower)
    load_backbone(second, folder)
    assert all(torch.equal(value, backbone(first)[key]) for key, value in backbone(second).items())
    third = build(other)
    load_backbone(third, save_model(second, tmp_path / "tower", classes={}, provenance={}))
    assert all(torch.equal(value, backbone(first)[key]) for key, value in backbone(third).items())


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    narrow = build(light(dataclasses.replace(TOWER, width=16)))
    folder = save_model(narrow, tmp_path / "narrow", classes={}, provenance={})
    with pytest.raises(CheckpointError):
        load_backbone(build(light(TOWER)), folder)
    unet = SegmenterConfig(network=UNetConfig(features=2, levels=2), input_hw=(16, 16))
    for config in (unet, PolarConfig(segmenter=unet), centers_small()):
        assert isinstance(config, SegmenterConfig | PolarConfig | CentersConfig)
        with pytest.raises(ConfigError, match="no backbone of its own"):
            load_backbone(build(config), folder)
