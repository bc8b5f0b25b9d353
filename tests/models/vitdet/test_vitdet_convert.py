"""Names and shapes of every released file, both ways; pre-training files; files of the wrong kind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers_vitdet import FORMS, config
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.models.vitdet.config import ViTDetConfig
from saccade.models.vitdet.convert import describe, family_of, from_backbone, from_official, to_official
from saccade.models.vitdet.model import ViTDet
from saccade.models.vitdet.presets import PRESETS

MANIFESTS = Path(__file__).resolve().parents[4] / "shared/manifests/vitdet"
RELEASED = {
    "composed_vit_b_cascade_mask_rcnn_mmdet": "vitae-repo-vit-b-cascade",
    "vitae_repo_vit_b_mask_rcnn": "vitae-repo-vit-b",
    "vitae_repo_vitae_b_mask_rcnn": "vitae-b",
    "vitae_repo_vitae_s_mask_rcnn": "vitae-s",
    **{f"detectron2_coco_mask_rcnn_vitdet_{s}_{e}ep": f"vitdet-{s}" for s, e in (("b", 100), ("l", 100), ("h", 75))},
    **{
        f"detectron2_coco_cascade_mask_rcnn_vitdet_{s}_{e}ep": f"vitdet-cascade-{s}"
        for s, e in (("b", 100), ("l", 100), ("h", 75))
    },
    **{f"detectron2_lvis_mask_rcnn_vitdet_{s}_100ep": f"vitdet-lvis-{s}" for s in "blh"},
    **{f"detectron2_lvis_cascade_mask_rcnn_vitdet_{s}_100ep": f"vitdet-lvis-cascade-{s}" for s in "blh"},
}


def skeleton(preset: ViTDetConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return ViTDet(preset).state_dict()


def head_dim(preset: ViTDetConfig) -> int:
    return preset.vit.width // preset.vit.heads


@pytest.mark.parametrize("name", list(RELEASED))
def test_every_key_of_a_released_file_has_its_place_both_ways(name: str) -> None:
    if not MANIFESTS.is_dir():
        pytest.skip("../shared/manifests/vitdet is absent")
    entries = json.loads((MANIFESTS / f"{name}.json").read_text())["entries"]
    with torch.device("meta"):
        official = {e["key"]: torch.empty(e["shape"], dtype=getattr(torch, e["dtype"])) for e in entries}
    preset = PRESETS[RELEASED[name]]()
    ours = skeleton(preset)
    family = family_of(official)
    assert family == ("detectron2" if name.startswith("detectron2") else "vitae_repo")
    mapped, report = from_official(
        official, {key: tuple(t.shape) for key, t in ours.items()}, head_dim=head_dim(preset)
    )
    report.check()
    assert set(mapped) == set(ours)
    back = to_official(ours, preset, family)
    assert {key: tuple(t.shape) for key, t in back.items()} == {
        key: tuple(t.shape) for key, t in official.items() if not key.startswith("pixel_")
    }


@pytest.mark.parametrize(
    ("form", "family"),
    [
        ("vitae_repo", "vitae_repo"),
        ("vitae_repo cascade", "vitae_repo"),
        ("vitae_b", "vitae_repo"),
        ("vitae_s", "vitae_repo"),
        ("detectron2", "detectron2"),
        ("detectron2 cascade", "detectron2"),
        ("detectron2 lvis", "detectron2"),
        ("conv propagation", "detectron2"),
    ],
)
def test_values_survive_the_way_out_and_back(form: str, family: str) -> None:
    torch.manual_seed(0)
    net = ViTDet(FORMS[form])
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    state = net.state_dict()
    if form == "vitae_b":  # the keys of its global blocks have no bias in that family
        for index in FORMS[form].vit.global_blocks:
            state[f"backbone.blocks.{index}.attn.qkv.bias"][16:32] = 0
    official = to_official(state, net.config, family)
    expected = {key: tuple(t.shape) for key, t in state.items()}
    if form == "conv propagation":
        official = {key: tensor for key, tensor in official.items() if "backbone.net.norm" not in key}
        expected = {key: shape for key, shape in expected.items() if not key.startswith("backbone.norm")}
    back, report = from_official(official, expected, head_dim=head_dim(net.config))
    report.check()
    for key, tensor in back.items():
        torch.testing.assert_close(tensor, state[key], rtol=1e-6, atol=1e-7)


def test_the_wrong_variant_is_named() -> None:
    big = FORMS["detectron2 cascade"]
    official = to_official(ViTDet(big).state_dict(), big, "detectron2")
    small = FORMS["vitae_repo"]
    expected = {key: tuple(t.shape) for key, t in skeleton(small).items()}
    _, report = from_official(official, expected, head_dim=8)
    with pytest.raises(CheckpointError, match="Cascade R-CNN on ViT-width 16 with 3 classes"):
        report.check()
    assert "no vision transformer; its keys are a" in describe({"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="not a detector"):
        from_official({"blocks.0.norm1.weight": torch.zeros(1)}, expected, head_dim=8)


def test_half_of_a_split_bias_is_reported() -> None:
    vitae_b = dataclasses.replace(FORMS["vitae_b"], classes=(), category_ids=())
    official = to_official(ViTDet(vitae_b).state_dict(), vitae_b, "vitae_repo")
    assert official.pop("backbone.blocks.1.attn.v_bias") is not None
    expected = {key: tuple(t.shape) for key, t in ViTDet(vitae_b).state_dict().items()}
    _, report = from_official(official, expected, head_dim=8)
    assert "backbone.blocks.1.attn.qkv.bias" in report.missing


def test_an_mae_file_fills_the_backbone_and_nothing_else() -> None:
    net = ViTDet(config())
    expected = {key: tuple(t.shape) for key, t in net.state_dict().items()}
    official = to_official(net.state_dict(), net.config, "vitae_repo")
    mae = {
        key.removeprefix("backbone."): torch.randn_like(tensor)
        for key, tensor in official.items()
        if key.startswith("backbone.") and ".rel_pos_" not in key and ".fpn" not in key
    }
    mae["pos_embed"] = torch.randn(1, 1 + 9, 16)
    mae |= {
        "cls_token": torch.zeros(1, 1, 16),
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_embed.bias": torch.ones(4),
    }
    mapped, report = from_backbone(mae, expected, head_dim=8)
    assert not report.unexpected and not report.wrong_shape
    assert set(report.dropped) == {"backbone.cls_token", "backbone.mask_token", "backbone.decoder_embed.bias"}
    assert "backbone.pos_embed" in report.resized and mapped["backbone.pos_embed"].shape == (1, 4, 4, 16)
    assert torch.equal(mapped["backbone.blocks.2.mlp.fc1.weight"], mae["blocks.2.mlp.fc1.weight"])
    assert all(key.startswith(("pyramid.", "rpn.", "roi.")) or ".rel_pos_" in key for key in report.missing)


def test_wrapped_and_encoder_prefixed_files_are_read() -> None:
    expected = {"backbone.patch_embed.bias": (4,)}
    for prefix in ("module.", "encoder.", "module.encoder."):
        mapped, _ = from_backbone({f"{prefix}patch_embed.proj.bias": torch.ones(4)}, expected, head_dim=2)
        assert torch.equal(mapped["backbone.patch_embed.bias"], torch.ones(4)), prefix
