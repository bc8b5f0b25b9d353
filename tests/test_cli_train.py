"""``saccade train``: recipes, their arguments, any leaf of the configuration; and one short run to the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.cli import main
from saccade.cli.overrides import leaves, override
from saccade.cli.train import resolve
from saccade.data.sources import READERS
from saccade.errors import ConfigError, UsageError
from saccade.recipes import RECIPES


@pytest.mark.parametrize("name", ["git.nano_scenes", "git.multi_fivetask_base", "git.few_shot_drive_base"])
def test_the_printed_configuration_of_a_recipe_can_be_typed(name: str) -> None:
    config = RECIPES[name]()
    assert override(config, leaves(config)) == config


def test_arguments_of_the_recipe_and_leaves_of_its_configuration() -> None:
    config = resolve({"recipe": "git.nano_scenes", "steps": "7", "optim.lr": "1e-5", "train.0.limit": "3"})
    assert (config.steps, config.optim.lr, config.train[0].limit) == (7, 1e-5, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "say what to train"),
        ({"recipe": "git.nano_scene"}, "did you mean 'git.nano_scenes'?"),
        ({"recipe": "git.nano_scenes", "optm.lr": "1"}, "did you mean 'optim.lr'?"),
        ({"recipe": "git.nano_scenes", "stps": "1"}, "did you mean 'steps'?"),
        ({"recipe": "git.nano_scenes", "steps": "many"}, "it takes a whole number"),
        ({"recipe": "git.nano_scenes", "train.9.limit": "1"}, "its items are train.0 to train.4"),
        ({"recipe": "finetune", "task": "detection"}, "recipe finetune needs data.root"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(changes)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_recipes_with_data_that_cannot_be_read_yet_say_so() -> None:
    with pytest.raises(ConfigError, match="drop_missing=true"):
        resolve({"recipe": "git.universal_base"})
    config = resolve({"recipe": "git.universal_base", "drop_missing": "true"})
    assert config.train
    assert all(source.reader in READERS for source in config.train)


def test_recipes_are_listed_with_their_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in RECIPES)
    assert "total_batch=24" in shown


def test_the_resolved_configuration_is_printed_and_nothing_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["recipe=git.nano_scenes", "steps=3", f"out={tmp_path / 'runs'}", "--print-config"]
    assert main(["train", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "steps=3" in lines
    assert "optim.betas=0.9,0.98" in lines
    assert not (tmp_path / "runs").exists()


def test_a_short_run_gives_a_model_that_predicts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        *("recipe=git.nano_scenes", f"out={tmp_path}", "name=short", "steps=2", "workers=0", "device=cpu", "threads=1"),
        *("model.vit.width=32", "model.vit.heads=2", "model.vit.depth=2", "model.vit.mlp_width=32"),
        *("model.vit.global_blocks=0", "monitor="),
        *(f"train.{index}.batch_size=1" for index in range(5)),
        *(f"val.{index}.{leaf}" for index in range(5) for leaf in ("limit=1", "batch_size=1")),
    ]
    file = tmp_path / "result.json"
    assert main(["train", *words, "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    result = json.loads(file.read_text())
    assert result["step"] == 2
    assert result["stopped_by"] is None
    assert result["metrics"]
    assert all(name in shown for name in result["metrics"])
    assert main(["models", "show", result["checkpoint"]]) == 0
    shown = capsys.readouterr().out
    assert "caption: scenes/train, 1,000,000,000 samples, weight 0.6" in shown
    assert "grounding: Acc@0.5" in shown
    assert main(["eval", result["checkpoint"], "--task", "grounding", "--limit", "1", "--device", "cpu"]) == 0
    assert main(["train", *words]) == 0  # the run is finished: the same command has nothing left to do
