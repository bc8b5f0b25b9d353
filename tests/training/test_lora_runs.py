"""Training runs of low-rank updates: what is trained, what is stored, and that a run goes on exactly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from helpers_training import assert_same_state, losses_of, scenes, tiny_model, tiny_run, write_vocabulary
from safetensors.torch import load_file

import saccade
from saccade.errors import ConfigError
from saccade.hub.checkpoint import load_folder, read_card, save_model
from saccade.layers.lora import LoRAConfig, fold, lora_of, updates_of
from saccade.models.git.model import GiT
from saccade.models.gsva.presets import nano as gsva_nano
from saccade.tasks import Task
from saccade.tokens.vocabulary import TextVocabulary
from saccade.training.checkpoint import MANIFEST, STATE_VALUES
from saccade.training.config import TrainConfig, validate
from saccade.training.trainer import Trainer

LORA = LoRAConfig(rank=4, targets=("backbone.*.qkv:qv", "backbone.*.fc1"), trained=("text_embed.*",))


def lora_run(folder: Path, **changes: object) -> TrainConfig:
    train = tuple(scenes(task) for task in (Task.DETECTION, Task.CAPTION))
    start = tiny_start(folder)
    return tiny_run(folder, **{"name": "lora", "train": train, "lora": LORA, "steps": 8, "weights": start, **changes})


def tiny_start(folder: Path) -> str:
    """A model that updates can be put on."""
    start = folder / "start"
    if not start.exists():
        torch.manual_seed(0)
        save_model(GiT(tiny_model(), TextVocabulary(write_vocabulary(folder))), start, classes={}, provenance={})
    return str(start)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Trainer(lora_run(tmp_path_factory.mktemp("lora"))).fit().folder


def test_only_updates_and_what_is_named_beside_them_move(run: Path) -> None:
    first, last = (load_file(run / f"checkpoints/step-0000000{step}/model.safetensors") for step in (4, 8))
    moved = {key for key, value in last.items() if not torch.equal(value, first[key])}
    assert moved and all(".lora." in key or key.startswith("text_embed.") for key in moved), moved
    assert {key for key in last if ".lora." in key} <= moved
    stored = {
        key.split("/", 1)[1] for key in load_file(run / "checkpoints/last/trainer.safetensors") if key[:5] == "model"
    }
    assert stored < set(last) and all(".lora." in key or key.startswith("text_embed.") for key in stored)
    assert losses_of(run)[-1]["loss"] > 0


def test_a_run_goes_on_exactly(run: Path, tmp_path: Path) -> None:
    config = lora_run(tmp_path)
    Trainer(config).fit(until=5)
    second = Trainer(config).fit()
    assert_same_state(second.checkpoint, run / "checkpoints/step-00000008")


def test_a_run_whose_fresh_parts_learn_goes_on_exactly(tmp_path: Path) -> None:
    def config(name: str) -> TrainConfig:
        start = tiny_start(tmp_path)
        return lora_run(
            tmp_path, name=name, weights="", init_from=start, lora=LoRAConfig(rank=4), steps=4, save_every=2
        )

    whole = Trainer(config("whole")).fit()
    Trainer(config("halves")).fit(until=2)
    second = Trainer(config("halves")).fit()
    assert_same_state(second.checkpoint, whole.checkpoint)
    told = read_card(second.checkpoint).lora
    assert told is not None and "text_embed.*" in told.trained
    first, last = (load_file(whole.folder / f"checkpoints/step-0000000{step}/model.safetensors") for step in (2, 4))
    moved = {key for key, value in last.items() if not torch.equal(value, first[key]) and ".lora." not in key}
    assert moved and not any(key.startswith("backbone.blocks.") for key in moved)


def test_the_checkpoint_tells_of_its_updates_and_loads(run: Path) -> None:
    folder = run / "checkpoints/last"
    assert read_card(folder).lora == LORA
    loaded = load_folder(folder).model
    assert lora_of(loaded) == LORA and len(updates_of(loaded)) == 6
    predictor = saccade.load(folder)
    assert lora_of(predictor.model) is None  # folded: as fast as without
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert predictor.predict(picture, task="caption") is not None


def test_a_new_run_starts_from_the_folded_weights(run: Path, tmp_path: Path) -> None:
    again = Trainer(lora_run(tmp_path, name="again", lora=None, weights=str(run / "checkpoints/last"), steps=1)).fit()
    state = load_file(again.checkpoint / "model.safetensors")
    assert not any(".lora." in key for key in state)
    before = load_folder(run / "checkpoints/last").model
    fold(before)
    assert set(before.state_dict()) == set(state)
    for key, value in before.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0.05)


def test_other_updates_are_another_run(run: Path) -> None:
    config = dataclasses.replace(lora_run(run.parent.parent), lora=dataclasses.replace(LORA, rank=8))
    with pytest.raises(ConfigError, match=r"lora\.rank: 4 -> 8"):
        Trainer(config).fit()


def test_a_run_whose_config_tells_how_often_updates_count_goes_on(tmp_path: Path) -> None:
    config = lora_run(tmp_path, steps=3, save_every=2)
    run = Trainer(config).fit(until=2)
    values = run.checkpoint / STATE_VALUES
    saved = json.loads(values.read_text())
    saved["config"]["lora"]["multiplier"] = 1
    values.write_text(json.dumps(saved))
    manifest = json.loads((run.checkpoint / MANIFEST).read_text())
    told = {"sha256": hashlib.sha256(values.read_bytes()).hexdigest(), "bytes": values.stat().st_size}
    manifest["files"][STATE_VALUES] = told
    (run.checkpoint / MANIFEST).write_text(json.dumps(manifest))
    assert Trainer(config).fit().checkpoint.name.endswith("3")


def test_gsva_has_its_own(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, model=gsva_nano(), lora=LORA)
    with pytest.raises(ConfigError, match="updates of its own"):
        validate(config)
