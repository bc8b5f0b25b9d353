"""Miniatures that the reader's tests write, for the suites that read them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))


@pytest.fixture
def write_miniature() -> Callable[[str, Path], Path]:
    """Writes the data of a suite that asks in words."""
    from helpers_benchmarks import write_nocaps, write_questions

    def write(suite: str, root: Path) -> Path:
        if suite == "nocaps":
            write_nocaps(root)
        else:
            write_questions(root, ok=suite == "okvqa")
        return root

    return write
