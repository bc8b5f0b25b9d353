"""What training can start from: a pre-trained backbone (``init_from``) and a text embedding (``text_init``)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from saccade.errors import CheckpointError, ConfigError
from saccade.hub.shards import WEIGHTS
from saccade.hub.sizes import count_blocks, variant_notes
from saccade.hub.unpickle import TensorFile, read_tensor_file
from saccade.layers.lora import CHILD
from saccade.layers.vit import PlainViT
from saccade.mapping import MappingReport, apply_mapping
from saccade.models.ait import convert as ait
from saccade.models.ait.model import AiT
from saccade.models.ait.vqvae import MapVQVAE
from saccade.models.git import convert as git
from saccade.models.git.model import GiT
from saccade.models.gsva.model import GSVA
from saccade.models.polar.centers import CenterPredictor
from saccade.models.polar.model import PolarSegmenter
from saccade.models.polar.segmenter import Segmenter, ViTPixels
from saccade.models.systems import Model
from saccade.models.visft import convert as visft
from saccade.models.visft.clip import CLIPPair
from saccade.models.visft.config import Head
from saccade.models.visft.model import ViSFT
from saccade.models.vitdet import convert as vitdet
from saccade.models.vitdet.model import ViTDet
from saccade.tokens.words import FILE as WORDS
from saccade.tokens.words import WordMap

BACKBONE, TEXT, HEADS_FILE = "backbone.safetensors", "text_embed.safetensors", "heads.safetensors"
"""Names of the files that a converted backbone, text embedding and heads have in their folders."""

# What stands before the backbone in a plain ViT with a light head, and in the polar wrapper.
_WRAPPED = re.compile(r"(segmenter\.)?(network\.)?(?=backbone\.blocks\.)")


def load_backbone(model: Model, path: str | Path) -> MappingReport:
    """Copies a pre-trained backbone into a model (``init_from``); blocks beyond its depth keep their fresh values.

    A detector takes a plain ViT or ViTAE as pre-trained by MAE; what such a file cannot know (relative positions,
    convolutions between windows) keeps its fresh values, too. A solver of AiT takes the transformer of another one, too
    (:func:`saccade.models.ait.convert.from_start`). The polar wrapper starts what it wraps, and a segmenter its plain
    ViT.

    Args:
        model: Its backbone is overwritten.
        path: A SAM file in mmpretrain's or Segment Anything's names,
            an MAE or ViTAE file, a GiT file, a SimMIM file or a released solver for AiT, or a folder or file of ours.

    Raises:
        CheckpointError: The file is damaged, or a tensor of the backbone is missing or has another shape.
        ConfigError: The model has no backbone that is known elsewhere.
    """
    if isinstance(model, PolarSegmenter):
        return load_backbone(cast(Model, model.segmenter), path)
    host: nn.Module = model.network if isinstance(model, Segmenter) else model
    if isinstance(model, MapVQVAE | GSVA | CenterPredictor) or (host is not model and not isinstance(host, ViTPixels)):
        raise ConfigError(f"a {model.system} model has no backbone of its own", where="init_from")
    file, depth = _read_part(path, BACKBONE)
    whole = isinstance(model, AiT) and ait.has_transformer(file.tensors)
    parts = ("backbone.", "transformer.") if whole else ("backbone.",)
    expected = {k: tuple(v.shape) for k, v in host.state_dict().items() if k.startswith(parts)}
    if whole:
        mapped, report = ait.from_start(file.tensors, expected, source=str(file.path))
    elif any(key.startswith(("backbone.blocks.", "backbone.stages.")) for key in file.tensors):
        mapped, report = apply_mapping(
            file.tensors,
            expected=expected,
            rename=lambda key: key,
            drop=lambda key: _left_out(key, expected),
            resize=git.resize_table,
            source=str(file.path),
        )
    elif isinstance(model, AiT):
        mapped, report = ait.from_backbone(file.tensors, expected, source=str(file.path))
    elif isinstance(model, ViSFT | CLIPPair):
        mapped, report = visft.from_official(file.tensors, expected, heads=(), source=str(file.path))
    elif isinstance(model, ViTDet):
        mapped, report = vitdet.from_backbone(
            file.tensors, expected, head_dim=model.config.vit.width // model.config.vit.heads, source=str(file.path)
        )
    else:
        mapped, report = git.from_sam(file.tensors, expected, source=str(file.path))
    if isinstance(model, AiT):
        # The norm of the last stage is not in files that name theirs otherwise.
        allowed = ["backbone.norms.*", "transformer.*"]
    elif isinstance(model, ViSFT | CLIPPair):
        # Some files have no last norm; it then starts as the identity.
        allowed = ["backbone.norm.*", "backbone.class_*"]
        if "backbone.norm.weight" in report.missing:
            report.notes.append("the file has no last norm: it starts as the identity")
    elif isinstance(model, ViTDet):
        allowed = ["backbone.blocks.*.attn.rel_pos_?", "backbone.blocks.*.residual.*"]
    else:
        assert isinstance(host.backbone, PlainViT)
        vit = host.backbone.config
        allowed = [f"backbone.blocks.{index}.*" for index in range(depth, vit.depth)]
        report.notes += variant_notes(file.tensors, vit)
    _hint_at_updates(report, file.path)
    report.check(allow=allowed)
    _copy_into(host, mapped)
    return report


def _left_out(key: str, expected: Mapping[str, object]) -> str | None:
    """Why a tensor of a model of ours is not taken for a backbone."""
    if key.startswith("backbone.class_") and key not in expected:
        return "the model has no class token"
    return None if key.startswith("backbone.") else "not part of the backbone"


def load_head(model: ViSFT, head: Head, path: str | Path) -> MappingReport:
    """Copies a trained head into a model (``detection_init`` and the like); other heads of the file are left out.

    Args:
        model: Its head is overwritten.
        head: Which one.
        path: A checkpoint or a released file of the authors, or a folder or file of ours.

    Raises:
        CheckpointError: The file is damaged, or a tensor of the head is missing or has another shape.
        ConfigError: The folder of a caption head has another map of words than the model.
    """
    file, _ = _read_part(path, HEADS_FILE)
    # A released file says nothing of its words; a folder of ours has them beside its weights.
    beside = file.path.parent / WORDS
    if head == "caption" and file.path.name in (HEADS_FILE, WEIGHTS) and beside.is_file():
        require_same_words(WordMap.load(beside), model.vocabulary, where=beside)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items() if k.startswith(f"{head}.")}
    if visft.is_heads(file.tensors):
        mapped, report = visft.from_official(file.tensors, expected, heads=(head,), source=str(file.path))
    else:
        mapped, report = apply_mapping(
            file.tensors,
            expected=expected,
            rename=lambda key: key,
            drop=lambda key: None if key.startswith(f"{head}.") else "not part of the head",
            source=str(file.path),
        )
    _hint_at_updates(report, file.path)
    report.check()
    _copy_into(model, mapped)
    return report


def _hint_at_updates(report: MappingReport, file: Path) -> None:
    """Tells what to do with a checkpoint of ours whose low-rank updates have no place."""
    if any(f".{CHILD}." in key for key in report.unexpected):
        run = file.parent if file.name == WEIGHTS else file
        report.notes = [
            f"add its low-rank updates to the weights first: saccade lora merge {run} --out FOLDER",
            *report.notes,
        ]


def require_same_words(trained: WordMap | None, used: WordMap | None, *, where: object) -> None:
    """Refuses a caption head whose words have other ids than those that it is to read: it would say others.

    Args:
        trained: The words of the head; None = not known.
        used: Those of the model that it becomes part of; None = it has none.
        where: Where the head's are told.

    Raises:
        ConfigError: A word has another id, or only one of the two has it.
    """
    if trained is None or used is None or trained == used:
        return
    odd = [word for word in trained.words if used.ids.get(word) != trained.ids[word]]
    odd += [word for word in used.words if word not in trained.ids]
    told = [f"'{word}' {trained.ids.get(word, 'none')} -> {used.ids.get(word, 'none')}" for word in odd[:3]]
    raise ConfigError(
        "the caption head was trained with another map of words",
        where=where,
        why=f"{len(odd)} words have other ids, e.g. {', '.join(told)}",
        fix="leave vocabulary= out (words= of visft.lora_g and the like): the map beside the head is then taken",
    )


def load_text_embedding(model: GiT, path: str | Path) -> MappingReport:
    """Copies a text embedding into a model (``text_init``).

    Args:
        model: Its text embedding is overwritten.
        path: An official ``bert_embed*.pt``, or a folder or file of ours.

    Raises:
        CheckpointError: The file is damaged, or a tensor is missing or has another shape.
    """
    file, _ = _read_part(path, TEXT)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items() if k.startswith("text_embed.")}
    # A whole model brings its text embedding with it; the rest of it is not looked at.
    ours = {key: value for key, value in file.tensors.items() if key.startswith("text_embed.")}
    official = {key: value for key, value in file.tensors.items() if key.startswith("embed.")} or file.tensors
    if ours:
        mapped, report = apply_mapping(ours, expected=expected, rename=lambda key: key, source=str(file.path))
    else:
        mapped, report = git.from_text_embedding(official, expected, source=str(file.path))
    report.check()
    _copy_into(model, mapped)
    return report


def _read_part(path: str | Path, name: str) -> tuple[TensorFile, int]:
    given = Path(path)
    if given.is_dir():
        parts = [given / file for file in (name, WEIGHTS) if (given / file).is_file()]
        if not parts:
            raise CheckpointError(
                f"the folder has no {name}", where=given, fix="name a weight file or a converted folder"
            )
        given = parts[0]
    file = read_tensor_file(given)
    before = next((found[0] for key in file.tensors if (found := _WRAPPED.match(key))), "")
    if before:
        inside = {key.removeprefix(before): value for key, value in file.tensors.items() if key.startswith(before)}
        file = dataclasses.replace(file, tensors=inside)
    return file, count_blocks(file.tensors)


def _copy_into(model: nn.Module, mapped: Mapping[str, Tensor]) -> None:
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for key, value in mapped.items():
            own[key].copy_(value)
