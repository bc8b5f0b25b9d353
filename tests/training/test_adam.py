"""AdamW of the library transformers, against its formula entry by entry."""

from __future__ import annotations

import math

import pytest
import torch

from saccade.training.adam import TransformersAdamW
from saccade.training.config import OptimConfig
from saccade.training.schedule import learning_rate


def test_steps_follow_the_formula() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    unused = torch.nn.Parameter(torch.ones(2))
    optimiser = TransformersAdamW(
        [{"params": [parameter, unused], "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.99), eps=1e-3
    )
    p, m, v = parameter.detach().clone().tolist(), [0.0] * 5, [0.0] * 5
    for step in range(1, 5):
        parameter.grad = torch.randn(5, dtype=torch.float64) * 0.01
        for i, g in enumerate(parameter.grad.tolist()):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.99 * v[i] + 0.01 * g * g
            p[i] -= 0.01 * math.sqrt(1 - 0.99**step) / (1 - 0.9**step) * m[i] / (math.sqrt(v[i]) + 1e-3)
            p[i] -= 0.01 * 0.1 * p[i]
        optimiser.step()
        assert parameter.tolist() == pytest.approx(p, rel=1e-9)
    assert unused.tolist() == [1.0, 1.0]  # without a gradient neither moved nor decayed
    assert set(optimiser.state[parameter]) == {"step", "exp_avg", "exp_avg_sq"}


def test_the_schedule_begins_with_nothing_and_ends_with_nothing() -> None:
    optim = OptimConfig(lr=2.0, schedule="transformers", warmup_steps=10)
    rates = [learning_rate(step, steps=110, optim=optim) for step in range(111)]
    assert rates[0] == 0 and rates[5] == 1.0 and rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0) and rates[110] == pytest.approx(0.0, abs=1e-12)
