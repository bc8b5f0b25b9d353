"""What goes to the screen: results to stdout, progress to stderr, and the same for machines as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

PLAIN_SECONDS = 10.0
"""Least time between two plain progress lines where there is no terminal."""


def out() -> Console:
    """The console of results."""
    return Console(highlight=False, soft_wrap=True)


def err() -> Console:
    """The console of progress and warnings."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Prints a line of results as it is, without markup."""
    out().print(text, markup=False)


def note(text: str) -> None:
    """Prints a remark or a warning to stderr as it is."""
    err().print(text, markup=False)


def show(renderable: RenderableType) -> None:
    """Prints a table. Without a terminal it is as wide as its content: nothing is cut off in a log or a pipe."""
    console = out()
    if not console.is_terminal:
        unlimited = Console(highlight=False, width=10_000)
        console = Console(highlight=False, width=max(unlimited.measure(renderable).maximum, 1))
    console.print(renderable)


def table(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> None:
    """Prints rows under their keys; columns of numbers stand to the right."""
    if not rows:
        return
    if title:
        say(title)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for key in rows[0]:
        numeric = all(isinstance(row[key], int | float) or row[key] is None for row in rows)
        grid.add_column(Text(key), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row.values()))
    show(grid)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


class Steps:
    """Shows how far something is: a bar on a terminal, a line now and then elsewhere.

    Args:
        label: What is being done.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._last = time.monotonic()
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        console = err()
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Steps:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` are done."""
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self._label, total=total)
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._last > PLAIN_SECONDS:
            self._last = time.monotonic()
            note(f"{self._label}: {done}/{total}")


def progress(items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
    """Passes the items on and shows how many have passed.

    Args:
        items: What to pass on.
        total: How many there are.
        label: What is being done.
    """
    with Steps(label) as steps:
        for done, item in enumerate(items, start=1):
            yield item
            steps.update(done, total)


def write_json(path: Path | None, content: Any) -> None:
    """Writes the content of the screen for machines; does nothing without a path.

    Args:
        path: The file, or None.
        content: Plain values; NaN becomes null, because JSON has no NaN.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    note(f"wrote {path}")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
