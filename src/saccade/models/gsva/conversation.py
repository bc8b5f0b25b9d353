"""Conversations as text, as token ids, and what of them is learned.

Sources: the forms of LLaVA v1 and of Llama-2 chats; docs/gsva.md (specs/gsva.md 6 and 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from saccade.errors import DataError, UsageError
from saccade.models.gsva.inputs import IGNORED
from saccade.tokens.pieces import IMAGE, IMAGE_END, IMAGE_START, PieceVocabulary, unsayable

Style: TypeAlias = Literal["llava_v1", "llava_llama_2"]

Kind: TypeAlias = Literal["phrase", "question"]
"""What words are called in an error."""

_SYSTEM: dict[Style, str] = {
    "llava_v1": (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    ),
    "llava_llama_2": (
        "You are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language."
    ),
}

_BEFORE_ANSWER: dict[Style, str] = {"llava_v1": " ASSISTANT: ", "llava_llama_2": "[/INST] "}
"""What stands between a question and its answer; a round has it exactly once."""

_END = "</s>"


@dataclass(kw_only=True, frozen=True)
class Conversation:
    """Questions about an image, and their answers.

    Attributes:
        rounds: Question and answer; the first question begins with ``<image>``. An answer of None is the model's to
            give, and ends the conversation.
        expressions: The phrase of every [SEG] and [REJ] in the answers, in their order.
    """

    rounds: tuple[tuple[str, str | None], ...]
    expressions: tuple[str, ...] = ()

    def text(self, style: Style) -> str:
        """The whole conversation.

        Args:
            style: The form that the language model was tuned on.
        """
        return _v1(self.rounds) if style == "llava_v1" else _llama_2(self.rounds)


def _v1(rounds: Sequence[tuple[str, str | None]]) -> str:
    said = [
        f"USER: {question} ASSISTANT:" + ("" if answer is None else f" {answer}{_END}") for question, answer in rounds
    ]
    return f"{_SYSTEM['llava_v1']} {''.join(said)}"


def _llama_2(rounds: Sequence[tuple[str, str | None]]) -> str:
    (first, answer), *later = rounds
    rounds = [(f"<<SYS>>\n{_SYSTEM['llava_llama_2']}\n<</SYS>>\n\n{first}", answer), *later]
    said = [
        f"[INST] {question} [/INST]" + ("" if answer is None else f" {answer} {_END}") for question, answer in rounds
    ]
    return "<s>".join(said)


def wrap_image(text: str) -> str:
    """The text as the language model reads it: the image between its two tokens."""
    return text.replace(IMAGE, f"{IMAGE_START}{IMAGE}{IMAGE_END}")


def require_texts(kind: Kind, given: Sequence[object]) -> None:
    """Refuses what is no text.

    Args:
        kind: What each is called in the error.
        given: What was asked, from Python.

    Raises:
        UsageError: One is of another type.
    """
    for index, one in enumerate(given):
        if not isinstance(one, str):
            raise UsageError(
                f"a {kind} is a text, not {one!r:.80}", where=_place(kind, index, len(given)), fix="put it into quotes"
            )


def check_typed(kind: Kind, typed: Sequence[str]) -> None:
    """As :func:`check_words`, of what a person asks.

    Args:
        kind: What each is called in the error.
        typed: One text or several.

    Raises:
        UsageError: One is no text, or see :func:`saccade.tokens.pieces.unsayable`.
    """
    require_texts(kind, typed)
    for index, words in enumerate(typed):
        check_words(words, kind, where=_place(kind, index, len(typed)), error=UsageError)


def _place(kind: Kind, index: int, of: int) -> str | None:
    return f"{kind} {index + 1}" if of > 1 else None


def check_words(
    words: str, kind: Kind, *, where: object = None, error: type[DataError] | type[UsageError] = DataError
) -> None:
    """Refuses what the model would take for its own words, or for nothing at all.

    Args:
        words: What the model is asked.
        kind: What it is called in the error.
        where: File and entry, where it comes from data.
        error: Whose fault it is: that of data, or of who asks.

    Raises:
        SaccadeError: The ``error``; see :func:`saccade.tokens.pieces.unsayable`.
    """
    reason = unsayable(words)
    if reason is None:
        return
    if reason.startswith("with "):
        raise error(
            f"a {kind} {reason}",
            where=where or words[:80],
            why="the model reads it as one of its own marks, and would answer something else",
            fix="leave it out",
        )
    fix = "say what to look for, in words" if kind == "phrase" else "ask in words"
    raise error(f"a {kind} {reason}", where=where, fix=fix)


def learned(text: str, ids: Sequence[int], vocabulary: PieceVocabulary, style: Style) -> list[int]:
    """The labels of a conversation: its ids where the model is to say them, else :data:`IGNORED`.

    Learned are the answers, each with the ``</s>`` behind it.

    Args:
        text: The conversation with wrapped image.
        ids: Its ids.
        vocabulary: What made the ids.
        style: Its form.

    Raises:
        DataError: A round that does not have exactly one question and one answer.
    """
    mark = _BEFORE_ANSWER[style]
    labels = [IGNORED] * len(ids)
    start = 1  # behind the first token of all
    for spoken in text.split(_END):
        if not spoken:
            break
        if spoken.count(mark) != 1:
            raise DataError(
                "a round of a conversation without exactly one answer",
                where=spoken[:120],
                why=f"it says '{mark.strip()}' {spoken.count(mark)} times",
                fix="take these words out of the question and the answer",
            )
        # Each part is tokenised by itself and so begins with <s>; the question ends with a lone leading space, which
        # in the conversation belongs to the answer.
        question = len(vocabulary.encode_with_image(spoken[: spoken.index(mark) + len(mark)])) - 2
        # The <s> of the round stands in for the </s> behind it.
        end = start + len(vocabulary.encode_with_image(spoken))
        labels[start + question : end] = ids[start + question : end]
        start = end
    return labels
