"""Arithmetic of the forward pass, chosen from outside the model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

Precision: TypeAlias = Literal["float32", "bf16"]
"""``bf16`` computes in bfloat16 where that is safe; weights, gradients and optimiser stay float32 in training."""


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager[Any]:
    """The context in which a forward pass runs."""
    if precision == "bf16":
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    return nullcontext()


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """The context of parts that compute in float32 whatever is chosen outside, as their authors have them do."""
    return torch.autocast(device.type, enabled=False)


def halve_linears(model: nn.Module) -> None:
    """Stores the linear layers of a model in bfloat16, in place, for prediction under :func:`autocast`.

    The products are those of autocast alone, which would cast every weight anew at every call: half the time of
    a decoding step. Norms, tables and everything else stay float32.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
