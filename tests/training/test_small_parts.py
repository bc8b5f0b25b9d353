"""Averages, seeds, signals, logs, progress lines and the checks of a configuration."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from saccade.errors import CheckpointError, ConfigError, TrainingError
from saccade.models.git.presets import nano
from saccade.tasks import Task
from saccade.training.config import SourceConfig, TrainConfig, source_labels, validate
from saccade.training.distributed import World, resolve_device
from saccade.training.ema import WeightAverage
from saccade.training.engine import StepReport
from saccade.training.logs import RunLog, read_lines
from saccade.training.meter import Meter
from saccade.training.progress import TrainProgress, duration
from saccade.training.runfolder import locked
from saccade.training.seeding import seed_everything
from saccade.training.signals import StopRequest


def test_weight_average_follows_its_formula() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = WeightAverage(model, decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 3.0, -2.0]):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.tensors()["weight"], torch.full((1, 2), expected))
    with average.swapped_in():
        torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), expected))
    assert torch.equal(model.weight.detach(), torch.full((1, 2), -2.0))
    with pytest.raises(CheckpointError, match="do not fit"):
        average.load({"other": torch.zeros(1)})


def test_seeds_depend_on_every_number() -> None:
    def draw(*entropy: int) -> tuple[float, float, float]:
        seed_everything(*entropy)
        return float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002

    assert draw(0, 5, 1) == draw(0, 5, 1)
    draws = [draw(0, 5, 1), draw(1, 5, 1), draw(0, 6, 1), draw(0, 5, 0)]
    for column in zip(*draws, strict=True):
        assert len(set(column)) == 4


def test_a_signal_becomes_a_flag_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_log_is_trimmed_on_resume_and_survives_a_cut_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.train(10, {"loss": 2.0, "a/total": 2.0})
    log.train(20, {"loss": 1.0, "b/total": 1.0})
    log.evaluation(20, "detection", {"metrics": {"AP": 0.5, "AR": float("nan")}, "images": 3})
    log.train(30, {"loss": 0.5, "a/total": 0.5})
    log.close()
    assert Image.open(tmp_path / "curves.png").size == (1200, 500)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 4')  # killed in the middle of a line
    resumed = RunLog(tmp_path, resumed_step=20)
    resumed.train(30, {"loss": 0.25, "a/total": 0.25})
    lines = read_lines(tmp_path)
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 10),
        ("train", 20),
        ("eval", 20),
        ("train", 30),
    ]
    assert lines[2]["metrics"] == {"AP": 0.5, "AR": None}
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["10", "20", "30"]
    assert rows[2] == {"step": "30", "loss": "0.25", "a/total": "0.25", "b/total": ""}


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path, tensorboard=True)
    log.train(1, {"loss": 2.0})
    log.close()
    assert any((tmp_path / "tensorboard").iterdir())


def test_meter_averages_over_the_interval() -> None:
    meter = Meter(World())
    for value in (1.0, 3.0):
        losses = [("detection", {"detection_loss_cls": value, "total": value})]
        report = StepReport(losses=losses, images=4, grad_norm=value, lr=0.1)
        meter.add(report, waited_s=0.5, seconds=2.0)
    values = meter.flush()
    assert values["loss"] == 2.0
    assert values["detection/loss_cls"] == 2.0
    assert values["images_per_s"] == 2.0
    assert values["data_wait"] == 0.25
    assert values["grad_norm"] == 2.0
    assert 0.01 < values["memory_gb"] < 1000


def test_progress_is_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    values = {
        "loss": 2.5,
        "detection/total": 2.5,
        "lr": 1e-4,
        "images_per_s": 10.0,
        "data_wait": 0.03,
        "memory_gb": 1.2,
    }
    with TrainProgress(steps=10, console=Console(file=out, width=300)) as progress:
        progress.step(5)
        progress.numbers(5, values, seconds_left=61)
        progress.evaluating("detection", 1, 2)
    assert out.getvalue() == (
        "step 5/10  loss 2.500  lr 1.00e-04  10.0 img/s  data 3%  1.2 GB  left 0:01:01  [detection 2.500]\n"
    )
    assert duration(3723) == "1:02:03"
    shown = io.StringIO()
    with TrainProgress(steps=10, console=Console(file=shown, force_terminal=True, width=120)) as progress:
        progress.step(5)
        progress.numbers(5, values, seconds_left=61)
    assert "5/10" in shown.getvalue()
    assert "loss 2.500" in shown.getvalue()


def test_a_second_trainer_is_kept_out(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(TrainingError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


DETECTION = SourceConfig(task=Task.DETECTION, reader="scenes")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"steps": 0}, "steps"),
        ({"keep": 0}, "keep"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"name": "../x"}, "name"),
        ({"name": ""}, "name"),
        ({"train": ()}, "train"),
        ({"weights": "a", "init_from": "b"}, "weights, init_from"),
        ({"train": (dataclasses.replace(DETECTION, weight=0.0),)}, "train"),
        ({"train": (dataclasses.replace(DETECTION, batch_size=0),)}, "train.0"),
        ({"monitor": "detection/AP"}, "monitor"),
        ({"val": (DETECTION,), "monitor": "caption/CIDEr"}, "monitor"),
        ({"model": dataclasses.replace(nano(), detection=None)}, "train.0.task"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], where: str) -> None:
    config = TrainConfig(name="run", model=nano(), train=(DETECTION,), steps=1)
    validate(config)
    with pytest.raises(ConfigError) as caught:
        validate(dataclasses.replace(config, **change))
    assert caught.value.where == where


def test_labels_name_the_source_where_a_task_has_several() -> None:
    ground = [SourceConfig(task=Task.GROUNDING, reader="refcoco", annotations=f"{n}/refs.p", split="val") for n in "ab"]
    assert source_labels((DETECTION, *ground)) == ["detection", "grounding[refs:val]#0", "grounding[refs:val]#1"]
    assert source_labels((DETECTION,)) == ["detection"]


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="unknown device"):
        resolve_device("tpux")
    if not torch.cuda.is_available():
        assert resolve_device("auto") == torch.device("cpu")
        with pytest.raises(ConfigError, match="no GPU"):
            resolve_device("cuda")
