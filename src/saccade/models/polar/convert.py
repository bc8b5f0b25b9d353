"""The polar paper's state dicts: its U-Net and its centre predictor, there and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from saccade.mapping import MappingReport, Rule, apply_mapping, rename

Network: TypeAlias = Literal["unet", "hourglass"]

_OUR_LEVEL = re.compile(r"\.hourglass\.levels\.(\d+)\.")

_PAIR: tuple[Rule, ...] = (("conv1.", "conv1."), ("norm1.", "norm1."), ("conv2.", "conv2."), ("norm2.", "norm2."))
_UNET_BLOCKS: tuple[Rule, ...] = (
    ("encoder{i+1}.enc{j+1}", "encoder.{i}."),
    ("decoder{i+1}.dec{j+1}", "decoder.{i}."),
    ("bottleneck.bottleneck", "bottleneck."),
)
_RESIDUAL: tuple[Rule, ...] = (
    *((f"bn{number}.", f"norm{number}.") for number in (1, 2, 3)),
    *((f"conv{number}.conv.", f"conv{number}.") for number in (1, 2, 3)),
    ("skip_layer.conv.", "skip."),
)
_UNET: tuple[Rule, ...] = (
    ("upconv{i+1}.", "up.{i}."),
    ("conv.", "head."),
    *((left + inner, right + part) for left, right in _UNET_BLOCKS for inner, part in _PAIR),
)
_HOURGLASS: tuple[Rule, ...] = (
    ("pre.0.conv.", "stem."),
    ("pre.0.bn.", "stem_norm."),
    ("features.{i}.1.conv.", "stacks.{i}.conv."),
    ("features.{i}.1.bn.", "stacks.{i}.norm."),
    ("outs.{i}.conv.", "stacks.{i}.heatmap."),
    ("merge_preds.{i}.conv.conv.", "stacks.{i}.merge_heatmap."),
    ("merge_features.{i}.conv.conv.", "stacks.{i}.merge_feature."),
)
_RESIDUALS: tuple[Rule, ...] = (
    ("pre.1.", "residuals.0."),
    ("pre.3.", "residuals.1."),
    ("pre.4.", "residuals.2."),
    ("features.{i}.0.", "stacks.{i}.residual."),
)
_LEVEL: tuple[Rule, ...] = (("up1.", "branch."), ("low1.", "before."), ("low3.", "after."))


def rules_of(network: Network, depth: int) -> list[Rule]:
    """Official names and ours; an hourglass of the original holds the next smaller one as ``low2``.

    Args:
        network: The network.
        depth: Levels of an hourglass (a U-Net has no need of it).
    """
    if network == "unet":
        return list(_UNET)
    levels = [
        (f"hgs.{{i}}.0.{'low2.' * level}{theirs}", f"stacks.{{i}}.hourglass.levels.{level}.{ours}")
        for level in range(depth)
        for theirs, ours in _LEVEL
    ]
    inner = (f"hgs.{{i}}.0.{'low2.' * depth}", "stacks.{i}.hourglass.inner.")
    places = [*_RESIDUALS, *levels, inner]
    return [*_HOURGLASS, *((left + part, right + own) for left, right in places for part, own in _RESIDUAL)]


def network_of(keys: Sequence[str] | Mapping[str, object]) -> Network | None:
    """Which of the networks has these keys, or None."""
    if "encoder1.enc1conv1.weight" in keys and "bottleneck.bottleneckconv1.weight" in keys:
        return "unet"
    return "hourglass" if "pre.0.conv.weight" in keys and "outs.0.conv.weight" in keys else None


def from_official(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], network: Network, *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a released state dict onto our names.

    Args:
        state: Official names to tensors.
        expected: Our names to shapes.
        network: Which network it is.
        source: Where it came from, for the report.
    """
    rules = rules_of(network, sizes_of(state, network).get("depth", 0))
    return apply_mapping(state, expected=expected, rename=lambda key: rename(key, rules), source=source)


def to_official(state: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Our network's state dict under the official names.

    Raises:
        KeyError: A name is not the network's.
    """
    # The level stands twice in the official names of the U-Net, and once in ours.
    depth = 1 + max((int(found[1]) for key in state if (found := _OUR_LEVEL.search(key))), default=-1)
    inverse = [(ours, official.replace("{j+1}", "{i+1}")) for official, ours in rules_of(network, depth)]
    official: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = rename(key, inverse)
        if name is None:
            raise KeyError(key)
        official[name] = tensor
    return official


def sizes_of(state: Mapping[str, Tensor], network: Network) -> dict[str, int]:
    """What the shapes of a released state dict say: sizes of the network, its input channels and outputs."""
    if network == "unet":
        levels = sum(key.startswith("upconv") and key.endswith(".bias") for key in state)
        first, last = state["encoder1.enc1conv1.weight"], state["conv.weight"]
        return {"levels": levels, "features": first.shape[0], "channels": first.shape[1], "outputs": last.shape[0]}
    depth = max(key.count("low2.") for key in state)
    stacks = sum(key.startswith("outs.") and key.endswith(".bias") for key in state)
    channels, width = state["pre.0.conv.weight"].shape[1], state["outs.0.conv.weight"].shape[1]
    return {"stacks": stacks, "depth": depth, "width": width, "channels": channels}
