"""Low-rank updates of a run: where the backbone is, and what is trained beside them because it starts fresh."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from torch import Tensor, nn

from saccade.errors import ConfigError
from saccade.layers.lora import LoRAConfig, add_lora, updates_of
from saccade.models.polar.model import PolarSegmenter
from saccade.models.polar.segmenter import Segmenter, ViTPixels

_BACKBONE = "backbone."


def host_of(model: nn.Module) -> str:
    """What stands before ``backbone.`` in the names of a model: inside a segmenter, inside the polar wrapper."""
    if isinstance(model, PolarSegmenter):
        return f"segmenter.{host_of(model.segmenter)}"
    return "network." if isinstance(model, Segmenter) and isinstance(model.network, ViTPixels) else ""


def start_lora(model: nn.Module, config: LoRAConfig, filled: Collection[str]) -> None:
    """Puts the updates of a run on its model.

    Patterns that begin with ``backbone.`` mean the backbone of what the model wraps. What starts at random and would
    learn without updates (outputs for other classes, a head that no file brings) is trained in full beside them: the
    updates' own configuration, which checkpoints store, names it.

    Args:
        model: With its starting weights. Changed in place.
        config: As the run has it.
        filled: Names of the parameters that a file has filled.

    Raises:
        ConfigError: All layers that were to be updated start fresh, or as :func:`saccade.layers.lora.add_lora` says.
    """
    host = host_of(model)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    fresh = {pattern: names for pattern, names in _fresh(model, filled) if names <= learning}
    placed = dataclasses.replace(
        config,
        targets=_inside(host, config.targets),
        trained=tuple(dict.fromkeys([*_inside(host, config.trained), *fresh])),
    )
    add_lora(model, placed)
    if not any(f"{name}.weight" in filled for name in updates_of(model)):
        raise ConfigError(
            "low-rank updates of layers that start fresh",
            where="lora.rank",
            why="they change weights that were trained before, and no file has filled these: random ones would stand "
            "still for the whole run",
            fix="name what the model starts from (weights=, init_from=, backbone= of the recipe), or leave lora.rank "
            "out",
        )


def _inside(host: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{host}{pattern}" if pattern.startswith(_BACKBONE) else pattern for pattern in patterns)


def _fresh(module: nn.Module, filled: Collection[str], name: str = "") -> Iterator[tuple[str, set[str]]]:
    """The greatest parts of a model that no file has filled and that start at random: a pattern, and all its names.

    What starts as nothing or as the identity by itself (a last norm, relative positions) may stand still.
    """
    before = f"{name}." if name else ""
    own = {f"{before}{key}": parameter for key, parameter in module.named_parameters()}
    if not own.keys() & set(filled):
        if any(_is_random(parameter) for parameter in own.values()):
            yield f"{before}*", set(own)
        return
    for key, parameter in module.named_parameters(recurse=False):
        if f"{before}{key}" not in filled and _is_random(parameter):
            yield f"{before}{key}", {f"{before}{key}"}
    for child, part in module.named_children():
        yield from _fresh(part, filled, f"{before}{child}")


def _is_random(parameter: Tensor) -> bool:
    return bool((parameter != parameter.flatten()[0]).any()) if parameter.numel() else False
