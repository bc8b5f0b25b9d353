"""The benchmark of the polar models, at the smallest sizes."""

from __future__ import annotations

import pytest
from helpers_polar import TINY_CENTERS, TINY_UNET

from saccade.bench import BACKBONE, PRESETS, run_bench
from saccade.errors import UsageError
from saccade.models.polar.config import PolarConfig
from saccade.models.polar.presets import PRESETS as NAMED
from saccade.tasks import Task

TINY = {
    "unet": lambda: TINY_UNET,
    "unet-polar": lambda: PolarConfig(segmenter=TINY_UNET),
    "centers": lambda: TINY_CENTERS,
}


@pytest.mark.parametrize("preset", TINY)
def test_every_form_is_timed(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PRESETS["polar"] is NAMED
    monkeypatch.setitem(PRESETS, "polar", TINY)
    task = Task.CENTER if preset == "centers" else Task.SEMANTIC
    for part in (task, BACKBONE):
        result = run_bench("polar", task=part, preset=preset, repeats=1)
        assert result.ratio > 0 and result.input_size == (32 if preset == "centers" else 48)
    with pytest.raises(UsageError, match="does not offer"):
        run_bench("polar", task=Task.DETECTION, preset=preset, repeats=1)
