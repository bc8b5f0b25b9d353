"""The training loop: data, steps, evaluations, checkpoints, and a clean end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from saccade.configs import to_dict
from saccade.data.loader import SourceEntry, TrainLoader
from saccade.data.sources import open_source
from saccade.data.sources.base import Source
from saccade.data.sources.present import open_present
from saccade.errors import ConfigError, MissingDataError, nearest
from saccade.hub.checkpoint import save_model
from saccade.models.polar.model import PolarSegmenter
from saccade.models.systems import Model, extra_of
from saccade.samples import Batch, ClassList
from saccade.tasks import Task
from saccade.training.checkpoint import CheckpointStore, read_state, write_state
from saccade.training.config import SourceConfig, TrainConfig, keep_shares, source_labels, validate
from saccade.training.distributed import World, open_world
from saccade.training.engine import Engine
from saccade.training.evaluation import EvalResult, EvaluationStopped, evaluate
from saccade.training.logs import RunLog
from saccade.training.meter import Meter
from saccade.training.progress import TrainProgress
from saccade.training.runfolder import CHECKPOINTS, Start, locked, open_run
from saccade.training.seeding import seed_everything
from saccade.training.signals import StopRequest
from saccade.training.start import build_model, start_of, use_image_counts


@dataclass(kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        folder: The run folder.
        step: Optimiser steps done, earlier parts of a resumed run included.
        checkpoint: The last checkpoint.
        best: The checkpoint with the best monitored metric; None without ``monitor``.
        metrics: ``label/metric`` to value, of the last evaluation.
        best_step: Step of the best checkpoint.
        best_metrics: ``label/metric`` to value of the best checkpoint.
        evaluations: The last evaluation of each source, where this process made one.
        stopped_by: Name of the signal that ended the run before its last step; None otherwise.
    """

    folder: Path
    step: int
    checkpoint: Path | None
    best: Path | None
    metrics: dict[str, float]
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None
    evaluations: dict[str, EvalResult] = field(default_factory=dict)
    stopped_by: str | None = None


class Trainer:
    """Runs one :class:`~saccade.training.config.TrainConfig`, from the start or from where it was stopped.

    Under ``torchrun`` every process makes a Trainer of the same configuration.

    Args:
        config: The whole run.
        console: Where progress is shown; standard error by default.

    Raises:
        ConfigError: The configuration contradicts itself.
    """

    def __init__(self, config: TrainConfig, *, console: Console | None = None) -> None:
        validate(config)
        self.config, self.console = config, console
        self.folder = Path(config.out) / config.name

    def fit(self, *, until: int | None = None) -> TrainResult:
        """Trains until the last step, a stop signal, or ``until``.

        On SIGTERM or SIGINT the step is finished, a checkpoint is written, and the call returns normally (exit code 0);
        the same call continues the run later. Every step seeds the random generators of Python, numpy and torch.

        Args:
            until: Stop with a checkpoint after this step, as a signal would; for time slices on a shared machine.

        Raises:
            TrainingError: A loss is not finite, or another process trains in the folder.
            ConfigError: The folder holds a run of another configuration.
            CheckpointError: A checkpoint cannot be written, or all are damaged.
        """
        if self.config.threads > 0:
            torch.set_num_threads(self.config.threads)
        with ExitStack() as stack:
            stop = stack.enter_context(StopRequest())
            world = stack.enter_context(open_world(self.config.device))
            if world.is_main:
                stack.enter_context(locked(self.folder))
            run = _Run(self.config, self.folder, world, stop, self.console)
            return run.go(self.config.steps if until is None else min(until, self.config.steps))


class _Run:
    """The parts of a run and their order; lives for one call of ``fit``."""

    def __init__(
        self, config: TrainConfig, folder: Path, world: World, stop: StopRequest, console: Console | None
    ) -> None:
        self.config, self.folder, self.world, self.stop = config, folder, world, stop
        self.store = CheckpointStore(folder / CHECKPOINTS, keep=config.keep)
        start: Start = world.from_main(lambda: open_run(folder, config, self.store, processes=world.size))
        self.step = self.first_step = start.step
        self.saved_step = start.step if start.checkpoint else -1
        self.metrics: dict[str, float] = start.values.get("metrics", {})
        self.best: dict[str, Any] | None = start.values.get("best")
        if self.best is not None and self.best.get("of") != self._judged_by():
            start.notes.append("monitor or val changed: the best checkpoint is judged anew from here on")
            self.best = None
        self.evaluated_step: int = start.values.get("evaluated_step", -1)
        self.evaluations: dict[str, EvalResult] = {}
        self.train, left_out = self._open(config.train)
        if config.train and not self.train:
            raise MissingDataError("no data set of train is there", why="; ".join(left_out), fix="download one of them")
        self.train = keep_shares(config.train, self.train)
        self.val, val_left_out = self._open(config.val)
        # Of all that are named: what a metric is called does not depend on what is missing.
        self.labels = [
            label
            for named, label in zip(config.val, source_labels(config.val), strict=True)
            if any(named is source for source, _ in self.val)
        ]
        self._check_what_is_evaluated(val_left_out)
        seed_everything(config.seed)
        model, reports = build_model(config, resumed=start.checkpoint)
        use_image_counts(model, [source for _, source in self.train])
        # What is spread over processes goes to the device part by part.
        self.model: Model = model if config.parallel == "shard" and world.size > 1 else model.to(world.device)
        self.model.set_activation_checkpointing(config.activation_checkpointing)
        self.engine = Engine(self.model, config, world)
        if start.checkpoint is not None:
            tensors, _ = read_state(start.checkpoint, world.device)
            self.engine.load(tensors)
        self.log = RunLog(folder, resumed_step=start.step, tensorboard=config.tensorboard) if world.is_main else None
        self.progress = TrainProgress(steps=config.steps, done=start.step, quiet=not world.is_main, console=console)
        for text in [
            *start.notes,
            *left_out,
            *val_left_out,
            *(text for report in reports for text in (str(report), *report.notes)),
            *_skipped([source for _, source in self.train + self.val]),
            *_trains(self.model),
        ]:
            self._note(text)

    def _open(self, specs: tuple[SourceConfig, ...]) -> tuple[list[tuple[SourceConfig, Source]], list[str]]:
        """Data sets, and a warning for each that is left out because it is missing."""
        if self.config.missing == "leave_out":
            return open_present(specs)
        return [(source, open_source(source)) for source in specs], []

    def _check_what_is_evaluated(self, left_out: list[str]) -> None:
        """What a run was started for must not turn out to be missing after hours of training."""
        label = self.config.monitor.rpartition("/")[0]
        if label and label not in self.labels:
            raise MissingDataError(
                f"the data set that decides the best checkpoint is missing: {label}",
                where="monitor",
                why="; ".join(left_out),
                fix="download it, or set monitor to another one or to nothing",
            )
        if left_out and not self.val:
            if self.config.steps == 0:
                raise MissingDataError(
                    "no data set of val is there, and nothing else is to be done", why="; ".join(left_out)
                )
            left_out.append("no data set of val is there: nothing is evaluated")

    def go(self, goal: int) -> TrainResult:
        """Trains up to ``goal`` steps."""
        if self.config.steps == 0:
            return self._only_evaluate()
        loader = TrainLoader(
            [_entry(given, source, self.model) for given, source in self.train],
            seed=self.config.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            workers=self.config.workers,
            start_step=self.step * self.config.batches_per_step,
            rounds=[given.per_step for given, _ in self.train] if self.config.mixture == "together" else None,
            repeat=self.config.accumulate if self.config.mixture == "stepwise" else 1,
            mixed=self.config.mixture == "mixed",
            pin_memory=self.world.device.type == "cuda",
        )
        try:
            with self.progress:
                if self.first_step and self._evaluation_due():
                    self._close_step()  # the run was stopped in the middle of this evaluation
                if self.step < goal:
                    with closing(iter(loader)) as batches:  # closing it ends the loader's processes
                        self._train(batches, goal)
                if self.saved_step != self.step:
                    self._save()
                for reason, count in sorted(loader.redraws.items()):
                    self._note(f"{reason}: {count} samples drawn again")
                if stopped_by := self._stopped_by(goal):
                    self._note(f"stopped by {stopped_by} after step {self.step}; start the same command to go on")
        finally:
            if self.log is not None:
                self.log.close()
        return TrainResult(
            folder=self.folder,
            step=self.step,
            checkpoint=self.store.path(self.saved_step),
            best=self.store.best(),
            best_step=None if self.best is None else int(self.best["step"]),
            best_metrics=None if self.best is None else self.best["metrics"],
            metrics=self.metrics,
            evaluations=self.evaluations,
            stopped_by=self._stopped_by(goal),
        )

    def _only_evaluate(self) -> TrainResult:
        """A run without steps leaves metrics in its folder, and no checkpoint: the weights are those it was given."""
        try:
            with self.progress:
                self._evaluate()
        finally:
            if self.log is not None:
                self.log.close()
        return TrainResult(
            folder=self.folder, step=0, checkpoint=None, best=None, metrics=self.metrics, evaluations=self.evaluations
        )

    def _train(self, batches: Iterator[Batch], goal: int) -> None:
        config, meter = self.config, Meter(self.world)
        started_s = time.perf_counter()
        while self.step < goal and not self.world.any([self.stop.requested])[0]:
            before_s = time.perf_counter()
            fetched = [next(batches) for _ in range(config.batches_per_step)]
            waited_s = time.perf_counter() - before_s
            report = self.engine.step(self.step, [b.to(self.world.device, non_blocking=True) for b in fetched])
            meter.add(report, waited_s=waited_s, seconds=time.perf_counter() - before_s)
            self.step += 1
            self.progress.step(self.step)
            if self.step % config.log_every == 0 or self.step == config.steps:
                self._log(meter.flush(), started_s)
            self._close_step()

    def _close_step(self) -> None:
        """The evaluation and the checkpoint that are due after this step."""
        try:
            improved = self._evaluation_due() and self._evaluate() and self._improved()
        except Exception:
            # What was learned is not lost by an evaluation; of several processes the others may wait elsewhere.
            if self.world.size == 1 and self.saved_step != self.step:
                self._save()
            raise
        if improved or self.step == self.config.steps or self.step % self.config.save_every == 0:
            self._save(best=improved)

    def _evaluation_due(self) -> bool:
        every, last = self.config.eval_every, self.step == self.config.steps
        due = last or (every > 0 and self.step % every == 0)
        return bool(self.val) and due and self.evaluated_step != self.step

    def _stopped_by(self, goal: int) -> str | None:
        """The signal that cut the run short, if one did."""
        return self.stop.signal_name if self.step < goal or self._evaluation_due() else None

    def _log(self, values: dict[str, float], started_s: float) -> None:
        if self.log is not None:
            self.log.train(self.step, values)
        per_step_s = (time.perf_counter() - started_s) / (self.step - self.first_step)
        self.progress.numbers(self.step, values, seconds_left=per_step_s * (self.config.steps - self.step))

    def _evaluate(self) -> bool:
        """Evaluates every source of ``val``; returns whether it came to its end.

        A stop signal cuts it short; it is made up for when the run goes on.
        """
        try:
            with self.engine.weights_to_use():
                results = {label: self._evaluate_one(n, label) for n, label in enumerate(self.labels)}
        except EvaluationStopped:
            return False
        self.evaluations, self.evaluated_step = results, self.step
        self.metrics = {f"{label}/{name}": v for label, result in results.items() for name, v in result.metrics.items()}
        if self.log is not None:
            for label, result in results.items():
                self.log.evaluation(self.step, label, result.to_dict())
            self.log.draw()
        return True

    def _evaluate_one(self, number: int, label: str) -> EvalResult:
        config, source = self.val[number]
        result = evaluate(
            self.model,
            source,
            batch_size=config.batch_size,
            workers=self.config.workers,
            precision=self.config.precision,
            protocol=config.protocol,
            # As the paper validates: what the model learns is seen, whatever finds the centres later.
            centers="truth" if isinstance(self.model, PolarSegmenter) and self.model.finder is None else "own",
            progress=lambda done, total: self.progress.evaluating(label, done, total),
            stop=lambda: self.stop.requested,
            world=self.world,
            checkpoint=f"{self.config.name}, step {self.step}",
        )
        shown = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        around = f", centres: {result.stamp['centers']}" if "centers" in result.stamp else ""
        self.progress.note(f"step {self.step}  {label} on {result.images} images of {source.name}{around}: {shown}")
        return result

    def _improved(self) -> bool:
        """Whether the monitored metric is the best so far."""
        name = self.config.monitor
        if not name:
            return False
        if name not in self.metrics:
            self._save()  # what was learned is not lost by a word
            raise ConfigError(f"there is no metric '{name}'", where="monitor", fix=nearest(name, self.metrics))
        value = self.metrics[name]
        if not math.isnan(value) and (self.best is None or value > self.best["value"]):
            self.best = {"step": self.step, "value": value, "metrics": self.metrics, "of": self._judged_by()}
            return True
        return False

    def _judged_by(self) -> dict[str, Any]:
        """What the best checkpoint is the best of; another metric or other data begin anew."""
        return {"monitor": self.config.monitor, "val": [to_dict(source) for source in self.config.val]}

    def _save(self, *, best: bool = False) -> None:
        """Writes a checkpoint from the main process; a failure stops every rank."""
        weights, state = self.engine.weights(), self.engine.tensors()
        self.world.from_main(
            lambda: self.store.save(self.step, lambda folder: self._write(folder, weights, state), best=best)
        )
        self.saved_step = self.step

    def _write(self, folder: Path, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        save_model(self.model, folder, state=weights, classes=self._classes(), provenance=self._provenance())
        values = {
            "step": self.step,
            "processes": self.world.size,
            "best": self.best,
            "metrics": self.metrics,
            "evaluated_step": self.evaluated_step,
            "config": to_dict(self.config),
        }
        write_state(folder, state, values)

    def _classes(self) -> dict[Task, ClassList]:
        """The class list of each task: that of its first evaluated source, or else of its first training source."""
        classes: dict[Task, ClassList] = {}
        for _, source in self.val + self.train:
            if source.classes is not None:
                classes.setdefault(source.task, source.classes)
        return classes

    def _provenance(self) -> dict[str, Any]:
        config = self.config
        return {
            "run": config.name,
            "step": self.step,
            "steps": config.steps,
            "seed": config.seed,
            "processes": self.world.size,
            "precision": config.precision,
            "averaged_weights": config.ema_decay,
            "start": start_of(config),
            **{name: source for name in ("mask_vqvae", "depth_vqvae", "finder") if (source := getattr(config, name))},
            "data": [
                {"task": str(source.task), "name": source.name, "samples": len(source), "weight": given.weight}
                for given, source in self.train
            ],
            "metrics": self.metrics,
        }

    def _note(self, text: str) -> None:
        self.progress.note(text)
        if self.log is not None:
            self.log.event(self.step, text)


def _entry(config: SourceConfig, source: Source, model: Model) -> SourceEntry:
    return SourceEntry(
        source=source,
        preprocess=model.preprocess(config.task),
        augment=config.augment,
        weight=config.weight,
        batch_size=config.batch_size,
        extra=extra_of(model),
    )


def _trains(model: Model) -> list[str]:
    """How many parameters are trained, where it is not all of them."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained, total = sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)
    return [f"{trained:,} of {total:,} parameters are trained"] if trained < total else []


def _skipped(sources: list[Source]) -> list[str]:
    return [
        f"{source.name}: {count} left out ({reason})" for source in sources for reason, count in source.skipped.items()
    ]
