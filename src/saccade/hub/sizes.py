"""Which size a file of weights has: named presets, or sizes read from the shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from saccade.errors import CheckpointError, UsageError, nearest
from saccade.hub.unpickle import TensorFile
from saccade.layers.vit import ViTConfig
from saccade.models.git.config import CaptionConfig, DetectionConfig, GiTConfig, GroundingConfig, SemanticConfig
from saccade.models.git.model import GiT
from saccade.models.git.presets import PRESETS
from saccade.tokens.vocabulary import TextVocabulary

Kind: TypeAlias = Literal["checkpoint", "backbone", "text", "sam", "language", "heads"]
"""A whole model, or what training starts from: a backbone, a text embedding, GSVA's SAM or language model, or heads."""


def skeleton(config: GiTConfig) -> GiT:
    """The model without memory for its weights: shapes, tasks and preprocessing only."""
    with torch.device("meta"):
        return GiT(config, cast(TextVocabulary, _Length(config.vocab_size)))


def expected_shapes(config: GiTConfig) -> dict[str, tuple[int, ...]]:
    """Our names to shapes, without building the weights."""
    return {key: tuple(value.shape) for key, value in skeleton(config).state_dict().items()}


@dataclass(frozen=True)
class _Length:
    """Stands for a vocabulary where only its length matters."""

    length: int
    path: str = "(no vocabulary)"

    def __len__(self) -> int:
        return self.length


def choose_config(file: TensorFile, kind: Kind, preset: str | None) -> tuple[str, GiTConfig, list[str]]:
    """The model that a file fits: the preset that was asked for, the one of these shapes, or one made from them.

    Args:
        file: An official file.
        kind: What it holds.
        preset: A name of :data:`saccade.models.git.presets.PRESETS`, or None to look at the shapes.

    Returns:
        Name of the preset (or ``custom``), its configuration, and notes for the report.

    Raises:
        CheckpointError: The shapes fit no model.
        UsageError: Unknown preset.
    """
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f"unknown preset '{preset}'", fix=nearest(preset, PRESETS))
        config = PRESETS[preset]()
        return preset, config, variant_notes(file.tensors, config.vit)
    if kind == "text":
        words, width = file.tensors["word_embeddings.weight"].shape
        for name, make in PRESETS.items():
            config = make()
            if (config.vocab_size, config.vit.width) == (words, width):
                return name, config, []
        raise _no_preset(file, f"a word table of {words} rows and width {width}")
    if kind == "backbone":
        width = _width(file.tensors)
        for name, make in PRESETS.items():
            config = make()
            if config.vit.width == width and config.vit.depth > count_blocks(file.tensors):
                return name, config, []
        raise _no_preset(file, f"{count_blocks(file.tensors)} blocks of width {width}")
    shapes = {key: tuple(value.shape) for key, value in file.tensors.items()}
    for name, make in PRESETS.items():
        config = make()
        if _same_size(config.vit, shapes):
            return name, config, []
    try:
        config = _config_from_shapes(shapes)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise _no_preset(file, f"its shapes do not tell the size ({error})") from error
    note = "no preset has these sizes: the model was made from the shapes, inputs and bins of its tasks are assumed"
    return "custom", config, [note]


def _no_preset(file: TensorFile, why: str) -> CheckpointError:
    return CheckpointError(
        "the size of the file fits no preset", where=file.path, why=why, fix=f"presets: {', '.join(PRESETS)}"
    )


def count_blocks(tensors: Mapping[str, Any]) -> int:
    """Blocks of the backbone, in any naming."""
    numbers = [
        int(parts[2])
        for key in tensors
        if (parts := key.split("."))[0] in ("backbone", "image_encoder")
        and len(parts) > 3
        and parts[1] in ("layers", "blocks")
        and parts[2].isdigit()
    ]
    return 1 + max(numbers, default=-1)


def _width(tensors: Mapping[str, Tensor]) -> int:
    tables = [value for key, value in tensors.items() if key.endswith("pos_embed") and value.ndim == 4]
    return int(tables[0].shape[-1]) if tables else 0


def _same_size(vit: ViTConfig, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Width, depth, hidden width and nominal image of a preset against those of an official file."""
    grid = vit.grid_size
    return (
        count_blocks(shapes) == vit.depth
        and shapes.get("backbone.pos_embed") == (1, grid, grid, vit.width)
        and shapes.get("backbone.layers.0.ffn.layers.0.0.weight") == (vit.mlp_width, vit.width)
        and shapes.get("backbone.layers.0.attn.rel_pos_h", (0, 0))[1] == vit.width // vit.heads
    )


def _config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> GiTConfig:
    """A model of a size that has no name. What shapes do not tell (inputs of the tasks, bins) follows the presets."""
    _, grid, _, width = shapes["backbone.pos_embed"]
    patch = shapes["backbone.patch_embed.projection.weight"][-1]
    depth = count_blocks(shapes)
    rows = [shapes[f"backbone.layers.{index}.attn.rel_pos_h"][0] for index in range(depth)]
    window = (min(rows) + 1) // 2
    side = window * patch
    image = grid * patch // side * side
    head_channels = shapes["backbone.layers.0.attn.rel_pos_h"][1]
    vocab_size, _ = shapes["embed.word_embeddings.weight"]
    boxes = DetectionConfig(input_size=image, num_bins=2 * image)
    return GiTConfig(
        vit=ViTConfig(
            width=width,
            depth=depth,
            heads=width // head_channels,
            mlp_width=shapes["backbone.layers.0.ffn.layers.0.0.weight"][0],
            patch_size=patch,
            image_size=grid * patch,
            window_size=window,
            global_blocks=tuple(index for index in range(depth) if rows[index] != min(rows)),
        ),
        vocab_size=vocab_size,
        max_positions=shapes["embed.position_embeddings.weight"][0],
        detection=boxes,
        instance_segmentation=dataclasses.replace(boxes, num_rays=24),
        semantic_segmentation=SemanticConfig(input_size=max(side, round(0.6 * image / side) * side)),
        caption=CaptionConfig(input_size=side),
        grounding=GroundingConfig(input_size=side, num_bins=2 * side),
    )


def variant_notes(tensors: Mapping[str, Tensor], vit: ViTConfig) -> list[str]:
    """Names the size that the file seems to have, where it is not the size that was asked for."""
    width, depth = _width(tensors), count_blocks(tensors)
    if width in (0, vit.width):
        return []
    fitting = [name for name, make in PRESETS.items() if make().vit.width == width]
    sizes = f"the file has width {width} and {depth} blocks, the model width {vit.width} and {vit.depth}"
    return [f"{sizes}: it is a file of '{fitting[0]}'" if fitting else f"{sizes}: no preset has that width"]
