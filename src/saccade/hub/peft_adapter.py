"""Low-rank updates as the adapter folders of ``peft``, which reads them itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from saccade.layers.lora import LowRankUpdate

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def write_adapter(held: Mapping[str, tuple[nn.Linear, LowRankUpdate]], folder: Path) -> None:
    """Writes an adapter that peft adds to a model with the names that are given.

    Updates of several thirds become one of the joined rank, in which each third has zeros for the others.

    Args:
        held: Name of every updated layer to the layer and its update (:func:`saccade.layers.lora.updates_of`).
        folder: It is made.
    """
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for name, (layer, update) in held.items():
        groups, rank = len(update.rows), update.config.rank
        up = update.B.new_zeros(layer.out_features, groups * rank)
        first = 0
        for group, (begin, end) in enumerate(update.rows):
            up[begin:end, group * rank : (group + 1) * rank] = update.B[first : first + end - begin]
            first += end - begin
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = update.A.detach().contiguous().clone()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up.detach()
        ranks[name] = groups * rank
        alphas[name] = update.scale * groups * rank
    config = {
        "peft_type": "LORA",
        "r": next(iter(ranks.values())),
        "lora_alpha": next(iter(alphas.values())),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "task_type": None,
        "inference_mode": True,
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
