"""Two processes that share the weights of a GSVA take the steps of one, evaluate, save and go on like one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_processes import ranks
from helpers_training import state_of, tiny_run
from safetensors import safe_open

from saccade.data.sources.scenes import ScenesSource
from saccade.errors import ConfigError, UsageError
from saccade.hub.resolve import load_model
from saccade.layers.precision import Precision
from saccade.models.gsva.config import PUBLISHED_PARTS, LoRAConfig
from saccade.recipes.gsva import nano_scenes
from saccade.samples import Sample
from saccade.tasks import Task
from saccade.training.config import TrainConfig, validate
from saccade.training.distributed import open_world
from saccade.training.evaluation import EvaluationStopped, evaluate
from saccade.training.logs import read_lines
from saccade.training.sharding import shard
from saccade.training.start import build_model
from saccade.training.trainer import Trainer


def run_of(folder: Path, **changes: Any) -> TrainConfig:
    """A small GSVA of which the published parts are trained; without dropout nothing is random."""
    recipe = nano_scenes(steps=4, size=64, images=1)
    model = recipe.model
    model.language.width, model.language.mlp_width, model.language.layers, model.language.heads = 32, 48, 2, 4
    model.clip.width, model.clip.mlp_width, model.clip.layers, model.clip.heads = 24, 32, 3, 2
    model.sam.vit.width, model.sam.vit.mlp_width, model.sam.vit.depth = 32, 48, 2
    model.lora, model.trainable = LoRAConfig(rank=4, dropout=0.0), PUBLISHED_PARTS
    val = (dataclasses.replace(recipe.val[0], limit=3, batch_size=1),)
    settings: dict[str, Any] = {
        "val": val,
        "name": "gsva",
        "out": str(folder / "runs"),
        "precision": "float32",
        "ema_decay": 0.0,
        "log_every": 1,
        "save_every": 2,
        "workers": 0,
        "device": "cpu",
        "monitor": "",
        "parallel": "shard",
        "activation_checkpointing": True,
        # Above what rounds in bf16: the usual epsilon makes whole steps of gradients that are nothing but rounding.
        "optim": dataclasses.replace(recipe.optim, eps=1e-4),
        **changes,
    }
    return dataclasses.replace(recipe, **settings)


def _train(folder: Path, changes: dict[str, Any], until: int | None) -> None:
    Trainer(run_of(folder, **changes)).fit(until=until)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_two_processes_learn_what_one_learns(tmp_path: Path, precision: Precision) -> None:
    one = Trainer(run_of(tmp_path, name="one", accumulate=2, precision=precision)).fit()
    ranks(_train, tmp_path, {"name": "two", "precision": precision}, None)
    two = tmp_path / "runs" / "two"
    found, expected = state_of(two / "checkpoints" / "last"), state_of(one.checkpoint)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-7, msg=key)
    pairs = [
        pair for pair in zip(read_lines(two), read_lines(one.folder), strict=True) if pair[0].get("loss") is not None
    ]
    assert len(pairs) == 4
    assert all(ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5) for ours, theirs in pairs)
    # Three images on two processes: none is counted twice.
    judged = [next(line for line in read_lines(run) if "metrics" in line) for run in (two, one.folder)]
    assert judged[0]["images"] == judged[1]["images"] == 3
    for name, value in judged[1]["metrics"].items():
        assert judged[0]["metrics"][name] == pytest.approx(value, abs=1e-4) or math.isnan(value)


def test_the_checkpoint_is_whole_and_holds_optimiser_state_of_what_trains(tmp_path: Path) -> None:
    ranks(_train, tmp_path, {}, 2)
    last = tmp_path / "runs" / "gsva" / "checkpoints" / "last"
    model = load_model(last).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    buffers = {"sam.prompt_encoder.gaussian"}
    with safe_open(last / "trainer.safetensors", framework="pt") as stored:
        keys = set(stored.keys())
    assert {key.removeprefix("model/") for key in keys if key.startswith("model/")} == trained | buffers
    assert {key.split("/")[1] for key in keys if key.startswith("optim/")} == trained
    assert 0 < len(trained) < len(list(model.parameters())) / 2


def test_two_processes_stop_and_go_on_exactly(tmp_path: Path) -> None:
    ranks(_train, tmp_path, {"name": "whole"}, None)
    ranks(_train, tmp_path, {"name": "parts"}, 3)
    ranks(_train, tmp_path, {"name": "parts"}, None)
    found, expected = (state_of(tmp_path / "runs" / name / "checkpoints" / "last") for name in ("parts", "whole"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


class OneAllThere(ScenesSource):
    """Scenes of which the first, and it alone, is only asked for what is there."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        masks = sample.target.masks
        assert masks is not None
        there = masks.flatten(1).any(1)
        assert not there.all()
        if index:
            return sample
        phrases = tuple(phrase for phrase, is_there in zip(sample.phrases, there, strict=True) if is_there)
        return dataclasses.replace(
            sample, phrases=phrases, target=dataclasses.replace(sample.target, masks=type(masks)(masks[there]))
        )


def _judge(folder: Path) -> None:
    """Evaluates with the weights spread over all processes: as published, cut short by one, and by free answers."""
    with open_world("cpu") as world:
        torch.manual_seed(0)
        model, _ = build_model(run_of(folder))
        shard(model, world)
        source = OneAllThere(task=Task.REFERRING, split="val", size=64, limit=4)
        found = evaluate(model, source, protocol="gsva", world=world)
        if world.is_main:
            (folder / "found.json").write_text(json.dumps(found.metrics))
        with pytest.raises(EvaluationStopped):
            evaluate(model, source, stop=lambda: world.rank == 1, world=world)
        with pytest.raises(UsageError, match="can only judge given answers"):
            evaluate(model, source, answer="own", world=world)


def test_processes_evaluate_in_step_whatever_their_pictures_are_asked(tmp_path: Path) -> None:
    """One process has a picture without a rejection: it needs no second reading, the other one does."""
    ranks(_judge, tmp_path)
    torch.manual_seed(0)
    model, _ = build_model(run_of(tmp_path))
    source = OneAllThere(task=Task.REFERRING, split="val", size=64, limit=4)
    expected = evaluate(model, source, protocol="gsva").metrics
    assert json.loads((tmp_path / "found.json").read_text()) == pytest.approx(expected, abs=1e-6)


def test_only_gsva_without_an_average_is_spread(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set parallel=replicate, or ema_decay=0"):
        validate(run_of(tmp_path, ema_decay=0.9))
    with pytest.raises(ConfigError, match="only a GSVA without averaged weights can be spread"):
        validate(tiny_run(tmp_path, parallel="shard"))
