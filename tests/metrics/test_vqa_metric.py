"""VQA accuracy: the official program's answers, its slips included."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import DataError
from saccade.metrics.vqa import VQAMetric, normalise_answer, plain_words, strip_punctuation, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat.", "cat"),
        ("  a\tdog\n", "dog"),
        ("Two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("isnt", "isn't"),
        ("isn't", "isn't"),  # the apostrophe is no punctuation here
        ("couldntve", "couldntve"),  # only one apostrophe may be lacking
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("'ow'sat", "'ow's'at"),
        ("somebody'd", "somebodyd"),  # turned round in the official table
        ("im", "im"),  # the official table has it with a capital, which never meets
        ("red-white", "red white"),
        ("red - white", "red white"),
        ("1,000", "1000"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("1,000 red-white", "1000 redwhite"),
        ("3.5", "3.5"),
        ("5 p.m.", "5 pm"),
        (".5", ".5"),
        ("what?", "what"),
        ("a: b", "a: b"),
        ("the", ""),
    ],
)
def test_answers_are_normalised_as_officially(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_only_thirty_two_periods_are_removed() -> None:
    assert strip_punctuation("." * 40) == "." * 8


@given(st.text(alphabet="abc the'.,-1?", max_size=30))
def test_plain_words_are_a_fixed_point(text: str) -> None:
    once = plain_words(text)
    assert plain_words(once) == once


def test_an_answer_counts_a_third_for_each_of_three_others() -> None:
    def of(matching: int) -> float:
        return vqa_accuracy("Cat", ["cat"] * matching + ["dog"] * (10 - matching))

    # Those who agree leave themselves out: 3 of 10 agree = (3 * 2/3 + 7 * 1) / 10.
    assert [of(k) for k in range(5)] == pytest.approx([0.0, 0.3, 0.6, 0.9, 1.0])
    assert of(10) == 1.0


def test_references_are_stripped_only_where_they_differ() -> None:
    assert vqa_accuracy("t-shirt", ["t-shirt"] * 10) == 0.0  # as in the official program
    assert vqa_accuracy("t-shirt", ["t-shirt"] * 9 + ["top"]) == 1.0
    assert vqa_accuracy("Two", ["2"] * 10) == 1.0
    assert vqa_accuracy("two", ["two"] * 9 + ["2"]) == pytest.approx(0.3)  # words of people are not made digits
    with pytest.raises(DataError):
        vqa_accuracy("x", [])


def test_a_set_is_scored_by_type_and_the_first_answer_counts() -> None:
    metric = VQAMetric()
    metric.update(1, "yes", ["yes"] * 10, answer_type="yes/no")
    metric.update(2, "2", ["3"] * 10, answer_type="number")
    metric.update(3, "no", ["no"] * 10, answer_type="yes/no")
    metric.update(2, "3", ["3"] * 10, answer_type="number")
    assert metric.compute() == pytest.approx({"accuracy": 2 / 3, "accuracy/yes/no": 1.0, "accuracy/number": 0.0})
    assert metric.repetitions == 1
