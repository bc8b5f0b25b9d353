"""The folder of a run: its resolved configuration, its lock, and the decision to start or to go on."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.configs import differences, from_dict, to_dict
from saccade.errors import ConfigError, TrainingError
from saccade.layers.lora import without_multiplier
from saccade.training.checkpoint import STATE_VALUES, CheckpointStore
from saccade.training.config import TrainConfig

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"

HARMLESS = (
    "name",
    "out",
    "resume",
    "steps",
    "val",
    "activation_checkpointing",
    "workers",
    "threads",
    "log_every",
    "eval_every",
    "save_every",
    "keep",
    "monitor",
    "tensorboard",
    "device",
)
"""Fields that may change between a stop and a resume: they change where and how a run goes, not what it learns.

``steps`` is among them, so that a run can be prolonged; a cosine then continues on the curve of the new length.
"""


@dataclass(kw_only=True)
class Start:
    """Where a run begins.

    Attributes:
        step: Optimiser steps done.
        checkpoint: The whole checkpoint to continue from; None for a new run.
        values: What the trainer stored beside the tensors.
        notes: What the user should know: damaged checkpoints passed over, changed harmless settings.
    """

    step: int = 0
    checkpoint: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def open_run(folder: Path, config: TrainConfig, store: CheckpointStore, *, processes: int) -> Start:
    """Decides whether the run starts anew or goes on, and writes its resolved configuration.

    Args:
        folder: The run folder.
        config: The configuration asked for.
        store: The run's checkpoints.
        processes: Processes of this run.

    Raises:
        ConfigError: ``resume=never`` and the folder holds a run, or the stored configuration differs in what is
            learned; the message lists every differing key.
        CheckpointError: There are checkpoints and all of them are damaged.
    """
    start = Start()
    if config.resume == "never" and (folder / CONFIG).exists():
        raise ConfigError(
            "the run folder exists already",
            where=folder,
            fix="choose another name=..., remove the folder, or continue it with resume=auto",
        )
    found = store.newest()
    for damaged, reason in found.damaged:
        aside = store.set_aside(damaged)
        start.notes.append(f"checkpoint {damaged.name} is damaged ({reason}); it is kept as {aside.name} and not used")
    if found.folder is not None:
        values = json.loads((found.folder / STATE_VALUES).read_text(encoding="utf-8"))
        start.checkpoint, start.values, start.step = found.folder, values, int(values["step"])
        start.notes += _compare(values, to_dict(config), processes, folder)
        start.notes.append(f"resumed after step {start.step} from {found.folder}")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{CONFIG}.tmp"
    partial.write_text(json.dumps(to_dict(config), indent=1), encoding="utf-8")
    partial.replace(folder / CONFIG)
    return start


def _compare(values: dict[str, Any], config: dict[str, Any], processes: int, folder: Path) -> list[str]:
    changed = differences(_completed(values["config"]), config)
    harmful = {key: pair for key, pair in changed.items() if key.split(".", 1)[0] not in HARMLESS}
    if harmful:
        shown = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in harmful.items())
        raise ConfigError(
            f"the run in this folder was started with another configuration ({len(harmful)} keys differ)",
            where=folder,
            why=shown,
            fix="use the same values to resume, or another name=... for a new run",
        )
    notes = [f"{key} changed from {old!r} to {new!r}" for key, (old, new) in changed.items()]
    if values["processes"] != processes:
        notes.append(
            f"the run was saved with {values['processes']} processes and goes on with {processes}: "
            "images per step and data order differ from here on"
        )
    return notes


def _completed(saved: dict[str, Any]) -> dict[str, Any]:
    """A configuration that an earlier version wrote, with the fields that it did not know at their defaults."""
    if saved.get("lora"):
        saved = {**saved, "lora": without_multiplier(saved["lora"])}
    try:
        return to_dict(from_dict(TrainConfig, saved))
    except ConfigError:  # a field has gone, or was renamed: the difference is for the user to see
        return saved


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second trainer out of a run folder while the context is open.

    Raises:
        TrainingError: Another process trains in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                "another process is training in this run folder",
                where=folder,
                fix="wait for it, stop it, or choose another name=...",
            ) from error
        yield
