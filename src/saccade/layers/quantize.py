"""Linear layers whose weights are whole numbers of 8 or 4 bits, by the library ``torchao``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import torch
from torch import nn

from saccade.errors import UsageError, require
from saccade.layers.offload import move

Quantization: TypeAlias = Literal["none", "int8", "int4"]
"""How weights are kept: as they are, 8 bits with a scale per output channel, or 4 bits with one per group of inputs."""

_GROUP = 64


def quantize_linears(blocks: Iterable[nn.Module], kind: Quantization, device: torch.device) -> None:
    """Replaces the weights of linear layers in place; they are multiplied in the type of the activations.

    Every block goes to the device by itself, is made small there, and comes back. Low-rank updates, which are small
    already, stay exact.

    Args:
        blocks: In the type that they compute in.
        kind: ``none`` leaves them as they are.
        device: Where they will run.

    Raises:
        MissingExtraError: ``torchao`` is not installed.
        UsageError: 4 bits on a processor, or with activations of another type than bf16: there is no kernel for it.
    """
    if kind == "none":
        return
    blocks = list(blocks)
    types = {parameter.dtype for block in blocks for parameter in block.parameters()}
    if kind == "int4" and (device.type != "cuda" or types - {torch.bfloat16}):
        named = ", ".join(sorted(str(one).removeprefix("torch.") for one in types))
        raise UsageError(
            "weights of 4 bits need a GPU and bf16",
            where=f"device {device}, {named}",
            fix="use --device cuda --precision bf16, or int8",
        )
    ao = require("torchao.quantization", extra="quantize", purpose=f"weights of {kind}")
    config = (
        ao.Int8WeightOnlyConfig()
        if kind == "int8"
        else ao.Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")
    )
    for block in blocks:
        home = next(block.parameters()).device
        move(block, device)
        ao.quantize_(block, config, filter_fn=_is_large)
        move(block, home)


def _is_large(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and "lora_" not in name
