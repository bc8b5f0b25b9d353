"""The trainer as processes: killed in the middle of a save, asked to stop from outside, and two ranks."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_processes import finish, ranks, run
from helpers_training import assert_same_state, scenes, state_of, tiny_run
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from saccade.data.mask_crops import MaskCropAugment
from saccade.errors import TrainingError
from saccade.layers.distributed import mean_over_ranks
from saccade.models.ait.vqvae import MapVQVAEConfig
from saccade.samples import Batch, Origin
from saccade.tasks import Task
from saccade.tokens.codebook import CodebookConfig, VQVAEConfig
from saccade.training import checkpoint
from saccade.training import trainer as trainer_module
from saccade.training.config import OptimConfig, SourceConfig, TrainConfig
from saccade.training.distributed import World, open_world
from saccade.training.engine import Engine
from saccade.training.logs import read_lines
from saccade.training.trainer import Trainer

# ---------------------------------------------------------------------------------------------- SIGKILL in a save


def _die(*_args: object, **_kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_in_the_save_of_step_8(folder: Path, moment: str) -> None:
    """Kills itself at the given moment of the second save."""
    write_state = trainer_module.write_state

    def arm(target: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        if values["step"] != 8:
            write_state(target, tensors, values)
        elif moment == "half a file":
            write_state(target, tensors, values)
            file = target / checkpoint.STATE_TENSORS
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            _die()
        else:
            write_state(target, tensors, values)
            patched = {"before the manifest": "_write_manifest", "before the pointer": "_flush_folder"}
            if moment in patched:
                setattr(checkpoint, patched[moment], _die)
            else:
                Path.rename = _die  # type: ignore[assignment,method-assign]

    trainer_module.write_state = arm
    Trainer(tiny_run(folder)).fit()


@pytest.mark.parametrize("moment", ["half a file", "before the manifest", "before the rename"])
def test_a_kill_in_the_middle_of_a_save_loses_nothing(tmp_path: Path, last_state: Path, moment: str) -> None:
    assert finish(run(_killed_in_the_save_of_step_8, tmp_path, moment)) == [-signal.SIGKILL]
    folder = tmp_path / "runs" / "tiny" / "checkpoints"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000004"]
    assert list(folder.glob(".*")), "the kill came too late"
    result = Trainer(tiny_run(tmp_path)).fit()
    assert_same_state(result.checkpoint, last_state)
    assert not list(folder.glob(".*"))


def _train(folder: Path, changes: dict[str, Any]) -> None:
    multiprocessing.set_start_method(
        "fork", force=True
    )  # for loader processes; a child of a server inherits its method
    Trainer(tiny_run(folder, **changes)).fit()


def test_a_kill_at_any_time_loses_nothing(tmp_path: Path, last_state: Path) -> None:
    for delay_s in (0.15, 0.4, 0.8):
        process = run(_train, tmp_path, {"save_every": 1})
        log = tmp_path / "runs" / "tiny" / "metrics.jsonl"
        while process.is_alive() and not log.exists():
            time.sleep(0.01)
        time.sleep(delay_s)
        process.kill()
        assert finish(process)[0] in (-signal.SIGKILL, 0)
    assert_same_state(Trainer(tiny_run(tmp_path, save_every=1)).fit().checkpoint, last_state)


# ---------------------------------------------------------------------------------------------- SIGTERM from outside


def _train_in_a_group(folder: Path, changes: dict[str, Any]) -> None:
    os.setsid()
    _train(folder, changes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_with_a_checkpoint_and_exit_code_0(tmp_path: Path, number: int) -> None:
    changes = {"steps": 100_000, "log_every": 1, "save_every": 100_000, "workers": 1}
    process = run(_train_in_a_group, tmp_path, changes)
    folder = tmp_path / "runs" / "tiny"
    end_s = time.monotonic() + 60
    while len(read_lines(folder)) < 3 and process.is_alive() and time.monotonic() < end_s:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    assert finish(process) == [0]
    last = read_lines(folder)[-1]
    assert last["text"].startswith(f"stopped by {signal.Signals(number).name} after step {last['step']}")
    found = checkpoint.CheckpointStore(folder / "checkpoints", keep=1).newest()
    assert found.folder is not None
    assert found.folder.name == f"step-{last['step']:08d}"


# ---------------------------------------------------------------------------------------------- two ranks


class Mean(nn.Module):
    """Its loss is a mean over the batch; the batch's task decides which branch is used; dropout draws per batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.shared = nn.Linear(3, 4)
        self.branches = nn.ModuleDict(
            {"detection": nn.Linear(4, 1), "caption": nn.Linear(4, 1), "grounding": nn.Linear(4, 1)}
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        hidden = torch.dropout(self.shared(batch.images.mean(dim=(2, 3))), 0.5, True)
        return {"loss": self.branches[str(batch.task)](hidden).square().mean()}


def _toy_batches() -> list[list[Batch]]:
    """Two batches for each of three steps: of one task, of two tasks, of one task."""
    generator = torch.Generator().manual_seed(0)
    tasks = [(Task.DETECTION, Task.DETECTION), (Task.CAPTION, Task.DETECTION), (Task.CAPTION, Task.CAPTION)]
    origin = Origin(dataset="toy", image_id=0, path=None, size_hw=(4, 4))
    return [
        [
            Batch(
                images=torch.randn(2, 3, 4, 4, generator=generator),
                task=task,
                origins=[origin] * 2,
                input_sizes_hw=[(4, 4)] * 2,
            )
            for task in pair
        ]
        for pair in tasks
    ]


def _toy_steps(out: Path, config: TrainConfig) -> None:
    with open_world("cpu") as world:
        engine = Engine(Mean(), config, world)
        for index, pair in enumerate(_toy_batches()):
            engine.step(index, pair if world.size == 1 else [pair[world.rank]])
        save_file({k: v.clone() for k, v in engine.tensors().items()}, out / f"{world.size}-{world.rank}.safetensors")


def test_two_ranks_take_the_steps_of_one_process_that_accumulates(tmp_path: Path) -> None:
    optim = OptimConfig(lr=1e-2, weight_decay=0.5, clip_norm=0.1)
    config = tiny_run(tmp_path, optim=optim, accumulate=2)
    _toy_steps(tmp_path, config)
    ranks(_toy_steps, tmp_path, config)
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert one.keys() == first.keys() == second.keys()
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-6, atol=1e-8, msg=key)
    # What no rank used has no optimiser state and was not decayed; what was used in one step only was left alone after.
    fresh = Mean().state_dict()
    assert torch.equal(one["model/branches.grounding.weight"], fresh["branches.grounding.weight"])
    assert not any(key.startswith("optim/branches.grounding") for key in one)
    assert one["optim/branches.caption.weight/step"] == 2
    assert one["optim/shared.weight/step"] == 3


class MeanOverTargets(Mean):
    """Its loss is a mean over targets (over all ranks); a batch has as many as its images say."""

    def count_targets(self, batch: Batch) -> int:
        return int(batch.origins[0].image_id)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        said = self.branches[str(batch.task)](self.shared(batch.images.mean(dim=(2, 3))))
        return {"loss": said.square().sum() / mean_over_ranks(self.count_targets(batch), said)}


def _counted_step(out: Path, config: TrainConfig) -> None:
    batches = [
        dataclasses.replace(batch, task=Task.CAPTION, origins=[dataclasses.replace(batch.origins[0], image_id=count)])
        for batch, count in zip([batch for pair in _toy_batches() for batch in pair], (1, 50, 7, 3), strict=False)
    ]
    with open_world("cpu") as world:
        engine = Engine(MeanOverTargets(), config, world)
        engine.step(0, batches[world.rank :: world.size])
        gradients = {name: p.grad for name, p in engine.model.named_parameters() if p.grad is not None}
        save_file(gradients, out / f"{world.size}-{world.rank}.safetensors")


def test_a_mean_over_targets_is_one_however_many_ranks_and_batches_share_them(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, optim=OptimConfig(clip_norm=0.0))
    _counted_step(tmp_path, config)
    ranks(_counted_step, tmp_path, config)
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert one.keys() == first.keys() == second.keys()
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-8, msg=key)


def _toy_poisoned(out: Path, config: TrainConfig) -> None:
    with open_world("cpu") as world:
        engine = Engine(Mean(), config, world)
        batch = _toy_batches()[0][world.rank]
        if world.rank == 1:
            batch.images[0] = torch.nan
        try:
            engine.step(0, [batch])
        except TrainingError as error:
            (out / f"{world.rank}.txt").write_text(str(error))


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_names_it(tmp_path: Path) -> None:
    ranks(_toy_poisoned, tmp_path, tiny_run(tmp_path))
    for rank in range(2):
        text = (tmp_path / f"{rank}.txt").read_text()
        assert "the loss is not finite at step 1" in text
        assert "rank 1, detection from toy" in text
        assert "rank 0" not in text


def test_two_ranks_train_git_like_one_process_with_twice_the_batch(tmp_path: Path) -> None:
    def settings(batch_size: int) -> dict[str, Any]:
        # Captions draw no grid points, so that without dropout nothing is random.
        return {"train": (scenes(Task.CAPTION, batch_size=batch_size),), "model": _still_model(), "log_every": 3}

    one = Trainer(tiny_run(tmp_path, name="one", **settings(4))).fit()
    ranks(_train, tmp_path, {"name": "two", **settings(2)})
    two = tmp_path / "runs" / "two"
    found, expected = state_of(two / "checkpoints" / "last"), state_of(one.checkpoint)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=2e-5, msg=key)
    lines = zip(read_lines(two), read_lines(one.folder), strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-4) for a, b in lines)


def _still_model() -> Any:
    model = tiny_run(Path("/tmp")).model
    model.text_dropout = model.vit.drop_path = 0.0
    return model


def test_two_ranks_stop_and_resume_exactly(tmp_path: Path) -> None:
    ranks(_fit_until, tmp_path, "whole", None)
    ranks(_fit_until, tmp_path, "parts", 5)
    ranks(_fit_until, tmp_path, "parts", None)
    runs = tmp_path / "runs"
    assert_same_state(runs / "parts" / "checkpoints" / "last", runs / "whole" / "checkpoints" / "last")


def _fit_until(folder: Path, name: str, until: int | None) -> None:
    Trainer(tiny_run(folder, name=name)).fit(until=until)


@pytest.mark.parametrize("sync", [True, False])
def test_two_ranks_learn_one_codebook_and_resume_exactly(tmp_path: Path, sync: bool) -> None:
    ranks(_fit_codebook, tmp_path, "whole", sync, None)
    ranks(_fit_codebook, tmp_path, "parts", sync, 3)
    ranks(_fit_codebook, tmp_path, "parts", sync, None)
    first, second, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole-0", "whole-1", "parts-1"))
    saved = load_file(tmp_path / "runs/whole/checkpoints/last/model.safetensors")
    for key, value in first.items():
        assert torch.equal(value, second[key]) and torch.equal(value, saved[key]), key
        assert torch.equal(value, parts[key]), key


class _Kept(Engine):
    """The engine of the last run of this process."""

    last: Engine

    def __init__(self, model: nn.Module, config: TrainConfig, world: World) -> None:
        super().__init__(model, config, world)
        _Kept.last = self


def _fit_codebook(folder: Path, name: str, sync: bool, until: int | None) -> None:
    trainer_module.Engine = _Kept
    codebook = CodebookConfig(codes=8, width=4, revive_below=0.1, sync=sync)
    vqvae = VQVAEConfig(size=16, downsample=8, base_width=2, residual_blocks=1, codebook=codebook)
    source = SourceConfig(task=Task.INSTANCE, reader="scenes", size=64, batch_size=4, augment=MaskCropAugment())
    config = tiny_run(
        folder,
        name=name,
        vocabulary="",
        model=MapVQVAEConfig(vqvae=vqvae),
        train=(source,),
        initialise="local",
        steps=5,
        accumulate=2,
        save_every=5,
        ema_decay=0.0,
    )
    Trainer(config).fit(until=until)
    rank = os.environ["RANK"]
    buffers = {key: value.clone() for key, value in _Kept.last.model.named_buffers()}
    save_file(buffers, folder / f"{name}-{rank}.safetensors")
