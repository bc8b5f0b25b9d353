"""Checkpoints of the ViTAE repository and of detectron2 to ours, and back; MAE and ViTAE pre-training files.

Two families hold the same kind of network under other names (docs/vitdet.md has the differences in what they
compute). Three things change on the way, besides names: position tables become maps, relative-position tables of the
ViTAE repository are multiplied by ``head_dim ** -0.5`` (it applies them to scaled queries, we to unscaled ones), and a
bias of queries and values alone becomes one of all three with zeros for the keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.layers.vit import resize_position
from saccade.layers.vitae import ViTAEConfig
from saccade.mapping import MappingReport, Rule, apply_mapping, rename
from saccade.models.vitdet.config import ViTDetConfig

Family: TypeAlias = Literal["vitae_repo", "detectron2"]
"""Who released a file: the ViTAE-Transformer repository (mmdet names) or detectron2."""

# Official name on the left, ours on the right (saccade.mapping.rename).
_VITAE_REPO: tuple[Rule, ...] = (
    ("backbone.patch_embed.proj.", "backbone.patch_embed."),
    ("backbone.layers.2.NC.{i}.PCM.", "backbone.blocks.{i}.parallel_conv.layers."),
    ("backbone.layers.2.NC.{i}.", "backbone.blocks.{i}."),
    ("backbone.layers.{i}.RC.PRM.convs.{j}.0.", "backbone.cells.{i}.reduce.convs.{j}."),
    ("backbone.layers.{i}.RC.PCM.", "backbone.cells.{i}.local."),
    ("backbone.layers.{i}.RC.attn.mlp.0.", "backbone.cells.{i}.attn.fc1."),
    ("backbone.layers.{i}.RC.attn.mlp.2.", "backbone.cells.{i}.attn.fc2."),
    ("backbone.layers.{i}.RC.attn.w", "backbone.cells.{i}.attn.random_features"),
    ("backbone.layers.{i}.RC.attn.", "backbone.cells.{i}.attn."),
    ("backbone.blocks.{i}.PCM.", "backbone.blocks.{i}.parallel_conv.layers."),
    ("backbone.fpn1.1.ln.", "pyramid.up4.1."),
    ("backbone.fpn1.", "pyramid.up4."),
    ("backbone.fpn2.0.", "pyramid.up8."),
    ("neck.lateral_convs.{i}.ln.", "pyramid.lateral.{i}.norm."),
    ("neck.lateral_convs.{i}.", "pyramid.lateral.{i}."),
    ("neck.fpn_convs.{i}.ln.", "pyramid.output.{i}.norm."),
    ("neck.fpn_convs.{i}.", "pyramid.output.{i}."),
    ("rpn_head.rpn_conv.{i}.ln.", "rpn.convs.{i}.norm."),
    ("rpn_head.rpn_conv.{i}.", "rpn.convs.{i}."),
    ("rpn_head.rpn_cls.", "rpn.objectness."),
    ("rpn_head.rpn_reg.", "rpn.deltas."),
    ("roi_head.bbox_head.{i}.shared_convs.{j}.ln.", "roi.box_heads.{i}.convs.{j}.norm."),
    ("roi_head.bbox_head.{i}.shared_convs.{j}.", "roi.box_heads.{i}.convs.{j}."),
    ("roi_head.bbox_head.{i}.shared_fcs.0.", "roi.box_heads.{i}.fc."),
    ("roi_head.bbox_head.{i}.fc_cls.", "roi.box_heads.{i}.cls."),
    ("roi_head.bbox_head.{i}.fc_reg.", "roi.box_heads.{i}.box."),
    ("roi_head.mask_head.{i}.convs.{j}.ln.", "roi.mask_heads.{i}.convs.{j}.norm."),
    ("roi_head.mask_head.{i}.convs.{j}.", "roi.mask_heads.{i}.convs.{j}."),
    ("roi_head.mask_head.{i}.upsample.", "roi.mask_heads.{i}.up."),
    ("roi_head.mask_head.{i}.conv_logits.", "roi.mask_heads.{i}.logits."),
    ("backbone.", "backbone."),
)
_DETECTRON2: tuple[Rule, ...] = (
    ("backbone.net.patch_embed.proj.", "backbone.patch_embed."),
    ("backbone.net.blocks.{i}.residual.conv{j+1}.", "backbone.blocks.{i}.residual.convs.{j}.conv."),
    ("backbone.net.blocks.{i}.residual.norm{j+1}.", "backbone.blocks.{i}.residual.convs.{j}.norm."),
    ("backbone.simfp_2.4.norm.", "pyramid.lateral.0.norm."),
    ("backbone.simfp_2.4.", "pyramid.lateral.0.conv."),
    ("backbone.simfp_2.5.norm.", "pyramid.output.0.norm."),
    ("backbone.simfp_2.5.", "pyramid.output.0.conv."),
    ("backbone.simfp_2.", "pyramid.up4."),
    ("backbone.simfp_3.0.", "pyramid.up8."),
    ("backbone.simfp_3.1.norm.", "pyramid.lateral.1.norm."),
    ("backbone.simfp_3.1.", "pyramid.lateral.1.conv."),
    ("backbone.simfp_3.2.norm.", "pyramid.output.1.norm."),
    ("backbone.simfp_3.2.", "pyramid.output.1.conv."),
    ("backbone.simfp_4.0.norm.", "pyramid.lateral.2.norm."),
    ("backbone.simfp_4.0.", "pyramid.lateral.2.conv."),
    ("backbone.simfp_4.1.norm.", "pyramid.output.2.norm."),
    ("backbone.simfp_4.1.", "pyramid.output.2.conv."),
    ("backbone.simfp_5.1.norm.", "pyramid.lateral.3.norm."),
    ("backbone.simfp_5.1.", "pyramid.lateral.3.conv."),
    ("backbone.simfp_5.2.norm.", "pyramid.output.3.norm."),
    ("backbone.simfp_5.2.", "pyramid.output.3.conv."),
    ("proposal_generator.rpn_head.conv.conv{i}.", "rpn.convs.{i}."),
    ("proposal_generator.rpn_head.objectness_logits.", "rpn.objectness."),
    ("proposal_generator.rpn_head.anchor_deltas.", "rpn.deltas."),
    ("roi_heads.box_head.{i}.conv{j+1}.norm.", "roi.box_heads.{i}.convs.{j}.norm."),
    ("roi_heads.box_head.{i}.conv{j+1}.", "roi.box_heads.{i}.convs.{j}.conv."),
    ("roi_heads.box_head.{i}.fc1.", "roi.box_heads.{i}.fc."),
    ("roi_heads.box_predictor.{i}.cls_score.", "roi.box_heads.{i}.cls."),
    ("roi_heads.box_predictor.{i}.bbox_pred.", "roi.box_heads.{i}.box."),
    ("roi_heads.box_predictor.0.fed_loss_cls_weights", "roi.class_weights"),
    ("roi_heads.mask_head.mask_fcn{i+1}.norm.", "roi.mask_heads.0.convs.{i}.norm."),
    ("roi_heads.mask_head.mask_fcn{i+1}.", "roi.mask_heads.0.convs.{i}.conv."),
    ("roi_heads.mask_head.deconv.", "roi.mask_heads.0.up."),
    ("roi_heads.mask_head.predictor.", "roi.mask_heads.0.logits."),
    ("backbone.net.", "backbone."),
)
_RULES: dict[Family, tuple[Rule, ...]] = {"vitae_repo": _VITAE_REPO, "detectron2": _DETECTRON2}
# Heads that stand in a list only in cascades: the others are given the number 0.
_NUMBERED: dict[Family, str] = {
    "vitae_repo": r"^(roi_head\.(?:bbox|mask)_head\.)(?!\d)",
    "detectron2": r"^(roi_heads\.box_(?:head|predictor)\.)(?!\d)",
}
_PIXELS = ("pixel_mean", "pixel_std")
_FEDERATED = re.compile(r"roi_heads\.box_predictor\.(?:(\d)\.)?fed_loss_cls_weights")


def family_of(keys: Sequence[str] | Mapping[str, object]) -> Family | None:
    """Who released a file with these keys, or None."""
    if any(key.startswith("backbone.simfp_") for key in keys):
        return "detectron2"
    if any(key.startswith(("neck.lateral_convs.", "rpn_head.rpn_conv.")) for key in keys):
        return "vitae_repo"
    return None


def our_key(key: str, family: Family) -> str | None:
    """An official name to ours, or None."""
    return rename(re.sub(_NUMBERED[family], r"\g<1>0.", key), _RULES[family])


def official_key(key: str, family: Family, *, cascade: bool, cells: bool) -> str | None:
    """Our name to the official one, or None.

    Args:
        key: Our name.
        family: Whose names are wanted.
        cascade: Heads stand in numbered lists.
        cells: The backbone is ViTAE-S, whose blocks are called cells.
    """
    other = "backbone.blocks." if cells else "backbone.layers."
    name = rename(key, [(ours, official) for official, ours in _RULES[family] if not official.startswith(other)])
    if name is not None and not cascade:
        name = re.sub(r"^(roi_heads?\.(?:bbox_head|mask_head|box_head|box_predictor)\.)0\.", r"\1", name)
    return name


def from_official(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, head_dim: int, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a released detector onto our names.

    Args:
        state: Official names to tensors.
        expected: Our names to shapes.
        head_dim: Channels per attention head.
        source: Where it came from, for the report.

    Raises:
        CheckpointError: The file is of neither family.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    family = family_of(state)
    if family is None:
        raise CheckpointError(
            "not a detector of the ViTAE repository or of detectron2",
            where=source or None,
            why=f"its keys look like {', '.join(list(state)[:3])}",
            fix="give a released ViTDet or ViTAE file; a backbone alone is loaded with init_from=",
        )

    def drop(key: str) -> str | None:
        if key in _PIXELS:
            return "pixel mean and deviation are part of preprocessing"
        found = _FEDERATED.fullmatch(key)
        return "a copy of the first stage's class weights" if found and found[1] not in (None, "0") else None

    mapped, report = apply_mapping(
        _to_ours(state, family, head_dim),
        expected=expected,
        rename=lambda key: our_key(key, family),
        drop=drop,
        resize=_resize,
        source=source,
    )
    if not report.complete:
        report.notes.append(f"the file is of the {family} family; {describe(state)}")
    return mapped, report


def to_official(state: Mapping[str, Tensor], config: ViTDetConfig, family: Family) -> dict[str, Tensor]:
    """Our state dict under the names of a family.

    The class token's row of detectron2's position table, which nothing reads, comes back as zeros.

    Args:
        state: Our names to tensors.
        config: Of the model.
        family: Whose names are wanted.

    Raises:
        KeyError: A name is not the detector's.
    """
    cascade, cells = len(config.roi.stages) > 1, isinstance(config.backbone, ViTAEConfig)
    vitae_b = config.vit.parallel_conv == "two"
    official: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = official_key(key, family, cascade=cascade, cells=cells)
        if name is None:
            raise KeyError(key)
        if key == "backbone.pos_embed":
            tensor = tensor.flatten(1, 2)
            if family == "detectron2":
                tensor = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
        elif ".rel_pos_" in key and family == "vitae_repo":
            tensor = tensor * math.sqrt(config.vit.width // config.vit.heads)
        elif vitae_b and key.endswith("qkv.bias") and int(key.split(".")[2]) in config.vit.global_blocks:
            name, (tensor, _, values) = name.replace("qkv.bias", "q_bias"), tensor.chunk(3)
            official[name.replace("q_bias", "v_bias")] = values
        official[name] = tensor
    if family == "detectron2" and cascade and "roi.class_weights" in state:
        for number in (1, 2):
            official[f"roi_heads.box_predictor.{number}.fed_loss_cls_weights"] = state["roi.class_weights"]
    return official


def from_backbone(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, head_dim: int, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a pre-trained backbone (MAE ViT, ViTAE) onto ours by the rules of the originals.

    The class token, a decoder, and the last norm where the detector has none are left out; position tables, and patches
    of 14 pixels (the public MAE ViT-H), are resized bicubically; a bias of queries and values becomes one of all three.
    Relative-position tables, pyramid and heads are reported as missing and start fresh.

    Args:
        state: Names and tensors of the file (the best of ``state_dict_ema``, ``state_dict`` and ``model`` is chosen
            where the file is read).
        expected: Our names to shapes.
        head_dim: Channels per attention head.
        source: Where it came from, for the report.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if sorted(state)[0].startswith("encoder"):
        state = {key.removeprefix("encoder."): tensor for key, tensor in state.items() if key.startswith("encoder.")}
    reasons = {
        "cls_token": "the detector has no class token",
        "mask_token": "a part of pre-training",
        "decoder": "a part of pre-training",
        "head.": "the classifier of pre-training",
        "fc_norm.": "the classifier of pre-training",
    }
    if "backbone.norm.weight" not in expected:
        reasons["norm."] = "the detector has no norm behind its last block"

    def drop(key: str) -> str | None:
        if key.endswith(("relative_position_index", "relative_position_bias_table")):
            return "a table of another kind of relative position"
        bare = key.removeprefix("backbone.")
        return next((reason for start, reason in reasons.items() if bare.startswith(start)), None)

    prefixed = {f"backbone.{key}": tensor for key, tensor in state.items()}
    mapped, report = apply_mapping(
        _to_ours(prefixed, "vitae_repo", head_dim, class_token=True),
        expected=expected,
        rename=lambda key: our_key(key, "vitae_repo"),
        drop=drop,
        resize=_resize,
        source=source,
    )
    if report.unexpected or report.wrong_shape:
        report.notes.append(describe(state))
    return mapped, report


def describe(state: Mapping[str, Tensor]) -> str:
    """What a released file looks like, in words, from its shapes."""
    family = family_of(state)
    if family is None:
        return _describe_backbone(state)
    if any(".RC." in key for key in state):
        backbone = "ViTAE-S"
    else:
        width = next((t.shape[0] for key, t in state.items() if key.endswith("patch_embed.proj.bias")), 0)
        backbone = {768: "B", 1024: "L", 1280: "H"}.get(width, f"width {width}")
        backbone = f"ViTAE-{backbone}" if any(".PCM." in key for key in state) else f"ViT-{backbone}"
    heads = "Cascade" if any(re.match(r"roi_heads?\.b(ox|box)_head\.[12]\.", key) for key in state) else "Mask"
    rows = next((t.shape[0] - 1 for key, t in state.items() if key.endswith(("cls_score.bias", "fc_cls.bias"))), None)
    return f"it looks like a {heads} R-CNN on {backbone} with {rows} classes"


def _describe_backbone(state: Mapping[str, Tensor]) -> str:
    """What a file that is no detector looks like."""
    if any(key.startswith("image_encoder.") for key in state) or any(
        key.startswith("backbone.layers.") for key in state
    ):
        return "it looks like a SAM or GiT file, not like a pre-trained backbone of a detector"
    patches = state.get("patch_embed.proj.weight")
    if patches is None:
        return f"it looks like no vision transformer; its keys are {', '.join(list(state)[:3])} ..."
    kind = "ViTAE" if any(".PCM." in key for key in state) else "ViT"
    blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    return f"it looks like a pre-trained {kind} of width {patches.shape[0]} with {blocks} blocks (MAE or the like)"


def count_classes(state: Mapping[str, Tensor]) -> int:
    """Classes of a released file, the background not counted."""
    return next((len(t) - 1 for key, t in state.items() if key.endswith(("cls_score.bias", "fc_cls.bias"))), 0)


def _to_ours(
    state: Mapping[str, Tensor], family: Family, head_dim: int, *, class_token: bool = False
) -> dict[str, Tensor]:
    """Values in our form under official names."""
    ours: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith("pos_embed") and tensor.ndim == 3:
            tokens = tensor[:, 1:] if class_token or family == "detectron2" else tensor
            side = math.isqrt(tokens.shape[1])
            if side * side == tokens.shape[1]:
                tensor = tokens.unflatten(1, (side, side))
        elif ".rel_pos_" in key and family == "vitae_repo":
            tensor = tensor / math.sqrt(head_dim)
        elif key.endswith(".q_bias") and (values := state.get(f"{key.removesuffix('q_bias')}v_bias")) is not None:
            key = f"{key.removesuffix('q_bias')}qkv.bias"
            tensor = torch.cat([tensor, torch.zeros_like(tensor), values])
        elif key.endswith(".v_bias") and f"{key.removesuffix('v_bias')}q_bias" in state:
            continue
        ours[key] = tensor
    return ours


def _resize(key: str, tensor: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, str] | None:
    """Position tables and patches of another size are resized bicubically; nothing else is."""
    if key.endswith("pos_embed") and tensor.ndim == 4 and len(shape) == 4:
        return resize_position(tensor, (shape[1], shape[2])), f"bicubic {tuple(tensor.shape)} -> {shape}"
    if key.endswith("patch_embed.weight") and tensor.ndim == 4 and tensor.shape[:2] == shape[:2]:
        resized = F.interpolate(tensor.float(), size=shape[2:], mode="bicubic", align_corners=False)
        return resized.to(tensor.dtype), f"bicubic {tuple(tensor.shape)} -> {shape}"
    return None
