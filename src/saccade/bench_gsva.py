"""What ``saccade bench`` times of GSVA: conversations of random words about a picture, and parts of the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from transformers import DynamicCache

from saccade.errors import UsageError
from saccade.layers.sam import resize_masks
from saccade.models.gsva.inputs import IGNORED, ConversationBatch
from saccade.models.gsva.language import PrefixCache, generate
from saccade.models.gsva.model import GSVA, EncodedImages
from saccade.results import encode_masks
from saccade.samples import Batch
from saccade.tokens.pieces import IMAGE_ID

Part: TypeAlias = Literal["masks", "gres", "read", "read-twice", "find", "decode"]
"""``gres``: a picture judged as in gRefCOCO, eight phrases of which four are rejected, from the network input to run
lengths. The others are of a picture whose features are at hand. ``read``: one pass of the language model over that
conversation; ``read-twice``: both passes of the judgement; ``masks``: eight masks, from their states to run lengths;
``find``: eight phrases that the model answers by its own choice, masks included; ``decode``: a free answer, token by
token."""

PARTS: tuple[Part, ...] = get_args(Part)
"""They stand for tasks of GSVA."""

TOKENS = 64
"""Tokens of a free answer."""

_PHRASE = "the man in the red shirt on the left"
_PHRASES = 8  # about one image
_PROMPT, _WORDS = 110, 8  # tokens of a question with its system prompt; tokens of a phrase


def conversations(model: GSVA, batch: Batch, *, rejected: bool) -> ConversationBatch:
    """One conversation about each image, of random words: eight phrases, and an answer that names each.

    Args:
        model: The model.
        batch: The images.
        rejected: Every second phrase is answered with [REJ] instead of [SEG], and masks are of the second reading.
    """
    config = model.config
    words = torch.randint(3, config.seg_id, (len(batch), _PROMPT + 2 * _PHRASES * _WORDS))
    words[:, 40] = IMAGE_ID
    slots = torch.arange(words.shape[1] - 1, words.shape[1] - _PHRASES * _WORDS, -_WORDS).flip(0)
    words[:, slots] = config.seg_id
    if rejected:
        words[:, slots[1::2]] = config.rej_id
    ids = words.to(batch.images.device)
    side = config.clip.image_size
    return ConversationBatch(
        **{field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)},
        images_clip=torch.randn(len(batch), 3, side, side, device=ids.device),
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        conversation_to_image=torch.arange(len(batch), device=ids.device),
        labels=torch.full_like(ids, IGNORED),
        expressions=[(_PHRASE,) * _PHRASES] * len(batch),
        reevaluate=rejected,
    )


def part_work(model: GSVA, batch: ConversationBatch, part: Part) -> Callable[[], object]:
    """What is timed of a part.

    Args:
        model: The model.
        batch: Of :func:`conversations`, with rejections.
        part: Which one.

    Raises:
        UsageError: Free answers about several pictures.
    """
    encoded = _random_features(model, batch)
    match part:
        case "gres":
            return lambda: model.predict(batch)
        case "read":
            return lambda: model.read(batch, encoded)
        case "read-twice":
            return lambda: _read_twice(model, batch, encoded)
        case "masks":
            return _masks(model, batch, encoded)
        case "find":
            asked = dataclasses.replace(batch, own_choices=True, reevaluate=False)
            return lambda: model.predict(asked, encoded)
        case "decode":
            return _decoding(model, batch, encoded)


def _random_features(model: GSVA, batch: ConversationBatch) -> EncodedImages:
    vit, device = model.config.sam.vit, batch.images.device
    side = vit.image_size // vit.patch_size
    tokens = model.config.clip.tokens
    return EncodedImages(
        torch.randn(len(batch), model.config.sam.width, side, side, device=device),
        torch.randn(len(batch), tokens, model.config.language.width, device=device),
    )


def _read_twice(model: GSVA, batch: ConversationBatch, encoded: EncodedImages) -> object:
    cache = DynamicCache(config=model.language.config)
    return model._read_again(model.read(batch, encoded, cache), cache)


def _masks(model: GSVA, batch: ConversationBatch, encoded: EncodedImages) -> Callable[[], object]:
    device = batch.images.device
    states = torch.randn(len(batch) * _PHRASES, model.config.language.width, device=device)
    images = torch.arange(len(batch), device=device).repeat_interleave(_PHRASES)
    sizes = {"input_hw": batch.input_sizes_hw[0], "original_hw": batch.origins[0].size_hw}

    def masks() -> None:
        low = model.masks(encoded, images, model.prompts(states))[:, None]
        encode_masks(resize_masks(low, image_size=model.config.sam.vit.image_size, **sizes)[:, 0] > 0)

    return masks


def _decoding(model: GSVA, batch: ConversationBatch, encoded: EncodedImages) -> Callable[[], object]:
    if len(batch) != 1:
        raise UsageError("free answers are timed about one picture", where="--batch-size", fix="leave it out")
    question = dataclasses.replace(
        batch,
        input_ids=batch.input_ids[:, :_PROMPT],
        attention_mask=batch.attention_mask[:, :_PROMPT],
        labels=None,
        expressions=[],
    )
    with torch.no_grad():
        prompt = model._splice(question, encoded)
    # The first pass, which is not timed, reads the question; each one behind it reads on from the question's last word.
    prefix = PrefixCache(model.language)
    return lambda: generate(model.language, prompt, end_id=-1, most=TOKENS, prefix=prefix)
