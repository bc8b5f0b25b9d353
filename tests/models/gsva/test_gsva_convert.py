"""Names of released files to ours and back: GSVA, SAM, CLIP, LLaVA and its deltas."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers_gsva import config, model
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.hub.convert_gsva import load_parts
from saccade.models.gsva import convert
from saccade.models.gsva.model import GSVA
from saccade.models.gsva.presets import PRESETS

MANIFESTS = Path(__file__).resolve().parents[4] / "shared/manifests/gsva"
EVERY = {
    "gsva_7b": "gsva-7b",
    "gsva_7b_base32000": "gsva-7b",
    "gsva_13b": "gsva-13b",
    "gsva_llama2_13b": "gsva-llama2-13b",
}


def shapes_of(net: GSVA) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


@pytest.mark.parametrize("name", EVERY)
def test_manifests_map_whole_both_ways(name: str) -> None:
    if not MANIFESTS.is_dir():
        pytest.skip("../shared/manifests is absent")
    told = json.loads((MANIFESTS / f"{name}.json").read_text())
    shapes = {entry["key"]: tuple(entry["shape"]) for entry in told["entries"]}
    preset = PRESETS[EVERY[name]]()
    # A file of another size and rank than the preset, to see that both are read.
    other = dataclasses.replace(preset, lora=dataclasses.replace(preset.lora, rank=1), seg_id=1, rej_id=2)
    sizes = convert.sizes_of(shapes, other)
    ids, llm = told["assumptions"]["token_ids"], told["assumptions"]["llm"]
    assert (sizes.seg_id, sizes.rej_id) == (ids["[SEG]"], ids["[REJ]"])
    assert sizes.lora.rank == told["assumptions"]["lora_r"] and sizes.language.heads == llm["num_attention_heads"]
    assert sizes.language.norm_eps == llm["rms_norm_eps"]
    assert sizes.language.positions == llm["max_position_embeddings"]
    assert sizes.conversation == told["assumptions"]["conv_type"]
    if name != "gsva_7b_base32000":
        assert sizes == preset
    with torch.device("meta"):
        net = GSVA(sizes)
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    mapped, report = convert.from_official(state, shapes_of(net))
    assert report.complete and not report.dropped
    assert {key: tuple(value.shape) for key, value in convert.to_official(mapped).items()} == shapes
    # What the authors train, less the head that nothing trains.
    trained = {convert.official_key(key, lora=True) for key, p in net.named_parameters() if p.requires_grad}
    theirs = {entry["key"] for entry in told["entries"] if entry["role"] == "trainable"}
    assert {key for key in theirs - trained if "iou_prediction_head" not in key} == set() == trained - theirs


@pytest.mark.parametrize("rank", [0, 3])
def test_the_way_there_and_back(rank: int) -> None:
    net = model(lora=dataclasses.replace(config().lora, rank=rank))
    official = convert.to_official(net.state_dict())
    assert all(key.startswith(convert.PREFIX) == (rank > 0) for key in official)
    assert convert.is_gsva(official)
    # Files that older versions of transformers wrote hold tables that are computed.
    official["base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    official["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.zeros(5)
    back, report = convert.from_official(official, shapes_of(net))
    assert report.complete and len(report.dropped) == 2
    assert all(torch.equal(back[key], value) for key, value in net.state_dict().items())
    with pytest.raises(KeyError, match="unknown"):
        convert.to_official({"unknown": torch.zeros(1)})


@pytest.mark.parametrize("rank", [0, 3])
def test_sizes_are_read_from_the_shapes(rank: int) -> None:
    wanted = config(
        language=dataclasses.replace(config().language, vocab_size=32004),
        lora=dataclasses.replace(config().lora, rank=rank),
        seg_id=32000,
        rej_id=32001,
    )
    with torch.device("meta"):
        official = convert.to_official(GSVA(wanted).state_dict())
    found = convert.sizes_of({key: tuple(value.shape) for key, value in official.items()}, wanted)
    # What shapes do not tell: heads of SAM's decoder, and what a rank of 0 would have been scaled by.
    decoder = dataclasses.replace(found.sam.decoder, heads=wanted.sam.decoder.heads)
    found = dataclasses.replace(
        found,
        sam=dataclasses.replace(found.sam, decoder=decoder),
        lora=dataclasses.replace(wanted.lora, rank=found.lora.rank),
    )
    assert found == wanted


# ---------------------------------------------------------------------- what a training starts from


def as_sam(net: GSVA) -> dict[str, Tensor]:
    inverse = "base_model.model.model.visual_model."
    official = convert.to_official(net.state_dict())
    return {key.removeprefix(inverse): value for key, value in official.items() if key.startswith(inverse)}


def as_clip(net: GSVA) -> dict[str, Tensor]:
    tower = {f"vision_model.{k}": v for k, v in net.clip.tower.state_dict().items()}
    return tower | {"text_model.embeddings.token_embedding.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(())}


def as_llava(net: GSVA, rows: int) -> dict[str, Tensor]:
    official = convert.to_official(net.state_dict())
    state = {}
    for key, value in official.items():
        name = key.removeprefix(convert.PREFIX)
        parts = ("lm_head.", "model.embed_tokens.", "model.layers.", "model.norm.", "model.mm_projector.")
        if name.startswith(parts) and ".lora_" not in name:
            state[name] = value[:rows] if value.shape[0] == 40 else value
    return state


def test_parts_fill_a_model(tmp_path: Path) -> None:
    source, target = model(seed=1), model(seed=2)
    files = {"llava": as_llava(source, 36), "clip": as_clip(source), "sam": as_sam(source)}
    for name, state in files.items():
        torch.save(state, tmp_path / f"{name}.pth")
    # A LLaVA of several files.
    (tmp_path / "parts").mkdir()
    keys = list(files["llava"])
    for number, part in enumerate((keys[:5], keys[5:])):
        torch.save({key: files["llava"][key] for key in part}, tmp_path / f"parts/pytorch_model-{number}.bin")
    before = {key: value.clone() for key, value in target.state_dict().items()}
    report = load_parts(target, llava=tmp_path / "parts", clip=tmp_path / "clip.pth", sam=tmp_path / "sam.pth")
    assert not report.unexpected and all(".lora_" in key for key in report.missing)
    after, wanted = target.state_dict(), source.state_dict()
    for key, value in after.items():
        if key.startswith("bridge.") or ".lora_" in key:
            assert torch.equal(value, before[key]), key
        elif key.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert torch.equal(value[:36], wanted[key][:36]), key
            assert 0.01 < float(value[36:].std()) < 0.03
        else:
            assert torch.equal(value, wanted[key]), key
    assert "4 rows of added tokens" in report.resized["language.lm_head.weight"]


def test_a_part_of_another_size(tmp_path: Path) -> None:
    torch.save(as_sam(model()) | {"mask_decoder.mask_tokens.weight": torch.zeros(2, 16)}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="mask_tokens"):
        load_parts(model(), sam=tmp_path / "sam.pth")


def test_a_delta_on_its_base() -> None:
    whole = as_llava(model(seed=3), 40)
    base = {
        key: torch.randn(36, *value.shape[1:]) if value.shape[0] == 40 else torch.randn_like(value)
        for key, value in whole.items()
        if "mm_projector" not in key
    }
    delta = {}
    for key, value in whole.items():
        delta[key] = value.clone()
        if key in base:
            delta[key][: len(base[key])] -= base[key]
    found = dict(convert.add_delta(delta.items(), base.get))
    assert list(found) == list(whole)
    assert all(torch.allclose(found[key], value, atol=1e-6) for key, value in whole.items())
