"""Measures of what was segmented: a row for every region, with its area, its border and its place (``--save csv``)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.errors import DataError, UsageError
from saccade.labels import background_of, regions
from saccade.results import Instances, Prediction, SemanticMap
from saccade.samples import Origin
from saccade.tokens.contours import trace_contours

FILE = "measures.csv"
COLUMNS = (
    "image",
    "width",
    "height",
    "region",
    "class_name",
    "score",
    "area_px",
    "area_share",
    "border_px",
    "x0",
    "y0",
    "x1",
    "y1",
    "center_x",
    "center_y",
    "touches_edge",
    "border_xy",
)
"""``border_px`` is the length of the outer border through the middles of its pixels, ``border_xy`` these pixels as
``x y`` separated by semicolons; ``x0 y0 x1 y1`` is the tight box, its right and bottom edges excluded."""

_LONGEST_CELL = 1 << 30


class MeasureCollector:
    """Gathers the regions of a run and writes them as one table.

    A region is an instance, or a connected part of a class other than the background in a label map. A picture without
    any has a row of its own, whose region is 0 and whose area is 0: no picture is missing in the table.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, prediction: Prediction, *, origin: Origin) -> None:
        """Adds a prediction.

        Raises:
            UsageError: It has no regions.
        """
        height, width = origin.size_hw
        picture = {"image": origin.path or origin.image_id, "width": width, "height": height}
        found = [
            {**picture, "region": number, "class_name": name, "score": score, **measure(mask)}
            for number, (name, score, mask) in enumerate(_parts(prediction), start=1)
        ]
        self._rows += found or [{**picture, "region": 0, "area_px": 0, "area_share": 0.0}]

    def write(self, out_dir: str | Path, *, name: str = FILE, add: bool = False) -> list[Path]:
        """Writes the table and returns its path.

        Args:
            out_dir: Folder to write to; made where it is missing.
            name: Of the file.
            add: Keep what a table of this name says of other pictures.

        Raises:
            DataError: The file that is to be added to is no such table.
        """
        path = Path(out_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = {row["image"] for row in self._rows}
        earlier = [row for row in _read(path) if row["image"] not in pictures] if add and path.exists() else []
        # A name that is no UTF-8 reaches us with lone surrogates.
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
            writer = csv.DictWriter(stream, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows([*earlier, *self._rows])
        return [path]


def _read(path: Path) -> list[dict[str, str]]:
    limit = csv.field_size_limit(_LONGEST_CELL)  # the border of a large region is longer than the reader's default
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_table(path, str(error)) from error
    finally:
        csv.field_size_limit(limit)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise _no_table(path, f"its first line is not {','.join(COLUMNS[:3])},...")
    if bad := next((number for number, row in enumerate(rows, start=2) if None in row.values()), 0):
        raise _no_table(path, f"row {bad} is too short")
    return rows


def _no_table(path: Path, why: str) -> DataError:
    return DataError("the file is no table of measures", where=path, why=why, fix="save to another folder (--out)")


def measure(mask_HW: Tensor) -> dict[str, Any]:
    """Area, border and place of a mask that has a pixel, by :data:`COLUMNS`."""
    rows, columns = (np.flatnonzero(mask_HW.any(dim=side).numpy()) for side in (1, 0))
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    area = int(mask_HW.sum())
    places = mask_HW.nonzero().double().mean(dim=0)
    outer = _outer_border(mask_HW[y0:y1, x0:x1]) + np.array([x0, y0])
    return {
        "area_px": area,
        "area_share": round(area / mask_HW.numel(), 6),
        "border_px": round(border_length(outer), 2),
        "x0": x0,
        "y0": y0,
        "x1": x1,
        "y1": y1,
        "center_x": round(float(places[1]), 2),
        "center_y": round(float(places[0]), 2),
        "touches_edge": int(x0 == 0 or y0 == 0 or y1 == mask_HW.shape[0] or x1 == mask_HW.shape[1]),
        "border_xy": ";".join(f"{x} {y}" for x, y in outer.tolist()),
    }


def border_length(points_xy: Any) -> float:
    """Length of the closed line through points ``[P, 2]``; a single pixel has none."""
    steps = np.diff(points_xy, axis=0, append=points_xy[:1])
    return float(np.hypot(steps[:, 0], steps[:, 1]).sum())


def _outer_border(mask_HW: Tensor) -> Any:
    """The longest outer border of a mask, ``[P, 2]`` (x, y): an instance may have several parts."""
    traced = [
        border.numpy().astype(np.int64) for border in trace_contours(torch.nn.functional.pad(mask_HW, (1, 1, 1, 1)))
    ]
    return max(traced, key=lambda border: (border_length(border), len(border))) - 1


def _parts(prediction: Prediction) -> Iterator[tuple[str, float | str, Tensor]]:
    """Class name, score and mask of every region."""
    if isinstance(prediction, SemanticMap):
        labels = prediction.labels.cpu()
        for class_id, name in enumerate(prediction.classes.names):
            if class_id != background_of(prediction.classes):
                for mask in regions(labels == class_id):
                    yield name, "", mask
    elif isinstance(prediction, Instances) and prediction.masks is not None:
        scores = prediction.scores.tolist()
        for name, score, mask in zip(prediction.class_names, scores, prediction.dense_masks(), strict=True):
            if mask.any():
                yield name, round(score, 4), mask
    else:
        raise UsageError(
            f"a {type(prediction).__name__} has no regions to measure", fix="ask for instance or semantic segmentation"
        )
