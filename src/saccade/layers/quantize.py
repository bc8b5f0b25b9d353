"""Linear layers whose weights are whole numbers of 8 or 4 bits, by the library ``torchao``."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import nn

from saccade.errors import UsageError, require

Quantization: TypeAlias = Literal["none", "int8", "int4"]
"""How weights are kept: as they are, 8 bits with a scale per output channel, or 4 bits with one per group of inputs."""

_GROUP = 64


def quantize_linears(module: nn.Module, kind: Quantization, device: torch.device) -> None:
    """Replaces the weights of all linear layers in place; they are multiplied in the type of the activations.

    Args:
        module: In the type that it computes in.
        kind: ``none`` leaves it as it is.
        device: Where it will run.

    Raises:
        MissingExtraError: ``torchao`` is not installed.
        UsageError: 4 bits on a processor: there is no kernel for it.
    """
    if kind == "none":
        return
    if kind == "int4" and device.type != "cuda":
        raise UsageError("weights of 4 bits need a GPU", where=f"device {device}", fix="use int8, or --device cuda")
    ao = require("torchao.quantization", extra="quantize", purpose=f"weights of {kind}")
    if kind == "int8":
        ao.quantize_(module, ao.Int8WeightOnlyConfig())
    else:
        module.to(device)  # the tiles of the kernel are laid out there
        ao.quantize_(module, ao.Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d"))
