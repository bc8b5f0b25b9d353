"""Live progress: a bar on a terminal, plain lines elsewhere, nothing on the ranks that do not speak."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_DESCRIBED = ("loss", "lr", "images_per_s", "data_wait", "memory_gb")


class TrainProgress:
    """Shows a run while it goes.

    Args:
        steps: Steps of the run.
        done: Steps done before (resume).
        quiet: Show nothing.
        console: Where to write; standard error by default, so that standard output stays for results.
    """

    def __init__(self, *, steps: int, done: int = 0, quiet: bool = False, console: Console | None = None) -> None:
        self.steps, self.quiet = steps, quiet
        self.console = console or Console(stderr=True, highlight=False)
        self._eval_task: TaskID | None = None
        self._bars: Progress | None = None
        if not quiet and self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self.console,
            )
            self._train_task = self._bars.add_task("train", total=steps, completed=done, numbers="")

    def __enter__(self) -> TrainProgress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def step(self, done: int) -> None:
        """Moves the bar."""
        if self._bars is not None:
            self._bars.update(self._train_task, completed=done)

    def numbers(self, done: int, values: dict[str, float], *, seconds_left: float) -> None:
        """Shows the means of a logging interval.

        Args:
            done: Steps done.
            values: What :meth:`saccade.training.meter.Meter.flush` gave.
            seconds_left: Estimate for the rest of the run.
        """
        if self._bars is not None:
            self._bars.update(self._train_task, numbers=describe(values))
        elif not self.quiet:
            losses = ", ".join(
                f"{key.removesuffix('/total')} {value:.3f}" for key, value in values.items() if key.endswith("/total")
            )
            self.note(f"step {done}/{self.steps}  {describe(values)}  left {duration(seconds_left)}  [{losses}]")

    def evaluating(self, label: str, done: int, total: int) -> None:
        """Shows the progress of an evaluation; plain output shows only its result."""
        if self._bars is None:
            return
        if self._eval_task is None:
            self._eval_task = self._bars.add_task(f"eval {label}", total=total, numbers="")
        self._bars.update(self._eval_task, completed=done)
        if done >= total:
            self._bars.remove_task(self._eval_task)
            self._eval_task = None

    def note(self, text: str) -> None:
        """Writes one line."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)


def describe(values: dict[str, Any]) -> str:
    """One line for the numbers that matter: ``loss 3.21  lr 1.9e-04  41 img/s  data 3 %  1.2 GB``."""
    loss, rate, speed, wait, memory = (values[key] for key in _DESCRIBED)
    return f"loss {loss:.3f}  lr {rate:.2e}  {speed:.1f} img/s  data {wait:.0%}  {memory:.1f} GB"


def duration(seconds: float) -> str:
    """``1:02:03`` for 3723 seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
