"""The logs of a run folder: ``metrics.jsonl``, ``log.csv``, ``curves.png``, and TensorBoard events where asked."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from saccade.errors import require

LINES = "metrics.jsonl"
TABLE = "log.csv"
CURVES = "curves.png"


class RunLog:
    """Appends to the logs of one run folder; every line is on its way to the disk when a call returns.

    ``metrics.jsonl`` holds one object per line with ``kind`` (``train``, ``eval`` or ``event``) and ``step``;
    ``log.csv`` is the table of the ``train`` lines. After a resume the lines past the resumed step are dropped, so
    that the logs are those of an uninterrupted run.

    Args:
        folder: The run folder.
        resumed_step: Optimiser steps done at the start; 0 for a new run.
        tensorboard: Write TensorBoard events to ``folder/tensorboard``.

    Raises:
        MissingExtraError: ``tensorboard`` without the extra ``track``.
    """

    def __init__(self, folder: Path, *, resumed_step: int = 0, tensorboard: bool = False) -> None:
        self.folder = folder
        self._columns: list[str] = []
        self._writer: Any = None
        if tensorboard:
            require("tensorboard", extra="track", purpose="tensorboard=True")
            module = require("torch.utils.tensorboard", extra="track", purpose="tensorboard=True")
            self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)
        lines = [line for line in read_lines(folder) if line["step"] <= resumed_step] if resumed_step else []
        _replace(folder / LINES, "".join(json.dumps(line) + "\n" for line in lines))
        self._write_table()

    def train(self, step: int, values: dict[str, float]) -> None:
        """Logs the means of an interval that ends at ``step``."""
        self._append({"kind": "train", "step": step, **values})
        if any(key not in self._columns for key in values):
            self._write_table()
        else:
            with (self.folder / TABLE).open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow({"step": step, **values})
        self._scalars(step, {f"train/{key}": value for key, value in values.items()})

    def evaluation(self, step: int, label: str, result: dict[str, Any]) -> None:
        """Logs one evaluation.

        Args:
            step: Optimiser steps done.
            label: Name of the source.
            result: :meth:`saccade.training.evaluation.EvalResult.to_dict`; its ``metrics`` are drawn.
        """
        metrics = result["metrics"]
        self._append({"kind": "eval", "step": step, "source": label, **result})
        self._scalars(step, {f"val/{label}/{key}": value for key, value in metrics.items()})

    def event(self, step: int, text: str) -> None:
        """Logs something that happened once: a resume, a stop, a damaged checkpoint."""
        self._append({"kind": "event", "step": step, "text": text})

    def draw(self) -> None:
        """Draws all curves into ``curves.png``."""
        draw_curves(read_lines(self.folder), self.folder / CURVES)

    def close(self) -> None:
        """Draws the curves and closes the TensorBoard writer."""
        self.draw()
        if self._writer is not None:
            self._writer.close()

    def _append(self, line: dict[str, Any]) -> None:
        with (self.folder / LINES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line)) + "\n")

    def _write_table(self) -> None:
        rows = [line for line in read_lines(self.folder) if line["kind"] == "train"]
        self._columns = list(dict.fromkeys(["step", *(key for row in rows for key in row if key != "kind")]))
        path = self.folder / f".{TABLE}.tmp"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        path.replace(self.folder / TABLE)

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(key, value, step)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; a last line that a kill cut short is left out."""
    path = folder / LINES
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draws the total loss of every task (left) and every evaluated metric in 0..1 or 0..100 (right) over the steps.

    Args:
        lines: What :func:`read_lines` gave.
        path: The PNG to write.
    """
    # Imported here: matplotlib takes longer to load than a short run of anything else.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses: dict[str, list[tuple[int, float]]] = defaultdict(list)
    metrics: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in lines:
        if line["kind"] == "train":
            for key, value in line.items():
                if key.endswith("/total") and value is not None:
                    losses[key.removesuffix("/total")].append((line["step"], value))
        elif line["kind"] == "eval":
            for key, value in line["metrics"].items():
                if value is not None:
                    metrics[f"{line['source']}/{key}"].append((line["step"], value))
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("loss", losses, "-"), ("metric", metrics, "o-"))
    for axes, (name, curves, style) in zip(figure.subplots(1, 2), panels, strict=True):
        for key, points in sorted(curves.items()):
            axes.plot(*zip(*points, strict=True), style, label=key, linewidth=1.2, markersize=3)
        axes.set(xlabel="step", ylabel=name)
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(fontsize=7).set_in_layout(False)  # a long one may cover the curves, never squeeze them out
    partial = path.with_name(f".{path.name}.tmp")
    figure.savefig(partial, format="png", dpi=100)
    partial.replace(path)


def _finite(value: Any) -> Any:
    """JSON has no NaN: a metric that is not defined becomes null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
