"""What GSVA is asked, and what it is taught to answer (specs/gsva.md 6): the words of the original, misspelt ones too.

Training draws a template for every sample; evaluation has one. The question names all phrases in small letters, an
answer in training keeps their case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from saccade.draws import Draws
from saccade.errors import DataError, UsageError
from saccade.models.gsva.conversation import Conversation, check_words
from saccade.samples import Sample, Wording
from saccade.tokens.pieces import IMAGE, REJ, SEG

_QUESTIONS = (
    "Can you segment {} in this image?",
    "Please segment {} in this image.",
    "What are {} in this image? Please respond with segmentation masks.",
    "What are {} in this image? Please output segmentation masks.",
)
_ANSWERS = (
    ("The segmentation results are", "{} [SEG]"),
    ("Sure, they are", "{}:[SEG]"),
    ("Sure,", "the mask of {} is [SEG]"),
    ("Sure,", "the segmentation of {} is [SEG]"),
    ("Sure,", "the referred {} is [SEG]"),
)
"""Beginning of an answer, and what is said of every phrase."""

_SENTENCE_QUESTIONS = ("{} Please respond with segmentation mask.", "{} Please output segmentation mask.")
_REASON_QUESTIONS = (
    "Can you segment the {} in this image?",
    "Please segment the {} in this image.",
    "What is {} in this image? Please respond with segmentation mask.",
    "What is {} in this image? Please output segmentation mask.",
)
_REASON_ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)
_EXPLAIN = (
    "Please output segmentation mask and explain why.",
    "Please output segmentation mask and explain the reason.",
    "Please output segmentation mask and give some explaination.",
)


def training(sample: Sample, draws: Draws, *, only_words: float) -> list[Conversation]:
    """The conversations that a sample teaches.

    Args:
        sample: With the phrases that are asked about, and their masks; or with a dialogue.
        draws: Templates are drawn from it.
        only_words: Share of the images with an explanation that are answered without a mask; below 0, explanations are
            never used.

    Raises:
        DataError: No phrase, or one that the model would take for its own words.
    """
    if sample.dialogue:
        return [_dialogue(sample)]
    check(sample)
    if sample.wording in ("question", "sentence"):
        return _reasoning(sample, draws, only_words)
    present = _present(sample)
    start, item = _ANSWERS[draws.below(len(_ANSWERS))]
    template = draws.pick(_QUESTIONS)
    phrases = [_trim(phrase) for phrase in sample.phrases]
    said = [item.format(phrase) for phrase in phrases]
    # Of a rejected phrase every "SEG" becomes "REJ", a "SEG" in its own words included: so the original does it.
    said = [text if there else text.replace("SEG", "REJ") for text, there in zip(said, present, strict=True)]
    between = ", " if sample.wording == "expression" else ","
    question = about_image(template.format(", ".join(phrases).lower()))
    return [Conversation(rounds=((question, f"{start} {between.join(said)}."),), expressions=sample.phrases)]


def apart(sample: Sample) -> list[Sample]:
    """A sample for every phrase, which is asked for as a class is: as something that is there."""
    if sample.dialogue:  # in one answer, so that it keeps its words alone
        silent = tuple((asked, said.replace(f":{SEG}", "").replace(SEG, "")) for asked, said in sample.dialogue)
        return [dataclasses.replace(sample, dialogue=silent, phrases=())]
    if sample.wording in ("question", "sentence"):
        return [sample]
    wording: Wording = "part" if sample.wording == "part" else "class"
    singles = (some(sample, index, index + 1) for index in range(len(sample.phrases)))
    return [dataclasses.replace(single, wording=wording) for single in singles]


def some(sample: Sample, start: int, end: int) -> Sample:
    """A sample of the phrases from ``start`` up to ``end``, with their masks."""
    masks = sample.target.masks
    target = dataclasses.replace(sample.target, masks=None if masks is None else masks[start:end])
    return dataclasses.replace(sample, phrases=sample.phrases[start:end], target=target)


def evaluation(sample: Sample) -> list[Conversation]:
    """The conversation that a sample is evaluated with; its answer is the true one.

    Raises:
        DataError: As :func:`training`.
    """
    check(sample)
    if sample.wording in ("question", "sentence"):
        return to_fill(sample)
    return _at_once(sample, [SEG if there else REJ for there in _present(sample)])


def to_fill(sample: Sample) -> list[Conversation]:
    """The conversation of :func:`evaluation` with a [SEG] in every slot, for the model to put its own choice there.

    Raises:
        DataError: As :func:`training`.
    """
    check(sample)
    if sample.wording in ("question", "sentence"):
        return [dataclasses.replace(one, rounds=((one.rounds[0][0], SEG),)) for one in question(sample)]
    return _at_once(sample, [SEG] * len(sample.phrases))


def _at_once(sample: Sample, tokens: Sequence[str]) -> list[Conversation]:
    """The conversation that asks for all phrases and answers with these tokens."""
    phrases = _names(sample)
    said = ", ".join(f"{phrase}:{token}" for phrase, token in zip(phrases, tokens, strict=True))
    return [Conversation(rounds=((_ask(phrases), f"Sure,{said}."),), expressions=sample.phrases)]


def question(sample: Sample) -> list[Conversation]:
    """The question of :func:`evaluation` alone: the answer is the model's to give.

    Raises:
        DataError: As :func:`training`.
    """
    check(sample)
    if sample.wording in ("question", "sentence"):
        asked = [_ask_reasoning(text.strip(), sentence=sample.wording == "sentence") for text in sample.phrases]
        return [
            Conversation(rounds=((text, None),), expressions=(phrase,))
            for text, phrase in zip(asked, sample.phrases, strict=True)
        ]
    return [Conversation(rounds=((_ask(_names(sample)), None),), expressions=sample.phrases)]


def _names(sample: Sample) -> list[str]:
    """What evaluation calls the phrases of a sample."""
    # A part is "chair:back"; training asks for it by one of two names, of which this is the first.
    listed = [phrase.replace(":", " ", 1) for phrase in sample.phrases] if sample.wording == "part" else sample.phrases
    return [normal(phrase) for phrase in listed]


def normal(phrase: str) -> str:
    """A phrase as evaluation asks it: small letters, no space and no full stop around it."""
    return _trim(phrase.lower())


def _trim(phrase: str) -> str:
    return phrase.strip().strip(".")


def about_image(text: str) -> str:
    """A first question: the image, and the text below it."""
    return f"{IMAGE}\n{text}"


def _ask(phrases: Sequence[str]) -> str:
    # The space behind the line break, and none before "in", are the original's; the released weights know them so.
    return about_image(f" What are {', '.join(phrases)}in this image? Please output segmentation masks.")


def _ask_reasoning(text: str, *, sentence: bool) -> str:
    asked = text if sentence else f"What is {text} in this image?"
    return about_image(f" {asked} Please output segmentation mask.")


def _reasoning(sample: Sample, draws: Draws, only_words: float) -> list[Conversation]:
    """One conversation per phrase; where the image has an explanation, one choice of what to do with it for all."""
    explanation = sample.target.explanation if only_words >= 0 else ""
    how = "masks"
    if explanation:
        how = "words" if draws.share() < only_words else draws.pick(("masks", "both"))
    conversations = []
    for phrase in sample.phrases:
        # The question is drawn in every case, and then another one may take its place.
        if sample.wording == "sentence":
            asked = draws.pick(_SENTENCE_QUESTIONS).format(phrase)
        else:
            asked = draws.pick(_REASON_QUESTIONS).format(phrase.lower())
        if how == "words":
            rounds = ((about_image(phrase), explanation),)
        elif how == "both":
            answer = f"{draws.pick(_REASON_ANSWERS)} {explanation}"
            rounds = ((about_image(f"{phrase} {draws.pick(_EXPLAIN)}"), answer),)
        else:
            rounds = ((about_image(asked), draws.pick(_REASON_ANSWERS)),)
        conversations.append(Conversation(rounds=rounds, expressions=() if how == "words" else (phrase,)))
    return conversations


def _dialogue(sample: Sample) -> Conversation:
    """A dialogue about the image, which is shown before its first question, wherever the text had it."""
    (first, answer), *later = [(_without_image(asked), _without_image(said)) for asked, said in sample.dialogue]
    return Conversation(rounds=((about_image(first), answer), *later), expressions=sample.phrases)


def _without_image(text: str) -> str:
    return text.replace(IMAGE, "").strip() if IMAGE in text else text


def _present(sample: Sample) -> list[bool]:
    """Whether each phrase has a target; classes and parts are only asked for where they are."""
    masks = sample.target.masks
    if masks is None or len(masks) != len(sample.phrases):
        raise DataError(
            f"{len(sample.phrases)} phrases with {0 if masks is None else len(masks)} masks", where=name(sample)
        )
    if sample.wording in ("class", "part"):
        return [True] * len(sample.phrases)
    there: list[bool] = masks.flatten(1).any(1).tolist()
    return there


def check(sample: Sample) -> None:
    """Refuses a sample that nothing can be asked about.

    Raises:
        UsageError: No phrase.
        DataError: A phrase that the model would take for its own words, or for nothing.
    """
    if not sample.phrases:
        raise UsageError("no phrase is given", where=name(sample), fix="say what to segment: --phrase 'the red ball'")
    for index, phrase in enumerate(sample.phrases):
        number = f", phrase {index + 1}" if len(sample.phrases) > 1 else ""
        check_words(phrase, "phrase", where=name(sample) + number)


def name(sample: Sample) -> str:
    """What an error calls the picture of a sample."""
    return str(sample.origin.path or sample.origin.image_id)
