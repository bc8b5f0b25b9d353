"""Low-rank updates as files: taken out of checkpoints, written in other forms, added to the weights they belong to.

Three forms are read: checkpoints of ours, the authors' files and checkpoints of ViSFT (``visual.blocks.*.lora_A``), and
what :func:`extract` writes. peft's form is written, and read by peft.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from saccade.errors import CheckpointError, UsageError
from saccade.hub.adopt import (
    Sign,
    adopt,
    listed,
    refuse_idle_blocks,
    refuse_not_finite,
    refuse_own_form,
    trained_beside,
)
from saccade.hub.checkpoint import CheckpointCard, is_checkpoint, load_folder, read_card, save_model
from saccade.hub.convert import write_official
from saccade.hub.convert_visft import in_official_scale, queries_values, updates_by_block
from saccade.hub.peft_adapter import write_adapter
from saccade.hub.unpickle import read_tensor_file
from saccade.hub.weight_sets import read_weight_set
from saccade.layers.lora import (
    LoRAConfig,
    LowRankUpdate,
    Multiplier,
    add_lora,
    fold,
    lora_of,
    set_multiplier,
    updates_of,
)
from saccade.models.visft import convert as visft

LoRAForm: TypeAlias = Literal["official", "peft"]
Pair: TypeAlias = tuple[Tensor, Tensor]
"""A and B of one block."""


@dataclass(kw_only=True, frozen=True)
class Extracted:
    """What :func:`extract` wrote.

    Attributes:
        layers: Layers that have an update, by our names.
        homeless: Parameters that were trained in full beside the updates, which the form has no place for.
    """

    layers: tuple[str, ...]
    homeless: tuple[str, ...] = field(default=())


@dataclass(kw_only=True, frozen=True)
class Merged:
    """What :func:`merge_files` or :func:`unmerge_files` did.

    Attributes:
        path: What was written.
        layers: Layers whose weights were changed, by our names.
        left_out: Blocks of the updates that were left out on request.
        homeless: What was trained (updates, or parameters in full) that the weights have no place for: of other parts.
        scale: What the product of the two factors counted, the multiplier included.
        rounding: How far a weight can be from what it was once updates were added and taken out again: half a unit in
            the last place each time, of the greatest weight that was changed.
    """

    path: Path
    layers: tuple[str, ...]
    left_out: tuple[int, ...]
    homeless: tuple[str, ...]
    scale: float
    rounding: float


def load_lora(model: nn.Module, state: Mapping[str, Tensor], *, source: str = "") -> None:
    """Gives the updates of a model the values of an official file.

    Args:
        model: With updates of queries and values of its backbone's blocks (:func:`saccade.layers.lora.add_lora`).
        state: Official names to tensors; what is no update is not looked at.
        source: Where they came from, for messages.

    Raises:
        CheckpointError: Updates of another backbone, of another rank, or not of every block; or the model has others
            than of queries and values.
    """
    _fill(model, _official_updates(state, source)[0], source=source)


def extract(source: str | Path, out: str | Path, *, form: LoRAForm = "official") -> Extracted:
    """Writes the updates of a checkpoint by themselves.

    Args:
        source: A checkpoint folder of ours, or a released file: of updates, or of the second stage as a whole.
        out: ``official``: a ``.pt`` or ``.safetensors`` file; ``peft``: a folder. There the layers of a released file
            have our names, ``backbone.blocks.0.attn.qkv``, and its scale of 1 / rank is told.
        form: The form.

    The official form has a scale of 1 / rank, which it does not tell: what the scale differs by goes into B, exactly
    where it is a power of two.

    Raises:
        CheckpointError: There are no updates, or (in the official form) others than of a ViSFT.
        UsageError: What is to be written exists, or parameters were trained in full that the updates mean nothing
            without: of the backbone, and in peft's form any.
    """
    target = Path(out)
    if target.exists():
        raise UsageError("will not write over what is there", where=target, fix="choose another name")
    if is_checkpoint(Path(source)):
        card = read_card(source)
        refuse_own_form(card)
        model = load_folder(source).model
        layers = tuple(held := updates_of(model))
        if not held:
            raise CheckpointError("the checkpoint has no low-rank updates", where=source)
        beside = trained_beside(card, model.state_dict())
        _refuse_beside(beside if form == "peft" else _of_backbone(beside), source)
        if form == "peft":
            write_adapter(held, target)
            return Extracted(layers=layers)
        official, homeless = _official(model, source), tuple(beside)
    else:
        blocks, config = _official_updates(read_tensor_file(Path(source)).tensors, source)
        _check(blocks, blocks=blocks, width=_width(blocks), source=str(source), rank=config.rank)
        layers = tuple(named := _layers(blocks, config))
        if form == "peft":
            write_adapter(named, target)
            return Extracted(layers=layers)
        official, homeless = _named(blocks), ()
    write_official({key: value.detach().clone() for key, value in official.items()}, target)
    return Extracted(layers=layers, homeless=homeless)


def merge_files(
    base: str | Path,
    updates: str | Path | None,
    out: str | Path,
    *,
    multiplier: Multiplier = 1,
    leave_out: Iterable[int] = (),
) -> Merged:
    """Adds updates to weights and writes the result in the form that the weights had.

    Args:
        base: A checkpoint folder of ours, or an official file that holds a backbone of the EVA family under any of its
            names (``eva_vit_g.pth``, EVA-CLIP, BLIP-2, ViSFT): whatever else it holds is written as it was.
        updates: An official file, or a checkpoint of ours that has some; None = those that ``base`` holds. What was
            trained in full beside the updates of a checkpoint is carried over to a checkpoint, too.
        out: A folder, or a ``.pt``, ``.pth`` or ``.safetensors`` file.
        multiplier: How often the updates count (:data:`saccade.layers.lora.Multiplier`).
        leave_out: Blocks of the updates that ``base`` has not (39 for BLIP-2, which stops a block earlier).

    Raises:
        CheckpointError: The updates belong to another backbone, or do not cover its blocks; or ``base`` is an official
            file, and they are others than of queries and values.
        UsageError: What is to be written exists, there are no updates, none of a block that is to be left out, or
            ``base`` is an official file, and parameters of the backbone were trained in full.
    """
    return _change(base, updates, out, multiplier=multiplier, leave_out=tuple(leave_out), sign=1)


def unmerge_files(
    merged: str | Path,
    updates: str | Path,
    out: str | Path,
    *,
    multiplier: Multiplier = 1,
    leave_out: Iterable[int] = (),
) -> Merged:
    """Takes updates out of weights that hold them, and writes the result in the form that the weights had.

    The same product is subtracted that :func:`merge_files` added. Each of the two rounds: the weights are those of
    before within :attr:`Merged.rounding`, and bit for bit where they have digits to spare for the sum.

    Args:
        merged: What :func:`merge_files` wrote.
        updates: What was added: an official file, or a checkpoint of ours that has some.
        out: A folder, or a ``.pt``, ``.pth`` or ``.safetensors`` file.
        multiplier: How often the updates were counted.
        leave_out: Blocks that were left out.

    Raises:
        CheckpointError: The updates belong to another backbone, or do not cover its blocks.
        UsageError: What is to be written exists, the weights have updates that are not merged, there is none of a
            block that is to be left out, or the weights hold what was trained in full beside them.
    """
    return _change(merged, updates, out, multiplier=multiplier, leave_out=tuple(leave_out), sign=-1)


def _change(
    base: str | Path,
    updates: str | Path | None,
    out: str | Path,
    *,
    multiplier: Multiplier,
    leave_out: tuple[int, ...],
    sign: Sign,
) -> Merged:
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("will not write over what is there", where=target, fix="choose another name")
    if is_checkpoint(Path(base)):
        return _change_checkpoint(Path(base), updates, target, multiplier, leave_out, sign)
    if target.is_dir():
        raise UsageError("official weights are written to a file", where=target, fix="--out NAME.pth")
    return _change_official(base, updates, target, multiplier, leave_out, sign)


def _change_checkpoint(
    base: Path,
    updates: str | Path | None,
    target: Path,
    multiplier: Multiplier,
    leave_out: tuple[int, ...],
    sign: Sign,
) -> Merged:
    refuse_own_form(read_card(base))
    loaded = load_folder(base)
    model = loaded.model
    homeless: tuple[str, ...] = ()
    if updates is not None:
        if lora_of(model) is not None:
            raise UsageError("the checkpoint has updates of its own", where=base, fix="leave the second file out")
        if is_checkpoint(Path(updates)):
            homeless = adopt(model, updates, leave_out=leave_out, sign=sign)
        else:
            found, config = _official_updates(read_tensor_file(Path(updates)).tensors, updates)
            add_lora(model, config)
            _fill(model, _without(found, leave_out, source=updates), source=str(updates), sign=sign)
    elif leave_out:
        raise UsageError("a checkpoint's own updates are added as a whole", where="--leave-out", fix="leave it out")
    held = updates_of(model)
    if not held:
        raise UsageError("the checkpoint has no low-rank updates", where=base, fix="name a file of them")
    set_multiplier(model, multiplier)
    scale = next(update.scale for _, update in held.values())
    before = [update.taken(layer.weight) for layer, update in held.values()]
    fold(model)
    after = [update.taken(layer.weight) for layer, update in held.values()]
    told = {"merged" if sign == 1 else "unmerged": str(updates or base), "lora_multiplier": multiplier}
    save_model(model, target, classes=loaded.classes, provenance={**loaded.card.provenance, **told})
    return Merged(
        path=target,
        layers=tuple(held),
        left_out=leave_out,
        homeless=homeless,
        scale=scale,
        rounding=max(map(_rounding, before, after)),
    )


@torch.no_grad()
def _change_official(
    base: str | Path,
    updates: str | Path | None,
    target: Path,
    multiplier: Multiplier,
    leave_out: tuple[int, ...],
    sign: Sign,
) -> Merged:
    tensors = dict(read_weight_set(base).tensors)
    prefix = visft.prefix_of(tensors)
    if prefix is None:
        raise CheckpointError("the file has no backbone of the EVA family", where=base, why=visft.describe(tensors))
    held = {key: tensors.pop(key) for key in list(tensors) if ".lora_" in key}
    if held and updates is not None:
        raise UsageError("the file has updates of its own", where=base, fix="leave the second file out")
    if not held and updates is None:
        raise UsageError("the file has no low-rank updates", where=base, fix="name a file of them")
    homeless: tuple[str, ...] = ()
    if updates is None:
        found, config = _official_updates(held, base)
    elif is_checkpoint(Path(updates)):
        found, config, homeless = _read_checkpoint(read_card(updates))
    else:
        found, config = _official_updates(read_tensor_file(Path(updates)).tensors, updates)
    found = _without(found, leave_out, source=updates or base)
    weight = f"{prefix}blocks.{{}}.attn.qkv.weight"
    own = [block for block in range(len(tensors)) if weight.format(block) in tensors]
    width = tensors[weight.format(0)].shape[1]
    _check(found, blocks=own, width=width, source=str(updates or base), rank=config.rank)
    rounding = 0.0
    layers = _layers(found, config)
    for block, (_, update) in zip(found, layers.values(), strict=True):
        update.multiplier = multiplier
        old = tensors[weight.format(block)]
        new = old.to(torch.float32, copy=True)
        update.put(new, update.taken(new) + sign * update.delta())
        tensors[weight.format(block)] = new.to(old.dtype)
        rounding = max(rounding, _rounding(update.taken(old), update.taken(new).to(old.dtype)))
    write_official(tensors, target)
    return Merged(
        path=target,
        layers=tuple(layers),
        left_out=leave_out,
        homeless=homeless,
        scale=config.scale * multiplier,
        rounding=rounding,
    )


def _rounding(before: Tensor, after: Tensor) -> float:
    """See :attr:`Merged.rounding`."""
    greatest = max(float(before.abs().max()), float(after.abs().max()))
    return torch.finfo(before.dtype).eps * greatest


def _read_checkpoint(card: CheckpointCard) -> tuple[dict[int, Pair], LoRAConfig, tuple[str, ...]]:
    """Updates by block of a checkpoint of ours, their form, and what was trained in full beside them (heads)."""
    refuse_own_form(card)
    model = load_folder(card.folder).model
    config = lora_of(model)
    if config is None:
        raise CheckpointError("the checkpoint has no low-rank updates", where=card.folder)
    beside = trained_beside(card, model.state_dict())
    _refuse_beside(_of_backbone(beside), card.folder)
    return updates_by_block(model, card.folder), LoRAConfig(rank=config.rank, alpha=config.alpha), tuple(beside)


def _of_backbone(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith("backbone.")]


def _refuse_beside(names: list[str], source: str | Path) -> None:
    """Refuses updates that mean nothing without what was trained beside them.

    Raises:
        UsageError: There is something.
    """
    if names:
        raise UsageError(
            "parameters were trained in full beside the updates, and this form has no place for them",
            where=source,
            why=listed(names, most=3),
            fix=f"write the model as a whole: saccade lora merge {source} --out MERGED",
        )


def _official_updates(state: Mapping[str, Tensor], source: str | Path) -> tuple[dict[int, Pair], LoRAConfig]:
    """Updates of an official file by block, and their form: the file tells the rank alone, the scale is 1 / rank.

    Raises:
        CheckpointError: There are none, others than of queries and values, or such that are no matrices of numbers.
    """
    held = {key: value for key, value in state.items() if ".lora_" in key}
    others = [key for key in held if not visft.is_lora([key])]
    if others:
        raise CheckpointError(
            "the file has updates of other layers than queries and values",
            where=source,
            why=listed(others, most=3),
            fix="the official form has '...blocks.N.attn.qkv.lora_A' and '.lora_B' alone",
        )
    for key, value in held.items():
        if value.ndim != 2:
            raise CheckpointError(
                "a low-rank update that is no matrix", where=f"{source}, {key}", why=f"its shape is {list(value.shape)}"
            )
    refuse_not_finite(held, source)
    found, _ = visft.lora_form(held)
    rank = next(iter(found.values()))[1].shape[1] if found else visft.PUBLISHED_LORA.rank
    return found, LoRAConfig(rank=rank, alpha=visft.PUBLISHED_LORA.alpha)


def _without(found: Mapping[int, Pair], leave_out: Iterable[int], *, source: str | Path) -> dict[int, Pair]:
    """Updates less those that are to be left out."""
    refuse_idle_blocks(leave_out, found, source)
    return {block: pair for block, pair in found.items() if block not in leave_out}


def _fill(model: nn.Module, found: Mapping[int, Pair], *, source: str, sign: Sign = 1) -> None:
    """Gives the updates of a model the values of others; with the sign -1, they take those out."""
    own, config = updates_by_block(model, "the model"), lora_of(model)
    assert config is not None
    _check(found, blocks=own, width=_width(own), source=source, rank=config.rank)
    for block, (down, up) in found.items():
        own[block][0].copy_(down)
        own[block][1].copy_(sign * up)


def published_form(state: Mapping[str, Tensor], *, source: str | Path = "") -> LoRAConfig:
    """The form of an official file's updates.

    Args:
        state: Official names to tensors; what is no update is not looked at.
        source: Where they came from, for messages.

    Raises:
        CheckpointError: No updates of queries and values.
    """
    return _official_updates(state, source)[1]


def _check(
    found: Mapping[int, Pair],
    *,
    blocks: Iterable[int],
    width: int,
    source: str,
    rank: int | None = None,
) -> None:
    """Whether updates belong to a backbone of so many blocks and such a width.

    Raises:
        CheckpointError: They do not; it says whose they are.
    """
    if not found:
        raise CheckpointError("the file has no low-rank updates of queries and values", where=source)
    told = f"the updates have {len(found)} blocks of width {_width(found)}"
    own = sorted(blocks)
    for block, (down, up) in found.items():
        if down.shape[1] != width:
            raise CheckpointError(
                "low-rank updates of another backbone",
                where=source,
                why=f"{told}, the backbone has {len(own)} of width {width}",
                fix="take those of its size: eva_g_lora_*.pt have width 1408, eva_e_lora_*.pt width 1792",
            )
        if up.shape[0] != 2 * width:
            raise CheckpointError(
                "no low-rank updates of queries and values",
                where=f"{source}, block {block}",
                why=f"B has {up.shape[0]} rows; of queries and values of width {width} it has {2 * width}",
                fix="updates of keys have no official form",
            )
        given = up.shape[1]
        if down.shape[0] != 2 * given or (rank is not None and given != rank):
            wanted = f"not {rank}" if rank is not None and given != rank else f"but A has {down.shape[0]} rows"
            raise CheckpointError(f"low-rank updates of rank {given}, {wanted}", where=f"{source}, block {block}")
    missing, extra = sorted(set(own) - set(found)), sorted(set(found) - set(own))
    if missing:
        raise CheckpointError(
            f"the updates lack {len(missing)} of {len(own)} blocks", where=source, why=f"blocks {listed(missing)}"
        )
    if extra:
        raise CheckpointError(
            f"the updates have blocks that the backbone has not: {listed(extra)}",
            where=source,
            why=told,
            fix=f"saccade lora merge ... --leave-out {','.join(map(str, extra))} (BLIP-2 stops before the last block)",
        )


def _official(model: nn.Module, source: str | Path) -> dict[str, Tensor]:
    """The updates of one of our models in the form of the authors' files."""
    config = lora_of(model)
    assert config is not None
    blocks = updates_by_block(model, source)
    return _named({block: (down, in_official_scale(up, config)) for block, (down, up) in blocks.items()})


def _layers(blocks: Mapping[int, Pair], config: LoRAConfig) -> dict[str, tuple[nn.Linear, LowRankUpdate]]:
    """Layers without weights, named as ours are, and their updates in single precision."""
    layers = {}
    for block, (down, up) in blocks.items():
        width = down.shape[1]
        layer = nn.Linear(width, 3 * width, device="meta")
        update = LowRankUpdate(layer, config, queries_values(width))
        update.A, update.B = nn.Parameter(down.float()), nn.Parameter(up.float())
        layers[f"backbone.blocks.{block}.attn.qkv"] = layer, update
    return layers


def _width(blocks: Mapping[int, Pair]) -> int:
    """Channels that updates read; 0 where there are none."""
    return next((down.shape[1] for down, _ in blocks.values()), 0)


def _named(blocks: Mapping[int, Pair]) -> dict[str, Tensor]:
    return {
        f"visual.blocks.{block}.attn.qkv.lora_{side}": tensor
        for block, pair in sorted(blocks.items())
        for side, tensor in zip("AB", pair, strict=True)
    }
