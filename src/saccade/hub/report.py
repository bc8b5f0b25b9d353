"""Shows mapping reports and zoo entries to people, as rich tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from saccade.hub.zoo_entry import ZooEntry
from saccade.mapping import MappingReport


def mapping_table(report: MappingReport, *, every_key: bool = False, most: int = 12) -> RenderableType:
    """The report as a table of counts, and one of the keys that need a look.

    Args:
        report: What became of every key.
        every_key: List the matched keys too.
        most: Keys listed per kind, where not every key is asked for.
    """
    counts = Table(title=Path(report.source).name or None, title_justify="left", show_header=False)
    counts.add_column("kind")
    counts.add_column("keys", justify="right")
    for kind, number in report.counts().items():
        bad = number > 0 and kind in ("missing", "unexpected", "wrong_shape")
        counts.add_row(kind.replace("_", " "), Text(str(number), style="bold red" if bad else ""))

    keys = Table("kind", "key", "what", show_edge=False)
    rows = _rows(report, every_key=every_key)
    limit = len(rows) if every_key else most
    for kind in dict.fromkeys(kind for kind, _, _ in rows):
        chosen = [row for row in rows if row[0] == kind]
        for row in chosen[:limit]:
            keys.add_row(*(Text(cell) for cell in row))
        if len(chosen) > limit:
            keys.add_row(kind, f"... {len(chosen) - limit} more", "")

    parts: list[RenderableType] = [counts]
    if rows:
        parts.append(keys)
    parts.extend(Text(f"note: {note}") for note in report.notes)
    return Group(*parts)


def _rows(report: MappingReport, *, every_key: bool) -> list[tuple[str, str, str]]:
    rows = [("missing", key, "the model has it, the file does not") for key in report.missing]
    rows += [("unexpected", key, "the file has it, the model does not") for key in report.unexpected]
    rows += [
        ("wrong shape", key, f"found {list(found)}, expected {list(want)}")
        for key, (found, want) in report.wrong_shape.items()
    ]
    rows += [("resized", key, what) for key, what in report.resized.items()]
    rows += [("dropped", key, reason) for key, reason in report.dropped.items()]
    if every_key:
        rows += [("matched", source, target) for source, target in report.matched.items()]
    return rows


def zoo_table(entries: Iterable[ZooEntry], bundled: Mapping[str, str]) -> Table:
    """What ``saccade models list`` shows.

    Args:
        entries: Released weights.
        bundled: Name to one line, for the checkpoints inside the package.
    """
    table = Table("name", "kind", "tasks", "parameters", "file", "what", show_edge=False)
    for name, summary in bundled.items():
        table.add_row(name, "bundled", "", "", "inside the package", summary)
    for entry in entries:
        tasks = ", ".join(str(task).split("_", maxsplit=1)[0] for task in entry.tasks)
        table.add_row(entry.name, entry.kind, tasks, _millions(entry.parameters), entry.file, entry.summary)
    return table


def zoo_card(entry: ZooEntry) -> RenderableType:
    """What ``saccade models show NAME`` shows: the facts and the published numbers."""
    facts = Table(title=entry.name, title_justify="left", show_header=False)
    inputs = ", ".join(f"{task}: {size} px" for task, size in entry.input_sizes.items())
    rows: Sequence[tuple[str, str]] = (
        ("what", entry.summary),
        ("file", entry.source),
        ("parameters", f"{entry.parameters:,}" if entry.parameters else "not stated"),
        ("tensors", str(entry.tensors) if entry.tensors else "not stated"),
        ("float32 size", f"{entry.parameters * 4 / 2**20:,.0f} MiB" if entry.parameters else "not stated"),
        ("sha256", f"{entry.sha256_prefix}... (stated in the file name)" if entry.sha256_prefix else "not stated"),
        ("network input", inputs or "-"),
        ("licence", entry.licence),
        ("recipe", entry.recipe or "-"),
    )
    for row in rows:
        facts.add_row(*row)
    if not entry.results:
        return facts
    numbers = Table("setting", "task", "data", "metric", "published", title="published numbers", title_justify="left")
    for result in entry.results:
        metric = f"{result.metric} ({result.note})" if result.note else result.metric
        numbers.add_row(result.setting, str(result.task), result.data, metric, str(result.value))
    return Group(facts, numbers)


def _millions(parameters: int | None) -> str:
    return "" if parameters is None else f"{parameters / 1e6:,.1f} M"
