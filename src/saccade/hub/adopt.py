"""The low-rank updates of one checkpoint of ours on the model of another: by the names and shapes of layers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from saccade.errors import CheckpointError, UsageError
from saccade.hub.checkpoint import CheckpointCard, read_card
from saccade.hub.shards import check_weights, read_weights
from saccade.layers.lora import CHILD, add_lora, updates_of
from saccade.models.gsva.config import GSVAConfig

Sign: TypeAlias = Literal[1, -1]
"""Whether updates are added to weights, or taken out."""

_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")


@torch.no_grad()
def adopt(model: nn.Module, source: str | Path, *, leave_out: Iterable[int] = (), sign: Sign = 1) -> tuple[str, ...]:
    """Puts the updates of a checkpoint on another model; what was trained in full beside them is copied into it, too.

    Args:
        model: Without updates. Changed in place.
        source: The checkpoint. Of parts that the model has not (heads), it may hold more.
        leave_out: Blocks of the updated backbone that the model has not.
        sign: -1 puts on what takes the updates out when it is added.

    Returns:
        The names of what the model has no place for.

    Raises:
        CheckpointError: There are no updates, they are not finite, or they belong to another model.
        UsageError: A block that has no update is to be left out, or parameters that were trained in full taken out.
    """
    card = read_card(source)
    refuse_own_form(card)
    if card.lora is None:
        raise CheckpointError("the checkpoint has no low-rank updates", where=source)
    check_weights(card.folder, card.weights)
    state = read_weights(card.folder)
    skipped = set(leave_out)
    given = {key: value for key, value in state.items() if f".{CHILD}." in key}
    refuse_idle_blocks(skipped, {_block(key) for key in given}, source)
    given = {key: value for key, value in given.items() if _block(key) not in skipped}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    fitting = tuple(
        target for target in card.lora.targets if any(fnmatchcase(name, target.partition(":")[0]) for name in linears)
    )
    if not fitting:
        raise CheckpointError(
            "low-rank updates of another model",
            where=source,
            why=f"no linear layer here is called '{card.lora.targets[0]}'",
        )
    add_lora(model, dataclasses.replace(card.lora, trained=(), targets=fitting))
    own = {
        f"{name}.{CHILD}.{side}": values
        for name, (_, update) in updates_of(model).items()
        for side, values in (("A", update.A), ("B", update.B))
    }
    parts = {name for name, _ in model.named_children()}
    homeless = [key for key in given if key not in own and key.partition(".")[0] not in parts]
    _check(given, own, homeless, source)
    for key, place in own.items():
        place.copy_(given[key] if key.endswith("A") else sign * given[key])
    places = model.state_dict()
    for key in trained_beside(card, state):
        if key not in places:
            homeless.append(key)
        elif places[key].shape != state[key].shape:
            raise CheckpointError(
                "a parameter that was trained beside the updates has another shape here",
                where=f"{source}, {key}",
                why=f"{list(state[key].shape)}, here {list(places[key].shape)}",
            )
        elif sign == -1:
            raise UsageError(
                "what was trained in full beside the updates cannot be taken out",
                where=f"{source}, {key}",
                fix="go on from the weights that the updates were merged into",
            )
        else:
            places[key].copy_(state[key])
    return tuple(homeless)


def trained_beside(card: CheckpointCard, names: Iterable[str]) -> list[str]:
    """Those of the names that were trained in full beside the updates (``lora.trained``)."""
    patterns = () if card.lora is None else card.lora.trained
    return [name for name in names if f".{CHILD}." not in name and any(fnmatchcase(name, one) for one in patterns)]


def refuse_own_form(card: CheckpointCard) -> None:
    """Refuses a GSVA with updates, which are no updates of ours.

    Raises:
        UsageError: It is one.
    """
    if isinstance(card.config, GSVAConfig) and card.config.lora.rank:
        raise UsageError(
            "the low-rank updates of a GSVA are a part of its model",
            where=card.folder,
            why=f"they are peft's, inside the language model (model.lora.rank={card.config.lora.rank}); the model "
            "predicts and is trained further with them as it is",
            fix=f"under peft's names in the official form: saccade convert {card.folder} --to-official FILE.bin",
        )


def refuse_idle_blocks(leave_out: Iterable[int], blocks: Iterable[int | None], source: str | Path) -> None:
    """Checks that every block that is to be left out has an update.

    Raises:
        UsageError: One has none.
    """
    if idle := sorted(set(leave_out) - set(blocks)):
        raise UsageError(
            f"the updates have no block {listed(idle)} that could be left out",
            where=source,
            fix="leave it out of --leave-out",
        )


def refuse_not_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Checks the values of updates.

    Raises:
        CheckpointError: There are infinite ones, or such that are no numbers.
    """
    for key, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                "low-rank updates with values that are not finite",
                where=f"{source}, {key}",
                fix="the training diverged or the file is damaged: take an earlier checkpoint, or copy it again",
            )


def listed(items: Iterable[object], most: int = 8) -> str:
    """The first of them, and how many there are."""
    shown = list(items)
    return ", ".join(map(str, shown[:most])) + (f" ... ({len(shown)} in all)" if len(shown) > most else "")


def _check(given: Mapping[str, Tensor], own: Mapping[str, Tensor], homeless: Iterable[str], source: str | Path) -> None:
    """Whether updates fit the layers of a model.

    Raises:
        CheckpointError: They do not; it says which layers.
    """
    refuse_not_finite(given, source)
    for key in sorted(given.keys() & own.keys()):
        if given[key].shape != own[key].shape:
            raise CheckpointError(
                "low-rank updates of another model",
                where=source,
                why=f"{key} is {' x '.join(map(str, given[key].shape))}, "
                f"the layer here needs {' x '.join(map(str, own[key].shape))}",
                fix="take updates that were trained on a model of these sizes",
            )
    missing = _layers(key for key in own if key not in given)
    if missing:
        raise CheckpointError(
            f"the updates lack {len(missing)} of {len(_layers(own))} layers", where=source, why=listed(missing)
        )
    extra = set(given) - set(own) - set(homeless)
    if extra:
        blocks = sorted({block for key in extra if (block := _block(key)) is not None})
        raise CheckpointError(
            f"the updates have layers that the weights have not: {listed(_layers(extra))}",
            where=source,
            fix=f"saccade lora merge ... --leave-out {','.join(map(str, blocks))}" if blocks else None,
        )


def _layers(keys: Iterable[str]) -> list[str]:
    """The layers that keys of updates are of."""
    return sorted({key.partition(f".{CHILD}.")[0] for key in keys})


def _block(key: str) -> int | None:
    found = _BLOCK.match(key)
    return int(found[1]) if found else None
