"""Checkpoint folders: what is written comes back, and nothing damaged loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saccade.errors import CheckpointError, UsageError
from saccade.hub import shards as module
from saccade.hub.checkpoint import CONFIG, load_folder, read_card, save_model
from saccade.hub.shards import WEIGHTS
from saccade.layers.vit import ViTConfig
from saccade.models.git.config import CaptionConfig, DetectionConfig, GiTConfig, GroundingConfig, SemanticConfig
from saccade.models.git.model import GiT
from saccade.samples import ClassList
from saccade.tasks import Task
from saccade.tokens.vocabulary import TextVocabulary

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789", "##a", "cat", "dog"]
CLASSES = {Task.DETECTION: ClassList(names=("cat", "dog"), category_ids=(17, 18))}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> TextVocabulary:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return TextVocabulary(path)


def small_config(**changes: object) -> GiTConfig:
    fields: dict[str, object] = {
        "vit": ViTConfig(
            width=32, depth=3, heads=2, mlp_width=48, image_size=64, window_size=4, global_blocks=(1,), drop_path=0.0
        ),
        "vocab_size": len(WORDS) + 2,
        "max_positions": 40,
        "concept_heads": 2,
        "detection": DetectionConfig(input_size=64, num_bins=128),
        "instance_segmentation": None,
        "semantic_segmentation": SemanticConfig(input_size=64),
        "caption": CaptionConfig(input_size=64),
        "grounding": GroundingConfig(input_size=64, num_bins=128),
    }
    return GiTConfig(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def model(vocabulary: TextVocabulary) -> GiT:
    torch.manual_seed(0)
    return GiT(small_config(), vocabulary)


def rewrite(folder: Path, change) -> None:
    data = json.loads((folder / CONFIG).read_text())
    change(data)
    (folder / CONFIG).write_text(json.dumps(data))


def test_everything_comes_back(model: GiT, tmp_path: Path) -> None:
    folder = save_model(
        model,
        tmp_path / "run" / "best",
        classes=CLASSES,
        provenance={"recipe": "git.nano_scenes", "step": 7, "metrics": {"detection/AP": 0.5}},
        texts={"README.md": "# A model\n"},
    )
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", CONFIG, WEIGHTS, "vocab.txt"]
    assert [path.name for path in folder.parent.iterdir()] == ["best"]
    loaded = load_folder(folder)
    assert not loaded.model.training
    assert loaded.model.config == model.config
    assert loaded.classes == CLASSES
    assert loaded.card.tasks == model.tasks
    assert loaded.card.preprocessing[Task.CAPTION].interpolation == "bicubic"
    assert loaded.card.provenance["step"] == 7
    assert set(loaded.card.provenance) >= {"saccade", "torch", "date"}
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value), key
    assert loaded.model.vocabulary.encode(["cat"], max_length=8)[0].tolist() == [[2, WORDS.index("cat"), 3]]


def test_half_precision_is_stored_small_and_loaded_as_float32(model: GiT, tmp_path: Path) -> None:
    whole = save_model(model, tmp_path / "whole", classes={}, provenance={})
    half = save_model(model, tmp_path / "half", classes={}, provenance={}, dtype=torch.float16)
    assert (half / WEIGHTS).stat().st_size < 0.6 * (whole / WEIGHTS).stat().st_size
    loaded = load_folder(half).model
    for key, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[key].half().float()), key
    assert load_folder(whole, dtype=torch.bfloat16).model.backbone.pos_embed.dtype == torch.bfloat16


def test_saving_again_replaces_in_one_step(model: GiT, tmp_path: Path) -> None:
    folder = tmp_path / "last"
    for step in (1, 2):
        save_model(model, folder, classes={}, provenance={"step": step})
        assert read_card(folder).provenance["step"] == step
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_an_interrupted_write_leaves_the_old_checkpoint(
    model: GiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(model, tmp_path / "last", classes={}, provenance={"step": 1})

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(model, folder, classes={}, provenance={"step": 2})
    assert load_folder(folder).card.provenance["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_death_between_the_two_renames(model: GiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(model, tmp_path / "last", classes={}, provenance={"step": 1})
    rename = Path.rename

    def die(self: Path, target: Path) -> Path:
        if target == folder:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, folder, classes={}, provenance={"step": 2})
    monkeypatch.undo()
    assert not folder.exists()
    assert load_folder(folder).card.provenance["step"] == 1
    save_model(model, folder, classes={}, provenance={"step": 3})
    assert read_card(folder).provenance["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_folder_of_something_else_is_not_replaced(model: GiT, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="no checkpoint"):
        save_model(model, tmp_path, classes={}, provenance={})
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_classes_of_a_task_that_the_model_has_not(model: GiT, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="instance_segmentation"):
        save_model(model, tmp_path / "x", classes={Task.INSTANCE: ClassList.from_names(["cat"])}, provenance={})


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_truncated_weights_name_the_file(model: GiT, tmp_path: Path, share: float) -> None:
    folder = save_model(model, tmp_path / "m", classes={}, provenance={})
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        load_folder(folder)
    assert str(folder / WEIGHTS) in str(caught.value)
    # Without the size and digest of config.json, safetensors itself still notices.
    rewrite(folder, lambda data: data.pop("weights"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_folder(folder)


def test_one_flipped_bit_is_noticed(model: GiT, tmp_path: Path) -> None:
    folder = save_model(model, tmp_path / "m", classes={}, provenance={})
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_folder(folder)


def test_weights_of_another_model(model: GiT, vocabulary: TextVocabulary, tmp_path: Path) -> None:
    folder = save_model(model, tmp_path / "m", classes={}, provenance={})

    def deeper(data: dict) -> None:
        data["model"]["vit"]["depth"] = 4

    rewrite(folder, deeper)
    with pytest.raises(CheckpointError, match=r"missing.*backbone\.blocks\.3"):
        load_folder(folder)

    def wider(data: dict) -> None:
        data["model"]["vit"].update(depth=3, mlp_width=64)

    rewrite(folder, wider)
    with pytest.raises(CheckpointError, match=r"wrong shape.*mlp\.fc1"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["classes"]["detection"]["names"].append("cow"), "3 class names but 2 category ids"),
        (lambda d: d["classes"].update(detection={"names": ["a", "a"], "category_ids": [1, 2]}), "used twice"),
        (lambda d: d["classes"].update(instance_segmentation=d["classes"]["detection"]), "no task of the model"),
        (lambda d: d["model"]["vit"].update(widht=3), "did you mean 'width'"),
        (lambda d: d["model"].pop("grounding") and d["model"].update(grounding=None), "other tasks"),
        (lambda d: d["preprocessing"]["detection"].update(interpolation="bicubic"), "another preprocessing"),
        (lambda d: d["preprocessing"]["detection"].update(mean=[0.0, 0.0, 0.0]), "another preprocessing"),
        (lambda d: d.update(format_version=2), "format version 2"),
        (lambda d: d.update(format="other"), "not a checkpoint of Saccade"),
        (lambda d: d.update(system="gti"), "did you mean 'git'"),
        (lambda d: d.pop("tasks"), "lacks a key"),
        (lambda d: d.update(tasks=["detektion"]), "detektion"),
        (lambda d: d.update(classes=[1]), "contradicts itself"),
    ],
)
def test_contradictions_in_config(model: GiT, tmp_path: Path, change, message: str) -> None:
    folder = save_model(model, tmp_path / "m", classes=CLASSES, provenance={})
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_folder(folder)
    assert str(folder) in str(caught.value)


def test_damaged_config(model: GiT, tmp_path: Path) -> None:
    folder = save_model(model, tmp_path / "m", classes={}, provenance={})
    (folder / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_card(folder)


def test_vocabulary_missing_or_of_another_length(model: GiT, tmp_path: Path) -> None:
    folder = save_model(model, tmp_path / "m", classes={}, provenance={})
    with (folder / "vocab.txt").open("a") as stream:
        stream.write("extra\n")
    with pytest.raises(CheckpointError, match="word rows"):
        load_folder(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="no vocabulary"):
        load_folder(folder)


def test_no_checkpoint_at_all(model: GiT, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_card(tmp_path / "absent")
    file = tmp_path / "official.pth"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="saccade convert"):
        read_card(file)
    save_model(model, tmp_path / "run" / "best", classes={}, provenance={})
    with pytest.raises(CheckpointError, match=r"did you mean one of its folders: .*best"):
        read_card(tmp_path / "run")


def test_missing_weights(model: GiT, tmp_path: Path) -> None:
    folder = save_model(model, tmp_path / "m", classes={}, provenance={})
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_folder(folder)
