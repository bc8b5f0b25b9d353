"""AdamW with one parameter group per (learning-rate multiplier, weight decay) pair."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from saccade.errors import CheckpointError, ConfigError
from saccade.training.adam import TransformersAdamW
from saccade.training.config import LayerDecay, LayerRates, OptimConfig
from saccade.training.sharding import part_of

_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")
_CELL = re.compile(r"backbone\.cells\.(\d+)\.")
_STAGE = re.compile(r"backbone\.stages\.(\d+)\.(?:blocks\.(\d+)|downsample)\.")
_WRAPPED = "segmenter."  # what a polar model puts before the names of the model it wraps
_STEM = ("backbone.patch_embed.", "backbone.patch_norm.", "backbone.pos_embed")


def layer_multiplier(name: str, rates: LayerRates | LayerDecay | None) -> float:
    """Learning-rate multiplier of one parameter.

    Args:
        name: Parameter name, e.g. ``backbone.blocks.7.norm1.weight``.
        rates: The ramp or the decay; None = 1 everywhere.

    Returns:
        For a ramp: ``floor`` for the stem and the blocks up to ``frozen_until``, a linear ramp to 1 at ``first_full``,
        1 elsewhere. For a decay: see :class:`~saccade.training.config.LayerDecay`.
    """
    if rates is None:
        return 1.0
    name = name.removeprefix(_WRAPPED)
    if isinstance(rates, LayerDecay):
        return float(rates.rate ** (rates.layers + 1 - _layer_id(name, rates)))
    if name.startswith(_STEM):
        return rates.floor
    block = _BLOCK.match(name)
    if block is None:
        return 1.0
    ramp = (int(block.group(1)) - rates.frozen_until) / (rates.first_full - rates.frozen_until)
    return rates.floor + (1.0 - rates.floor) * min(1.0, max(0.0, ramp))


def _layer_id(name: str, rates: LayerDecay) -> int:
    if name.startswith(_STEM):
        return 0
    cell = _CELL.match(name)
    if cell is not None:
        return int(cell[1])
    stage = _STAGE.match(name)
    if stage is not None:
        number, block_of_stage = int(stage[1]), stage[2]
        before = sum(rates.stages[:number]) + number
        return before + (rates.stages[number] if block_of_stage is None else int(block_of_stage)) + 1
    block = _BLOCK.match(name)
    if block is None or ".residual." in name:
        return rates.layers + 1
    return int(block[1]) + (rates.cells or 1)


def parameter_groups(named_parameters: Iterable[tuple[str, Tensor]], optim: OptimConfig) -> list[dict[str, Any]]:
    """Sorts the trainable parameters into AdamW groups.

    Args:
        named_parameters: ``model.named_parameters()``.
        optim: Multipliers and decay rule.

    Returns:
        Groups with the keys ``params``, ``names`` (in the same order), ``multiplier`` and ``weight_decay``.

    Raises:
        ConfigError: The model has no trainable parameter, no block that ``layer_rates`` could apply to, or nothing that
            a pattern of ``part_rates`` fits.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    blocks = 0
    unused = {pattern for part in optim.part_rates for pattern in part.names}
    for name, parameter in named_parameters:
        unused = {pattern for pattern in unused if not fnmatchcase(name, pattern)}
        if not parameter.requires_grad:
            continue
        bare = name.removeprefix(_WRAPPED)
        blocks += _BLOCK.match(bare) is not None or _STAGE.match(bare) is not None
        multiplier = layer_multiplier(name, optim.layer_rates)
        parts = (part for part in optim.part_rates if any(fnmatchcase(name, pattern) for pattern in part.names))
        multiplier *= next((part.multiplier for part in parts), 1.0)
        plain = optim.decay_matrices_only and (parameter.ndim < 2 or _is_table(name))
        plain |= any(fnmatchcase(name, pattern) for pattern in optim.no_decay)
        decay = 0.0 if plain else optim.weight_decay
        group = groups.setdefault(
            (multiplier, decay), {"params": [], "names": [], "multiplier": multiplier, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ConfigError("the model has no trainable parameter")
    if optim.layer_rates is not None and not blocks:
        raise ConfigError(
            "optim.layer_rates is set, but the model has no parameter named backbone.blocks.* or backbone.stages.*",
            fix="set optim.layer_rates to null for this model",
        )
    if unused:
        raise ConfigError(
            f"the model has no parameter named like {', '.join(sorted(unused))}",
            where="optim.part_rates",
            fix="leave it out; names are those of model.named_parameters()",
        )
    return list(groups.values())


def _is_table(name: str) -> bool:
    """Position, relative-position and word tables: looked up by index, not multiplied."""
    return any(part in name for part in ("pos_embed", "rel_pos", "positions.", "words."))


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over :func:`parameter_groups` of the model; learning rates are set before every step by the engine.

    Parameters that took no part in a step keep ``grad = None`` and are left alone by that step: neither moved nor
    decayed, and their moments stay (PyTorch's rule, which the official recipes rely on with one task per batch).
    """
    groups = parameter_groups(model.named_parameters(), optim)
    if optim.adam == "transformers":
        return TransformersAdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    return torch.optim.AdamW(
        groups,
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=next(model.parameters()).device.type == "cuda",
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, as ``<parameter>/exp_avg``, ``<parameter>/exp_avg_sq`` and ``<parameter>/step``."""
    tensors: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what :func:`optimizer_tensors` gave.

    Raises:
        CheckpointError: A name that the optimiser does not have, or another shape.
    """
    index: dict[str, tuple[int, Tensor]] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            index[name] = (len(index), parameter)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        if name not in index:
            raise CheckpointError(
                "the checkpoint has optimiser state for a parameter that is not trained",
                where=name,
                why="the model or its frozen parts changed since the checkpoint was written",
            )
        position, parameter = index[name]
        if value.ndim and value.shape != parameter.shape:
            raise CheckpointError(
                f"optimiser state has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}", where=key
            )
        state.setdefault(position, {})[slot] = part_of(value, parameter) if value.ndim else value
    # The optimiser's own loader decides where each tensor lives (fused AdamW keeps its step counters on the GPU).
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
