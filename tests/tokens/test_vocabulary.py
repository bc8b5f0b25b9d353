"""WordPiece vocabularies: special tokens, truncation, decoding, errors; all offline."""

from __future__ import annotations

import socket
import string
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import CheckpointError
from saccade.tokens.vocabulary import TextVocabulary, clean_caption

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "src/saccade/assets/git-nano/vocab.txt"
FIXTURE = ROOT / "tests/fixtures/parity/git/tokenizer/vocab.txt"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is an error."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a vocabulary must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def bundled() -> TextVocabulary:
    return TextVocabulary(BUNDLED)


@pytest.fixture(scope="module")
def fixture() -> TextVocabulary:
    return TextVocabulary(FIXTURE)


def write(folder: Path, lines: list[str], *, end: str = "\n") -> Path:
    path = folder / "vocab.txt"
    path.write_bytes((end.join(lines) + end).encode())
    return path


@pytest.mark.parametrize("path", [BUNDLED, FIXTURE], ids=["bundled", "fixture"])
def test_two_tokens_are_appended_to_the_file(path: Path) -> None:
    vocabulary = TextVocabulary(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(vocabulary) == len(lines) + 2
    assert vocabulary.dec_id == len(lines)
    assert vocabulary.tokens([len(lines), len(lines) + 1]) == ["[DEC]", "[ENC]"]
    assert (vocabulary.pad_id, vocabulary.sep_id) == (0, lines.index("[SEP]"))
    # The id of a piece is its line.
    for index in (0, 50, len(lines) - 1):
        assert vocabulary.tokens([index]) == [lines[index]]


def test_sentences_stand_between_cls_and_sep(fixture: TextVocabulary) -> None:
    ids, mask = fixture.encode(["Big red car", "hotdog"], max_length=20)
    assert fixture.tokens(ids[0].tolist()) == ["[CLS]", "big", "red", "car", "[SEP]"]
    assert fixture.tokens(ids[1].tolist()) == ["[CLS]", "hot", "##dog", "[SEP]", "[PAD]"]
    assert ids.dtype is torch.int64
    assert mask.tolist() == [[True] * 5, [True] * 4 + [False]]


def test_the_fixture_vocabulary_has_the_official_special_ids(fixture: TextVocabulary) -> None:
    ids, _ = fixture.encode(["zebra crossing \u4e2d"], max_length=20)
    assert [ids[0, 0].item(), fixture.sep_id] == [101, 102]
    assert 100 in ids[0]


def test_truncation_keeps_sep(fixture: TextVocabulary) -> None:
    ids, mask = fixture.encode(["big red car on the road"], max_length=5)
    assert fixture.tokens(ids[0].tolist()) == ["[CLS]", "big", "red", "car", "[SEP]"]
    assert bool(mask.all())
    # Exactly at the limit nothing is cut.
    assert fixture.tokens(fixture.encode(["big red car"], max_length=5)[0][0].tolist())[3] == "car"


def test_padding_to_a_fixed_length(fixture: TextVocabulary) -> None:
    ids, mask = fixture.encode(["big", "red car"], max_length=8, pad_to=8)
    assert ids.shape == (2, 8)
    assert mask.sum(1).tolist() == [3, 4]
    assert bool((ids[~mask] == fixture.pad_id).all())


def test_no_sentences(fixture: TextVocabulary) -> None:
    ids, mask = fixture.encode([], max_length=8)
    assert ids.shape == mask.shape == (0, 0)


def test_decoding_joins_pieces_and_leaves_special_tokens_out(fixture: TextVocabulary) -> None:
    ids, _ = fixture.encode(["a big hotdog on the road"], max_length=20, pad_to=14)
    row = [fixture.dec_id, *ids[0, 1:].tolist()]
    assert fixture.decode(row) == "a big hotdog on the road"
    assert fixture.decode([]) == ""


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=9), min_size=1, max_size=5))
def test_any_plain_sentence_comes_back(words: list[str]) -> None:
    """The bundled vocabulary spells every word, so encoding loses nothing but the case."""
    vocabulary = TextVocabulary(BUNDLED)
    sentence = " ".join(words)
    ids, _ = vocabulary.encode([sentence.upper()], max_length=200)
    assert vocabulary.decode(ids[0].tolist()) == sentence


@settings(max_examples=100, deadline=None)
@given(name=st.text(string.printable, min_size=1, max_size=20))
def test_any_ascii_class_name_is_spelt_without_unk(name: str) -> None:
    """Users bring their own class names; [UNK] would make two of them the same class."""
    vocabulary = TextVocabulary(BUNDLED)
    ids, _ = vocabulary.encode([name], max_length=100)
    assert "[UNK]" not in vocabulary.tokens(ids[0].tolist())


def test_bundled_vocabulary_holds_bins_and_task_names(bundled: TextVocabulary) -> None:
    """The numbers of the small presets are single pieces: their rows are looked up, not attended."""
    ids, _ = bundled.encode([str(value) for value in range(449)], max_length=20)
    assert ids.shape == (449, 3)
    assert len(set(ids[:, 1].tolist())) == 449
    for name in ("detection", "instance_segmentation", "semantic_segmentation", "caption", "grounding"):
        row, _ = bundled.encode([name], max_length=20)
        assert "[UNK]" not in bundled.tokens(row[0].tolist())


def test_the_bundled_file_is_well_formed() -> None:
    lines = BUNDLED.read_text(encoding="utf-8").splitlines()
    assert lines[:5] == SPECIAL
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_save_writes_the_bytes_that_were_read(tmp_path: Path, end: str) -> None:
    source = write(tmp_path, [*SPECIAL, "a", "##b", "\u00e9"], end=end)
    (tmp_path / "out").mkdir()
    vocabulary = TextVocabulary(source)
    assert len(vocabulary) == 10
    saved = vocabulary.save(tmp_path / "out")
    assert saved.read_bytes() == source.read_bytes()
    again = TextVocabulary(saved)
    assert torch.equal(again.encode(["ab a"], max_length=9)[0], vocabulary.encode(["ab a"], max_length=9)[0])


def test_missing_file_names_the_file_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.txt") as caught:
        TextVocabulary(tmp_path / "nowhere.txt")
    assert "bert-base-uncased" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["[PAD]", "[UNK]", "[CLS]", "[MASK]", "a"], r"missing \['\[SEP\]'\]"),
        (["a", *SPECIAL], "must be the first line"),
        ([*SPECIAL, "a", "b", "a"], "twice"),
        ([*SPECIAL, "a", "[DEC]"], r"\[DEC\]"),
    ],
    ids=["no sep", "pad not first", "a piece twice", "added token in the file"],
)
def test_files_that_are_no_vocabulary_are_refused(tmp_path: Path, lines: list[str], why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        TextVocabulary(write(tmp_path, lines))


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        TextVocabulary(path)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  A Man, riding   a wave. ", "a man riding a wave"),
        ("half-eaten", "halfeaten"),
        ("tabs\t\tand\n\nlines", "tabs and lines"),
        ("one\ttab", "one\ttab"),
        ("it's 3 o'clock!", "its 3 oclock"),
        ("...", ""),
    ],
)
def test_captions_are_cleaned_as_the_original_does(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean
