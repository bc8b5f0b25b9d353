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


def as_delta(whole: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A language model as the difference from another one, and that other one."""
    base = {key: torch.randn_like(value) for key, value in whole.items() if "mm_projector" not in key}
    base["model.norm.weight"] = whole["model.norm.weight"] - 0.01
    return {key: value - base[key] if key in base else value for key, value in whole.items()}, base


def test_a_delta_on_its_base(tmp_path: Path) -> None:
    whole = as_llava(model(seed=3), 36)
    # LLaMA has fewer words than the LLaVA, and constants that old files hold.
    delta, base = as_delta(whole)
    for key in ("lm_head.weight", "model.embed_tokens.weight"):
        base[key], delta[key] = base[key][:33], torch.cat([delta[key][:33], whole[key][33:]])
    base["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    convert.check_base(delta, base)
    found = {name: difference.clone() for name, difference in delta.items()}
    for name, difference in found.items():
        if name in base:
            convert.add_base(name, difference, base[name])
    assert all(torch.allclose(found[key], value, atol=1e-6) for key, value in whole.items())
    for name, state in {"delta": delta, "base": base, "whole": whole}.items():
        torch.save(state, tmp_path / f"{name}.bin")
    target = model(seed=4)
    load_parts(target, llava=tmp_path / "delta.bin", llama=tmp_path / "base.bin")
    weight = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(target.state_dict()[f"language.{weight}"], whole[weight], rtol=0, atol=1e-6)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(CheckpointError, match="the difference from another") as caught:
        load_parts(target, llava=tmp_path / "delta.bin")
    assert "language_base" in str(caught.value)
    with pytest.raises(CheckpointError, match="leave the base away"):
        load_parts(target, llava=tmp_path / "whole.bin", llama=tmp_path / "base.bin")
    torch.save({f"llama.{key}": value for key, value in base.items()}, tmp_path / "base.bin")
    with pytest.raises(CheckpointError, match="not made from this base"):
        load_parts(target, llava=tmp_path / "delta.bin", llama=tmp_path / "base.bin")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_a_base_that_is_not_whole_or_not_its_own() -> None:
    delta, base = as_delta(as_llava(model(), 36))
    less = {key: value for key, value in base.items() if "layers.1." not in key}
    with pytest.raises(CheckpointError, match=r"(?s)the base lacks 9 tensors.*all files of the LLaMA"):
        convert.check_base(delta, less)
    more = base | {"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}
    with pytest.raises(CheckpointError, match="has too much: 1 tensors"):
        convert.check_base(delta, more)
    small = base | {"model.norm.weight": torch.ones(4)}
    with pytest.raises(CheckpointError, match="does not fit this base"):
        convert.check_base(delta, small)


@pytest.mark.parametrize(("rows", "total", "right"), [(32003, 32004, 32005), (32000, 32005, 32004)])
def test_a_llava_of_the_other_form(rows: int, total: int, right: int) -> None:
    """[SEG] would have the trained row of <im_patch>, or come three rows too late."""
    table = {"lm_head.weight": torch.zeros(rows, 2)}
    expected = {"language.lm_head.weight": (total, 2)}
    with pytest.raises(CheckpointError, match=f"model of {right} rows, in which .SEG. is {rows}") as caught:
        convert.from_llava(table, expected, seg_id=convert.vocabulary_ids(total)[0])
    assert f"model.language.vocab_size={right} model.seg_id={rows} model.rej_id={rows + 1}" in str(caught.value)
    mapped, _ = convert.from_llava(table, {"language.lm_head.weight": (right, 2)}, seg_id=rows)
    assert mapped["language.lm_head.weight"][rows:].std() > 0
    with pytest.raises(CheckpointError, match="known forms have 32000 or 32003 words"):
        convert.from_llava({"lm_head.weight": torch.zeros(total, 2)}, expected, seg_id=rows)
