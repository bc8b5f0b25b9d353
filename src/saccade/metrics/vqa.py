"""VQA accuracy with the official normalisation of answers (VQA v2; Antol et al. 2015, Goyal et al. 2017).

Written from what the official evaluator answers, its slips included: the file that BLIP-2's evaluation carries and the
python 3 form of the VQA tools agree. An answer counts ``min(matches / 3, 1)`` over the other nine people, averaged over
the ten that can be left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from saccade.errors import DataError
from saccade.metrics.base import add_once

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_AROUND_COMMA = re.compile(r"\d,\d")
# The official pattern means to keep a period behind a digit and does not: only a digit after it saves it.
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official call hands a flag over as the number of replacements

_ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_TWO_APOSTROPHES = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""


def _contractions() -> dict[str, str]:
    """Contractions that lack an apostrophe, to their full form: the table of the official evaluator."""
    table = {whole.replace("'", ""): whole for whole in _ONE_APOSTROPHE.split()}
    for whole in _TWO_APOSTROPHES.split():
        first, second, third = whole.split("'")
        table |= {f"{first}{second}'{third}": whole, f"{first}'{second}{third}": whole}
    for whole, lacking in (("'ow's'at", ("ow's'at", "'ows'at", "'ow'sat")), ("y'all'd've", _YALLDVE)):
        table |= dict.fromkeys(lacking, whole)
    # One entry of the official table stands the wrong way round.
    return table | {"somebody'd": "somebodyd"}


_YALLDVE = ("yall'd've", "y'alld've", "y'all'dve")
_CONTRACTIONS = _contractions()


def strip_punctuation(text: str) -> str:
    """Removes a sign that stands beside a space anywhere in the text, and writes a space for it elsewhere.

    Where a number has a comma (``1,000``) every sign is removed.
    """
    out = text
    numeral = _DIGITS_AROUND_COMMA.search(text) is not None
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if beside_space or numeral else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)


def plain_words(text: str) -> str:
    """Lower case, numbers as digits, no articles, contractions with their apostrophes, single spaces."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalise_answer(text: str) -> str:
    """A predicted answer as it is compared."""
    return plain_words(strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The accuracy 0..1 of one answer.

    Args:
        answer: What the model says.
        references: What each person said (ten in VQA v2). They are stripped of punctuation where they differ, and taken
            as they are where all say the same; case, numbers and articles are left alone, as in the official program
            (the data set's files have them normalised).

    Raises:
        DataError: No reference.
    """
    if not references:
        raise DataError("a question without a reference answer cannot be scored")
    said = normalise_answer(answer)
    differ = len(set(references)) > 1
    matches = [(strip_punctuation(text) if differ else text) == said for text in references]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


@dataclass(kw_only=True)
class VQAMetric:
    """VQA accuracy over a set, and by type of answer.

    Attributes:
        scores: Question id to its accuracy and its answer type.
        repetitions: Questions that came again; the first answer counts.
    """

    scores: dict[int | str, tuple[float, str]] = field(default_factory=dict)
    repetitions: int = 0

    def update(self, question_id: int | str, answer: str, references: Sequence[str], *, answer_type: str = "") -> None:
        """Adds one question.

        Raises:
            DataError: It has no reference answer.
        """
        accuracy = vqa_accuracy(answer, references)
        self.repetitions += add_once(self.scores, question_id, (accuracy, answer_type))

    def compute(self) -> dict[str, float]:
        """``accuracy`` 0..1 over all questions, then ``accuracy/TYPE`` of every answer type (``yes/no`` ...)."""
        groups: dict[str, list[float]] = {"accuracy": []}
        for accuracy, answer_type in self.scores.values():
            groups["accuracy"].append(accuracy)
            if answer_type:
                groups.setdefault(f"accuracy/{answer_type}", []).append(accuracy)
        return {name: sum(values) / len(values) if values else float("nan") for name, values in groups.items()}
