"""GSVA against the original: the network (``gsva_model``), and everything around it (``gsva_data``)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from check import Report

PARTS = {"gsva_model": "weights.safetensors", "gsva_data": "data_expected.json"}
"""Module to the file that a folder with this part has."""


def check(folder: Path, report: Report) -> None:
    """The parts that the folder has."""
    for part, file in PARTS.items():
        if (folder / file).is_file():
            importlib.import_module(part).check(folder, report)
