"""All official files map without a missing key, there and back: the eighteen manifests, and small real tensors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers_visft import tiny_config, tiny_words
from torch import Tensor

from saccade.errors import CheckpointError, UsageError
from saccade.hub.convert_visft import map_visft
from saccade.hub.unpickle import TensorFile
from saccade.layers.lora import LoRAConfig, add_lora
from saccade.models.visft.clip import CLIPPairConfig
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.convert import (
    PUBLISHED_LORA,
    from_official,
    heads_of,
    is_lora,
    lora_form,
    to_official,
)
from saccade.models.visft.model import ViSFT
from saccade.models.visft.presets import PRESETS

MANIFESTS = Path(__file__).resolve().parents[4] / "shared/manifests/visft"
SIZES = {"eva_g": "eva-g", "eva_e": "eva-e"}


def meta(name: str) -> dict[str, Tensor]:
    """The tensors of a manifest, without memory."""
    path = MANIFESTS / f"{name}.json"
    if not path.is_file():
        pytest.skip("../shared/manifests/visft is absent")
    listed = json.loads(path.read_text())["tensors"]
    return {one["key"]: torch.empty(one["shape"], device="meta") for one in listed}


def shapes(config: ViSFTConfig, lora: LoRAConfig | None = None) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = ViSFT(config)
        if lora is not None:
            add_lora(model, lora)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def only(preset: str, *heads: str) -> ViSFTConfig:
    config = PRESETS[preset]()
    return dataclasses.replace(config, **{head: None for head in config.heads if head not in heads})


def there_and_back(state: dict[str, Tensor], config: ViSFTConfig, expected: dict[str, tuple[int, ...]]) -> None:
    """Every key of the file is filled by us, and every key of ours by the file."""
    mapped, report = from_official(state, expected)
    assert report.complete, (report.gaps(), report.notes)
    assert set(mapped) == set(expected)
    back = to_official(mapped, config)
    assert {key: tuple(value.shape) for key, value in back.items()} == {
        key: tuple(value.shape) for key, value in state.items()
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("head", ["detection", "segment", "caption"])
def test_heads(size: str, head: str) -> None:
    state = meta(f"{size}_head_{head}")
    ours = {"segment": "instance"}.get(head, head)
    config = only(SIZES[size], ours)
    assert heads_of(state) == (ours,)
    there_and_back(state, config, {k: s for k, s in shapes(config).items() if not k.startswith("backbone.")})
    mapped = map_visft(TensorFile(path=Path("eva.ckpt"), tensors=state), None)
    assert (mapped.kind, mapped.preset, mapped.report.complete) == ("heads", SIZES[size], True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lora", [False, True])
def test_backbones(size: str, lora: bool) -> None:
    state = meta(f"{size}_visual_model{'_lora' if lora else ''}")
    config = only(SIZES[size])
    expected = shapes(config, PUBLISHED_LORA if lora else None)
    mapped, report = from_official(state, expected)
    assert report.complete and set(mapped) == set(expected), report.gaps()
    back = to_official(mapped, config)
    assert {key.removeprefix("visft_heads.backbone.0."): tuple(t.shape) for key, t in back.items()} == {
        key: tuple(t.shape) for key, t in state.items()
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", [1, 2])
def test_checkpoints(size: str, stage: int) -> None:
    state = meta(f"{size}_stage{stage}_checkpoint_model")
    config = PRESETS[SIZES[size]]()
    kept = shapes(config, PUBLISHED_LORA if stage == 2 else None)
    kept = {key: shape for key, shape in kept.items() if not key.startswith("backbone.") or ".lora." in key}
    there_and_back(state, config, kept)


@pytest.mark.parametrize("size", SIZES)
def test_files_of_updates(size: str) -> None:
    state = meta(f"{size}_lora_file")
    assert is_lora(state)
    expected = {key: s for key, s in shapes(only(SIZES[size]), PUBLISHED_LORA).items() if ".lora." in key}
    _, report = from_official(state, expected)
    assert report.complete, report.gaps()
    blocks, prefix = lora_form(state)
    assert prefix == "visual." and len(blocks) == PRESETS[SIZES[size]]().vit.depth
    with pytest.raises(UsageError, match="no model by themselves"):
        map_visft(TensorFile(path=Path("lora.pt"), tensors=state), None)


@pytest.mark.parametrize(
    ("name", "preset"), [("expected_eva_vit_g_pth", "eva-g"), ("expected_EVA02_CLIP_E_psz14_plus_s9B_visual", "eva-e")]
)
def test_released_backbones(name: str, preset: str) -> None:
    state = meta(name)
    mapped = map_visft(TensorFile(path=Path("eva.pth"), tensors=state), None)
    assert (mapped.kind, mapped.preset) == ("backbone", preset)
    assert mapped.report.complete, mapped.report.gaps()
    assert all("cls_token" in key or "head." in key for key in mapped.report.dropped)
    assert isinstance(mapped.config, ViSFTConfig) and set(mapped.state) == set(shapes(mapped.config))


def test_a_backbone_without_the_last_norm_is_accepted_and_said() -> None:
    state = {key: value for key, value in meta("expected_eva_vit_g_pth").items() if not key.startswith("norm.")}
    mapped = map_visft(TensorFile(path=Path("eva.pth"), tensors=state), None)
    mapped.report.check(allow=mapped.allowed)
    assert any("starts as the identity" in note for note in mapped.report.notes)


def test_blip_2s_names_are_known() -> None:
    state = {f"visual_encoder.{key}": value for key, value in meta("eva_g_visual_model").items()}
    state["Qformer.bert.embeddings.word_embeddings.weight"] = torch.empty(1, device="meta")
    mapped = map_visft(TensorFile(path=Path("blip2.pth"), tensors=state), None)
    assert mapped.report.complete and list(mapped.report.dropped.values()) == ["not part of the backbone"]


def test_values_survive_the_way_there_and_back_in_any_type() -> None:
    torch.manual_seed(0)
    model = ViSFT(tiny_config(), tiny_words())
    add_lora(model, LoRAConfig(rank=2))
    state = model.state_dict()
    official = {key: value.half() for key, value in to_official(state, model.config).items()}
    official["visft_heads.backbone.0.pos_embed"][:, 0] = 7.0  # of the class token: dropped
    mapped, report = from_official(official, {key: tuple(value.shape) for key, value in state.items()})
    assert report.complete, report.gaps()
    for key, value in state.items():
        assert torch.equal(mapped[key], value.half()), key


def test_a_head_of_another_vocabulary_is_one_clear_error() -> None:
    model = ViSFT(tiny_config(), tiny_words())
    state = to_official(model.state_dict(), model.config)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items() if key.startswith("caption.")}
    state["visft_heads.caption_decoder.embedding.weight"] = torch.zeros(77, expected["caption.speaker.embed.weight"][1])
    _, report = from_official(state, expected, heads=("caption",))
    with pytest.raises(CheckpointError, match=r"(?s)caption\.speaker\.embed\.weight.*vocabulary of 77 words"):
        report.check()
    assert set(report.dropped.values()) >= {"another head", "the backbone"}


def test_a_pair_of_towers_maps_whole() -> None:
    visual = meta("expected_EVA02_CLIP_E_psz14_plus_s9B_visual")
    width, layers = 128, 2

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    text = {
        "text.token_embedding.weight": empty(49408, width),
        "text.positional_embedding": empty(77, width),
        "text.ln_final.weight": empty(width),
        "text.ln_final.bias": empty(width),
        "text.text_projection": empty(width, 1024),
        "logit_scale": empty(),
    }
    for index in range(layers):
        stem = f"text.transformer.resblocks.{index}."
        text |= {f"{stem}ln_{n}.{kind}": empty(width) for n in (1, 2) for kind in ("weight", "bias")}
        text |= {f"{stem}attn.in_proj_weight": empty(3 * width, width), f"{stem}attn.in_proj_bias": empty(3 * width)}
        text |= {f"{stem}attn.out_proj.weight": empty(width, width), f"{stem}attn.out_proj.bias": empty(width)}
        text |= {f"{stem}mlp.c_fc.weight": empty(4 * width, width), f"{stem}mlp.c_fc.bias": empty(4 * width)}
        text |= {f"{stem}mlp.c_proj.weight": empty(width, 4 * width), f"{stem}mlp.c_proj.bias": empty(width)}
    mapped = map_visft(TensorFile(path=Path("EVA02_CLIP_E.pt"), tensors=visual | text), None)
    assert mapped.kind == "checkpoint" and isinstance(mapped.config, CLIPPairConfig)
    assert mapped.report.complete, mapped.report.gaps()
    assert (mapped.config.text.layers, mapped.config.joint_width, mapped.config.vit.class_token) == (2, 1024, True)


def test_an_unknown_width_asks_for_a_preset() -> None:
    model = ViSFT(tiny_config(), tiny_words())
    state = to_official(model.state_dict(), model.config)
    with pytest.raises(CheckpointError, match="no released size"):
        map_visft(TensorFile(path=Path("x.ckpt"), tensors=state), None)
