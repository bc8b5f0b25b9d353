"""Released files of ViSFT, EVA and EVA-CLIP: which model they fit, and what becomes of every key (see ``convert``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from saccade.data.class_names import CLASS_NAMES
from saccade.errors import CheckpointError, UsageError, nearest
from saccade.hub.sizes import Kind
from saccade.hub.unpickle import TensorFile
from saccade.hub.weight_sets import read_weight_set
from saccade.layers.lora import CHILD, LoRAConfig, add_lora, updates_of
from saccade.mapping import MappingReport
from saccade.models.visft import convert as visft
from saccade.models.visft.clip import CLIPPair, CLIPPairConfig, TextTowerConfig
from saccade.models.visft.clip_convert import from_eva_clip
from saccade.models.visft.config import Head, ViSFTConfig
from saccade.models.visft.model import ViSFT
from saccade.models.visft.presets import PRESETS, preset_of_width

_TEXT_HEAD_WIDTH = 64
# A tensor of each head that shows the width of the backbone, and the axis that does.
_IN_WIDTH = {
    "visft_heads.input_proj.weight": 1,
    "visft_heads.segment_pixel_decoder.input_proj.0.0.weight": 1,
    "visft_heads.caption_decoder.attention.encoder_att.weight": 1,
}


@dataclasses.dataclass(kw_only=True)
class Mapped:
    """What :func:`map_visft` found; the fields are those of :class:`saccade.hub.convert.Conversion`."""

    kind: Kind
    preset: str
    config: ViSFTConfig | CLIPPairConfig
    state: dict[str, Tensor]
    report: MappingReport
    allowed: tuple[str, ...] = ()
    lora: LoRAConfig | None = None


def is_visft(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file is one of these."""
    return visft.is_heads(tensors) or visft.is_lora(tensors) or visft.is_backbone(tensors)


def map_visft(
    file: TensorFile, preset: str | None, *, base: str | Path | None = None, part: Head | None = None
) -> Mapped:
    """Maps a file of heads (a whole model with ``base``), a backbone, or a pair of towers.

    Args:
        file: What was read.
        preset: A name of :data:`saccade.models.visft.presets.PRESETS`; None = by the width.
        base: The backbone of heads: a file, or a folder of ours.
        part: The head that is wanted of a file with several; None = all that it has.

    Raises:
        CheckpointError: No known width.
        UsageError: Unknown preset, low-rank updates without a model, or a head that the file does not have.
    """
    tensors = file.tensors
    if visft.is_lora(tensors):
        raise UsageError(
            "low-rank updates are no model by themselves",
            where=file.path,
            why=visft.describe(tensors),
            fix="add them to their backbone: saccade lora merge BACKBONE UPDATES --out FILE",
        )
    if visft.is_heads(tensors):
        return _map_heads(file, _preset_of(file, preset), base=base, part=part)
    if base is not None or part is not None:
        raise UsageError("only heads have a base and parts", where=file.path, fix="leave out --base and --part")
    if any(key.startswith("text.") for key in tensors):
        return _map_pair(file)
    name = _preset_of(file, preset)
    config = PRESETS[name]().only(())
    state, report = visft.from_official(tensors, _expected(config), heads=(), source=str(file.path))
    allowed: tuple[str, ...] = ()
    if "backbone.norm.weight" in report.missing:
        allowed = ("backbone.norm.*",)
        report.notes.append("the file has no last norm: it starts as the identity")
    return Mapped(kind="backbone", preset=name, config=config, state=state, report=report, allowed=allowed)


def updates_by_block(model: nn.Module, source: str | Path) -> dict[int, tuple[Tensor, Tensor]]:
    """A and B of every block, without gradients: what is written to them changes the model.

    Args:
        model: With updates (:func:`saccade.layers.lora.add_lora`).
        source: Where it came from, for messages.

    Raises:
        CheckpointError: It has others than of queries and values of its backbone's blocks.
    """
    blocks: dict[int, tuple[Tensor, Tensor]] = {}
    for name, (layer, update) in updates_of(model).items():
        parts, rows = name.split("."), queries_values(layer.in_features)
        if parts[:2] != ["backbone", "blocks"] or parts[3:] != ["attn", "qkv"] or update.rows != rows:
            raise CheckpointError(
                "the official form knows updates of queries and values of a plain backbone alone",
                where=source,
                why=f"'{name}' has others",
                fix="add them to a checkpoint of ours (saccade lora merge), or write peft's form "
                "(saccade lora extract --form peft)",
            )
        blocks[int(parts[2])] = update.A.detach(), update.B.detach()
    return blocks


def queries_values(width: int) -> tuple[tuple[int, int], ...]:
    """First and last (exclusive) rows of them in a layer that makes queries, keys and values of so many channels."""
    return (0, width), (2 * width, 3 * width)


def in_official_scale(up: Tensor, lora: LoRAConfig) -> Tensor:
    """B as it counts the same under the scale of the authors' form, 1 / rank, which their files do not tell.

    The rest of the scale goes into B: exactly where it is a power of two, and else rounded once, in single precision.
    """
    rest = lora.scale * lora.rank / visft.PUBLISHED_LORA.alpha
    return up if rest == 1 else up.float() * rest


def with_official_scale(
    state: Mapping[str, Tensor], config: ViSFTConfig, lora: LoRAConfig, *, source: str | Path
) -> dict[str, Tensor]:
    """The weights of a checkpoint with low-rank updates, these in the scale of the authors' form.

    Raises:
        CheckpointError: Updates that this form does not know.
    """
    with torch.device("meta"):
        model = ViSFT(config)
        add_lora(model, lora)
    updates_by_block(model, source)
    return {
        key: in_official_scale(value, lora) if key.endswith(f".{CHILD}.B") else value for key, value in state.items()
    }


def _map_heads(file: TensorFile, name: str, *, base: str | Path | None, part: Head | None) -> Mapped:
    """The heads of a file, or a whole model where its backbone is at hand."""
    held = visft.heads_of(file.tensors)
    wanted = held if part is None else (part,)
    if part is not None and part not in held:
        raise UsageError(f"the file has no {part} head", where=file.path, why=visft.describe(file.tensors))
    config = PRESETS[name]().only(wanted).named(CLASS_NAMES["coco"])
    tensors = dict(file.tensors)
    if base is not None:
        tensors |= _backbone_of(base)
    whole = visft.prefix_of(tensors) is not None
    updated = whole and any(".lora_" in key for key in tensors)
    lora = visft.PUBLISHED_LORA if updated else None
    expected = _expected(config, lora)
    if not whole:
        expected = {key: shape for key, shape in expected.items() if not key.startswith("backbone.")}
    state, report = visft.from_official(tensors, expected, heads=wanted, source=str(file.path))
    if len(held) > 1 and part is None:
        report.notes.append(
            f"heads for {', '.join(held)} were taken; checkpoints of the authors hold untrained ones: --part chooses"
        )
    allowed = ("backbone.norm.*",) if "backbone.norm.weight" in report.missing else ()
    if not whole:
        report.notes.append("heads alone: a whole model needs their backbone, --base eva_vit_g.pth")
    kind: Kind = "checkpoint" if whole else "heads"
    return Mapped(kind=kind, preset=name, config=config, state=state, report=report, allowed=allowed, lora=lora)


def _backbone_of(base: str | Path) -> dict[str, Tensor]:
    """The tensors of a backbone under the names of the authors' checkpoints."""
    tensors = read_weight_set(base).tensors
    prefix = visft.prefix_of(tensors)
    if prefix is None:
        raise UsageError("no backbone of the EVA family", where=base, why=visft.describe(tensors))
    return {
        visft.BACKBONE + key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _map_pair(file: TensorFile) -> Mapped:
    """EVA-CLIP as a whole: both towers."""
    shapes = {key: tuple(value.shape) for key, value in file.tensors.items()}
    name = _preset_of(file, None)
    blocks = {key.split(".")[3] for key in shapes if key.startswith("text.transformer.resblocks.")}
    try:
        words, width = shapes["text.token_embedding.weight"]
        positions, joint = shapes["text.positional_embedding"][0], shapes["visual.head.weight"][0]
    except KeyError as error:
        raise CheckpointError("half a pair of towers", where=file.path, why=f"no {error}") from error
    config = CLIPPairConfig(
        vit=dataclasses.replace(PRESETS[name]().vit, class_token=True),
        text=TextTowerConfig(
            vocab_size=words, positions=positions, width=width, layers=len(blocks), heads=width // _TEXT_HEAD_WIDTH
        ),
        joint_width=joint,
    )
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in CLIPPair(config).state_dict().items()}
    state, report = from_eva_clip(file.tensors, expected, source=str(file.path))
    return Mapped(kind="checkpoint", preset=name, config=config, state=state, report=report)


def _expected(config: ViSFTConfig, lora: LoRAConfig | None = None) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = ViSFT(config)
        if lora is not None:
            add_lora(model, lora)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _preset_of(file: TensorFile, preset: str | None) -> str:
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f"unknown preset '{preset}'", fix=nearest(preset, PRESETS))
        return preset
    tensors = file.tensors
    prefix = visft.prefix_of(tensors)
    width = 0
    if prefix is not None:
        width = tensors[f"{prefix}blocks.0.attn.qkv.weight"].shape[1]
    else:
        width = next((tensors[key].shape[axis] for key, axis in _IN_WIDTH.items() if key in tensors), 0)
    found = preset_of_width(width)
    if found is None:
        raise CheckpointError(
            "a backbone of no released size",
            where=file.path,
            why=visft.describe(tensors),
            fix=f"name the nearest with --preset: {', '.join(PRESETS)}",
        )
    return found
