"""Official GiT and SAM checkpoints to ours, and back: names and table sizes.

The official names are those of the released files (mmengine state dicts). SAM pre-training files exist in two forms:
mmpretrain's ViTSAM (prefix ``backbone.``, the names GiT itself uses) and Segment Anything's own (``image_encoder.``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.layers.vit import resize_position
from saccade.mapping import MappingReport, apply_mapping

# Ours on the left; {i} is the block. Order and names of the official files on the right.
_BLOCK = {
    "norm1": "ln1",
    "attn.rel_pos_h": "attn.rel_pos_h",
    "attn.rel_pos_w": "attn.rel_pos_w",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "norm2": "ln2",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}
_SAM_BLOCK = _BLOCK | {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.lin1", "mlp.fc2": "mlp.lin2"}
_TOP = {
    "backbone.pos_embed": "backbone.pos_embed",
    "backbone.patch_embed": "backbone.patch_embed.projection",
    "text_embed.words": "embed.word_embeddings",
    "text_embed.positions": "embed.position_embeddings",
    "text_embed.norm": "embed.LayerNorm",
    "concept_positions": "synt_position_embeddings",
    "concept_attention.in_proj_weight": "synt_att.in_proj_weight",
    "concept_attention.in_proj_bias": "synt_att.in_proj_bias",
    "concept_attention.out_proj": "synt_att.out_proj",
}
_SAM_TOP = {"backbone.pos_embed": "pos_embed", "backbone.patch_embed": "patch_embed.proj"}
_POSITION_IDS = "embed.position_ids"


def _translate(key: str, table: Mapping[str, str]) -> str | None:
    """Replaces a whole-component prefix of the key by the table's entry."""
    for old, new in table.items():
        if key == old or key.startswith(old + "."):
            return new + key[len(old) :]
    return None


def official_key(key: str) -> str | None:
    """Our parameter name to the official one, or None."""
    block = re.fullmatch(r"backbone\.blocks\.(\d+)\.(.+)", key)
    if block:
        rest = _translate(block[2], _BLOCK)
        return f"backbone.layers.{block[1]}.{rest}" if rest else None
    return _translate(key, _TOP)


def our_key(key: str) -> str | None:
    """The official parameter name to ours, or None (``embed.position_ids`` is a constant and has no place)."""
    block = re.fullmatch(r"backbone\.layers\.(\d+)\.(.+)", key)
    if block:
        rest = _translate(block[2], {new: old for old, new in _BLOCK.items()})
        return f"backbone.blocks.{block[1]}.{rest}" if rest else None
    return _translate(key, {new: old for old, new in _TOP.items()})


def our_sam_key(key: str) -> str | None:
    """A Segment Anything image-encoder name (without prefix) to ours, or None."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if block:
        rest = _translate(block[2], {new: old for old, new in _SAM_BLOCK.items()})
        return f"backbone.blocks.{block[1]}.{rest}" if rest else None
    return _translate(key, {new: old for old, new in _SAM_TOP.items()})


def resize_table(key: str, tensor: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, str] | None:
    """Resizes position tables as the original does on load: absolute bicubically, relative linearly."""
    note = f"{tuple(tensor.shape)} -> {shape}"
    if key.endswith("pos_embed") and tensor.ndim == 4:
        return resize_position(tensor, (shape[1], shape[2])), f"bicubic {note}"
    if key.rsplit(".", 1)[-1] in ("rel_pos_h", "rel_pos_w") and tensor.ndim == 2:
        resized = F.interpolate(tensor.float().T[None], size=shape[0], mode="linear")[0].T
        return resized.to(tensor.dtype).contiguous(), f"linear {note}"
    return None


def from_official(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps an official GiT state dict onto our names.

    Args:
        state: Official names to tensors.
        expected: Our names to shapes.
        source: Where it came from, for the report.

    Returns:
        Our names to tensors, and the report of every key.
    """
    return apply_mapping(
        state,
        expected=expected,
        rename=our_key,
        drop=lambda key: "a constant (0, 1, 2, ...)" if key == _POSITION_IDS else None,
        resize=resize_table,
        source=source,
    )


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under official names, with the constant ``embed.position_ids`` that strict loading there expects.

    Raises:
        KeyError: A name is not GiT's.
    """
    official: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = official_key(key)
        if name is None:
            raise KeyError(key)
        official[name] = tensor
    official[_POSITION_IDS] = torch.arange(state["text_embed.positions.weight"].shape[0])[None]
    return official


def from_sam(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a SAM ViT (mmpretrain's or Segment Anything's names) onto our backbone.

    SAM's neck and its prompt and mask decoders are dropped by name; our blocks beyond SAM's depth and the text tables
    are reported as missing and keep their fresh values.
    """
    own_names = any(key.startswith("image_encoder.") for key in state)
    prefix = "image_encoder." if own_names else "backbone."

    def drop(key: str) -> str | None:
        if not key.startswith(prefix):
            return "not part of the image encoder"
        rest = key[len(prefix) :]
        return "SAM's neck has no place in GiT" if rest.startswith(("neck.", "channel_reduction.")) else None

    return apply_mapping(
        state,
        expected=expected,
        rename=(lambda key: our_sam_key(key[len(prefix) :])) if own_names else our_key,
        drop=drop,
        resize=resize_table,
        source=source,
    )


def from_text_embedding(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps an official ``bert_embed*.pt`` (the state of the text embedding alone) onto our names."""
    prefixed = {key if key.startswith("embed.") else f"embed.{key}": tensor for key, tensor in state.items()}
    wanted = {key: shape for key, shape in expected.items() if key.startswith("text_embed.")}
    return from_official(prefixed, wanted, source=source)
