"""Low-rank updates of linear layers, put on any model from outside.

A layer ``y = W x`` becomes ``y = W x + scale * B (A x)``: W stands still, and A and B are trained. They live in a child
named ``lora`` of the layer, which keeps its own names; the product ``B A`` is never made while a model is trained. Of
a layer that holds queries, keys and values, each of the updated thirds has an update of its own. Source: LoRA, ICLR
2022; ViSFT updates queries and values of every block with a rank of 64 and a scale of 1/64 (docs/visft.md).

Shape legend: I inputs, O outputs of the layer, g updated groups of outputs (1, or one per third), r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, UsageError

Multiplier: TypeAlias = Literal[1, 2]
"""How often an update counts. 2 is how the official ViSFT runs in evaluation mode: its library adds the update to W,
and its forward pass adds it once more."""

CHILD = "lora"
_THIRDS = "qkv"


@dataclass(kw_only=True, frozen=True)
class LoRAConfig:
    """Which layers have an update, and of what size.

    Attributes:
        rank: Rank r of an update (of each third by itself).
        alpha: The scale is ``alpha / rank``; 0 = as the rank, a scale of 1.
        targets: Shell patterns of the names of linear layers. Letters behind a colon choose among the thirds of a layer
            that makes queries, keys and values together: ``backbone.*.qkv:qv`` updates queries and values.
        trained: Shell patterns of parameters that are trained in full beside the updates (heads for new classes).
    """

    rank: int = 16
    alpha: float = 0.0
    targets: tuple[str, ...] = ("backbone.*.qkv:qv",)
    trained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"the rank must be at least 1, got {self.rank}", where="lora.rank")
        if self.alpha < 0:
            raise ConfigError(f"alpha must not be negative, got {self.alpha}", where="lora.alpha")
        if not self.targets:
            raise ConfigError("no layer is to be updated", where="lora.targets", fix="name at least one pattern")
        for target in self.targets:
            _, colon, letters = target.partition(":")
            if colon and (not letters or set(letters) - set(_THIRDS) or len(set(letters)) < len(letters)):
                raise ConfigError(
                    f"'{letters}' chooses nothing", where="lora.targets", fix="some of the letters q, k, v: *.qkv:qv"
                )

    @property
    def scale(self) -> float:
        """Factor of ``B A``, the multiplier apart."""
        return (self.alpha or self.rank) / self.rank


def without_multiplier(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The plain form of a config that an earlier version saved: how often its updates counted goes into alpha."""
    plain = dict(saved)
    times = plain.pop("multiplier", 1)
    if times != 1:
        plain["alpha"] = times * (plain.get("alpha") or plain["rank"])
    return plain


class LowRankUpdate(nn.Module):
    """The update of one layer.

    Args:
        layer: What is updated; its type and device are taken.
        config: Rank and scale.
        rows: First and last (exclusive) output of every updated group, ascending.
    """

    def __init__(self, layer: nn.Linear, config: LoRAConfig, rows: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.config, self.rows = config, rows
        self.multiplier: Multiplier = 1
        outputs = sum(last - first for first, last in rows)
        self.A = nn.Parameter(layer.weight.new_empty(len(rows) * config.rank, layer.in_features))
        self.B = nn.Parameter(layer.weight.new_zeros(outputs, config.rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.kept: Tensor | None = None
        """The rows of W as they were, while the update is merged into them."""

    @property
    def scale(self) -> float:
        """What the update counts, the multiplier included."""
        return self.config.scale * self.multiplier

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Adds the update to what the layer gave.

        Args:
            x: ``[..., I]``, what the layer read.
            out: ``[..., O]``; it is written to.
        """
        if self.kept is not None:
            return out
        low = F.linear(x, self.A)
        parts = zip(self.rows, low.chunk(len(self.rows), dim=-1), self._ups(), strict=True)
        if not torch.is_grad_enabled() and low.dtype == out.dtype == self.B.dtype:
            # One product that adds in place: a third of the cost of the update is saved.
            out_NO = out.view(-1, out.shape[-1])
            for (first, last), part, up in parts:
                out_NO[:, first:last].addmm_(part.flatten(0, -2), up.mT, alpha=self.scale)
            return out
        for (first, last), part, up in parts:
            out[..., first:last] += F.linear(part * self.scale, up)
        return out

    def delta(self) -> Tensor:
        """``scale * B A`` of the updated rows, ``[rows, I]``."""
        downs = self.A.chunk(len(self.rows))
        return torch.cat([up @ down for up, down in zip(self._ups(), downs, strict=True)]) * self.scale

    def taken(self, weight: Tensor) -> Tensor:
        """The updated rows of a weight, as a copy."""
        return torch.cat([weight[first:last] for first, last in self.rows])

    def put(self, weight: Tensor, values: Tensor) -> None:
        """Writes the updated rows of a weight."""
        sizes = [last - first for first, last in self.rows]
        for (first, last), part in zip(self.rows, values.split(sizes), strict=True):
            weight[first:last].copy_(part)

    def _ups(self) -> tuple[Tensor, ...]:
        return self.B.split([last - first for first, last in self.rows])


def add_lora(model: nn.Module, config: LoRAConfig) -> None:
    """Puts updates on a model and freezes everything else; they start as nothing (B is 0).

    Args:
        model: Changed in place. The names and values of its own parameters stay as they are.
        config: Which layers, and what else is trained.

    Raises:
        ConfigError: There is no linear layer, a pattern fits none (or no parameter) or one that is never called, or
            thirds of a layer that has none.
        UsageError: The model has updates already.
    """
    if lora_of(model) is not None:
        raise UsageError("the model has low-rank updates already", fix="merge them first (saccade lora merge)")
    chosen: dict[str, tuple[nn.Linear, tuple[tuple[int, int], ...]]] = {}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    uncalled = {
        f"{name}.{child}".removeprefix(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for child, _ in module.named_children()
    }
    if not linears:
        raise ConfigError(
            "this model has no linear layer",
            where="lora",
            why="low-rank updates are of linear layers",
            fix="train it without lora.rank",
        )
    for target in config.targets:
        pattern, _, letters = target.partition(":")
        fitting = [name for name in linears if fnmatchcase(name, pattern)]
        if not fitting:
            raise ConfigError(
                f"no linear layer is called '{pattern}'",
                where="lora.targets",
                fix=f"linear layers of this model are called like {', '.join(list(linears)[:3])} ...",
            )
        for name in fitting:
            if name in chosen:
                raise ConfigError(f"'{name}' fits two patterns", where="lora.targets")
            if name in uncalled:
                raise ConfigError(
                    f"'{name}' cannot have an update",
                    where="lora.targets",
                    why="torch's MultiheadAttention reads its weight and never calls it",
                    fix=f"patterns that fit other layers alone, instead of '{target}'",
                )
            chosen[name] = linears[name], _rows(name, linears[name], letters)
    parameters = dict(model.named_parameters())
    idle = [pattern for pattern in config.trained if not any(fnmatchcase(name, pattern) for name in parameters)]
    if idle:
        raise ConfigError(f"no parameter is called '{idle[0]}'", where="lora.trained")
    for name, parameter in parameters.items():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in config.trained))
    for layer, rows in chosen.values():
        layer.add_module(CHILD, LowRankUpdate(layer, config, rows))
        layer.register_forward_hook(_add_update)


def effective_weight(layer: nn.Linear) -> Tensor:
    """W with its update, ``[O, I]``, for code that multiplies by the weight and does not call the layer."""
    update = getattr(layer, CHILD, None)
    if not isinstance(update, LowRankUpdate) or update.kept is not None:
        return layer.weight
    weight = layer.weight.clone()
    update.put(weight, update.taken(weight) + update.delta().to(weight.dtype))
    return weight


def updates_of(model: nn.Module) -> dict[str, tuple[nn.Linear, LowRankUpdate]]:
    """Name of every updated layer to the layer and its update."""
    return dict(_updated(model))


def lora_of(model: nn.Module) -> LoRAConfig | None:
    """What :func:`add_lora` did to a model; None where there are no updates."""
    return next((update.config for _, (_, update) in _updated(model)), None)


def set_multiplier(model: nn.Module, multiplier: Multiplier) -> None:
    """How often the updates count from now on.

    Raises:
        UsageError: They are merged.
    """
    for _, update in updates_of(model).values():
        if update.kept is not None:
            raise UsageError("the updates are merged", fix="take them out before their multiplier is changed")
        update.multiplier = multiplier


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Adds the updates to the weights, so that the model is as fast as without; :func:`unmerge` is exact.

    The rows that are written to are kept beside.
    """
    for layer, update in updates_of(model).values():
        if update.kept is None:
            kept = update.taken(layer.weight)
            update.put(layer.weight, kept + update.delta().to(kept.dtype))
            update.kept = kept


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Puts back the weights that :func:`merge` changed, bit for bit."""
    for layer, update in updates_of(model).values():
        if update.kept is not None:
            update.put(layer.weight, update.kept)
            update.kept = None


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Adds the updates to the weights for good: what is left is a model as :func:`add_lora` found it."""
    merge(model)
    for layer, _ in updates_of(model).values():
        delattr(layer, CHILD)
        for key, hook in list(layer._forward_hooks.items()):
            if hook is _add_update:
                del layer._forward_hooks[key]


def _updated(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Linear, LowRankUpdate]]]:
    for name, module in model.named_modules():
        update = getattr(module, CHILD, None)
        if isinstance(module, nn.Linear) and isinstance(update, LowRankUpdate):
            yield name, (module, update)


def _add_update(layer: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
    """The hook of an updated layer."""
    updated: Tensor = layer.get_submodule(CHILD)(inputs[0], out)
    return updated


def _rows(name: str, layer: nn.Linear, letters: str) -> tuple[tuple[int, int], ...]:
    if not letters:
        return ((0, layer.out_features),)
    if layer.out_features != 3 * layer.in_features:
        raise ConfigError(
            f"'{name}' does not make queries, keys and values",
            where="lora.targets",
            why=f"it has {layer.in_features} inputs and {layer.out_features} outputs",
            fix="leave out the colon and the letters behind it",
        )
    third = layer.in_features
    return tuple((index * third, (index + 1) * third) for index, letter in enumerate(_THIRDS) if letter in letters)
