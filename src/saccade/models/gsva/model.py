"""GSVA: a multimodal language model that says [SEG] for what it segments and [REJ] for what is not in the image.

CLIP shows the language model the image; the state that says a [SEG] becomes a prompt of SAM's mask decoder.

Shape legend: B images, N conversations, T positions, K slots ([SEG] or [REJ]), M slots that have a mask, E expressions
of an image, C width, P image tokens. Source: GSVA: Generalized Segmentation via Multimodal Large Language Models
(CVPR 2024); facts in docs/gsva.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from saccade.errors import ConfigError, DataError, UsageError
from saccade.layers.sam import SAM, resize_masks
from saccade.models.gsva.config import GSVAConfig, Part
from saccade.models.gsva.inputs import IGNORED, ConversationBatch
from saccade.models.gsva.language import (
    PrefixCache,
    Sequence,
    Slots,
    build_language,
    choose,
    find_slots,
    generate,
    read_part,
    splice,
)
from saccade.models.gsva.losses import mask_bce, mask_dice
from saccade.models.gsva.vision import ImageTower
from saccade.results import RLE, Prediction, Referral, decode_masks, encode_masks
from saccade.samples import Batch, Preprocess
from saccade.tasks import Task, require_task
from saccade.tokens.pieces import PieceVocabulary

_AT_ONCE = 4  # masks that are enlarged together
_CONVERSATIONS_AT_ONCE = 4  # about one picture; of 7B each may take half a gigabyte of keys and values

# What one pass of SAM is given: an image of its published size, and that image with sixteen prompts.
_PIXELS_AT_ONCE, _CELLS_AT_ONCE = 1024**2, 16 * 64**2


@dataclass
class EncodedImages:
    """What is computed once per image; prompting it again is cheap.

    Attributes:
        maps_BChw: SAM's features.
        tokens_BPC: What the language model sees.
        prefix: What the language model read about the only image, where it is to be asked again.
    """

    maps_BChw: Tensor
    tokens_BPC: Tensor
    prefix: PrefixCache | None = None


@dataclass
class Reading:
    """Conversations read to their end.

    Attributes:
        sequence: What was read.
        states_NTC: The last states, after the final norm.
        slots: Where [SEG] and [REJ] are said.
    """

    sequence: Sequence
    states_NTC: Tensor
    slots: Slots


@dataclass
class Answer:
    """The answer of one conversation.

    Attributes:
        ids_T: What was said: of a free answer its tokens; of a given one all its positions (0 at the image), with the
            model's own choice in every slot.
        chosen_K: The model's choice in every slot, [SEG] or [REJ].
        rejection_K: Its belief in [REJ] rather than [SEG], 0..1.
        has_mask_K: Whether the slot has a mask.
        low_Mhw: Masks as SAM draws them.
        enlarge: Brings masks into the frame of the original picture, ``[M, h, w]`` to ``[M, H, W]`` float32.
    """

    ids_T: Tensor
    chosen_K: Tensor
    rejection_K: Tensor
    has_mask_K: Tensor
    low_Mhw: Tensor
    enlarge: Callable[[Tensor], Tensor]

    @property
    def logits_MHW(self) -> Tensor:
        """Masks in the frame of the original picture, float32."""
        return self.enlarge(self.low_Mhw)

    def run_lengths(self, *, zero_is_foreground: bool) -> Iterator[RLE]:
        """The masks, run-length encoded in the frame of the original picture.

        Few at a time: fifty masks of a large photograph would take gigabytes.

        Args:
            zero_is_foreground: Whether a logit of exactly 0 belongs to the mask.
        """
        for low in self.low_Mhw.split(_AT_ONCE):
            logits = self.enlarge(low)
            yield from encode_masks(logits >= 0 if zero_is_foreground else logits > 0)


class GSVA(nn.Module):
    """The model.

    Args:
        config: Sizes, tokens and rules.
        vocabulary: What made the ids that the model reads; it is kept with the weights. None = who asks knows it.

    Attributes:
        in_step: Other processes hold parts of the weights and must run every block equally often: nothing that a
            picture is asked may decide how often the language model reads.

    Raises:
        ConfigError: The vocabulary has other ids for [SEG], [REJ] or the end, or another number of rows.
    """

    system = "gsva"

    def __init__(self, config: GSVAConfig, vocabulary: PieceVocabulary | None = None) -> None:
        super().__init__()
        if vocabulary is not None:
            found = (len(vocabulary), vocabulary.seg_id, vocabulary.rej_id, vocabulary.end_id)
            wanted = (config.language.vocab_size, config.seg_id, config.rej_id, config.end_id)
            if found != wanted:
                raise ConfigError(
                    "the tokenizer is not that of the weights",
                    where=vocabulary.path,
                    why=f"rows, [SEG], [REJ] and </s> are {found} there, and {wanted} here",
                    fix="use the tokenizer.model of the language model that they were trained from",
                )
        self.config = config
        self.vocabulary = vocabulary
        self.in_step = False
        width = config.language.width
        self.language = build_language(config)
        self.clip = ImageTower(config.clip)
        self.projector = nn.Linear(config.clip.width, width)
        self.sam = SAM(config.sam)
        self.bridge = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.sam.width))
        self.requires_grad_(False)
        for part in config.trainable:
            for parameter in self.parameters_of(part):
                parameter.requires_grad_(True)

    # ------------------------------------------------------------------ the contract of every model

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Segmentation of what a conversation speaks of."""
        return (Task.REFERRING,)

    def preprocess(self, task: Task) -> Preprocess:
        """What SAM sees: the longer side as long as the network input, padded. (What CLIP sees: ``config.clip``.)"""
        require_task(self.tasks, task)
        size = self.config.sam.vit.image_size
        return Preprocess(size_hw=(size, size), keep_ratio=True, interpolation="pillow", pad_multiple=size)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Training losses; their plain sum is what is minimised.

        Args:
            batch: A :class:`ConversationBatch` with labels and masks.

        Returns:
            ``..._loss_ce``, ``..._loss_mask_bce`` and ``..._loss_mask_dice``. The last two are means over all rows of
            the truth, those of [REJ] included: they have the constant logit 0.
        """
        batch = self._conversations(batch)
        if batch.labels is None or len(batch.masks) != len(batch):
            raise UsageError("a batch without labels or masks", where="loss", fix="train on conversations with answers")
        encoded = self.encode(batch.images, batch.images_clip)
        reading = self.read(batch, encoded)
        pairs = [
            (said, truth.float()) for said, truth in zip(self.pack(batch, encoded, reading), batch.masks, strict=True)
        ]
        rows = max(1, sum(len(truth) for _, truth in pairs))
        config = self.config
        losses = {
            "loss_ce": config.ce_weight * self.answer_error(reading),
            "loss_mask_bce": config.bce_weight / rows * torch.cat([mask_bce(*pair) for pair in pairs]).sum(),
            "loss_mask_dice": config.dice_weight / rows * torch.cat([mask_dice(*pair) for pair in pairs]).sum(),
        }
        return {f"{batch.task}_{name}": value for name, value in losses.items()}

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of every block of the language model in the backward pass."""
        # transformers is giving these methods another name.
        name = f"activation_checkpointing_{'enable' if enabled else 'disable'}"
        switch = getattr(self.language, name, None) or getattr(self.language, name.replace("activation", "gradient"))
        switch(*[{"use_reentrant": False}] * enabled)
        self.sam.image_encoder.vit.activation_checkpointing = enabled

    def predict(self, batch: Batch, encoded: EncodedImages | None = None) -> list[Prediction]:
        """Answers in the frame of the original images, one per image; see :meth:`answer`.

        Without a conversation an image has an empty answer. An expression that a free answer does not come to is
        rejected; a slot that no expression was asked for is named by its number.

        Args:
            batch: The conversations; their ``expressions`` name the answers.
            encoded: Their images, where they were encoded before.
        """
        batch = self._conversations(batch)
        referrals: list[list[Referral]] = [[] for _ in range(len(batch))]
        surplus: list[list[bool]] = [[] for _ in range(len(batch))]
        for index, answer in enumerate(self.answer(batch, encoded)):
            image = int(batch.conversation_to_image[index])
            asked = batch.expressions[index] if batch.expressions else ()
            size_hw = batch.original_sizes_hw[image]
            referral = _referral(answer, asked, size_hw, self.config, batch.reevaluate)
            if batch.labels is None and self.vocabulary is not None:
                referral.text = self.vocabulary.decode(answer.ids_T.tolist()).removesuffix("</s>").strip()
            referrals[image].append(referral)
            surplus[image] += [slot >= len(asked) for slot in range(len(referral))]
        return [_joined(*one) for one in zip(referrals, surplus, batch.original_sizes_hw, strict=True)]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # In half precision the rotary frequencies would put words of a long prompt in other places.
        rotary = self.language.model.rotary_emb
        exact = {name: buffer for name, buffer in rotary.named_buffers() if not buffer.is_meta}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            setattr(rotary, name, buffer.to(getattr(rotary, name).device))
        return self

    # ------------------------------------------------------------------ the network

    def encode(self, images_B3SS: Tensor, images_clip_B3ss: Tensor) -> EncodedImages:
        """Everything that depends on the images alone.

        Args:
            images_B3SS: What SAM sees.
            images_clip_B3ss: What CLIP sees.
        """
        with self._trained("image_encoder"):
            # Blocks with global attention over 64x64 places leave no memory for several images.
            at_once = max(1, _PIXELS_AT_ONCE // images_B3SS[0, 0].numel())
            maps = torch.cat([self.sam.encode(images) for images in images_B3SS.split(at_once)])
        with self._trained("clip"):
            patches = self.clip(images_clip_B3ss)
        return EncodedImages(maps, self.projector(patches))

    def read(self, batch: ConversationBatch, encoded: EncodedImages, cache: DynamicCache | None = None) -> Reading:
        """Runs the language model over whole conversations.

        Args:
            batch: The conversations.
            encoded: Their images.
            cache: Takes their keys and values.

        Raises:
            DataError: No image or several in a conversation, a [SEG] before it, or more tokens than positions.
        """
        slots = self._slots(batch)
        sequence = self._splice(batch, encoded)
        states = self.language.model(
            inputs_embeds=sequence.embeds_NTC,
            attention_mask=sequence.attention_mask_NT,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return Reading(sequence, states, slots)

    def answer_error(self, reading: Reading) -> Tensor:
        """Mean cross-entropy of all positions that have a label (0 where none has)."""
        labels = reading.sequence.labels_NT
        assert labels is not None
        supervised = labels[:, 1:] != IGNORED
        logits = self.language.lm_head(reading.states_NTC[:, :-1][supervised])
        total = F.cross_entropy(logits.float(), labels[:, 1:][supervised], reduction="sum")
        return total / supervised.sum().clamp(min=1)

    def prompts(self, states_MC: Tensor) -> Tensor:
        """States that say [SEG], as prompts of the mask decoder: ``[M, C]``."""
        return self.bridge(states_MC)

    def masks(self, encoded: EncodedImages, images_M: Tensor, prompts_MC: Tensor) -> Tensor:
        """Low-resolution mask logits of prompts.

        Args:
            encoded: The images.
            images_M: Which of them each prompt is about.
            prompts_MC: From :meth:`prompts`.

        Returns:
            ``[M, 4h, 4w]``.
        """
        # SAM's choice for one prompt with one answer is the first of its mask tokens. No prompts go the same way, so
        # that what is trained has a gradient (of zeros) in every step, as processes that train together expect.
        at_once = max(1, _CELLS_AT_ONCE // encoded.maps_BChw[0, 0].numel())
        parts = [
            self.sam.decode(encoded.maps_BChw[images], prompts[:, None])[0][:, 0]
            for images, prompts in zip(images_M.split(at_once), prompts_MC.split(at_once), strict=True)
        ]
        return torch.cat(parts)

    def pack(self, batch: ConversationBatch, encoded: EncodedImages, reading: Reading) -> list[Tensor]:
        """Mask logits row by row as the truth has them: per image ``[E, H, W]``, 0 for [REJ].

        Raises:
            DataError: Conversations and masks do not go together.
        """
        slots = reading.slots
        segs = slots.is_seg_K.nonzero()[:, 0]
        conversations = slots.conversation_K[segs]
        images = batch.conversation_to_image[conversations]
        low = self.masks(encoded, images, self.prompts(slots.of(reading.states_NTC)[segs]))
        flags: list[list[bool]] = [[] for _ in batch.input_ids]
        for conversation, is_seg in zip(slots.conversation_K.tolist(), slots.is_seg_K.tolist(), strict=True):
            flags[conversation].append(is_seg)
        owners = batch.conversation_to_image.tolist()
        packed = []
        for index, truth in enumerate(batch.masks):
            own = [slots_ for slots_, image in zip(flags, owners, strict=True) if image == index]
            rows = _rows_of(own, len(truth), where=_name(batch, index))
            logits = self._resize(low[images == index], batch, index)
            packed.append(logits.new_zeros(len(truth), *logits.shape[1:]).index_put((rows.to(low.device),), logits))
        return packed

    # ------------------------------------------------------------------ answers

    def answer(self, batch: Batch, encoded: EncodedImages | None = None) -> list[Answer]:
        """Answers of all conversations.

        With labels, the answer stands in the conversation, and the model judges every slot of it, after the true
        beginning of the answer: a given [SEG] stays one if it is the likeliest token, and a given [REJ] likewise.
        With ``own_choices`` it fills the slots itself (:func:`saccade.models.gsva.language.choose`). Without labels
        the model answers freely.

        Args:
            batch: The conversations.
            encoded: Their images, where they were encoded before.

        Raises:
            UsageError: An answer that is not given, of a model that is :attr:`in_step` with others.
        """
        batch = self._conversations(batch)
        if self.in_step and (batch.own_choices or batch.labels is None):
            raise UsageError(
                "processes that share the weights of a model can only judge given answers",
                why="its own answers need more readings on one process than on another",
                fix="evaluate a checkpoint of it, with one process",
            )
        if not len(batch.input_ids):
            return []
        # Not inference_mode: tensors made there cannot be gathered again by processes that share the weights.
        with torch.no_grad():
            if encoded is None:
                encoded = self.encode(batch.images, batch.images_clip)
            if batch.own_choices:
                return list(self._choose(batch, encoded))
            return list(self._free(batch, encoded) if batch.labels is None else self._judge(batch, encoded))

    def _judge(self, batch: ConversationBatch, encoded: EncodedImages) -> Iterator[Answer]:
        seg, rej = self.config.seg_id, self.config.rej_id
        # Where nothing is rejected the second reading is the first, and is made only to keep others company.
        again = batch.reevaluate and (self.in_step or not bool(self._slots(batch).is_seg_K.all()))
        cache = DynamicCache(config=self.language.config) if again else None
        reading = self.read(batch, encoded, cache)
        slots = reading.slots
        logits_KV = self.language.lm_head(slots.of(reading.states_NTC)).float()
        said = logits_KV.argmax(-1)
        given, other = (torch.where(slots.is_seg_K, *pair) for pair in ((seg, rej), (rej, seg)))
        chosen = given if self.config.one_seg else torch.where(said == given, given, other)
        ids = reading.sequence.ids_NT.index_put((slots.conversation_K, slots.position_K + 1), chosen)
        states = reading.states_NTC if cache is None else self._read_again(reading, cache)
        has_mask = slots.is_seg_K | batch.reevaluate
        belief = _rejection(logits_KV, seg, rej)
        yield from self._answers(batch, encoded, list(ids), slots, chosen, belief, has_mask, slots.of(states))

    def _read_again(self, reading: Reading, cache: DynamicCache) -> Tensor:
        """States of the conversations with a [SEG] for every [REJ]; what stands before the first is not read again."""
        slots, sequence = reading.slots, reading.sequence
        rejected = ~slots.is_seg_K
        if bool(rejected.any()):
            rows, start = slots.conversation_K[rejected].unique(), int((slots.position_K[rejected] + 1).min())
        else:  # the last place of any
            rows, start = slots.conversation_K.new_zeros(1), sequence.ids_NT.shape[1] - 1
        embeds = sequence.embeds_NTC[rows, start:]
        embeds[sequence.ids_NT[rows, start:] == self.config.rej_id] = self.language.model.embed_tokens(
            rows.new_tensor(self.config.seg_id)
        )
        states = reading.states_NTC.clone()
        states[rows, start:] = self.language.model(
            inputs_embeds=embeds,
            attention_mask=sequence.attention_mask_NT[rows],
            past_key_values=read_part(cache, self.language.config, rows=rows, length=start),
            use_cache=True,
        ).last_hidden_state
        return states

    def _choose(self, batch: ConversationBatch, encoded: EncodedImages) -> Iterator[Answer]:
        seg, rej = self.config.seg_id, self.config.rej_id
        slots = self._slots(batch)
        sequence = self._splice(batch, encoded)
        positions = [slots.position_K[slots.conversation_K == index].tolist() for index in range(len(sequence.ids_NT))]
        chosen, states = slots.conversation_K[:0], sequence.embeds_NTC[0, :0]
        for image in range(len(batch)):
            prefix = encoded.prefix or PrefixCache(self.language)
            about = (batch.conversation_to_image == image).nonzero()[:, 0].tolist()
            asked = [index for index in about if positions[index]]
            for start in range(0, len(asked), _CONVERSATIONS_AT_ONCE):
                rows = asked[start : start + _CONVERSATIONS_AT_ONCE]
                places = [positions[index] for index in rows]
                options = (seg, seg if self.config.one_seg else rej)
                read = choose(self.language, sequence.embeds_NTC[rows], places, options, prefix)
                for said, spoken, own in zip(read.ids_NT, read.states_NTC, places, strict=True):
                    chosen = torch.cat([chosen, said[: len(own)]])
                    states = torch.cat([states, spoken[: len(own)]])
        belief = _rejection(self.language.lm_head(states).float(), seg, rej)
        ids = sequence.ids_NT.index_put((slots.conversation_K, slots.position_K + 1), chosen)
        yield from self._answers(batch, encoded, list(ids), slots, chosen, belief, chosen == seg, states)

    def _free(self, batch: ConversationBatch, encoded: EncodedImages) -> Iterator[Answer]:
        seg, rej = self.config.seg_id, self.config.rej_id
        prompt = self._splice(batch, encoded)
        length, positions = prompt.ids_NT.shape[1], self.config.language.positions
        if length == positions:
            raise _too_long(batch, length + 1, positions)
        room = positions - length
        most = min(self.config.max_new_tokens, room)
        said = generate(self.language, prompt, end_id=self.config.end_id, most=most, prefix=encoded.prefix)
        is_seg = said.ids_NT == seg
        rows, columns = (is_seg | (said.ids_NT == rej)).nonzero(as_tuple=True)
        slots = Slots(rows, columns, is_seg[rows, columns])
        states = slots.of(said.states_NTC)
        belief = _rejection(self.language.lm_head(states).float(), seg, rej)
        ids = [row[: _length(row, self.config.end_id)] for row in said.ids_NT]
        chosen = said.ids_NT[rows, columns]
        yield from self._answers(batch, encoded, ids, slots, chosen, belief, slots.is_seg_K, states)

    def _answers(
        self,
        batch: ConversationBatch,
        encoded: EncodedImages,
        ids: list[Tensor],
        slots: Slots,
        chosen_K: Tensor,
        rejection_K: Tensor,
        has_mask_K: Tensor,
        states_KC: Tensor,
    ) -> Iterator[Answer]:
        images_K = batch.conversation_to_image[slots.conversation_K]
        low = self.masks(encoded, images_K[has_mask_K], self.prompts(states_KC[has_mask_K]))
        for index, spoken in enumerate(ids):
            own = slots.conversation_K == index
            image = int(batch.conversation_to_image[index])
            yield Answer(
                ids_T=spoken,
                chosen_K=chosen_K[own],
                rejection_K=rejection_K[own],
                has_mask_K=has_mask_K[own],
                low_Mhw=low[own[has_mask_K]],
                enlarge=partial(self._resize, batch=batch, image=image),
            )

    # ------------------------------------------------------------------ parts

    @property
    def blocks(self) -> Iterator[nn.Module]:
        """The blocks of the three networks, which hold nearly all weights; those that run most often stand last."""
        yield from self.sam.image_encoder.vit
        yield from self.clip.tower.encoder.layers
        yield from self.language.model.layers

    def parameters_of(self, part: Part) -> Iterator[nn.Parameter]:
        """The parameters of a part; the head that guesses how good a mask is belongs to none, for nothing trains it."""
        modules: dict[Part, nn.Module] = {
            "projector": self.projector,
            "image_encoder": self.sam.image_encoder,
            "prompt_encoder": self.sam.prompt_encoder,
            "bridge": self.bridge,
        }
        if part in modules:
            yield from modules[part].parameters()
        elif part == "clip":
            yield from self.clip.used_parameters()
        elif part == "mask_decoder":
            yield from (p for name, p in self.sam.mask_decoder.named_parameters() if not name.startswith("iou_head."))
        elif part == "vocabulary":
            yield from (self.language.model.embed_tokens.weight, self.language.lm_head.weight)
        else:
            for name, parameter in self.language.model.named_parameters():
                if not name.startswith("embed_tokens.") and (".lora_" in name) == (part == "lora"):
                    yield parameter

    def _trained(self, part: Part) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(torch.is_grad_enabled() and part in self.config.trainable)

    def _slots(self, batch: ConversationBatch) -> Slots:
        config = self.config
        return find_slots(batch.input_ids, config.clip.tokens, seg_id=config.seg_id, rej_id=config.rej_id)

    def _splice(self, batch: ConversationBatch, encoded: EncodedImages) -> Sequence:
        ids = batch.input_ids
        length, most = ids.shape[1] - 1 + self.config.clip.tokens, self.config.language.positions
        if length > most:
            raise _too_long(batch, length, most)
        embeds = self.language.model.embed_tokens(ids.clamp(min=0))
        tokens = encoded.tokens_BPC[batch.conversation_to_image].to(embeds.dtype)
        return splice(embeds, tokens, ids, batch.attention_mask, batch.labels)

    def _resize(self, logits_Mhw: Tensor, batch: ConversationBatch, image: int) -> Tensor:
        return resize_masks(
            logits_Mhw[:, None],
            image_size=self.config.sam.vit.image_size,
            input_hw=batch.input_sizes_hw[image],
            original_hw=batch.original_sizes_hw[image],
        )[:, 0]

    def _conversations(self, batch: Batch) -> ConversationBatch:
        if not isinstance(batch, ConversationBatch):
            raise UsageError(
                "this model reads conversations",
                where=f"a batch of {batch.task}",
                fix="collate with models.gsva.collate",
            )
        require_task(self.tasks, batch.task)
        return batch


def _rows_of(flags: list[list[bool]], rows: int, *, where: str) -> Tensor:
    """Rows of an image's truth that its [SEG] fill, in their order.

    Args:
        flags: Per conversation of the image, whether each slot is a [SEG].
        rows: Of the truth.
        where: The image.
    """
    if len(flags) == 1:
        # A conversation that was cut to the greatest length may have fewer slots than there are masks.
        if len(flags[0]) > rows:
            raise DataError(f"{len(flags[0])} [SEG] and [REJ], but {rows} masks", where=where)
        return torch.tensor([row for row, is_seg in enumerate(flags[0]) if is_seg], dtype=torch.long)
    if not any(map(any, flags)) and not rows:
        return torch.zeros(0, dtype=torch.long)
    if len(flags) != rows or any(one != [True] for one in flags):
        raise DataError(
            f"{len(flags)} conversations about one image with {rows} masks",
            where=where,
            why=f"each must say one [SEG] and nothing else; they say {[len(one) for one in flags]} [SEG] or [REJ]",
            fix="ask for several things in one conversation",
        )
    return torch.arange(rows)


def _referral(
    answer: Answer, asked: tuple[str, ...], size_hw: tuple[int, int], config: GSVAConfig, reevaluated: bool
) -> Referral:
    """The answer of one conversation, phrase by phrase; phrases that have no slot are rejected, slots that nothing was
    asked for have no name yet."""
    slots = len(answer.chosen_K)
    unsaid = max(0, len(asked) - slots)
    # The protocol with re-evaluation counts a logit of exactly 0 as foreground, the other does not.
    drawn = answer.run_lengths(zero_is_foreground=reevaluated)
    masks = [next(drawn) if has else None for has in answer.has_mask_K.tolist()]
    rejected, scores = answer.chosen_K.cpu() == config.rej_id, 1 - answer.rejection_K.cpu()
    if config.one_seg:
        empty = [mask is None or not bool(decode_masks([mask], size_hw).any()) for mask in masks]
        rejected = torch.tensor(empty, dtype=torch.bool)
        scores = 1 - rejected.float()
    return Referral(
        phrases=(*asked, *[""] * (slots - len(asked))),
        masks=masks + [None] * unsaid,
        rejected=F.pad(rejected, (0, unsaid), value=True),
        scores=F.pad(scores, (0, unsaid)),
        size_hw=size_hw,
    )


def _joined(parts: list[Referral], surplus: list[bool], size_hw: tuple[int, int]) -> Referral:
    """The answers of one picture's conversations; slots that nothing was asked for stand behind all phrases."""
    order = sorted(range(len(surplus)), key=surplus.__getitem__)
    phrases = [phrase for one in parts for phrase in one.phrases]
    masks = [mask for one in parts for mask in one.masks]
    return Referral(
        phrases=tuple(f"answer {at + 1}" if surplus[slot] else phrases[slot] for at, slot in enumerate(order)),
        masks=[masks[slot] for slot in order],
        rejected=torch.cat([torch.zeros(0, dtype=torch.bool), *(one.rejected for one in parts)])[order],
        scores=torch.cat([torch.zeros(0), *(one.scores for one in parts)])[order],
        size_hw=size_hw,
        text="\n".join(one.text for one in parts if one.text),
    )


def _too_long(batch: ConversationBatch, length: int, positions: int) -> DataError:
    rows = batch.attention_mask.sum(1)
    image = int(batch.conversation_to_image[int(rows.argmax())])
    anew = "ask in fewer words; of a dialogue that has become too long, encode the picture again"
    return DataError(
        f"a conversation of {length} tokens, image included",
        where=_name(batch, image),
        why=f"the language model has {positions} positions",
        fix="ask for fewer expressions at once" if any(batch.expressions) else anew,
    )


def _rejection(logits_KV: Tensor, seg: int, rej: int) -> Tensor:
    return (logits_KV[:, rej] - logits_KV[:, seg]).sigmoid()


def _length(ids_T: Tensor, end_id: int) -> int:
    """Tokens of an answer up to its end, the end included."""
    ends = (ids_T == end_id).nonzero()
    return int(ends[0]) + 1 if len(ends) else len(ids_T)


def _name(batch: ConversationBatch, index: int) -> str:
    origin = batch.origins[index]
    return str(origin.path or origin.image_id)
