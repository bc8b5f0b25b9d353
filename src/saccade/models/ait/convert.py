"""Checkpoints of AiT to ours and back: solvers, VQ-VAEs, and SwinV2 pre-training files.

A released solver holds its transformer once per head, and tables that can be computed; ours holds each tensor once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.layers.swin import SwinV2Config, log_offsets
from saccade.layers.vit import ViTConfig
from saccade.mapping import MappingReport, Rule, apply_mapping, rename
from saccade.models.ait.config import AiTConfig
from saccade.models.ait.transformer import sine_positions

_VQVAE: tuple[Rule, ...] = (
    ("_vq_vae._embedding", "codebook.entries"),
    ("_vq_vae._ema_cluster_size", "codebook.uses"),
    ("_vq_vae._ema_w", "codebook.sums"),
    ("encoder.{i}.net.", "encoder.{i}.layers."),
    ("decoder.{i}.net.", "decoder.{i}.layers."),
    ("encoder.", "encoder."),
    ("decoder.", "decoder."),
)
_BACKBONE: tuple[Rule, ...] = (
    ("patch_embed.proj.", "patch_embed."),
    ("patch_embed.norm.", "patch_norm."),
    ("layers.{i}.blocks.{j}.attn.rpe_mlp.0.", "stages.{i}.blocks.{j}.attn.position.hidden."),
    ("layers.{i}.blocks.{j}.attn.rpe_mlp.2.", "stages.{i}.blocks.{j}.attn.position.out."),
    ("layers.{i}.", "stages.{i}."),
    ("norm{i}.", "norms.{i}."),
)
_BRANCHES = (("attn", "attn"), ("crossattn", "cross"))
_PROJECTIONS = (("wq", "query"), ("wk", "key"), ("wv", "value"))
_TRANSFORMER: tuple[Rule, ...] = (
    *(
        (f"{side}.blocks.{{i}}.{branch}.{theirs}.", f"{side}.{{i}}.{ours}.{name}.")
        for side in ("encoder", "decoder")
        for branch, ours in _BRANCHES
        for theirs, name in _PROJECTIONS
    ),
    ("decoder.blocks.{i}.crossattn.", "decoder.{i}.cross."),
    ("encoder.blocks.{i}.", "encoder.{i}."),
    ("decoder.blocks.{i}.", "decoder.{i}."),
    ("det_embed", "task_embed"),
    ("voc_embed", "token_embed"),
    ("dec_embed", "position_embed"),
    ("outp_bias", "token_bias"),
    ("mask_embed", "parallel_embed"),
    ("stem_ln.", "input_norm."),
    ("encout_ln.", "encoder_norm."),
    ("proj.", "memory_proj."),
    ("proj_ln.", "memory_norm."),
    ("proj_mlp.", "memory_mlp."),
    ("proj_mlp_ln.", "memory_mlp_norm."),
    ("input_proj.", "input_proj."),
    ("norm.", "norm."),
)
_PARTS: tuple[tuple[str, str, tuple[Rule, ...]], ...] = (
    ("backbone.", "backbone.", _BACKBONE),
    ("transformer.", "transformer.", _TRANSFORMER),
    ("insseg_head.vqvae.", "mask_vqvae.", _VQVAE),
    ("depth_head.vqvae.", "depth_vqvae.", _VQVAE),
)
_COPY = re.compile(r"(det|insseg|depth)_head\.transformer\.")
_COMPUTED = ("relative_coords_table", "relative_position_index", "transformer.enc_embed", "loss_seq.weight")


def our_key(key: str) -> str | None:
    """An official name of a solver to ours, or None."""
    for theirs, ours, rules in _PARTS:
        if key.startswith(theirs):
            name = rename(key.removeprefix(theirs), rules)
            return None if name is None else ours + name
    return None


def official_key(key: str) -> str | None:
    """Our name to the official one, or None."""
    for theirs, ours, rules in _PARTS:
        if key.startswith(ours):
            name = rename(key.removeprefix(ours), [(right, left) for left, right in rules])
            return None if name is None else theirs + name
    return None


def _drop(key: str) -> str | None:
    if _COPY.match(key):
        return "a copy of the transformer"
    return "it is computed" if key.endswith(_COMPUTED) else None


def is_solver(keys: Sequence[str] | Mapping[str, object]) -> bool:
    """Whether a file with these keys is a solver of AiT."""
    return any(key.removeprefix("module.") == "transformer.voc_embed" for key in keys)


def is_vqvae(keys: Sequence[str] | Mapping[str, object]) -> bool:
    """Whether a file with these keys is a VQ-VAE of AiT."""
    return any(key.removeprefix("module.") == "_vq_vae._embedding" for key in keys)


def from_official(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a released solver onto our names.

    Args:
        state: Official names to tensors.
        expected: Our names to shapes.
        source: Where it came from, for the report.

    Raises:
        CheckpointError: The file is no solver of AiT.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if not is_solver(state):
        raise CheckpointError(
            "not a solver of AiT",
            where=source or None,
            why=f"its keys look like {', '.join(list(state)[:3])}",
            fix="give a released ait_*.pth file; a VQ-VAE or a backbone alone is loaded with init_from=",
        )
    return apply_mapping(state, expected=expected, rename=our_key, drop=_drop, source=source)


def from_vqvae(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a released VQ-VAE onto our names (``module.`` of a file that training wrote is taken off)."""
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return apply_mapping(
        state, expected=expected, rename=lambda key: rename(key, _VQVAE), drop=lambda _: None, source=source
    )


def from_backbone(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a SimMIM pre-training file onto the backbone by the rules of the original.

    Entries below ``backbone.`` or ``encoder.`` count where there are any, else all; tables that are computed and the
    decoder of pre-training are left out. Everything else of a solver is reported as missing and starts fresh.

    Args:
        state: Names and tensors of the file (``state_dict``, else ``model``, else the whole).
        expected: Our names to shapes, of a whole solver.
        source: Where it came from, for the report.
    """
    inside = {
        re.sub(r"^(backbone|encoder)\.", "", key): tensor
        for key, tensor in state.items()
        if key.startswith(("backbone.", "encoder."))
    }
    chosen = inside or dict(state)
    if next(iter(chosen), "").startswith("module."):
        chosen = {key.removeprefix("module."): tensor for key, tensor in chosen.items()}

    def drop(key: str) -> str | None:
        if key.startswith(("decoder.", "head.", "mask_token", "patch_embed.mask_token")) or key.startswith("norm."):
            return "a part of pre-training"
        return _drop(key)

    return apply_mapping(
        chosen,
        expected=expected,
        rename=lambda key: None if (name := rename(key, _BACKBONE)) is None else f"backbone.{name}",
        drop=drop,
        source=source,
    )


def has_transformer(keys: Sequence[str] | Mapping[str, object]) -> bool:
    """Whether a file with these keys, official ones or ours, knows more of a solver than its backbone."""
    return any(key.removeprefix("module.").startswith("transformer.") for key in keys)


def from_start(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps what one solver has learned onto another that starts from it, as the original's masks start from boxes.

    Of the transformer counts what has the same name and shape; the rest (the vocabulary, where it has other rows)
    starts fresh and stands in the notes. VQ-VAEs are left out: a run names those whose codes it learns.

    Args:
        state: Official names, or ours, to tensors.
        expected: Our names to shapes, of the backbone and the transformer.
        source: Where it came from, for the report.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    ours = any(key.startswith(("backbone.stages.", "backbone.blocks.")) for key in state)

    def drop(key: str) -> str | None:
        return "a VQ-VAE: the run names its own" if "vqvae." in key else _drop(key)

    mapped, report = apply_mapping(
        state, expected=expected, rename=(lambda key: key) if ours else our_key, drop=drop, source=source
    )
    places = {key: key if ours else our_key(key) for key in report.unexpected}
    extra = [key for key, place in places.items() if place is not None and place.startswith("transformer.")]
    report.dropped |= dict.fromkeys(extra, "the model has no such part")
    report.unexpected = [key for key in report.unexpected if key not in extra]
    lacking = [_part(key) for key in report.missing if key.startswith("transformer.")]
    odd = {key: report.wrong_shape.pop(key) for key in list(report.wrong_shape) if key.startswith("transformer.")}
    report.missing += odd
    if report.wrong_shape:
        report.notes.append("choose a solver with the same backbone")
        return mapped, report
    for keys, why in (
        (dict.fromkeys(lacking), "the file lacks them"),
        ([f"{key} {found} -> {want}" for key, (found, want) in odd.items()], "they have another shape in the file"),
    ):
        if keys:
            report.notes.append(f"start fresh, because {why}: {', '.join(keys)}")
    return mapped, report


def _part(key: str) -> str:
    """The block or the table that a tensor of the transformer belongs to."""
    found = re.match(r"transformer\.\w+(\.\d+)?", key)
    return found[0] if found else key


def to_official(state: Mapping[str, Tensor], config: AiTConfig) -> dict[str, Tensor]:
    """Our state dict under official names, copies and computed tables included.

    Args:
        state: Our names to tensors.
        config: Of the model.

    Raises:
        CheckpointError: The backbone is a plain ViT, which the original does not know.
        KeyError: A name is not AiT's.
    """
    if isinstance(config.backbone, ViTConfig):
        raise CheckpointError("the official model has a SwinV2 as its backbone, and this one a plain ViT")
    official: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = official_key(key)
        if name is None:
            raise KeyError(key)
        official[name] = tensor
    grid = config.transformer.grid
    official["transformer.enc_embed"] = sine_positions(grid, grid, config.transformer.width)[None]
    official |= _tables(config.backbone)
    heads = []
    if config.detection is not None or (config.instance is not None and config.depth is None):
        heads.append("det")  # the instance model of the original has a detection head, too
    heads += ["insseg"] * (config.instance is not None) + ["depth"] * (config.depth is not None)
    shared = {key: tensor for key, tensor in official.items() if key.startswith("transformer.")}
    for head in heads:
        official |= {f"{head}_head.{key}": tensor for key, tensor in shared.items()}
    if config.instance is not None:
        weights = torch.ones(config.vocabulary)
        weights[config.mask_tokens] = config.instance.mask_weight
        official["insseg_head.loss_seq.weight"] = weights
    return official


def vqvae_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VQ-VAE of ours under official names."""
    inverse = [(right, left) for left, right in _VQVAE]
    named = {rename(key, inverse): tensor for key, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if name is not None}


def _tables(config: SwinV2Config) -> dict[str, Tensor]:
    """The tables that a released backbone stores in every block."""
    found: dict[str, Tensor] = {}
    for stage, (depth, side, pretrained) in enumerate(
        zip(config.depths, config.windows, config.pretrained_windows, strict=True)
    ):
        logs = log_offsets(side, pretrained)
        coordinates = torch.stack(torch.meshgrid(logs, logs, indexing="ij"), dim=-1)[None]
        place = torch.arange(side)
        offset = place[:, None] - place + side - 1
        index = offset[:, None, :, None] * (2 * side - 1) + offset[None, :, None, :]
        for block in range(depth):
            at = f"backbone.layers.{stage}.blocks.{block}.attn."
            found[f"{at}relative_coords_table"] = coordinates
            found[f"{at}relative_position_index"] = index.flatten(2).flatten(0, 1)
    return found
