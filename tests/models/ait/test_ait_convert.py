"""Names and shapes of every released file, both ways; VQ-VAEs; pre-training files; files of the wrong kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_ait import FORMS, config
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.models.ait.config import AiTConfig, depth_vqvae, mask_vqvae
from saccade.models.ait.convert import (
    from_backbone,
    from_official,
    from_vqvae,
    is_solver,
    is_vqvae,
    our_key,
    to_official,
    vqvae_to_official,
)
from saccade.models.ait.model import AiT
from saccade.models.ait.presets import PRESETS, preset_of
from saccade.tokens.codebook import VQVAE

MANIFESTS = Path(__file__).resolve().parents[4] / "shared/manifests/ait"
RELEASED = {
    "swinv2b_480reso_depthonly": "depth-b",
    "swinv2b_480reso_depthonly_wosoft": "depth-b-hard",
    "swinv2b_480reso_parallel_depthonly": "depth-b-parallel",
    "swinv2l_480reso_depthonly": "depth-l",
    "swinv2l_480reso_parallel_depthonly": "depth-l-parallel",
    "swinv2b_640reso_detonly": "detection-b",
    "swinv2b_640reso_inssegonly": "instance-b",
    "swinv2b_640reso_inssegonly_wosoft": "instance-b-hard",
    "swinv2b_640reso_joint": "joint-b",
}
Shapes = dict[str, tuple[int, ...]]


def manifest(name: str) -> dict[str, Any]:
    if not MANIFESTS.is_dir():
        pytest.skip("../shared/manifests/ait is absent")
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def official_state(entries: list[dict[str, Any]], key: str = "key") -> dict[str, Tensor]:
    with torch.device("meta"):
        return {e[key]: torch.empty(e["shape"], dtype=getattr(torch, e["dtype"])) for e in entries}


def skeleton(preset: AiTConfig) -> AiT:
    with torch.device("meta"):
        return AiT(preset)


def shapes(state: dict[str, Tensor]) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


# ---------------------------------------------------------------------- released files


def test_every_manifest_of_a_solver_has_a_preset() -> None:
    files = manifest("INDEX")["files"].values()
    solvers = {entry["manifest"].removesuffix(".json") for entry in files if entry["manifest"].startswith("swinv2")}
    assert solvers == set(RELEASED)
    assert set(RELEASED.values()) == set(PRESETS)


@pytest.mark.parametrize("name", list(RELEASED))
def test_every_key_of_a_released_solver_has_its_place_both_ways(name: str) -> None:
    told = manifest(name)
    official = official_state(told["entries"])
    preset = PRESETS[RELEASED[name]]()
    net = skeleton(preset)
    ours = net.state_dict()
    mapped, report = from_official(official, shapes(ours), source=name)
    report.check()
    assert set(mapped) == set(ours)
    copies = {entry["key"] for entry in told["entries"] if entry.get("alias_of")}
    assert copies == {key for key, reason in report.dropped.items() if "copy" in reason}
    computed = {key for key, reason in report.dropped.items() if "computed" in reason}
    assert computed and not any(entry.get("trainable") for entry in told["entries"] if entry["key"] in computed)
    back = to_official(ours, preset)
    assert shapes(back) == shapes(official)
    assert all(back[key].dtype == tensor.dtype for key, tensor in official.items())
    counted = told["stats"]
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained == counted["n_trainable"]
    assert sum(p.numel() for p in net.parameters()) == counted["n_unique_params"]


@pytest.mark.parametrize("name", list(RELEASED))
def test_the_preset_of_a_file_is_seen_from_its_tensors(name: str) -> None:
    # Without soft tokens the tensors are the same.
    assert preset_of(official_state(manifest(name)["entries"])) == RELEASED[name].removesuffix("-hard")


@pytest.mark.parametrize(("name", "make"), [("vqvae_insseg", mask_vqvae), ("vqvae_depth", depth_vqvae)])
def test_every_key_of_a_released_vqvae_has_its_place_both_ways(name: str, make: Any) -> None:
    official = official_state(manifest(name)["entries"])
    with torch.device("meta"):
        ours = VQVAE(make()).state_dict()
    for prefix in ("", "module."):
        wrapped = {prefix + key: tensor for key, tensor in official.items()}
        assert is_vqvae(wrapped) and not is_solver(wrapped)
        mapped, report = from_vqvae(wrapped, shapes(ours))
        report.check()
        assert set(mapped) == set(ours)
    assert shapes(vqvae_to_official(ours)) == shapes(official)


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("prefix", ["", "module."])
def test_values_survive_the_way_out_and_back(form: str, prefix: str) -> None:
    torch.manual_seed(0)
    net = AiT(FORMS[form])
    for tensor in net.state_dict().values():
        tensor.normal_()
    state = net.state_dict()
    official = {prefix + key: tensor for key, tensor in to_official(state, net.config).items()}
    assert is_solver(official) and not is_vqvae(official)
    back, report = from_official(official, shapes(state))
    report.check()
    assert set(back) == set(state)
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def test_vqvaes_survive_the_way_out_and_back() -> None:
    assert FORMS["instance"].instance is not None and FORMS["instance"].instance.masks is not None
    state = VQVAE(FORMS["instance"].instance.masks).state_dict()
    back, report = from_vqvae(vqvae_to_official(state), shapes(state))
    report.check()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def test_no_two_of_our_names_share_an_official_one() -> None:
    for form in FORMS.values():
        official = to_official(AiT(form).state_dict(), form)
        places = [our_key(key) for key in official if "_head.transformer." not in key]
        known = [place for place in places if place is not None and "enc_embed" not in place]
        assert len(known) == len(set(known))


def test_what_is_computed_is_written_for_the_original() -> None:
    form = FORMS["joint"]
    official = to_official(AiT(form).state_dict(), form)
    assert official["transformer.enc_embed"].shape == (1, 6, 6, 16)
    weights = official["insseg_head.loss_seq.weight"]
    assert weights.tolist() == [
        pytest.approx(0.2 if form.mask_tokens.start <= row < form.mask_tokens.stop else 1.0)
        for row in range(form.vocabulary)
    ]
    for head in ("insseg", "depth"):
        assert torch.equal(official[f"{head}_head.transformer.voc_embed"], official["transformer.voc_embed"])
    assert not any(key.startswith("det_head.") for key in official)
    # The instance model of the original builds a detection head.
    alone = to_official(AiT(FORMS["instance"]).state_dict(), FORMS["instance"])
    assert any(key.startswith("det_head.transformer.") for key in alone)
    index = official["backbone.layers.0.blocks.1.attn.relative_position_index"]
    assert index.dtype == torch.int64 and index.shape == (25, 25)
    assert [int(index[0, 0]), int(index[0, -1]), int(index[-1, 0]), int(index[0, 1])] == [40, 0, 80, 39]


# ---------------------------------------------------------------------- pre-training


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "", "module."])
def test_a_pretraining_file_of_any_form_fills_the_backbone(size: str, prefix: str) -> None:
    entries = manifest(f"pretrain_map_swin_v2_{size}_densesimmim")["entries"]
    for entry in entries:
        entry["found"] = entry["model_key"].replace("backbone.", prefix, 1)
        assert entry["found"] in entry["candidates_in_checkpoint"] or entry["ignored_on_load"]
    net = skeleton(PRESETS["depth-b" if size == "base" else "depth-l"]())
    expected = shapes(net.state_dict())
    mapped, report = from_backbone(official_state(entries, "found"), expected)
    assert not report.unexpected and not report.wrong_shape
    assert set(mapped) == {our_key(entry["model_key"]) for entry in entries if not entry["ignored_on_load"]}
    assert set(mapped) == {key for key in expected if key.startswith("backbone.")}
    assert all(not key.startswith("backbone.") for key in report.missing)


def simmim() -> tuple[dict[str, Tensor], Shapes]:
    """The backbone of a tiny model as a pre-training file."""
    net = AiT(config())
    state = to_official(net.state_dict(), net.config)
    backbone = {k.removeprefix("backbone."): t for k, t in state.items() if k.startswith("backbone.")}
    return backbone, shapes(net.state_dict())


def test_the_parts_of_pretraining_are_left_out_and_named() -> None:
    backbone, expected = simmim()
    extra = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder.0.weight": torch.zeros(3),
        "norm.weight": torch.zeros(16),
        "head.bias": torch.zeros(2),
    }
    mapped, report = from_backbone({**backbone, **extra}, expected)
    assert {key for key, reason in report.dropped.items() if "pre-training" in reason} == set(extra)
    assert not report.unexpected and len(mapped) == sum(key.startswith("backbone.") for key in expected)
    assert torch.equal(mapped["backbone.patch_embed.weight"], backbone["patch_embed.proj.weight"])


@pytest.mark.parametrize("prefix", ["encoder.", "backbone."])
def test_where_there_is_an_encoder_nothing_else_counts(prefix: str) -> None:
    backbone, expected = simmim()
    file = {prefix + key: tensor for key, tensor in backbone.items()}
    file |= {"patch_embed.proj.weight": torch.full((8, 3, 4, 4), 7.0), "decoder.0.bias": torch.zeros(1)}
    mapped, report = from_backbone(file, expected)
    assert torch.equal(mapped["backbone.patch_embed.weight"], backbone["patch_embed.proj.weight"])
    assert not report.unexpected


def test_what_a_pretraining_file_lacks_or_does_not_fit_is_reported() -> None:
    backbone, expected = simmim()
    del backbone["layers.1.blocks.0.norm1.bias"]
    backbone["layers.0.blocks.0.attn.proj.bias"] = torch.zeros(9)
    backbone["layers.9.something"] = torch.zeros(1)
    _, report = from_backbone(backbone, expected)
    assert "backbone.stages.1.blocks.0.norm1.bias" in report.missing
    assert report.wrong_shape == {"backbone.stages.0.blocks.0.attn.proj.bias": ((9,), (8,))}
    assert report.unexpected == ["layers.9.something"]


# ---------------------------------------------------------------------- wrong files


def test_a_file_of_another_kind_is_refused() -> None:
    net = AiT(FORMS["depth"])
    backbone = {k: v for k, v in to_official(net.state_dict(), net.config).items() if k.startswith("backbone.")}
    with pytest.raises(CheckpointError, match=r"not a solver of AiT(.|\n)*backbone\.patch_embed"):
        from_official(backbone, shapes(net.state_dict()))


def test_a_file_of_another_model_is_no_whole_load() -> None:
    depth, joint = AiT(FORMS["depth"]), AiT(FORMS["joint"])
    official = to_official(depth.state_dict(), depth.config)
    _, report = from_official(official, shapes(joint.state_dict()))
    with pytest.raises(CheckpointError, match="wrong shape"):
        report.check()
    assert any(key.startswith("mask_vqvae.") for key in report.missing)
    assert set(report.wrong_shape) == {"transformer.token_embed", "transformer.token_bias"}
    assert report.unexpected == []
    del official["transformer.decoder.blocks.1.crossattn.wk.weight"]
    _, report = from_official(official, shapes(depth.state_dict()))
    with pytest.raises(CheckpointError, match=r"transformer\.decoder\.1\.cross\.key\.weight"):
        report.check()


def test_a_name_of_another_system_is_not_written() -> None:
    with pytest.raises(KeyError, match="roi"):
        to_official({"roi.box.weight": torch.zeros(1)}, FORMS["depth"])
