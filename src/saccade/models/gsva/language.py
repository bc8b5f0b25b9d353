"""The language model, the image among its words, and the places of [SEG] and [REJ].

Shape legend: N conversations, L token ids, P image tokens, T = L - 1 + P positions, K slots ([SEG] or [REJ] of all
conversations), C width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

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


def choose(
    language: LlamaForCausalLM, embeds_1TC: Tensor, positions_K: Tensor, options: tuple[int, int]
) -> FreeAnswers:
    """Reads a conversation whose slots are open, and fills each with the likelier of two tokens before it reads on.

    Every token is read once, with cached keys and values.

    Args:
        language: The language model.
        embeds_1TC: The conversation; what stands in its slots has no meaning.
        positions_K: Of the states that say the slots, ascending; the slots stand one place behind.
        options: The two tokens.

    Returns:
        Per slot the token and the state that said it, ``[1, K]`` and ``[1, K, C]``.
    """
    cache = DynamicCache(config=language.config)
    tokens = torch.tensor(options, device=embeds_1TC.device)
    said: list[Tensor] = []
    states: list[Tensor] = []
    start = 0
    for end in (positions_K + 1).tolist():
        part = embeds_1TC[:, start:end]
        if said:
            part = torch.cat([language.model.embed_tokens(said[-1])[None], part[:, 1:]], dim=1)
        state = language.model(inputs_embeds=part, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        said.append(tokens[language.lm_head(state)[:, tokens].argmax(-1)])
        states.append(state)
        start = end
    if not said:
        return FreeAnswers(tokens.new_zeros(1, 0), embeds_1TC[:, :0])
    return FreeAnswers(torch.stack(said, dim=1), torch.stack(states, dim=1))


def generate(language: LlamaForCausalLM, prompt: Sequence, *, end_id: int, most: int) -> FreeAnswers:
    """Greedy decoding with cached keys and values.

    Prompts may be of different length: what a row says does not depend on its company, for the padding between a prompt
    and its answer is neither attended to nor counted in the positions.

    Args:
        language: The language model.
        prompt: Ends where the model is to answer.
        end_id: Token that ends an answer.
        most: Greatest number of tokens.
    """
    mask = prompt.attention_mask_NT
    rows, places = (torch.arange(size, device=mask.device) for size in mask.shape)
    lengths = (mask * (places + 1)).amax(1)  # not their sum: unknown pieces have the id of the padding
    cache = DynamicCache(config=language.config)
    hidden = language.model(
        inputs_embeds=prompt.embeds_NTC, attention_mask=mask, past_key_values=cache, use_cache=True
    ).last_hidden_state
    state = hidden[rows, lengths - 1]
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
    return FreeAnswers(torch.stack(said, dim=1), torch.stack(states, dim=1))
