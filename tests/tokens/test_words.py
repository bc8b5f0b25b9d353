"""The map of words: encoding and decoding, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import CheckpointError
from saccade.tokens.words import WordMap, split_words

WORDS = WordMap.count([["a", "dog", "runs"], ["a", "cat"]], least=1)


@given(st.lists(st.sampled_from(["a", "dog", "runs", "cat", "<unk>"]), max_size=8))
def test_known_words_come_back(words: list[str]) -> None:
    ids = WORDS.encode(" ".join(words), most=8)
    assert WORDS.decode([*ids, 0, 0]) == " ".join(words)
    assert len(ids) == len(words) + 2 and ids[0] == WORDS.start_id and ids[-1] == WORDS.end_id


def test_sentences_are_cleaned_and_cut() -> None:
    assert split_words("A dog, RUNS -- isn't it?") == ["a", "dog", "runs", "isnt", "it"]
    assert WORDS.encode("The dog runs!", most=2) == [WORDS.start_id, WORDS.unknown_id, 2, WORDS.end_id]


def test_rare_words_are_left_out() -> None:
    counted = WordMap.count([["a", "b"], ["b", "a", "b"]], least=3)
    assert counted.words == ["<pad>", "b", "<unk>", "<start>", "<end>"]


def test_files(tmp_path: Path) -> None:
    assert WordMap.load(WORDS.save(tmp_path)) == WORDS == WordMap.load(tmp_path)
    for text in ("{}", "[]", '{"<pad>": "0"}', "no json", '{"<pad>": 1, "<unk>": 0, "<start>": 2, "<end>": 3}'):
        (tmp_path / "wordmap.json").write_text(text)
        with pytest.raises(CheckpointError):
            WordMap.load(tmp_path)
