"""Low-rank adaptation of the language model, by the library ``peft``."""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from saccade.models.gsva.config import LoRAConfig

ADAPTED = ("q_proj", "v_proj")
"""Layers of every block that have an update."""


def add_lora(language: nn.Module, config: LoRAConfig) -> None:
    """Adds the updates in place; they start as nothing (B is 0). Rank 0 leaves the language model as it is.

    Args:
        language: A causal language model of ``transformers`` (its blocks are ``model.layers``). No other module is
            looked at: CLIP and SAM have layers of the same names.
        config: Rank, scale and dropout.
    """
    if config.rank == 0:
        return
    inject_adapter_in_model(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=rf"model\.layers\.\d+\.self_attn\.({'|'.join(ADAPTED)})",
            bias="none",
        ),
        language,
    )
