"""The tokenizer gives the strings of Stanford's PTBTokenizer (fixtures/metrics/ptb.json holds its answers)."""

from __future__ import annotations

import time

import pytest
from helpers_metrics import read_json
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.metrics.ptb import PUNCTUATION, tokenize

FUSED = {"cannot", "gonna", "gotta", "lemme", "gimme", "wanna"}
words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=9).filter(lambda word: word not in FUSED)


def test_answers_of_the_official_tokenizer() -> None:
    """Groups of lines that were tokenised as one text each: what follows a line can matter."""
    groups = read_json("ptb.json")
    assert sum(len(group) for group in groups) > 1700
    for group in groups:
        lines, wanted = zip(*group, strict=True)
        wrong = [
            (line, ours, want) for line, ours, want in zip(lines, tokenize(lines), wanted, strict=True) if ours != want
        ]
        assert wrong == []


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("I don't, can't, won't; they're he'll", "i do n't ca n't wo n't they 're he 'll"),
        ("They cannot; he's gonna", "they can not he 's gon na"),
        ("the dogs' bowls and women's hats", "the dogs bowls and women 's hats"),
        ("a sign (stop) and a {red} [box]", "a sign -lrb- stop -rrb- and a -lcb- red -rcb- -lsb- box -rsb-"),
        ("Mr. Smith, e.g. at 5 p.m. in the U.S.", "mr. smith e.g. at 5 p.m. in the u.s."),
        ("half (1/2) of 1,000.50 at 12:30...", "half -lrb- 1/2 -rrb- of 1,000.50 at 12:30"),
        ("“Café” – naïve… ½ £5 20%", "café naïve 1/2 # 5 20 %"),
        ("rock-n-roll AT&T b&w w/ and/or", "rock-n-roll at&t b & w w / and/or"),
        ("see www.foo.com or foo@bar.com!", "see www.foo.com or foo@bar.com!"),
        ("1 1/2 cups", "1\u00a01/2 cups"),
    ],
)
def test_conventions(caption: str, tokens: str) -> None:
    assert tokenize([caption, "next"])[0] == tokens


def test_context_across_captions() -> None:
    """A sentence that begins in the next caption takes the period from a single letter."""
    assert tokenize(["vitamin C.", "The end"])[0] == "vitamin c"
    assert tokenize(["vitamin C.", "the end"])[0] == "vitamin c."


@settings(deadline=None)
@given(st.lists(st.lists(words, max_size=8), max_size=5))
def test_plain_words_stay(captions: list[list[str]]) -> None:
    lines = [" ".join(caption) for caption in captions]
    assert tokenize(lines) == lines
    assert tokenize([line.upper() + "!" for line in lines if line]) == [line for line in lines if line]


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=5))
def test_any_text_gives_one_line_each_without_punctuation(captions: list[str]) -> None:
    lines = tokenize(captions)
    assert len(lines) == len(captions)
    for line in lines:
        assert "\n" not in line and "  " not in line
        assert not PUNCTUATION & set(line.split(" "))


def test_long_junk_is_quick() -> None:
    started = time.process_time()
    tokenize([piece * 1000 for piece in ("a@", "<a ", "1/", "a.b-", "-", "'", "<!a", '<a b="', "é", "http://a")])
    assert time.process_time() - started < 20
