"""The language model, the image among its words, and the places of [SEG] and [REJ].

Shape legend: N conversations, L token ids, P image tokens, T = L - 1 + P positions, K slots ([SEG] or [REJ] of all
conversations), C width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from saccade.errors import DataError
from saccade.models.gsva.config import GSVAConfig
from saccade.models.gsva.inputs import IGNORED
from saccade.models.gsva.lora import add_lora
from saccade.tokens.pieces import IMAGE_ID

_PADDING_ID = 0


def build_language(config: GSVAConfig) -> LlamaForCausalLM:
    """A Llama with fresh weights and its low-rank updates."""
    sizes = config.language
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.width,
            intermediate_size=sizes.mlp_width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            rms_norm_eps=sizes.norm_eps,
            max_position_embeddings=sizes.positions,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_base},
            eos_token_id=config.end_id,
            tie_word_embeddings=False,
        )
    )
    add_lora(language, config.lora)
    return language


@dataclass
class Sequence:
    """Conversations as the language model reads them.

    Attributes:
        embeds_NTC: Words, and the image in their midst.
        attention_mask_NT: False at the padding.
        ids_NT: The words' ids, 0 at the image.
        labels_NT: What each place is to be, or None.
    """

    embeds_NTC: Tensor
    attention_mask_NT: Tensor
    ids_NT: Tensor
    labels_NT: Tensor | None


def splice(
    embeds_NLC: Tensor,
    image_tokens_NPC: Tensor,
    input_ids_NL: Tensor,
    attention_mask_NL: Tensor,
    labels_NL: Tensor | None = None,
) -> Sequence:
    """Puts the image tokens in the place of the placeholder.

    Args:
        embeds_NLC: Embeddings of the ids (of anything where the placeholder stands).
        image_tokens_NPC: Of the image of each conversation.
        input_ids_NL: With exactly one :data:`IMAGE_ID` per row.
        attention_mask_NL: False at the padding, which is on the right.
        labels_NL: :data:`IGNORED` where nothing is learned.

    Raises:
        DataError: A conversation with no image, or with several.
    """
    n, length = input_ids_NL.shape
    patches = image_tokens_NPC.shape[1]
    is_image = input_ids_NL == IMAGE_ID
    counts = is_image.sum(1)
    if bool((counts != 1).any()):
        row = int((counts != 1).nonzero()[0])
        raise DataError(
            f"a conversation with {int(counts[row])} images",
            where=f"conversation {row} of the batch",
            why=f"exactly one id is to be {IMAGE_ID}, where the image goes",
            fix="write <image> once, in the first question",
        )
    start = is_image.int().argmax(1, keepdim=True)
    place = torch.arange(length - 1 + patches, device=input_ids_NL.device).expand(n, -1)
    inside = (place >= start) & (place < start + patches)
    source = torch.where(place < start, place, (place - patches + 1).clamp(min=0))
    rows = torch.arange(n, device=input_ids_NL.device)[:, None]
    image = image_tokens_NPC[rows, (place - start).clamp(0, patches - 1)]
    mask = attention_mask_NL.bool()
    return Sequence(
        embeds_NTC=torch.where(inside[..., None], image, embeds_NLC[rows, source]),
        # On the left, as in the original; the padding is on the right, so that this is the same as in place.
        attention_mask_NT=torch.cat([mask.new_ones(n, patches - 1), mask], dim=1),
        ids_NT=input_ids_NL[rows, source].masked_fill(inside, _PADDING_ID),
        labels_NT=None if labels_NL is None else labels_NL[rows, source].masked_fill(inside, IGNORED),
    )


@dataclass
class Slots:
    """The [SEG] and [REJ] of all conversations, in order.

    Attributes:
        conversation_K: Which conversation each belongs to.
        position_K: Position of the state that says the token: the one before it.
        is_seg_K: Whether it is a [SEG].
    """

    conversation_K: Tensor
    position_K: Tensor
    is_seg_K: Tensor

    def __len__(self) -> int:
        return len(self.conversation_K)

    def of(self, tensor_NTC: Tensor) -> Tensor:
        """The states that say the tokens, ``[K, C]``."""
        return tensor_NTC[self.conversation_K, self.position_K]


def find_slots(input_ids_NL: Tensor, patches: int, *, seg_id: int, rej_id: int) -> Slots:
    """Where [SEG] and [REJ] stand.

    Args:
        input_ids_NL: With the placeholder of the image.
        patches: Tokens that the image becomes.
        seg_id: Id of [SEG].
        rej_id: Id of [REJ].

    Raises:
        DataError: One stands before the image.
    """
    is_seg = input_ids_NL == seg_id
    conversation, column = (is_seg | (input_ids_NL == rej_id)).nonzero(as_tuple=True)
    image = (input_ids_NL == IMAGE_ID).int().argmax(1)
    early = column < image[conversation]
    if bool(early.any()):
        raise DataError(
            "[SEG] or [REJ] stands before the image",
            where=f"conversation {int(conversation[early][0])} of the batch, id {int(column[early][0])}",
            why="its mask is made of what the model has read before it, which would be no image",
            fix="put <image> at the beginning of the first question",
        )
    return Slots(conversation, column + patches - 2, is_seg[conversation, column])


@dataclass
class FreeAnswers:
    """What the language model said by itself.

    Attributes:
        ids_NT: Token ids, 0 after the end.
        states_NTC: The state that said each of them.
    """

    ids_NT: Tensor
    states_NTC: Tensor


def read_part(cache: DynamicCache, config: LlamaConfig, *, rows: Tensor, length: int) -> DynamicCache:
    """A copy of the keys and values of some texts, or of their beginnings.

    Args:
        cache: It stays as it is.
        config: Of the language model.
        rows: Which texts, in this order; one may be there several times.
        length: Positions that are kept of each.
    """
    part = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers if length else ()):
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None and layer.values is not None
        part.update(layer.keys[rows, :, :length], layer.values[rows, :, :length], index)
    return part


class PrefixCache:
    """Keys and values of what a language model read last: a text that begins like it is read on from there.

    Texts begin alike as far as their embeddings, those of a picture included, are equal.

    Args:
        language: The language model; its weights must stay as they are.
    """

    def __init__(self, language: LlamaForCausalLM) -> None:
        self._language = language
        self._embeds_TC: Tensor | None = None
        self._cache = DynamicCache(config=language.config)

    def open(self, embeds_NTC: Tensor, most: int) -> tuple[DynamicCache, int]:
        """Reads what several texts begin with, as far as it was not read before.

        Args:
            embeds_NTC: The texts.
            most: Positions that may be read, as the caller needs the states of what comes behind.

        Returns:
            Keys and values of the beginning, for every text, and its length.
        """
        first_TC = embeds_NTC[0, :most]
        rows = torch.zeros(len(embeds_NTC), dtype=torch.long, device=embeds_NTC.device)
        known = 0 if self._embeds_TC is None else _alike(self._embeds_TC[:most], first_TC[: len(self._embeds_TC)])
        cache = read_part(self._cache, self._language.config, rows=rows[:1], length=known)
        if len(rows) == 1:
            return cache, known
        shared = _alike(embeds_NTC[:, :most], first_TC)
        if shared > known:
            self._language.model(inputs_embeds=first_TC[None, known:shared], past_key_values=cache, use_cache=True)
            self.keep(first_TC[:shared], cache)
        return read_part(cache, self._language.config, rows=rows, length=shared), shared

    def keep(self, embeds_TC: Tensor, cache: DynamicCache) -> None:
        """Remembers a text that was read.

        Args:
            embeds_TC: It, or its beginning.
            cache: Its keys and values; there may be more behind them.
        """
        self._embeds_TC, self._cache = embeds_TC, cache


def _alike(embeds: Tensor, others: Tensor) -> int:
    """Positions at the beginning, ``[..., T, C]``, that are equal in all texts."""
    length = min(embeds.shape[-2], others.shape[-2])
    same = (embeds[..., :length, :] == others[..., :length, :]).all(-1).reshape(-1, length).all(0)
    return int(same.long().cumprod(0).sum())


def choose(
    language: LlamaForCausalLM,
    embeds_NTC: Tensor,
    positions: list[list[int]],
    options: tuple[int, int],
    prefix: PrefixCache,
) -> FreeAnswers:
    """Reads conversations whose slots are open, and fills each with the likelier of two tokens before it reads on.

    Every token is read once, with cached keys and values; conversations may be of different length, and have slots in
    different places.

    Args:
        language: The language model.
        embeds_NTC: The conversations; what stands in their slots has no meaning.
        positions: Per conversation those of the states that say its slots, ascending, at least one; the slots stand one
            place behind.
        options: The two tokens.
        prefix: Of texts about the same picture.

    Returns:
        Per slot the token and the state that said it, ``[N, K]`` and ``[N, K, C]``, of no meaning behind the last slot
        of a conversation.
    """
    device = embeds_NTC.device
    tokens = torch.tensor(options, device=device)
    rows = torch.arange(len(embeds_NTC), device=device)
    cache, start = prefix.open(embeds_NTC, min(row[0] for row in positions))
    mask = torch.ones(len(rows), start, dtype=torch.bool, device=device)
    starts = [start] * len(rows)
    said: list[Tensor] = []
    states: list[Tensor] = []
    for slot in range(max(map(len, positions))):
        ends = [row[slot] + 1 if slot < len(row) else at for row, at in zip(positions, starts, strict=True)]
        widths = torch.tensor([end - at for end, at in zip(ends, starts, strict=True)], device=device)
        steps = torch.arange(int(widths.max()), device=device)
        # Behind the part of a shorter one stands what nobody attends to.
        places = (torch.tensor(starts, device=device)[:, None] + steps).clamp(max=embeds_NTC.shape[1] - 1)
        part = embeds_NTC[rows[:, None], places]
        if said:
            part[:, 0] = language.model.embed_tokens(said[-1])
        mask = torch.cat([mask, steps < widths[:, None]], dim=1)
        hidden = language.model(
            inputs_embeds=part, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        ).last_hidden_state
        if not said and len(rows) == 1:
            prefix.keep(embeds_NTC[0, : ends[0]], cache)
        state = hidden[rows, (widths - 1).clamp(min=0)]
        said.append(tokens[language.lm_head(state)[:, tokens].argmax(-1)])
        states.append(state)
        starts = ends
    return FreeAnswers(torch.stack(said, dim=1), torch.stack(states, dim=1))


def generate(
    language: LlamaForCausalLM, prompt: Sequence, *, end_id: int, most: int, prefix: PrefixCache | None = None
) -> FreeAnswers:
    """Greedy decoding with cached keys and values.

    Prompts may be of different length: what a row says does not depend on its company, for the padding between a prompt
    and its answer is neither attended to nor counted in the positions.

    Args:
        language: The language model.
        prompt: Ends where the model is to answer.
        end_id: Token that ends an answer.
        most: Greatest number of tokens.
        prefix: Of texts about the picture of the only prompt.
    """
    mask = prompt.attention_mask_NT
    rows, places = (torch.arange(size, device=mask.device) for size in mask.shape)
    lengths = (mask * (places + 1)).amax(1)  # not their sum: unknown pieces have the id of the padding
    cache, start = DynamicCache(config=language.config), 0
    if prefix is not None:
        cache, start = prefix.open(prompt.embeds_NTC, int(lengths.min()) - 1)
    hidden = language.model(
        inputs_embeds=prompt.embeds_NTC[:, start:], attention_mask=mask, past_key_values=cache, use_cache=True
    ).last_hidden_state
    state = hidden[rows, lengths - 1 - start]
    states, said, going = [], [], torch.ones_like(rows, dtype=torch.bool)
    for step in range(most):
        token = language.lm_head(state).argmax(-1).masked_fill(~going, _PADDING_ID)
        states.append(state)
        said.append(token)
        going = going & (token != end_id)
        if step + 1 == most or not bool(going.any()):
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        state = language.model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=(lengths + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, 0]
    if prefix is not None:
        answer = language.model.embed_tokens(torch.cat(said[:-1])) if said[1:] else prompt.embeds_NTC[0, :0]
        prefix.keep(torch.cat([prompt.embeds_NTC[0, : lengths[0]], answer]), cache)
    return FreeAnswers(torch.stack(said, dim=1), torch.stack(states, dim=1))
