"""Activation memory: counted exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import scenes, tiny_run
from torch import Tensor, nn

from saccade.tasks import Task
from saccade.training.memory import kept_bytes, measure_memory


class Squares(nn.Module):
    """Keeps one tensor of 40 bytes per layer; the last one twice, and views of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def loss(self, batch: Any) -> dict[str, Tensor]:
        x = self.scale * batch  # keeps the batch and the weight (not counted)
        for _ in range(3):
            x = x * x.detach()  # keeps x twice: one storage
        return {"loss": x.view(2, 5).square().sum()}  # a view of the last x


def test_every_storage_is_counted_once_and_weights_are_not() -> None:
    # The batch, three inputs of the products, and the last result.
    batch: Any = torch.randn(10)
    assert kept_bytes(Squares(), batch) == 5 * 40  # type: ignore[arg-type]


def test_rows_of_a_recipe(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, train=(scenes(Task.DETECTION), scenes(Task.SEMANTIC), scenes(Task.DETECTION)))
    rows = measure_memory(config)
    assert [(row.task, row.input_hw, row.how) for row in rows] == [
        (Task.DETECTION, (64, 64), "measured"),
        (Task.SEMANTIC, (64, 64), "measured"),
    ]
    for row in rows:
        assert 0 < row.checkpointed_gb_per_image < 0.5 * row.gb_per_image
    # Twice the images keep twice as much, up to what a batch shares (the task vocabulary).
    double = measure_memory(config, images=2)
    assert 0.8 < double[0].gb_per_image / rows[0].gb_per_image <= 1.0


def test_a_deeper_model_keeps_more(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, train=(scenes(Task.CAPTION),))
    shallow = measure_memory(config)[0].gb_per_image
    config.model.vit.depth = 6
    deep = measure_memory(config)[0].gb_per_image
    assert 1.5 < deep / shallow < 2.1


def test_derived_rows_equal_measured_ones(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    config.model.vit.depth, config.model.vit.global_blocks = 6, (1, 4)
    measured, derived = measure_memory(config), measure_memory(config, derive=True)
    assert [row.how for row in derived] == ["derived"] * 5
    for a, b in zip(measured, derived, strict=True):
        assert b.gb_per_image == pytest.approx(a.gb_per_image, rel=0.01)
        assert b.checkpointed_gb_per_image == pytest.approx(a.checkpointed_gb_per_image, rel=0.01)
