"""Official names of backbones, heads, low-rank updates and checkpoints to ours, and back (docs/visft.md).

A backbone is released under four prefixes: none (``eva_vit_g.pth``), ``visual.`` (EVA-CLIP), ``visual_encoder.``
(BLIP-2) and ``visft_heads.backbone.0.`` (ViSFT's own checkpoints); the names behind them are the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saccade.errors import CheckpointError, UsageError
from saccade.layers.lora import LoRAConfig
from saccade.mapping import MappingReport, Rule, apply_mapping, rename
from saccade.models.visft import caption, detection, segmentation
from saccade.models.visft.config import PUBLISHED_HEADS, Head, ViSFTConfig

BACKBONE = "visft_heads.backbone.0."
PREFIXES = (BACKBONE, "visual_encoder.", "visual.", "")
"""What stands before the names of a backbone, by where it was released."""

PUBLISHED_LORA = LoRAConfig(rank=64, alpha=1.0)
"""Rank and scale of the released updates: their files do not tell the scale, 1/64."""

_LORA_KEY = re.compile(r"(?P<prefix>.*?)blocks\.(?P<block>\d+)\.attn\.qkv\.lora_(?P<side>[AB])$")
_ALIAS, _SEGMENT = "visft_heads.segment_head.", "visft_heads.segment_"
_CLASS_WEIGHTS = "det_losses.empty_weight"

_RULES: tuple[Rule, ...] = (
    (f"{BACKBONE}blocks.{{i}}.attn.qkv.lora_A", "backbone.blocks.{i}.attn.qkv.lora.A"),
    (f"{BACKBONE}blocks.{{i}}.attn.qkv.lora_B", "backbone.blocks.{i}.attn.qkv.lora.B"),
    (f"{BACKBONE}patch_embed.proj.", "backbone.patch_embed."),
    (f"{BACKBONE}blocks.", "backbone.blocks."),
    (f"{BACKBONE}norm.", "backbone.norm."),
    (f"{BACKBONE}pos_embed", "backbone.pos_embed"),
    (f"{BACKBONE}cls_token", "backbone.class_token"),
    (f"{BACKBONE}class_position", "backbone.class_position"),
    *detection.head_keys("detection."),
    *segmentation.head_keys("instance."),
    *caption.head_keys("caption."),
)
_INVERSE: tuple[Rule, ...] = tuple((ours, official) for official, ours in _RULES)

_LEFT_OUT = {
    "cls_token": "ViSFT has no class token",
    "head.": "the projection of CLIP",
    "mask_token": "a part of pre-training",
    "lm_head.": "a part of pre-training",
}


def is_heads(names: Sequence[str] | Mapping[str, Tensor]) -> bool:
    """Whether these are tensors of the authors' heads (with a backbone or without)."""
    return any(name.startswith("visft_heads.") and not name.startswith(BACKBONE) for name in names)


def is_lora(names: Sequence[str] | Mapping[str, Tensor]) -> bool:
    """Whether these are low-rank updates of a backbone, and nothing else."""
    return bool(names) and all(_LORA_KEY.match(name) for name in names)


def is_backbone(names: Sequence[str] | Mapping[str, Tensor]) -> bool:
    """Whether these are tensors of a backbone of the EVA family, alone or among others (its text tower)."""
    return any(name.endswith("blocks.0.attn.q_bias") for name in names) and prefix_of(names) is not None


def prefix_of(names: Sequence[str] | Mapping[str, Tensor]) -> str | None:
    """What stands before the names of the backbone; None where there is none."""
    listed = set(names)
    return next((prefix for prefix in PREFIXES if f"{prefix}blocks.0.attn.qkv.weight" in listed), None)


def heads_of(names: Sequence[str] | Mapping[str, Tensor]) -> tuple[Head, ...]:
    """The heads that a file holds."""
    found = {(rename(name, _RULES) or "").partition(".")[0] for name in names}
    return tuple(head for head in PUBLISHED_HEADS if head in found)


def from_official(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    *,
    heads: Sequence[Head] = PUBLISHED_HEADS,
    source: str = "",
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a file onto a model, or onto those of its parts that ``expected`` names.

    Args:
        state: Official names to tensors.
        expected: Our names to shapes.
        heads: Heads that are wanted; others of the file are left out by name.
        source: Where it came from, for the report.
    """
    prefix = prefix_of(state)
    backbone = any(name.startswith("backbone.") for name in expected)

    def official(key: str) -> str:
        """The name in ViSFT's own checkpoints."""
        found = _LORA_KEY.match(key)
        of = found["prefix"] if found else prefix
        known = of is not None and key.startswith(of) and not key.startswith(("visft_heads.", "det_losses."))
        return f"{BACKBONE}{key[len(of) :]}" if of is not None and known else key

    def drop(key: str) -> str | None:
        name = official(key)
        if name.startswith(_ALIAS):
            return "the same tensors again, under a second name"
        if name == _CLASS_WEIGHTS:
            return "made from the configuration"
        if prefix and not name.startswith(("visft_heads.", "det_losses.")):
            return "not part of the backbone"
        if name.startswith(BACKBONE):
            bare = name.removeprefix(BACKBONE)
            if rename(name, _RULES) in expected:
                return None
            known = next((reason for start, reason in _LEFT_OUT.items() if bare.startswith(start)), None)
            return known or (None if backbone else "the backbone")
        part = (rename(name, _RULES) or "").partition(".")[0]
        return "another head" if part in PUBLISHED_HEADS and part not in heads else None

    prepared = {key: _position_map(key, tensor) for key, tensor in state.items()}
    table = f"{prefix}pos_embed"
    if "backbone.class_position" in expected and table in state and state[table].ndim == 3:
        prepared[f"{prefix}class_position"] = state[table][:, :1]
    mapped, report = apply_mapping(
        prepared,
        expected=expected,
        rename=lambda key: rename(official(key), _RULES),
        drop=drop,
        source=source,
    )
    if report.unexpected or report.wrong_shape or report.missing:
        report.notes.append(describe(state))
    if any(".lora_" in key for key in report.unexpected):
        report.notes.append("its low-rank updates have no place: add them to the weights first (saccade lora merge)")
    return mapped, report


def to_official(state: Mapping[str, Tensor], config: ViSFTConfig) -> dict[str, Tensor]:
    """The inverse of :func:`from_official`, in the names of the authors' checkpoints.

    What they hold twice is written twice, and the position of the class token, which they never use, as zeros.

    Args:
        state: Our names to tensors.
        config: Of the model.

    Raises:
        UsageError: It has a head for label maps.
    """
    if config.semantic is not None:
        raise UsageError(
            "the authors' form has no head for label maps",
            why="ViSFT has none",
            fix="take the backbone from the checkpoint as it is (init_from=FOLDER)",
        )
    official: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key == "backbone.class_position":
            continue
        name = rename(key, _INVERSE)
        assert name is not None, key
        if key == "backbone.pos_embed":
            first = state.get("backbone.class_position", tensor.new_zeros(1, 1, tensor.shape[-1]))
            tensor = torch.cat([first, tensor.flatten(1, 2)], dim=1)
        official[name] = tensor
        if name.startswith(_SEGMENT):
            official[_ALIAS + name.removeprefix(_SEGMENT)] = tensor
    if config.detection is not None and any(key.startswith("detection.") for key in state):
        weights = torch.ones(config.detection.logits)
        weights[-1] = config.detection.no_object_weight
        official[_CLASS_WEIGHTS] = weights
    return official


def lora_form(state: Mapping[str, Tensor]) -> tuple[dict[int, tuple[Tensor, Tensor]], str]:
    """The updates of a file by block, A and B, and the prefix of their names; other tensors are not looked at.

    Raises:
        CheckpointError: A block has one of the two alone.
    """
    sides: dict[int, dict[str, Tensor]] = {}
    prefix = ""
    for key, tensor in state.items():
        if found := _LORA_KEY.match(key):
            prefix = found["prefix"]
            sides.setdefault(int(found["block"]), {})[found["side"]] = tensor
    for block, side in sides.items():
        if len(side) < 2:
            raise CheckpointError(
                f"half a block of low-rank updates: only {', '.join(side)}",
                where=f"{prefix}blocks.{block}.attn.qkv",
                fix="the file is truncated or was put together wrongly: copy it again",
            )
    return {block: (side["A"], side["B"]) for block, side in sorted(sides.items())}, prefix


def describe(state: Mapping[str, Tensor]) -> str:
    """What an official file looks like, in words, from its names and shapes."""
    if is_lora(state):
        updates, _ = lora_form(state)
        width = next((down.shape[1] for down, _ in updates.values()), 0)
        return f"it looks like low-rank updates of {_family(width)} with {len(updates)} blocks"
    prefix = prefix_of(state)
    words = []
    if prefix is not None:
        bias = state.get(f"{prefix}blocks.0.attn.q_bias", state.get(f"{prefix}blocks.0.norm1.weight"))
        blocks = len({key.split("blocks.")[1].split(".")[0] for key in state if key.startswith(f"{prefix}blocks.")})
        words.append(f"a backbone of {blocks} blocks, {_family(0 if bias is None else len(bias))}")
    if heads := heads_of(state):
        words.append(f"heads for {', '.join(heads)}")
    table = state.get("visft_heads.caption_decoder.embedding.weight")
    if table is not None:
        words.append(f"a vocabulary of {len(table)} words")
    return f"it holds {' and '.join(words)}" if words else "it holds nothing of ViSFT"


def _family(width: int) -> str:
    known = {1408: "EVA-ViT-g", 1792: "EVA-ViT-E"}.get(width)
    return f"{known} (width {width})" if known else f"width {width}"


def _position_map(key: str, tensor: Tensor) -> Tensor:
    """A table of positions as a map, without the row of the class token."""
    if not key.endswith("pos_embed") or tensor.ndim != 3:
        return tensor
    side = math.isqrt(tensor.shape[1] - 1)
    return tensor[:, 1:].unflatten(1, (side, side)) if side * side == tensor.shape[1] - 1 else tensor
