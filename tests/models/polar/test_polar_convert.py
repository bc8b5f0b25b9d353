"""Released state dicts become checkpoints and come back; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers_polar import TINY_CENTERS, TINY_UNET, TINY_VIT
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import CheckpointError, UsageError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.hub.convert import convert_file, export_official, map_file
from saccade.layers.hourglass import HourglassConfig, StackedHourglass
from saccade.layers.unet import UNet, UNetConfig
from saccade.models.polar.config import CentersConfig, PolarConfig, SegmenterConfig
from saccade.models.polar.convert import from_official, network_of, sizes_of, to_official
from saccade.models.systems import build
from saccade.tasks import Task


def official_unet(features: int = 4, channels: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return to_official(UNet(UNetConfig(features=features), inputs=channels, outputs=1).state_dict(), "unet")


@settings(deadline=None, max_examples=8)
@given(depth=st.integers(1, 5), stacks=st.integers(1, 3), channels=st.sampled_from((1, 3)))
def test_hourglasses_of_any_depth_there_and_back(depth: int, stacks: int, channels: int) -> None:
    network = StackedHourglass(HourglassConfig(stacks=stacks, depth=depth, width=4, channels=channels))
    state = network.state_dict()
    official = to_official(state, "hourglass")
    assert len(official) == len(state) and network_of(official) == "hourglass"
    assert sizes_of(official, "hourglass") == {"stacks": stacks, "depth": depth, "width": 4, "channels": channels}
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    back, report = from_official(official, shapes, "hourglass")
    report.check()
    assert all(torch.equal(back[key], value) for key, value in state.items())


@settings(deadline=None, max_examples=8)
@given(levels=st.integers(1, 5), features=st.integers(1, 3))
def test_unets_of_any_depth_there_and_back(levels: int, features: int) -> None:
    state = UNet(UNetConfig(features=features, levels=levels), inputs=1, outputs=1).state_dict()
    official = to_official(state, "unet")
    assert sizes_of(official, "unet") == {"levels": levels, "features": features, "channels": 1, "outputs": 1}
    back, report = from_official(official, {key: tuple(v.shape) for key, v in state.items()}, "unet")
    report.check()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_the_official_names() -> None:
    names = set(official_unet())
    for name in (
        "encoder1.enc1conv1.weight",
        "encoder4.enc4norm2.running_var",
        "bottleneck.bottleneckconv2.weight",
        "upconv4.bias",
        "decoder1.dec1norm1.num_batches_tracked",
        "conv.weight",
    ):
        assert name in names


def test_a_file_becomes_a_checkpoint_and_a_file_again(tmp_path: Path) -> None:
    file = tmp_path / "lesion_unet.pth"
    torch.save({f"module.{key}": value for key, value in official_unet().items()}, file)
    report = convert_file(file, out=tmp_path / "plain")
    assert report.complete and any("unet-polar" in note for note in report.notes)
    plain = load_folder(tmp_path / "plain")
    assert isinstance(plain.model.config, SegmenterConfig) and plain.classes[Task.SEMANTIC].names[1] == "lesion"
    convert_file(file, out=tmp_path / "polar", preset="unet-polar")
    polar = load_folder(tmp_path / "polar").model
    assert isinstance(polar.config, PolarConfig) and polar.config.interpolation == "nearest"
    for folder in ("plain", "polar"):
        told = export_official(tmp_path / folder, tmp_path / f"{folder}.pth")
        assert not told.dropped
        back = torch.load(tmp_path / f"{folder}.pth", weights_only=True)
        assert all(torch.equal(back[key], value) for key, value in official_unet().items())


def test_grey_networks_are_those_of_the_liver(tmp_path: Path) -> None:
    torch.save(official_unet(channels=1), tmp_path / "liver.pth")
    found = map_file(tmp_path / "liver.pth")
    assert isinstance(found.config, SegmenterConfig)
    assert (found.config.channels, found.config.input_hw, found.config.classes[1]) == (1, (128, 128), "liver")
    assert build(found.config).logits(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_grey_centre_predictors_are_those_of_the_liver(tmp_path: Path) -> None:
    network = StackedHourglass(HourglassConfig(stacks=1, width=8, channels=1)).eval()
    torch.save(to_official(network.state_dict(), "hourglass"), tmp_path / "centers.pth")
    assert convert_file(tmp_path / "centers.pth", out=tmp_path / "centers").complete
    loaded = load_folder(tmp_path / "centers").model.eval()
    config = loaded.config
    assert (config.network.channels, config.input_size, config.classes[1]) == (1, 256, "liver")
    assert (config.mean, config.std) == ((25.5,) * 3, (255.0,) * 3)
    pictures = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded.heatmaps(pictures), network(pictures[:, :1]))


def test_a_checkpoint_of_before_the_channels_reads_three(tmp_path: Path) -> None:
    save_model(build(TINY_CENTERS), tmp_path / "old", classes={}, provenance={})
    card = json.loads((tmp_path / "old/config.json").read_text())
    del card["model"]["network"]["channels"]
    (tmp_path / "old/config.json").write_text(json.dumps(card))
    assert load_folder(tmp_path / "old").model.config == TINY_CENTERS


def test_a_centre_predictor_there_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = StackedHourglass(HourglassConfig(stacks=2, width=8))
    torch.save(to_official(network.state_dict(), "hourglass"), tmp_path / "centers.pth")
    convert_file(tmp_path / "centers.pth", out=tmp_path / "centers")
    loaded = load_folder(tmp_path / "centers").model
    assert isinstance(loaded.config, CentersConfig) and loaded.config.network.stacks == 2
    pictures = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded.network(pictures), network.eval()(pictures))
    with pytest.raises(UsageError, match="does not fit"):
        map_file(tmp_path / "centers.pth", preset="unet")


def test_gaps_are_refused(tmp_path: Path) -> None:
    state = official_unet()
    del state["decoder2.dec2conv1.weight"]
    torch.save(state, tmp_path / "gap.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.1\.conv1"):
        convert_file(tmp_path / "gap.pth", out=tmp_path / "out")
    torch.save(official_unet() | {"extra.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"extra\.weight"):
        convert_file(tmp_path / "more.pth", out=tmp_path / "out")


def test_networks_that_the_paper_does_not_have_are_not_written(tmp_path: Path) -> None:
    save_model(build(TINY_VIT), tmp_path / "vit", classes={}, provenance={})
    with pytest.raises(CheckpointError, match="no such network"):
        export_official(tmp_path / "vit", tmp_path / "vit.pth")
    whole = PolarConfig(segmenter=TINY_UNET, finder=TINY_CENTERS)
    save_model(build(whole), tmp_path / "whole", classes={}, provenance={})
    report = export_official(tmp_path / "whole", tmp_path / "whole.pth")
    assert report.dropped and all(key.startswith("finder.") for key in report.dropped)
