"""The benchmark of ViSFT and its parts, at the smallest size."""

from __future__ import annotations

import pytest
from helpers_visft import tiny_config

from saccade.bench import BACKBONE, HEAD_PARTS, PRESETS, run_bench
from saccade.errors import UsageError


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "visft", {"tiny": tiny_config})


@pytest.mark.parametrize("part", [BACKBONE, *HEAD_PARTS, "detection", "instance_segmentation"])
def test_every_part_is_timed(part: str) -> None:
    result = run_bench("visft", task=part, preset="tiny", repeats=1)
    assert (result.task, result.input_size) == (part, 56) and result.ratio > 0


def test_the_backbone_at_any_size_with_updates() -> None:
    result = run_bench("visft", task=BACKBONE, preset="tiny", repeats=1, side=75, lora=2)
    assert (result.input_size, result.lora) == (75, 2)
    with pytest.raises(UsageError, match="only the backbone"):
        run_bench("visft", task="caption-head", preset="tiny", repeats=1, side=75)
    with pytest.raises(UsageError, match="does not offer"):
        run_bench("visft", task="masks", preset="tiny", repeats=1)
