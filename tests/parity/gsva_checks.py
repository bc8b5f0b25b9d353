"""GSVA against the original: the network (``gsva_model``), and everything around it (``gsva_data``)."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from check import Report

PARTS = ("gsva_model", "gsva_data")


def check(folder: Path, report: Report) -> None:
    """Both parts."""
    for part in PARTS:
        if find_spec(part) is not None:
            importlib.import_module(part).check(folder, report)
