"""Every metric gives the numbers of the official evaluator (fixtures of ../shared/metrics), through check.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_metrics import FIXTURES, load_check, read_json

from saccade.metrics import caption
from saccade.metrics.grounding import grounding_accuracy
from saccade.metrics.semantic import official_percentages

check = load_check()
SHARED = Path(__file__).resolve().parents[3] / "shared/metrics"


@pytest.mark.parametrize("name", check.CHECKS)
def test_official_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption, "meteor_missing", lambda: "left to the slow test")
    folder = FIXTURES / name
    if not folder.is_dir():  # pictures of a data set are not committed
        folder = SHARED / name
        if not folder.is_dir():
            pytest.skip(f"../shared/metrics/{name} is absent")
    report = check.CHECKS[name](folder)
    assert report.failed == [], {quantity: report.errors.get(quantity) for quantity in report.failed}
    assert len(report.errors) >= 5


@pytest.mark.slow
def test_official_meteor(tmp_path: Path) -> None:
    """One set only: its program reads its tables anew for every set, which takes many seconds."""
    why_not = caption.meteor_missing()
    if why_not:
        pytest.skip(why_not)
    for name in ("input.json", "expected.json"):
        content = read_json("caption", name)
        (tmp_path / name).write_text(json.dumps({"edge_cases": content["edge_cases"]}))
    report = check.check_caption(tmp_path)
    assert report.failed == []
    assert {"edge_cases METEOR", "edge_cases METEOR per image"} <= report.errors.keys()


def test_git_fixture_of_iou_and_grounding() -> None:
    wanted = json.loads((FIXTURES / "git_pure" / "expected.json").read_text())
    with np.load(FIXTURES / "git_pure" / "input.npz") as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    ours = official_percentages(
        [pred[0].long() for pred in tensors["iou_pred"]], [label[0].long() for label in tensors["iou_label"]]
    )
    assert {name: ours[name] for name in wanted["iou"]} == pytest.approx(wanted["iou"], abs=1e-5)
    assert grounding_accuracy(tensors["vg_pred"], tensors["vg_gt"]) == pytest.approx(wanted["vg"], abs=1e-6)


def test_check_command_fails_past_the_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "grounding"
    shutil.copytree(FIXTURES / "grounding", folder)
    assert check.main(["grounding", str(folder)]) == 0
    expected = json.loads((folder / "expected.json").read_text())
    expected["miou"] += 1e-3
    (folder / "expected.json").write_text(json.dumps(expected))
    assert check.main(["grounding", str(folder)]) == 1
    assert "PAST THE TOLERANCE" in capsys.readouterr().out


def test_check_command_counts_a_wrong_token_and_an_undefined_value(tmp_path: Path) -> None:
    report = check.Report(tolerance=1e-6)
    report.add("defined", [0.5, None], [0.5, float("nan")])
    assert report.failed == []
    report.add("undefined on one side", 0.0, None)
    report.add_exact("tokens", ["a b"], ["a c"])
    assert report.failed == ["undefined on one side", "tokens"]
    assert check.main(["no such metric", str(tmp_path)]) == 2
    assert check.Report(tolerance=1.0).failed == ["nothing was compared"]
