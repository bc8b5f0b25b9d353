"""GSVA's tokens, prompts, readers, batches and scores give what the original gave."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared/parity/gsva"


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/parity/gsva is absent")
def test_shared_fixtures_of_gsvas_data_are_reproduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    check, gsva_data = importlib.import_module("check"), importlib.import_module("gsva_data")
    try:
        report = check.Report()
        gsva_data.check(SHARED, report)
    finally:
        sys.modules.pop("check")  # another folder of tests has a check.py, too
    assert report.passed, [row.name[:300] for row in report.failures] + sorted(report.pending)
    told = json.loads((SHARED / "data_expected.json").read_text())
    items = sum(len(one["items"]) for one in told["val"].values()) + sum(map(len, told["train"].values()))
    assert len(report.rows) > 10 * items > 1000
