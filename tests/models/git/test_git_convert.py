"""Official names and ours: every key both ways, SAM's two forms, tables of other sizes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from helpers_git import SHARED, VOCABULARY, compare, make_batch, tiny_config, tiny_git
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.models.git.config import GIT_TASKS, GiTConfig
from saccade.models.git.convert import (
    from_official,
    from_sam,
    from_text_embedding,
    official_key,
    our_key,
    our_sam_key,
    to_official,
)
from saccade.models.git.model import GiT
from saccade.models.git.presets import PRESETS
from saccade.tasks import Task
from saccade.tokens.vocabulary import TextVocabulary

SIZES = ("base", "large", "huge")


def shapes(model: GiT) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def manifest(size: str) -> dict:
    path = SHARED / f"manifests/git/git_{size}.json"
    if not path.is_file():
        pytest.skip("../shared/manifests/git is absent")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def bert_sized(tmp_path_factory: pytest.TempPathFactory) -> TextVocabulary:
    """As many pieces as bert-base-uncased has."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join([*special, *(f"w{i}" for i in range(30522 - 5))]) + "\n")
    return TextVocabulary(path)


@pytest.mark.parametrize("size", SIZES)
def test_every_official_key_maps_both_ways(size: str, bert_sized: TextVocabulary) -> None:
    facts = manifest(size)
    with torch.device("meta"):
        model = GiT(PRESETS[size](), bert_sized)
    state = model.state_dict()
    official = {entry["key"]: entry for entry in facts["keys"]}
    assert len(official) == facts["num_keys"] == len(state) + 1
    for key, entry in official.items():
        ours = our_key(key)
        if key == "embed.position_ids":
            assert ours is None
            continue
        assert ours is not None and official_key(ours) == key
        assert list(state[ours].shape) == entry["shape"], key
    assert {official_key(key) for key in state} == set(official) - {"embed.position_ids"}
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["total_parameters"]
    assert {key: tuple(value.shape) for key, value in to_official(state).items()} == {
        key: tuple(entry["shape"]) for key, entry in official.items()
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("names", ["mmpretrain", "segment anything"])
def test_sam_files_fill_the_first_blocks(size: str, names: str, bert_sized: TextVocabulary) -> None:
    facts = manifest(size)
    with torch.device("meta"):
        expected = shapes(GiT(PRESETS[size](), bert_sized))
    own = names == "segment anything"
    state = {
        (sam_name(entry["key"]) if own else entry["sam_key"]): torch.empty(entry["sam_shape"], device="meta")
        for entry in facts["keys"]
        if entry.get("sam_key")
    }
    others = (
        {"image_encoder.neck.0.weight": torch.empty(2), "mask_decoder.x": torch.empty(2)}
        if own
        else {key: torch.empty(2) for key in facts["sam_unused_keys"]}
    )
    mapped, report = from_sam(state | others, expected)
    assert set(report.dropped) == set(others)
    assert not report.unexpected
    assert not report.wrong_shape
    missing = {official_key(key) for key in report.missing}
    assert {key for key in missing if key and key.startswith("backbone.")} == set(facts["new_keys"])
    assert {key for key in expected if not key.startswith("backbone.")} <= set(report.missing)
    tables = {f"backbone.blocks.{i}.attn.rel_pos_{axis}" for i in PRESETS[size]().vit.global_blocks for axis in "hw"}
    assert set(report.resized) == tables | {"backbone.pos_embed"}
    assert all(tuple(value.shape) == expected[key] for key, value in mapped.items())


def sam_name(key: str) -> str:
    """Segment Anything's own name of a GiT key, written down independently of the converter."""
    for old, new in (
        ("backbone.layers.", "image_encoder.blocks."),
        ("backbone.patch_embed.projection", "image_encoder.patch_embed.proj"),
        ("backbone.pos_embed", "image_encoder.pos_embed"),
        (".ln1.", ".norm1."),
        (".ln2.", ".norm2."),
        (".ffn.layers.0.0.", ".mlp.lin1."),
        (".ffn.layers.1.", ".mlp.lin2."),
    ):
        key = key.replace(old, new)
    return key


def test_round_trip_through_official_names() -> None:
    model = tiny_git()
    official = to_official(model.state_dict())
    assert official["embed.position_ids"].tolist() == [list(range(48))]
    back, report = from_official(official, shapes(model))
    assert report.complete
    assert report.dropped == {"embed.position_ids": "a constant (0, 1, 2, ...)"}
    assert list(back) == list(model.state_dict())
    again = to_official(back)
    assert list(again) == list(official)
    for key, value in official.items():
        assert torch.equal(again[key], value), key


def larger(model_config: GiTConfig) -> GiTConfig:
    """The same weights for images of 96 instead of 64 pixels a side."""
    vit = dataclasses.replace(model_config.vit, image_size=96)
    return dataclasses.replace(model_config, vit=vit)


def plain_linear(table: Tensor, rows: int) -> Tensor:
    places = ((torch.arange(rows) + 0.5) * len(table) / rows - 0.5).clamp(0, len(table) - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=len(table) - 1)
    share = (places - low)[:, None]
    return table[low] * (1 - share) + table[high] * share


def test_tables_of_another_size_are_resized_on_load() -> None:
    """As between the 672 and the 1120 px models: position table and global tables change, window tables do not."""
    small = tiny_git()
    big = GiT(larger(small.config), VOCABULARY)
    mapped, report = from_official(to_official(small.state_dict()), shapes(big))
    report.check()
    assert set(report.resized) == {"backbone.pos_embed"} | {f"backbone.blocks.1.attn.rel_pos_{axis}" for axis in "hw"}
    assert report.resized["backbone.blocks.1.attn.rel_pos_h"] == "linear (15, 16) -> (23, 16)"
    assert report.resized["backbone.pos_embed"] == "bicubic (1, 8, 8, 32) -> (1, 12, 12, 32)"
    torch.testing.assert_close(
        mapped["backbone.blocks.1.attn.rel_pos_h"], plain_linear(small.backbone.blocks[1].attn.rel_pos_h, 23)
    )
    bicubic = F.interpolate(
        small.backbone.pos_embed.permute(0, 3, 1, 2), size=(12, 12), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(mapped["backbone.pos_embed"], bicubic.permute(0, 2, 3, 1))
    big.load_state_dict(mapped)
    assert len(big.eval().predict(make_batch(Task.DETECTION, 1, targets=False))) == 1


def test_a_672_file_fits_the_1120_model(bert_sized: TextVocabulary) -> None:
    with torch.device("meta"):
        expected = shapes(GiT(PRESETS["base"](), bert_sized))
        state = GiT(PRESETS["base-672"](), bert_sized).state_dict()
    tables = {key: torch.zeros(value.shape) for key, value in state.items() if "pos_embed" in key or "rel_pos" in key}
    mapped, report = from_official(to_official(state | tables), expected)
    report.check()
    assert tuple(state["backbone.pos_embed"].shape) == (1, 42, 42, 768)
    assert tuple(state["backbone.blocks.2.attn.rel_pos_h"].shape) == (83, 64)
    assert len(report.resized) == 1 + 2 * 4
    assert all(tuple(value.shape) == expected[key] for key, value in mapped.items())


def test_converted_weights_predict_the_same() -> None:
    model = tiny_git()
    copy = GiT(tiny_config(), VOCABULARY).eval()
    copy.load_state_dict(from_official(to_official(model.state_dict()), shapes(copy))[0])
    for task in GIT_TASKS:
        batch = make_batch(task, 1, targets=False)
        compare(copy.predict(batch)[0], model.predict(batch)[0], tolerance=0.0)


def test_text_embedding_files_fill_the_text_embedding_alone() -> None:
    model = tiny_git()
    names = ("word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias")
    official = to_official(model.state_dict())
    state = {name: official[f"embed.{name}"] for name in (*names, "position_ids")}
    for prefix in ("", "embed."):
        mapped, report = from_text_embedding({prefix + key: value for key, value in state.items()}, shapes(model))
        assert report.complete
        assert set(mapped) == {key for key in model.state_dict() if key.startswith("text_embed.")}


def test_gaps_are_reported_and_refused() -> None:
    model = tiny_git()
    state = to_official(model.state_dict())
    del state["backbone.layers.2.ln1.weight"]
    state["backbone.layers.9.ln1.weight"] = torch.zeros(32)
    state["head.fc.weight"] = torch.zeros(2)
    state["synt_att.in_proj_bias"] = torch.zeros(5)
    _, report = from_official(state, shapes(model))
    assert report.missing == ["backbone.blocks.2.norm1.weight"]
    assert report.unexpected == ["backbone.layers.9.ln1.weight", "head.fc.weight"]
    assert report.wrong_shape == {"concept_attention.in_proj_bias": ((5,), (96,))}
    with pytest.raises(CheckpointError, match=r"norm1\.weight"):
        report.check()


def test_a_position_table_of_another_width_is_not_resized() -> None:
    model = tiny_git()
    state = to_official(model.state_dict()) | {"backbone.pos_embed": torch.zeros(1, 8, 8, 48)}
    _, report = from_official(state, shapes(model))
    assert list(report.wrong_shape) == ["backbone.pos_embed"]


@pytest.mark.parametrize("key", ["backbone.layersx.0.ln1.weight", "backbone.layers.0.ln10.weight", "embedding.x", ""])
def test_names_are_matched_by_whole_parts(key: str) -> None:
    assert our_key(key) is None
    assert official_key(key) is None
    assert our_sam_key(key) is None
