"""What GSVA reads besides the picture of SAM: the picture of CLIP, and conversations as ids (specs/gsva.md 8 and 9)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saccade.draws import Draws, GeneratorDraws
from saccade.errors import DataError
from saccade.models.gsva import prompts
from saccade.models.gsva.conversation import Conversation, Style, learned, wrap_image
from saccade.models.gsva.inputs import IGNORED, Answering, ConversationBatch
from saccade.samples import Batch, Sample
from saccade.tokens.pieces import PieceVocabulary

_CLIP_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
_CLIP_STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
_ASKING = {"given": prompts.evaluation, "own": prompts.to_fill, "free": prompts.question}
_MOST_OBLONG = 32  # of longer pictures only the middle is looked at: the enlarged whole would not fit into memory


@dataclass(kw_only=True)
class Said:
    """What belongs to one picture.

    Attributes:
        picture_clip: ``[3, s, s]`` float32, what CLIP sees.
        conversations: What is said about the picture.
        masks: ``[E, H, W]`` bool in the frame of the original; None where there is no truth.
        divided: The phrases are too many for one conversation.
    """

    picture_clip: Tensor
    conversations: list[Conversation]
    masks: Tensor | None = None
    divided: bool = False


@dataclass(kw_only=True, frozen=True)
class Conversing:
    """Makes :class:`~saccade.models.gsva.inputs.ConversationBatch` of plain batches and the samples behind them.

    Attributes:
        vocabulary: What makes ids of words.
        clip_size: Side of what CLIP sees, in pixels.
        image_tokens: Tokens that a picture becomes.
        style: Form of the conversations.
        max_length: Greatest number of tokens in training, image tokens included; longer conversations are cut. Phrases
            that the model is to answer by its own choice are asked in as many conversations as this needs.
        positions: Greatest number of tokens that the model reads; phrases that are evaluated in another way are asked
            at once as far as this goes, as published, and in several conversations beyond it.
        answer: At evaluation.
        reevaluate: See :class:`~saccade.models.gsva.inputs.ConversationBatch`.
        only_words: Share of explained images that are answered in words alone; below 0, explanations are not used.
        one_seg: See :class:`~saccade.models.gsva.config.GSVAConfig`.
    """

    vocabulary: PieceVocabulary
    clip_size: int = 224
    image_tokens: int = 256
    style: Style = "llava_v1"
    max_length: int = 1024
    positions: int = 2048
    answer: Answering = "given"
    reevaluate: bool = False
    only_words: float = 0.1
    one_seg: bool = False

    def prepare(self, sample: Sample, rng: np.random.Generator | None = None) -> Said:
        """Words the conversations about a sample.

        Args:
            sample: In the frame of the original image.
            rng: Templates of training are drawn from it; None = evaluation, where a sample may have no phrase.

        Raises:
            UsageError: No phrase in training.
            DataError: A phrase that the model would take for its own words.
        """
        return self.say(sample, None if rng is None else GeneratorDraws(rng))

    def say(self, sample: Sample, draws: Draws | None) -> Said:
        """As :meth:`prepare`, with draws of any kind."""
        parts = prompts.apart(sample) if self.one_seg and sample.phrases else [sample]
        divided = False
        if draws is not None:
            conversations = [one for part in parts for one in prompts.training(part, draws, only_words=self.only_words)]
        elif not sample.phrases:
            conversations = []  # a picture of which a data set names nothing
        else:
            rooms = [room for part in parts for room in self._parts(part)]
            divided = len(rooms) > len(parts)
            conversations = [one for room in rooms for one in _ASKING[self.answer](room)]
        masks = None if sample.target.masks is None else sample.target.masks.as_subclass(Tensor)
        if draws is not None and not any(conversation.expressions for conversation in conversations):
            masks = torch.zeros(0, *sample.size_hw, dtype=torch.bool)  # answered in words alone
        return Said(
            picture_clip=clip_input(sample.image.as_subclass(Tensor), self.clip_size),
            conversations=conversations,
            masks=masks,
            divided=divided,
        )

    def ask(self, image: Tensor, question: str, before: Sequence[tuple[str, str]] = ()) -> Said:
        """An open question, which the model answers as it likes.

        Args:
            image: ``[3, H, W]`` uint8 RGB.
            question: In any words that :func:`~saccade.models.gsva.conversation.check_typed` lets pass.
            before: Questions and answers before it.
        """
        (first, answer), *later = [*before, (question, None)]
        rounds = ((prompts.about_image(first), answer), *later)
        return Said(picture_clip=clip_input(image, self.clip_size), conversations=[Conversation(rounds=rounds)])

    def _parts(self, sample: Sample) -> list[Sample]:
        """The sample, its phrases divided over as many conversations as their number of tokens asks for."""
        if sample.wording in ("question", "sentence"):
            return [sample]
        prompts.check(sample)
        most = self.max_length if self.answer == "own" else self.positions
        if self.answer != "own":
            whole = len(self.vocabulary.encode_with_image(wrap_image(_ASKING[self.answer](sample)[0].text(self.style))))
            # One place of the whole is the image's, and a free answer needs one behind it.
            if whole - 1 + self.image_tokens + (self.answer == "free") <= most:
                return [sample]
        # A phrase stands in the question and in the answer, each time with a comma, a colon or a slot beside it.
        costs = [2 * len(self.vocabulary.encode(phrase)) + 4 for phrase in sample.phrases]
        frame = prompts.to_fill(dataclasses.replace(sample, phrases=("a",)))[0].text(self.style)
        room = most - self.image_tokens - len(self.vocabulary.encode_with_image(wrap_image(frame)))
        starts: list[int] = []
        left = 0
        for index, (phrase, cost) in enumerate(zip(sample.phrases, costs, strict=True)):
            if cost > room:
                raise DataError(
                    f"a phrase of {len(phrase)} characters is too long",
                    where=f"{prompts.name(sample)}: {phrase[:60]} ...",
                    why=f"question and answer would be more than {most} tokens",
                    fix="describe it in fewer words",
                )
            if not starts or cost > left:
                starts.append(index)
                left = room
            left -= cost
        ends = [*starts[1:], len(sample.phrases)]
        return [prompts.some(sample, start, end) for start, end in zip(starts, ends, strict=True)]

    def join(self, batch: Batch, said: Sequence[Said], *, training: bool) -> ConversationBatch:
        """Adds to a batch of pictures what is said about them.

        Args:
            batch: What SAM sees.
            said: About each picture, in the same order.
            training: Cut conversations to the greatest length.

        Raises:
            DataError: Some conversations have an answer and others none, or a round does not have exactly one.
        """
        spoken = [conversation for one in said for conversation in one.conversations]
        answered = {conversation.rounds[-1][1] is not None for conversation in spoken}
        if len(answered) > 1:
            raise DataError("a batch is either of conversations with answers, or of questions", where="join")
        texts = [wrap_image(conversation.text(self.style)) for conversation in spoken]
        ids = [self.vocabulary.encode_with_image(text) for text in texts]
        own_choices = self.answer == "own" and not training
        input_ids = _stack(ids, self.vocabulary.pad_id)
        labels = None
        if own_choices and answered != {False}:
            labels = torch.full_like(input_ids, IGNORED)  # nobody learns here; they say that there is an answer
        elif answered != {False}:
            rows = [learned(text, row, self.vocabulary, self.style) for text, row in zip(texts, ids, strict=True)]
            labels = _stack(rows, IGNORED)
        if training:
            room = self.max_length - (self.image_tokens - 1)
            input_ids, labels = input_ids[:, :room], None if labels is None else labels[:, :room]
        counts = torch.tensor([len(one.conversations) for one in said])
        pictures = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return ConversationBatch(
            **pictures,
            images_clip=torch.stack([one.picture_clip for one in said]),
            input_ids=input_ids,
            attention_mask=input_ids != self.vocabulary.pad_id,
            conversation_to_image=torch.repeat_interleave(torch.arange(len(said)), counts),
            labels=labels,
            masks=[one.masks for one in said if one.masks is not None],
            expressions=[conversation.expressions for conversation in spoken],
            divided=[one.divided for one in said],
            own_choices=own_choices and labels is not None,
            reevaluate=self.reevaluate and self.answer == "given" and not training,
        )


def _stack(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    stacked = torch.full((len(rows), max(map(len, rows), default=0)), fill, dtype=torch.int64)
    for into, row in zip(stacked, rows, strict=True):
        into[: len(row)] = torch.tensor(row)
    return stacked


def clip_input(image: Tensor, size: int) -> Tensor:
    """The middle square of a picture as CLIP sees it, in the arithmetic of its own processor (Pillow's bicubic).

    Args:
        image: ``[3, H, W]`` uint8 RGB.
        size: Side of the square in pixels.

    Returns:
        ``[3, size, size]`` float32, normalised.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    short = min(picture.size)
    reach = short * _MOST_OBLONG
    picture = picture.crop(_middle(picture.size, (min(picture.width, reach), min(picture.height, reach))))
    width, height = (size if side == short else int(size * side / short) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized.crop(_middle(resized.size, (size, size))))
    scaled = (pixels * (1 / 255)).astype(np.float32)
    return torch.from_numpy((scaled - _CLIP_MEAN) / _CLIP_STD).permute(2, 0, 1).contiguous()


def _middle(size: tuple[int, int], part: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box of a part in the middle of a picture, both given as width and height."""
    left, top = ((whole - side) // 2 for whole, side in zip(size, part, strict=True))
    return left, top, left + part[0], top + part[1]
