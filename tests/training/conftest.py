"""One uninterrupted run that every interrupted one is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers_training import tiny_run

from saccade.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of 12 steps in one go, with checkpoints at 4, 8 and 12."""
    result = Trainer(tiny_run(tmp_path_factory.mktemp("whole"))).fit()
    assert result.step == 12
    assert result.stopped_by is None
    return result.folder


@pytest.fixture(scope="session")
def last_state(whole_run: Path) -> Path:
    """The last checkpoint of the whole run."""
    return whole_run / "checkpoints" / "step-00000012"
