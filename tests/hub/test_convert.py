"""Official files to checkpoint folders and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saccade.errors import CheckpointError, UsageError
from saccade.hub import convert as module
from saccade.hub.checkpoint import CONFIG, load_folder, read_card
from saccade.hub.convert import convert_file, export_official, map_file
from saccade.hub.sizes import expected_shapes, skeleton
from saccade.hub.starts import BACKBONE, TEXT, load_backbone, load_text_embedding
from saccade.hub.unpickle import TensorFile, read_pickled_state
from saccade.layers.vit import ViTConfig
from saccade.models.git.config import GiTConfig
from saccade.models.git.convert import official_key, to_official
from saccade.models.git.model import GiT
from saccade.models.git.presets import PRESETS
from saccade.tasks import Task
from saccade.tokens.vocabulary import TextVocabulary

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789", "##a", "cat"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> TextVocabulary:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return TextVocabulary(path)


def small_config() -> GiTConfig:
    """A size without a name, of the form that shapes can tell."""
    from saccade.models.git.config import CaptionConfig, DetectionConfig, GroundingConfig, SemanticConfig

    return GiTConfig(
        vit=ViTConfig(
            width=32, depth=4, heads=2, mlp_width=48, image_size=192, window_size=4, global_blocks=(1, 2), drop_path=0.1
        ),
        vocab_size=len(WORDS) + 2,
        max_positions=40,
        detection=DetectionConfig(input_size=192, num_bins=384),
        instance_segmentation=DetectionConfig(input_size=192, num_bins=384, num_rays=24),
        semantic_segmentation=SemanticConfig(input_size=128),
        caption=CaptionConfig(input_size=64),
        grounding=GroundingConfig(input_size=64, num_bins=128),
    )


@pytest.fixture(scope="module")
def model(vocabulary: TextVocabulary) -> GiT:
    torch.manual_seed(0)
    return GiT(small_config(), vocabulary).eval()


@pytest.fixture
def official_file(model: GiT, tmp_path: Path) -> Path:
    path = tmp_path / "trained.pth"
    meta = {"iter": 640000, "seed": 1, "cfg": "model = dict()"}
    torch.save({"meta": meta, "state_dict": to_official(model.state_dict())}, path)
    return path


def manifest(size: str) -> dict:
    path = SHARED / f"manifests/git/git_{size}.json"
    if not path.is_file():
        pytest.skip("../shared/manifests/git is absent")
    return json.loads(path.read_text())


def as_meta(entries: list[dict], shape: str = "shape", key: str = "key") -> dict[str, torch.Tensor]:
    return {entry[key]: torch.empty(entry[shape], device="meta") for entry in entries}


def pretend(monkeypatch: pytest.MonkeyPatch, tensors: dict[str, torch.Tensor], name: str = "file.pth") -> None:
    monkeypatch.setattr(module, "read_weight_set", lambda path: TensorFile(path=Path(name), tensors=tensors))


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_every_key_of_the_released_files_is_mapped_both_ways(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = manifest(size)
    pretend(monkeypatch, as_meta(facts["keys"]))
    found = map_file("file.pth")
    assert (found.preset, found.kind) == (size, "checkpoint")
    assert found.config == PRESETS[size]()
    assert found.report.complete
    assert set(found.report.dropped) == {"embed.position_ids"}
    assert not found.report.resized
    assert len(found.report.matched) == facts["num_keys"] - 1
    assert {official_key(ours) for ours in found.state} | {"embed.position_ids"} == {e["key"] for e in facts["keys"]}
    assert sum(value.numel() for value in found.state.values()) == facts["total_parameters"]


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_sam_backbone_fills_all_but_the_new_blocks(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = manifest(size)
    sam = as_meta([entry for entry in facts["keys"] if entry.get("sam_key")], shape="sam_shape", key="sam_key")
    sam |= {key: torch.empty(256, device="meta") for key in facts["sam_unused_keys"]}
    pretend(monkeypatch, sam)
    found = map_file("sam.pth")
    assert (found.preset, found.kind) == (size, "backbone")
    found.report.check(allow=found.allowed)
    assert {official_key(key) for key in found.report.missing} == set(facts["new_keys"])
    assert set(found.report.dropped) == set(facts["sam_unused_keys"])
    assert "backbone.pos_embed" in found.report.resized
    assert len(found.report.resized) == 1 + 2 * len(PRESETS[size]().vit.global_blocks)


def test_file_of_another_size_names_the_right_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, as_meta(manifest("base")["keys"]))
    report = map_file("multi_base.pth", preset="large").report
    with pytest.raises(CheckpointError, match="it is a file of 'base'") as caught:
        report.check()
    assert "wrong shape" in str(caught.value)


def test_672_model_is_recognised_and_fits_the_1120_model_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {official_key(key): shape for key, shape in expected_shapes(PRESETS["base-672"]()).items()}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items() if key}
    pretend(monkeypatch, tensors)
    assert map_file("a.pth").preset == "base-672"
    resized = map_file("a.pth", preset="base").report
    resized.check()
    assert resized.resized["backbone.pos_embed"].startswith("bicubic (1, 42, 42, 768)")
    assert resized.resized["backbone.blocks.2.attn.rel_pos_h"].startswith("linear (83, 64) -> (139, 64)")


def test_convert_predicts_what_the_model_predicted(
    model: GiT, vocabulary: TextVocabulary, official_file: Path, tmp_path: Path
) -> None:
    report = convert_file(official_file, out=tmp_path / "ours", vocabulary=vocabulary.path)
    assert report.complete
    assert any("no preset" in note for note in report.notes)
    loaded = load_folder(tmp_path / "ours")
    # The shapes tell everything but the drop path rate, which only training reads.
    loaded.model.config.vit.drop_path = 0.1
    assert loaded.model.config == model.config
    assert loaded.card.provenance["training"] == {"iter": 640000, "seed": 1}
    assert len(loaded.card.provenance["source"]["sha256"]) == 64
    assert loaded.classes[Task.DETECTION].category_ids[11] == 13
    assert len(loaded.classes[Task.SEMANTIC]) == 150
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value), key


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_export_gives_the_official_file_back(
    official_file: Path, vocabulary: TextVocabulary, tmp_path: Path, ending: str
) -> None:
    convert_file(official_file, out=tmp_path / "ours", vocabulary=vocabulary.path)
    report = export_official(tmp_path / "ours", tmp_path / f"back{ending}")
    before, after = read_pickled_state(official_file), read_pickled_state(tmp_path / f"back{ending}")
    assert set(after) == set(before)
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    assert report.notes == ["written by us: embed.position_ids"]
    with pytest.raises(UsageError, match="existing file"):
        export_official(tmp_path / "ours", tmp_path / f"back{ending}")
    with pytest.raises(UsageError, match=r"\.pth or \.safetensors"):
        export_official(tmp_path / "ours", tmp_path / "back.ckpt")


def test_nothing_is_written_over(official_file: Path, vocabulary: TextVocabulary, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "trainer.safetensors").write_bytes(b"months of work")
    with pytest.raises(UsageError, match="will not write over"):
        convert_file(official_file, out=tmp_path / "kept", vocabulary=vocabulary.path)
    assert (tmp_path / "kept" / "trainer.safetensors").read_bytes() == b"months of work"
    convert_file(official_file, out=tmp_path / "new", vocabulary=vocabulary.path)
    with pytest.raises(UsageError, match="will not write over"):
        convert_file(official_file, out=tmp_path / "new")
    assert (tmp_path / "new" / "vocab.txt").is_file()


def test_small_preset_roundtrip(vocabulary: TextVocabulary, tmp_path: Path) -> None:
    """In a model of one window the shapes do not tell the global blocks: the preset is found by its other sizes."""
    config = PRESETS["nano"]()
    state = {key: torch.zeros(shape) for key, shape in expected_shapes(config).items()}
    torch.save(to_official(state), tmp_path / "nano.pth")
    found = map_file(tmp_path / "nano.pth")
    assert found.preset == "nano"
    assert found.config == config


def test_without_vocabulary_the_folder_says_what_is_missing(official_file: Path, tmp_path: Path) -> None:
    report = convert_file(official_file, out=tmp_path / "ours")
    assert any("vocab.txt" in note for note in report.notes)
    with pytest.raises(CheckpointError, match="no vocabulary"):
        load_folder(tmp_path / "ours")


def test_single_task_file_offers_its_task_alone(official_file: Path, tmp_path: Path) -> None:
    renamed = official_file.rename(tmp_path / "semseg_base.pth")
    convert_file(renamed, out=tmp_path / "ours")
    card = read_card(tmp_path / "ours")
    assert card.tasks == (Task.SEMANTIC,)
    assert set(card.classes) == {Task.SEMANTIC}
    assert card.provenance["zoo"] == "git-base-semantic"


def test_ddp_prefix_is_taken_off(model: GiT, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in to_official(model.state_dict()).items()}
    torch.save(state, tmp_path / "ddp.pth")
    assert map_file(tmp_path / "ddp.pth").report.complete


def test_gaps_are_an_error_and_nothing_is_written(model: GiT, tmp_path: Path) -> None:
    state = to_official(model.state_dict())
    del state["backbone.layers.3.ffn.layers.1.bias"]
    state["head.weight"] = torch.zeros(2)
    state["synt_position_embeddings.weight"] = torch.zeros(3, 32)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as caught:
        convert_file(tmp_path / "odd.pth", out=tmp_path / "ours")
    text = str(caught.value)
    assert "1 missing, 1 unexpected, 1 wrong shape" in text
    assert "backbone.blocks.3.mlp.fc2.bias" in text
    assert "head.weight" in text
    assert "(found (3, 32), expected (40, 32))" in text
    assert not (tmp_path / "ours" / CONFIG).exists()


def test_foreign_files_and_presets(tmp_path: Path, official_file: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"conv1\.weight"):
        map_file(tmp_path / "resnet.pth")
    with pytest.raises(UsageError, match="did you mean 'base'"):
        map_file(official_file, preset="bse")


def test_vocabulary_of_another_length(official_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*WORDS, "dog"]) + "\n")
    with pytest.raises(UsageError, match="word table"):
        convert_file(official_file, out=tmp_path / "ours", vocabulary=path)


# ----------------------------------------------------------------------------------- starts of training


def sam_state(config: GiTConfig, depth: int, *, own_names: bool) -> dict[str, torch.Tensor]:
    """A SAM file with the tables of a 256 px model, in either naming."""
    names = {"ln1": "norm1", "ln2": "norm2", "ffn.layers.0.0": "mlp.lin1", "ffn.layers.1": "mlp.lin2"}
    generator = torch.Generator().manual_seed(5)
    vit = ViTConfig(**{**vars(config.vit), "image_size": 256, "depth": depth})
    state = {}
    for key, shape in expected_shapes(GiTConfig(**{**vars(config), "vit": vit})).items():
        name = official_key(key)
        if name is None or not name.startswith("backbone."):
            continue
        if own_names:
            name = name.replace("backbone.layers", "image_encoder.blocks").replace("backbone.", "image_encoder.")
            name = name.replace("patch_embed.projection", "patch_embed.proj")
            for old, new in names.items():
                name = name.replace(f".{old}.", f".{new}.")
        state[name] = torch.randn(shape, generator=generator)
    neck = "image_encoder.neck.0.weight" if own_names else "backbone.channel_reduction.0.weight"
    state[neck] = torch.zeros(8, 32, 1, 1)
    if own_names:
        state["mask_decoder.iou_token.weight"] = torch.zeros(1, 8)
    return state


@pytest.mark.parametrize("own_names", [False, True], ids=["mmpretrain", "segment-anything"])
def test_backbone_start(vocabulary: TextVocabulary, tmp_path: Path, own_names: bool) -> None:
    state = sam_state(small_config(), 3, own_names=own_names)
    torch.save(state if own_names else {"state_dict": state}, tmp_path / "sam.pth")
    torch.manual_seed(1)
    fresh = GiT(small_config(), vocabulary)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    report = load_backbone(fresh, tmp_path / "sam.pth")
    after = fresh.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    filled = set(report.matched.values())
    assert changed == filled
    assert {key for key in before if key.startswith("backbone.") and ".3." not in key} == filled
    prefix = "image_encoder.blocks" if own_names else "backbone.layers"
    assert torch.equal(after["backbone.blocks.1.attn.qkv.weight"], state[f"{prefix}.1.attn.qkv.weight"])
    assert after["backbone.pos_embed"].shape == (1, 12, 12, 32)


def test_backbone_start_of_another_width(vocabulary: TextVocabulary, tmp_path: Path) -> None:
    config = small_config()
    config.vit.width = 64
    torch.save(sam_state(config, 3, own_names=False), tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="the file has width 64"):
        load_backbone(GiT(small_config(), vocabulary), tmp_path / "sam.pth")


def test_backbone_start_refuses_gaps(vocabulary: TextVocabulary, tmp_path: Path) -> None:
    state = sam_state(small_config(), 3, own_names=False)
    del state["backbone.layers.1.attn.qkv.bias"]
    torch.save(state, tmp_path / "sam.pth")
    fresh = GiT(small_config(), vocabulary)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"backbone\.blocks\.1\.attn\.qkv\.bias"):
        load_backbone(fresh, tmp_path / "sam.pth")
    assert all(torch.equal(before[key], value) for key, value in fresh.state_dict().items())


def test_starts_from_our_own_files(model: GiT, vocabulary: TextVocabulary, official_file: Path, tmp_path: Path) -> None:
    convert_file(official_file, out=tmp_path / "ours", vocabulary=vocabulary.path)
    torch.manual_seed(9)
    fresh = GiT(small_config(), vocabulary)
    load_backbone(fresh, tmp_path / "ours")
    load_text_embedding(fresh, tmp_path / "ours")
    for key, value in model.state_dict().items():
        same = torch.equal(fresh.state_dict()[key], value)
        assert same or key.startswith("concept_"), key


def test_text_start(model: GiT, vocabulary: TextVocabulary, tmp_path: Path) -> None:
    official = {
        key.removeprefix("embed."): value
        for key, value in to_official(model.state_dict()).items()
        if key.startswith("embed.")
    }
    assert len(official) == 5
    torch.save(official, tmp_path / "bert_embed.pt")
    torch.manual_seed(2)
    fresh = GiT(small_config(), vocabulary)
    report = load_text_embedding(fresh, tmp_path / "bert_embed.pt")
    assert torch.equal(fresh.text_embed.words.weight, model.text_embed.words.weight)
    assert report.complete
    assert list(report.dropped) == ["embed.position_ids"]


def test_parts_are_converted_to_files_that_training_reads(
    monkeypatch: pytest.MonkeyPatch, model: GiT, vocabulary: TextVocabulary, tmp_path: Path
) -> None:
    from saccade.hub import sizes

    monkeypatch.setattr(sizes, "PRESETS", {"small": small_config})
    torch.save(sam_state(small_config(), 3, own_names=True), tmp_path / "sam.pth")
    report = convert_file(tmp_path / "sam.pth", out=tmp_path / "sam")
    assert (tmp_path / "sam" / BACKBONE).is_file()
    assert any("init_from=" in note for note in report.notes)
    one, two = GiT(small_config(), vocabulary), GiT(small_config(), vocabulary)
    two.load_state_dict(one.state_dict())
    load_backbone(one, tmp_path / "sam.pth")
    load_backbone(two, tmp_path / "sam")
    assert all(torch.equal(one.state_dict()[key], value) for key, value in two.state_dict().items())

    text = {k.removeprefix("embed."): v for k, v in to_official(model.state_dict()).items() if k.startswith("embed.")}
    torch.save(text, tmp_path / "bert_embed.pt")
    convert_file(tmp_path / "bert_embed.pt", out=tmp_path / "text")
    assert (tmp_path / "text" / TEXT).is_file()
    load_text_embedding(two, tmp_path / "text")
    assert torch.equal(two.text_embed.words.weight, model.text_embed.words.weight)


def test_skeleton_has_no_memory() -> None:
    huge = skeleton(PRESETS["huge"]())
    assert all(parameter.is_meta for parameter in huge.parameters())
    assert sum(parameter.numel() for parameter in huge.parameters()) == 802_177_600
