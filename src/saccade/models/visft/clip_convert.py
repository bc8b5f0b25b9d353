"""EVA-CLIP's flat files (``visual.*``, ``text.*``, ``logit_scale``) to our pair, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from saccade.mapping import MappingReport, Rule, apply_mapping, rename
from saccade.models.visft.clip import CLIPPairConfig

_PARTS = ("q_proj", "k_proj", "v_proj")
_BLOCK, _OWN_BLOCK = "text.transformer.resblocks.{i}.", "text.tower.encoder.layers.{i}."
# Names of EVA-CLIP on the left (the position tables and the joined projections taken apart), ours on the right.
_RULES: tuple[Rule, ...] = (
    ("visual.cls_token", "backbone.class_token"),
    ("visual.class_position", "backbone.class_position"),
    ("visual.pos_embed", "backbone.pos_embed"),
    ("visual.patch_embed.proj.", "backbone.patch_embed."),
    ("visual.blocks.", "backbone.blocks."),
    ("visual.norm.", "backbone.norm."),
    ("visual.head.", "project."),
    ("text.token_embedding.", "text.tower.embeddings.token_embedding."),
    ("text.positional_embedding", "text.tower.embeddings.position_embedding.weight"),
    (f"{_BLOCK}ln_1.", f"{_OWN_BLOCK}layer_norm1."),
    (f"{_BLOCK}ln_2.", f"{_OWN_BLOCK}layer_norm2."),
    *((f"{_BLOCK}attn.{part}.", f"{_OWN_BLOCK}self_attn.{part}.") for part in (*_PARTS, "out_proj")),
    (f"{_BLOCK}mlp.c_fc.", f"{_OWN_BLOCK}mlp.fc1."),
    (f"{_BLOCK}mlp.c_proj.", f"{_OWN_BLOCK}mlp.fc2."),
    ("text.ln_final.", "text.tower.final_layer_norm."),
    ("text.text_projection", "text.project.weight"),
    ("logit_scale", "log_scale"),
)
_INVERSE: tuple[Rule, ...] = tuple((ours, official) for official, ours in _RULES)
_CONSTANT = "text.attn_mask"


def from_eva_clip(
    state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """The weights of a pair, and what became of every key.

    Args:
        state: A file's tensors, of any floating type.
        expected: Our names to shapes.
        source: The file, for messages.
    """
    return apply_mapping(
        _taken_apart(state),
        expected=expected,
        rename=lambda key: rename(key, _RULES),
        drop=lambda key: "a constant" if key == _CONSTANT else None,
        source=source,
    )


def to_eva_clip(state: Mapping[str, Tensor], config: CLIPPairConfig) -> dict[str, Tensor]:
    """The inverse of :func:`from_eva_clip`: official names, joined tables."""
    official: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = rename(key, _INVERSE)
        assert name is not None, key
        official[name] = tensor
    table = official.pop("visual.pos_embed").flatten(1, 2)
    official["visual.pos_embed"] = torch.cat([official.pop("visual.class_position"), table], dim=1)
    official["text.text_projection"] = official["text.text_projection"].T
    for index in range(config.text.layers):
        stem = f"text.transformer.resblocks.{index}.attn."
        for kind in ("weight", "bias"):
            official[f"{stem}in_proj_{kind}"] = torch.cat([official.pop(f"{stem}{part}.{kind}") for part in _PARTS])
    return official


def _taken_apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official tensors with what we keep apart taken apart, and turned as we keep it."""
    parts: dict[str, Tensor] = {}
    for key, tensor in state.items():
        stem, found, kind = key.rpartition(".attn.in_proj_")
        if found and tensor.shape[0] % len(_PARTS) == 0:
            for part, rows in zip(_PARTS, tensor.chunk(len(_PARTS)), strict=True):
                parts[f"{stem}.attn.{part}.{kind}"] = rows
        elif key == "visual.pos_embed" and tensor.ndim == 3:
            side = round((tensor.shape[1] - 1) ** 0.5)
            parts["visual.class_position"] = tensor[:, :1]
            table = tensor[:, 1:]
            parts[key] = table.unflatten(1, (side, side)) if table.shape[1] == side * side else table
        elif key == "text.text_projection":
            parts[key] = tensor.T
        else:
            parts[key] = tensor
    return parts
