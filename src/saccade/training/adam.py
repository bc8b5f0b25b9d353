"""AdamW as the library transformers had it, for runs that must follow one of its trajectories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class TransformersAdamW(torch.optim.Optimizer):
    """AdamW with the decay behind the step, and an epsilon that is not corrected for the bias of the moments.

    Source: transformers 4.10, ``optimization.AdamW``. Its step is
    ``p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)``, then ``p -= lr * decay * p``.

    Args:
        groups: Parameter groups, each with its ``weight_decay``.
        lr: Learning rate.
        betas: Decays of the two moments.
        eps: Epsilon.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step for every parameter with a gradient."""
        assert closure is None
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                taken = float(state["step"])
                state["exp_avg"].mul_(first).add_(parameter.grad, alpha=1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
                size = group["lr"] * (1 - second**taken) ** 0.5 / (1 - first**taken)
                parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-size)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
