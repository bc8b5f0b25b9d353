"""ViSFT's recipes: published values, images per step, and the whole road at the smallest scale."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from saccade.configs import from_dict, to_dict
from saccade.data.mixture import Mixture
from saccade.data.scenes import VOCABULARY
from saccade.errors import UsageError
from saccade.hub.checkpoint import load_folder
from saccade.hub.lora import merge_files
from saccade.hub.resolve import ASSETS
from saccade.layers.lora import lora_of, updates_of
from saccade.models.visft.clip import CLIPPair
from saccade.recipes import get_recipe
from saccade.recipes.visft import first_stage
from saccade.tasks import Task
from saccade.tokens.words import WordMap
from saccade.training.config import TrainConfig, validate
from saccade.training.trainer import Trainer

# Recipe: images of a step, steps, rate, checkpoints every (specs/visft.md 8).
FIRST = {
    "detection": (8, 150_000, 5e-5),
    "instance": (8, 150_000, 5e-5),
    "caption": (256, 100_000, 4e-4),
}


@pytest.mark.parametrize("size", ["g", "e"])
@pytest.mark.parametrize("head", list(FIRST))
def test_the_first_stage_as_published(head: str, size: str) -> None:
    config = get_recipe(f"visft.{head}_{size}")(processes=8)
    validate(config)
    optim = config.optim
    assert (config.accumulate * config.train[0].batch_size * 8, config.steps, optim.lr) == FIRST[head]
    assert (optim.adam, optim.schedule, optim.warmup_steps, optim.clip_norm, optim.weight_decay, optim.eps) == (
        "transformers", "transformers", 2000, 0.1, 1e-4, 1e-8
    )  # fmt: skip
    assert config.model.heads == (head,) and config.model.trained == (head,) and config.lora is None
    assert config.model.vit.depth == {"g": 40, "e": 64}[size]
    assert from_dict(TrainConfig, to_dict(config)) == config


@pytest.mark.parametrize("head", list(FIRST))
def test_fewer_gpus_read_the_same_batches_one_after_the_other(head: str) -> None:
    """Losses are means over a batch: 8 of 32 captions are not 256 of one."""
    for processes in (1, 2, 8):
        config = first_stage(head, "g", processes=processes)
        assert (config.train[0].batch_size, config.accumulate) == (FIRST[head][0] // 8, 8 // processes)
    config = first_stage(head, "g", processes=1, images=2)
    assert (config.train[0].batch_size, config.accumulate) == (2, FIRST[head][0] // 2)


@pytest.mark.parametrize("size", ["g", "e"])
def test_the_second_stage_as_published(size: str) -> None:
    config = get_recipe(f"visft.lora_{size}")(processes=8)
    validate(config)
    assert config.lora is not None and (config.lora.rank, config.lora.scale) == (64, 1 / 64)
    assert {str(s.task): (s.weight, s.batch_size * 8 * config.accumulate) for s in config.train} == {
        "caption": (0.4, 64), "instance_segmentation": (0.3, 8), "detection": (0.3, 8)
    }  # fmt: skip
    assert (config.optim.lr, config.steps, config.save_every, config.mixture) == (1e-5, 100_000, 500, "stepwise")
    assert get_recipe(f"visft.lora_{size}")().accumulate == 8
    with pytest.raises(UsageError, match="do not make a step"):
        get_recipe(f"visft.lora_{size}")(processes=16)


def test_all_batches_of_a_step_come_from_one_source() -> None:
    def plans(repeat: int, rank: int = 0, world_size: int = 1) -> list[tuple[int, tuple[int, ...]]]:
        mixture = Mixture(
            lengths=[50, 70, 90],
            weights=[0.4, 0.3, 0.3],
            batch_sizes=[2, 1, 3],
            repeat=repeat,
            seed=1,
            rank=rank,
            world_size=world_size,
        )
        return [(plan.source, plan.positions) for plan in map(mixture.plan, range(40))]

    kept = plans(4)
    steps = [kept[first : first + 4] for first in range(0, 40, 4)]
    assert all(len({source for source, _ in step}) == 1 for step in steps)
    assert [step[0][0] for step in steps] == [source for source, _ in plans(1)[:10]]
    for number in range(3):  # nothing is skipped and nothing comes twice
        positions = [position for source, each in kept if source == number for position in each]
        assert positions == list(range(len(positions)))
    # Two ranks with two batches each read what one rank reads in four.
    both = [plans(2, rank, 2) for rank in (0, 1)]
    for number in range(3):
        read = sorted(p for plan in both for source, each in plan[:20] if source == number for p in each)
        assert read == sorted(p for source, each in kept if source == number for p in each)


def test_the_bundled_words_are_those_of_scenes() -> None:
    assert WordMap.load(ASSETS / "scenes-words") == WordMap.count([VOCABULARY], least=1)


def tiny(config: TrainConfig, out: Path) -> TrainConfig:
    model = config.model
    vit = dataclasses.replace(model.vit, width=32, depth=2, heads=2, mlp_width=32, global_blocks=(0, 1))
    model = dataclasses.replace(model, vit=vit)
    train = tuple(dataclasses.replace(source, batch_size=2) for source in config.train)
    return dataclasses.replace(
        config, model=model, train=train, val=(), steps=2, out=str(out), workers=0, threads=1, device="cpu"
    )


def test_the_whole_road_of_the_nano_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pair, heads, updates; then the updates go back into the pair."""
    monkeypatch.setattr("saccade.training.logs.draw_curves", lambda *_args: None)
    pair = Trainer(tiny(get_recipe("visft.nano_clip")(), tmp_path)).fit().checkpoint
    heads = {}
    for head in FIRST:
        run = tiny(get_recipe(f"visft.nano_{head}")(backbone=str(pair)), tmp_path)
        heads[head] = str(Trainer(run).fit().checkpoint)
    last = Trainer(tiny(get_recipe("visft.nano_lora")(backbone=str(pair), **heads), tmp_path)).fit().checkpoint
    tuned = load_folder(last).model
    assert lora_of(tuned) is not None and tuned.tasks == (Task.DETECTION, Task.INSTANCE, Task.CAPTION)
    before = load_folder(pair).model
    for name, value in before.backbone.state_dict().items():
        if not name.startswith("class_"):
            assert torch.equal(value, tuned.backbone.state_dict()[name]), name
    for head, folder in heads.items():
        for name, value in load_folder(folder).model.get_submodule(head).state_dict().items():
            assert torch.equal(value, tuned.get_submodule(head).state_dict()[name]), name
    merge_files(pair, last, tmp_path / "after")
    after = load_folder(tmp_path / "after").model
    assert isinstance(after, CLIPPair) and after.vocabulary is not None and lora_of(after) is None
    layer, update = updates_of(tuned)["backbone.blocks.0.attn.qkv"]
    changed = after.backbone.blocks[0].attn.qkv.weight - layer.weight
    torch.testing.assert_close(changed[: layer.in_features], update.delta()[: layer.in_features], atol=1e-6, rtol=1e-4)
