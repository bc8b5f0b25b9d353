"""What every suite is given and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from saccade.errors import UsageError
from saccade.layers.precision import Precision

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(kw_only=True, frozen=True)
class SuiteOptions:
    """How a suite is run.

    Attributes:
        root: Folder of the test data.
        train_root: Folder of the data that a probe is trained on; None = the same.
        limit: Only so many test pictures (0 = all).
        train_limit: Only so many training pictures (0 = all).
        batch_size: Pictures per forward pass.
        workers: Loader processes.
        precision: Arithmetic of the tower.
        cache: Folder in which features of pictures are kept, so that a run goes on where it was stopped; None = they
            are not kept.
        probe: File of a trained probe: read where it exists, written where it does not; None = trained every time.
        steps: Updates of a probe (0 = as many as the suite says).
        learning_rate: Of a probe (0 = as the suite says).
        language: Folder of a language model.
        seed: Of everything that is drawn.
        progress: Told how far it is.
    """

    root: Path
    train_root: Path | None = None
    limit: int = 0
    train_limit: int = 0
    batch_size: int = 32
    workers: int = 0
    precision: Precision = "float32"
    cache: Path | None = None
    probe: Path | None = None
    steps: int = 0
    learning_rate: float = 0.0
    language: Path | None = None
    seed: int = 0
    progress: Progress = silent


@dataclass(kw_only=True)
class SuiteResult:
    """What a suite found, and how.

    Attributes:
        metrics: Name to value, 0..1 unless its name says otherwise.
        items: How many were tested: pictures, boxes or questions.
        notes: What a reader of the numbers must know of this run.
        left_out: What was left out of the test data, and how often.
        stamp: The rest of how the numbers came about; filled by :func:`saccade.suites.run_suite`.
    """

    metrics: dict[str, float]
    items: int
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    stamp: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "metrics": self.metrics,
            "items": self.items,
            "notes": self.notes,
            "left_out": self.left_out,
            **self.stamp,
        }


def training_root(options: SuiteOptions, *, what: str) -> Path:
    """The folder that a probe is trained on.

    Raises:
        UsageError: It is not given, and the test data has no training part.
    """
    if options.train_root is None:
        raise UsageError(f"the probe has to be trained on {what}", fix="--train-root DIR (or --probe FILE, if it is)")
    return options.train_root
