"""Released weights of GSVA and of its parts to ours, and back.

A released file holds everything, LLaVA, CLIP and SAM included, under the names of ``peft`` 0.4 (prefix
``base_model.model.``) or, without low-rank updates, bare. What shapes tell is read from them: vocabulary, rank, and the
sizes of the three networks.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.layers.sam import SAMConfig
from saccade.layers.sam_decoder import MaskDecoderConfig
from saccade.layers.vit import ViTConfig
from saccade.mapping import MappingReport, Rule, apply_mapping, rename
from saccade.models.gsva.config import CLIPConfig, GSVAConfig, LanguageConfig, LoRAConfig
from saccade.models.gsva.lora import ADAPTED

PREFIX = "base_model.model."
"""Before every name of a model with low-rank updates."""

# Names of Segment Anything on the left, ours on the right (saccade.mapping.rename).
_SAM_ATTENTION = (
    ("layers.{i}.self_attn", "layers.{i}.self_attn"),
    ("layers.{i}.cross_attn_token_to_image", "layers.{i}.tokens_to_image"),
    ("layers.{i}.cross_attn_image_to_token", "layers.{i}.image_to_tokens"),
    ("final_attn_token_to_image", "final_attn"),
)
_SAM_PROJECTIONS = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "proj"))
_SAM: tuple[Rule, ...] = (
    ("image_encoder.patch_embed.proj.", "sam.image_encoder.vit.patch_embed."),
    ("image_encoder.pos_embed", "sam.image_encoder.vit.pos_embed"),
    ("image_encoder.blocks.{i}.mlp.lin1.", "sam.image_encoder.vit.blocks.{i}.mlp.fc1."),
    ("image_encoder.blocks.{i}.mlp.lin2.", "sam.image_encoder.vit.blocks.{i}.mlp.fc2."),
    ("image_encoder.blocks.{i}.", "sam.image_encoder.vit.blocks.{i}."),
    ("image_encoder.neck.", "sam.image_encoder.neck."),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "sam.prompt_encoder.gaussian"),
    ("prompt_encoder.point_embeddings.", "sam.prompt_encoder.point_kinds."),
    ("prompt_encoder.not_a_point_embed.", "sam.prompt_encoder.not_a_point."),
    ("prompt_encoder.no_mask_embed.", "sam.prompt_encoder.no_mask_embed."),
    ("prompt_encoder.mask_downscaling.", "sam.prompt_encoder.mask_layers."),
    *(
        (f"mask_decoder.transformer.{official}.{projection}.", f"sam.mask_decoder.{ours}.{own}.")
        for official, ours in _SAM_ATTENTION
        for projection, own in _SAM_PROJECTIONS
    ),
    ("mask_decoder.transformer.layers.{i}.mlp.lin1.", "sam.mask_decoder.layers.{i}.mlp.layers.0."),
    ("mask_decoder.transformer.layers.{i}.mlp.lin2.", "sam.mask_decoder.layers.{i}.mlp.layers.1."),
    ("mask_decoder.transformer.layers.", "sam.mask_decoder.layers."),
    ("mask_decoder.transformer.norm_final_attn.", "sam.mask_decoder.final_norm."),
    ("mask_decoder.output_upscaling.", "sam.mask_decoder.upscale."),
    ("mask_decoder.output_hypernetworks_mlps.", "sam.mask_decoder.filters."),
    ("mask_decoder.iou_prediction_head.", "sam.mask_decoder.iou_head."),
    ("mask_decoder.iou_token.", "sam.mask_decoder.iou_token."),
    ("mask_decoder.mask_tokens.", "sam.mask_decoder.mask_tokens."),
)
# The same network as ``transformers`` names it (``SamModel``, facebook/sam-vit-huge), in Segment Anything's names.
_SAM_HUB: tuple[Rule, ...] = (
    ("vision_encoder.pos_embed", "image_encoder.pos_embed"),
    ("vision_encoder.patch_embed.projection.", "image_encoder.patch_embed.proj."),
    ("vision_encoder.layers.{i}.layer_norm1.", "image_encoder.blocks.{i}.norm1."),
    ("vision_encoder.layers.{i}.layer_norm2.", "image_encoder.blocks.{i}.norm2."),
    ("vision_encoder.layers.", "image_encoder.blocks."),
    ("vision_encoder.neck.conv1.", "image_encoder.neck.0."),
    ("vision_encoder.neck.layer_norm1.", "image_encoder.neck.1."),
    ("vision_encoder.neck.conv2.", "image_encoder.neck.2."),
    ("vision_encoder.neck.layer_norm2.", "image_encoder.neck.3."),
    ("shared_image_embedding.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    ("prompt_encoder.point_embed.", "prompt_encoder.point_embeddings."),
    ("prompt_encoder.mask_embed.conv1.", "prompt_encoder.mask_downscaling.0."),
    ("prompt_encoder.mask_embed.layer_norm1.", "prompt_encoder.mask_downscaling.1."),
    ("prompt_encoder.mask_embed.conv2.", "prompt_encoder.mask_downscaling.3."),
    ("prompt_encoder.mask_embed.layer_norm2.", "prompt_encoder.mask_downscaling.4."),
    ("prompt_encoder.mask_embed.conv3.", "prompt_encoder.mask_downscaling.6."),
    ("prompt_encoder.", "prompt_encoder."),
    ("mask_decoder.transformer.layers.{i}.layer_norm1.", "mask_decoder.transformer.layers.{i}.norm1."),
    ("mask_decoder.transformer.layers.{i}.layer_norm2.", "mask_decoder.transformer.layers.{i}.norm2."),
    ("mask_decoder.transformer.layers.{i}.layer_norm3.", "mask_decoder.transformer.layers.{i}.norm3."),
    ("mask_decoder.transformer.layers.{i}.layer_norm4.", "mask_decoder.transformer.layers.{i}.norm4."),
    ("mask_decoder.transformer.layer_norm_final_attn.", "mask_decoder.transformer.norm_final_attn."),
    ("mask_decoder.upscale_conv1.", "mask_decoder.output_upscaling.0."),
    ("mask_decoder.upscale_layer_norm.", "mask_decoder.output_upscaling.1."),
    ("mask_decoder.upscale_conv2.", "mask_decoder.output_upscaling.3."),
    # Both kinds of small networks have three layers in every SAM that was released.
    ("mask_decoder.output_hypernetworks_mlps.{i}.proj_in.", "mask_decoder.output_hypernetworks_mlps.{i}.layers.0."),
    ("mask_decoder.output_hypernetworks_mlps.{i}.layers.0.", "mask_decoder.output_hypernetworks_mlps.{i}.layers.1."),
    ("mask_decoder.output_hypernetworks_mlps.{i}.proj_out.", "mask_decoder.output_hypernetworks_mlps.{i}.layers.2."),
    ("mask_decoder.iou_prediction_head.proj_in.", "mask_decoder.iou_prediction_head.layers.0."),
    ("mask_decoder.iou_prediction_head.layers.0.", "mask_decoder.iou_prediction_head.layers.1."),
    ("mask_decoder.iou_prediction_head.proj_out.", "mask_decoder.iou_prediction_head.layers.2."),
    ("mask_decoder.", "mask_decoder."),
)
_GSVA: tuple[Rule, ...] = (
    *((f"model.visual_model.{official}", ours) for official, ours in _SAM),
    ("model.vision_tower.vision_tower.vision_model.", "clip.tower."),
    ("model.mm_projector.", "projector."),
    ("model.text_hidden_fcs.0.", "bridge."),
    ("model.embed_tokens.", "language.model.embed_tokens."),
    ("model.layers.", "language.model.layers."),
    ("model.norm.", "language.model.norm."),
    ("lm_head.", "language.lm_head."),
)
_INVERSE: tuple[Rule, ...] = tuple((ours, official) for official, ours in _GSVA)
WORD_TABLES = ("embed_tokens.weight", "lm_head.weight")
"""What the names of the tables end with that have a row per word."""
LAST_NORM = "model.norm.weight"
"""What the name of the weights ends with that tell a language model from a difference."""
_LEAST_NORM = 0.1
_CONSTANT = (".rotary_emb.inv_freq", ".embeddings.position_ids")
_ADAPTED = re.compile(rf"(language\.model\.layers\.\d+\.self_attn\.(?:{'|'.join(ADAPTED)}))\.weight")
_LLAMA_HEAD, _CLIP_HEAD = 128, 64
# Rows of a model to those of its base, which are the id of [SEG], too.
_FORMS = {32004: 32000, 32005: 32003}


def is_gsva(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is a released GSVA."""
    return any(key.removeprefix(PREFIX).startswith("model.text_hidden_fcs.") for key in keys)


def is_sam(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is a whole SAM, in its own names or in those of ``transformers``."""
    return any(key.startswith(("mask_decoder.output_upscaling.", "mask_decoder.upscale_conv1.")) for key in keys)


def is_llava(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is a LLaVA of the first versions, whole or as the difference from a LLaMA."""
    return {"model.mm_projector.weight", "model.embed_tokens.weight"} <= set(keys)


def _from_hub(keys: Iterable[str]) -> bool:
    return any(key.startswith("vision_encoder.") for key in keys)


def our_key(key: str, *, lora: bool) -> str | None:
    """An official name to ours, or None.

    Args:
        key: Official name.
        lora: The model has low-rank updates: what is updated stands one level deeper.
    """
    name = rename(key.removeprefix(PREFIX), _GSVA)
    return name if name is None or not lora else _ADAPTED.sub(r"\1.base_layer.weight", name)


def official_key(key: str, *, lora: bool) -> str | None:
    """Our name to the official one, or None."""
    name = rename(key.replace(".base_layer.", "."), _INVERSE)
    return name if name is None or not lora else PREFIX + name


def from_official(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a released GSVA onto our names.

    Args:
        state: Official names to tensors.
        expected: Our names to shapes.
        source: Where it came from, for the report.

    Raises:
        CheckpointError: The file is no GSVA.
    """
    if not is_gsva(state):
        raise CheckpointError(
            "not a released GSVA",
            where=source or None,
            why=f"its keys look like {', '.join(list(state)[:3])}",
            fix="give a gsva-*.bin file; LLaVA, CLIP and SAM alone are what a training starts from",
        )
    lora = any(".lora_" in key for key in expected)
    return apply_mapping(
        state,
        expected=expected,
        rename=lambda key: our_key(key, lora=lora),
        drop=lambda key: "a constant that is computed" if key.endswith(_CONSTANT) else None,
        source=source,
    )


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under official names.

    Raises:
        KeyError: A name is not GSVA's.
    """
    lora = any(".lora_" in key for key in state)
    official: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = official_key(key, lora=lora)
        if name is None:
            raise KeyError(key)
        official[name] = tensor
    return official


def from_sam(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a SAM, in its own names or in those of ``transformers``, onto our ``sam.`` names.

    Args:
        state: Names and tensors of the file.
        expected: Our names to shapes, of a whole model or of its SAM.
        source: Where it came from, for the report.
    """
    hub = _from_hub(state)
    wanted = {key: shape for key, shape in expected.items() if key.startswith("sam.")}

    def ours(key: str) -> str | None:
        if key.startswith("sam."):
            return key  # a converted part
        name = rename(key, _SAM_HUB) if hub else key
        return name and rename(name, _SAM)

    def drop(key: str) -> str | None:
        return "a copy of the image's" if key == "prompt_encoder.shared_embedding.positional_embedding" else None

    return apply_mapping(state, expected=wanted, rename=ours, drop=drop, source=source)


def from_clip(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str = ""
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps the image tower of a CLIP as ``transformers`` names it (``vision_model.`` or bare) onto our ``clip.`` names.

    Args:
        state: Names and tensors of the file; its text side is left out.
        expected: Our names to shapes, of a whole model or of its tower.
        source: Where it came from, for the report.
    """
    wanted = {key: shape for key, shape in expected.items() if key.startswith("clip.")}

    def drop(key: str) -> str | None:
        if key.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale")):
            return "not part of the image tower"
        return "a constant that is computed" if key.endswith("position_ids") else None

    return apply_mapping(
        state,
        expected=wanted,
        rename=lambda key: f"clip.tower.{key.removeprefix('vision_model.')}",
        drop=drop,
        source=source,
    )


def from_llava(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    *,
    seg_id: int,
    source: str = "",
    seed: int = 0,
) -> tuple[dict[str, Tensor], MappingReport]:
    """Maps a LLaVA with a linear projector (v1.1) onto the language model and the projector.

    Rows of the word tables that the file does not have, those of the added tokens, are drawn from N(0, 0.02) as in the
    original. Low-rank updates are reported as missing and start as nothing. The projector is taken from the file; the
    original puts a random one in its place.

    Args:
        state: Names and tensors of the file, or some of them (a delta must have its base added before:
            :func:`add_base`).
        expected: Our names to shapes, of a whole model.
        seg_id: The row of [SEG]: the first that the file must not have.
        source: Where it came from, for the report.
        seed: Of the drawn rows.

    Raises:
        CheckpointError: The file has another number of words, so that [SEG] would have the row of another one.
    """
    wanted = {key: shape for key, shape in expected.items() if key.startswith(("language.", "projector."))}
    lora = any(".lora_" in key for key in expected)
    for name in (key for key in state if key.endswith(WORD_TABLES)):
        if len(state[name]) != seg_id:
            raise _other_words(len(state[name]), seg_id, where=f"{source}: {name}" if source else name)

    def drop(key: str) -> str | None:
        if key.startswith("model.vision_tower."):
            return "CLIP comes from its own file"
        return "a constant that is computed" if key.endswith(_CONSTANT) else None

    def add_rows(key: str, tensor: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, str] | None:
        if not key.endswith(WORD_TABLES) or tensor.shape[1:] != shape[1:]:
            return None
        drawn = tensor.new_empty(shape[0] - len(tensor), *shape[1:], dtype=torch.float32)
        drawn.normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
        return torch.cat([tensor, drawn.to(tensor.dtype)]), f"{len(drawn)} rows of added tokens drawn from N(0, 0.02)"

    return apply_mapping(
        state,
        expected=wanted,
        # A converted part has our names already, of a model without low-rank updates.
        rename=lambda key: our_key(rename(key, _INVERSE) or key, lora=lora),
        drop=drop,
        resize=add_rows,
        source=source,
    )


def _other_words(rows: int, seg_id: int, *, where: str) -> CheckpointError:
    known = {base: whole for whole, base in _FORMS.items()}
    form = (
        f"it has the form of a model of {known[rows]} rows, in which [SEG] is {rows}"
        if rows in known
        else f"known forms have {' or '.join(map(str, known))} words"
    )
    return CheckpointError(
        f"a language model of {rows} words, where [SEG] is to be the word {seg_id}",
        where=where,
        why=form,
        fix=f"set model.language.vocab_size={known[rows]} model.seg_id={rows} model.rej_id={rows + 1}"
        if rows in known
        else "use a LLaVA v1.1 with a linear projector, or the delta of one with its base",
    )


def is_difference(names: Mapping[str, Tensor]) -> bool:
    """Whether a language model was released as its difference from another: weights of its last norm are near 0.

    Those of every whole Llama are near 1 or above.

    Args:
        names: Names and tensors of the file; no tensor but the last norm is looked at.
    """
    norms = [tensor for name, tensor in names.items() if name.endswith(LAST_NORM)]
    return bool(norms) and float(norms[0].float().abs().mean()) < _LEAST_NORM


def check_base(delta: Mapping[str, Tensor], base: Mapping[str, Tensor], *, source: str = "") -> None:
    """Refuses a base that a LLaVA, released as its difference from LLaMA, cannot have been made from.

    Args:
        delta: Names and tensors of the released file (``liuhaotian/LLaVA-Lightning-7B-delta-v1-1``).
        base: Those of LLaMA. It need not have a projector, which is released as it is, nor constants.
        source: Where the base came from, for messages.

    Raises:
        CheckpointError: One has a tensor that the other lacks, or they are of different sizes.
    """

    def odd(names: Iterable[str], others: Mapping[str, Tensor]) -> list[str]:
        free = ("model.mm_projector.", "model.vision_tower.")
        return [
            name for name in names if name not in others and not name.startswith(free) and not name.endswith(_CONSTANT)
        ]

    for gap, what in ((odd(delta, base), "lacks"), (odd(base, delta), "has too much:")):
        if gap:
            raise CheckpointError(
                "the delta was not made from this base",
                where=f"{source}: {gap[0]}" if source else gap[0],
                why=f"the base {what} {len(gap)} tensors of the language model",
                fix="give all files of the LLaMA that it was made from",
            )
    for name, difference in delta.items():
        if name not in base or name.endswith(_CONSTANT):
            continue
        found, whole = tuple(base[name].shape), tuple(difference.shape)
        if found[1:] != whole[1:] or found[0] > whole[0] or (found[0] != whole[0] and not name.endswith(WORD_TABLES)):
            raise CheckpointError(
                "the delta does not fit this base",
                where=f"{source}: {name}" if source else name,
                why=f"the base has the shape {found}, the delta {whole}",
                fix="use the LLaMA of the same size",
            )


def add_base(name: str, difference: Tensor, base: Tensor) -> None:
    """Makes one tensor of a LLaVA, released as its difference from LLaMA, whole; see :func:`check_base`.

    Args:
        name: Its name in both files.
        difference: The released tensor, changed in place; it keeps its type, and rows that LLaMA's word tables do not
            have.
        base: LLaMA's tensor.
    """
    if not name.endswith(_CONSTANT):
        difference[: len(base)] += base.to(difference.dtype)


# ---------------------------------------------------------------------- sizes


def sam_sizes(shapes: Mapping[str, Sequence[int]], prefix: str = "") -> SAMConfig:
    """The SAM of a file, in its own names or in those of ``transformers``.

    Heads of the decoder, which shapes do not tell, are those of every SAM.

    Raises:
        KeyError: A tensor that tells a size is absent.
    """

    if _from_hub(shapes):
        shapes = {rename(name, _SAM_HUB) or name: shape for name, shape in shapes.items()}

    def shape(name: str) -> Sequence[int]:
        return shapes[prefix + name]

    _, side, _, width = shape("image_encoder.pos_embed")
    patch = shape("image_encoder.patch_embed.proj.weight")[-1]
    depth = _count(shapes, prefix + "image_encoder.blocks.")
    offsets = [shape(f"image_encoder.blocks.{index}.attn.rel_pos_h") for index in range(depth)]
    windowed = min(rows for rows, _ in offsets)
    layers = _count(shapes, prefix + "mask_decoder.transformer.layers.")
    channels = shape("prompt_encoder.no_mask_embed.weight")[1]
    return SAMConfig(
        vit=ViTConfig(
            width=width,
            depth=depth,
            heads=width // offsets[0][1],
            mlp_width=shape("image_encoder.blocks.0.mlp.lin1.weight")[0],
            patch_size=patch,
            image_size=side * patch,
            window_size=(windowed + 1) // 2,
            global_blocks=tuple(index for index, (rows, _) in enumerate(offsets) if rows != windowed),
            drop_path=0.0,
        ),
        width=channels,
        mask_width=shape("prompt_encoder.mask_downscaling.3.weight")[0],
        decoder=MaskDecoderConfig(
            depth=layers,
            mlp_width=shape("mask_decoder.transformer.layers.0.mlp.lin1.weight")[0],
            attention_downsample=channels // shape("mask_decoder.transformer.final_attn_token_to_image.q_proj.bias")[0],
            mask_tokens=shape("mask_decoder.mask_tokens.weight")[0],
            iou_depth=_count(shapes, prefix + "mask_decoder.iou_prediction_head.layers."),
            iou_width=shape("mask_decoder.iou_prediction_head.layers.0.weight")[0],
        ),
    )


def llava_sizes(shapes: Mapping[str, Sequence[int]], like: GSVAConfig) -> GSVAConfig:
    """The configuration of the smallest model that starts from a LLaVA: with [SEG] and [REJ] behind its words.

    Args:
        shapes: Official names to shapes.
        like: Where what shapes do not tell comes from, and all of the rest.

    Raises:
        CheckpointError: A tensor that tells a size is absent.
    """
    try:
        rows, width = shapes["model.embed_tokens.weight"]
        language = dataclasses.replace(
            like.language,
            vocab_size=rows + 2,
            width=width,
            mlp_width=shapes["model.layers.0.mlp.gate_proj.weight"][0],
            layers=_count(shapes, "model.layers."),
            heads=_heads(width, like.language, _LLAMA_HEAD),
        )
        clip = dataclasses.replace(like.clip, width=shapes["model.mm_projector.weight"][1])
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            "the shapes of the file do not tell its sizes", why=str(error), fix="it is damaged, or no LLaVA v1.1"
        ) from error
    return dataclasses.replace(
        like, language=language, clip=clip, lora=LoRAConfig(rank=0), seg_id=rows, rej_id=rows + 1
    )


def sizes_of(shapes: Mapping[str, Sequence[int]], like: GSVAConfig) -> GSVAConfig:
    """The configuration of a released file, from its names and shapes.

    Args:
        shapes: Official names to shapes.
        like: Where what shapes do not tell comes from: heads per width, epsilon, positions, form of the prompt.

    Raises:
        CheckpointError: A tensor that tells a size is absent, or the vocabulary has a form that is not known.
    """
    bare = {key.removeprefix(PREFIX): shape for key, shape in shapes.items()}
    try:
        rows, width = bare["model.embed_tokens.weight"]
        seg_id, rej_id = vocabulary_ids(rows)
        position_rows, clip_width = bare[f"{_CLIP}embeddings.position_embedding.weight"]
        patch = bare[f"{_CLIP}embeddings.patch_embedding.weight"][-1]
        updates = [shape for key, shape in bare.items() if ".lora_A." in key]
        return dataclasses.replace(
            like,
            language=dataclasses.replace(
                like.language,
                vocab_size=rows,
                width=width,
                mlp_width=bare["model.layers.0.mlp.gate_proj.weight"][0],
                layers=_count(bare, "model.layers."),
                heads=_heads(width, like.language, _LLAMA_HEAD),
            ),
            lora=dataclasses.replace(like.lora, rank=updates[0][0]) if updates else LoRAConfig(rank=0),
            clip=CLIPConfig(
                width=clip_width,
                mlp_width=bare[f"{_CLIP}encoder.layers.0.mlp.fc1.weight"][0],
                layers=_count(bare, f"{_CLIP}encoder.layers."),
                heads=_heads(clip_width, like.clip, _CLIP_HEAD),
                image_size=round((position_rows - 1) ** 0.5) * patch,
                patch_size=patch,
            ),
            sam=sam_sizes(bare, "model.visual_model."),
            seg_id=seg_id,
            rej_id=rej_id,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            "the shapes of the file do not tell its sizes", why=str(error), fix="it is damaged, or no released GSVA"
        ) from error


_CLIP = "model.vision_tower.vision_tower.vision_model."


def vocabulary_ids(rows: int) -> tuple[int, int]:
    """Ids of [SEG] and [REJ] in a Llama vocabulary of so many rows.

    The four added tokens follow the 32000 of Llama in the order [SEG], [REJ], <im_start>, <im_end>; or the base has
    <im_patch>, <im_start> and <im_end> already, and only [SEG] and [REJ] are added.

    Raises:
        CheckpointError: Another number of rows.
    """
    if rows not in _FORMS:
        raise CheckpointError(
            f"a vocabulary of {rows} rows",
            why=f"the rows of [SEG] and [REJ] are known for {', '.join(map(str, _FORMS))}",
        )
    return _FORMS[rows], _FORMS[rows] + 1


def _heads(width: int, like: LanguageConfig | CLIPConfig, published: int) -> int:
    return like.heads if like.width == width else max(1, width // published)


def _count(names: Iterable[str], prefix: str) -> int:
    """Modules of a list: one more than the greatest number that follows the prefix."""
    numbers = [int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)]
    return 1 + max(numbers, default=-1)
