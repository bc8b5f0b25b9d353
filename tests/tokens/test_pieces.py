"""Llama's pieces with GSVA's tokens: where texts are cut, which ids tokens have, and the way back."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from helpers_pieces import PIECES, train_pieces

from saccade.errors import CheckpointError
from saccade.tokens.pieces import IMAGE_ID, PieceVocabulary

SHARED = Path(__file__).resolve().parents[3] / "shared/parity/gsva"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def vocabulary(path: Path) -> PieceVocabulary:
    return PieceVocabulary(path)


def test_rows_tell_the_form(path: Path) -> None:
    four, five = PieceVocabulary(path, PIECES + 4), PieceVocabulary(path.parent, PIECES + 5)
    assert (four.seg_id, four.rej_id, len(four)) == (PIECES, PIECES + 1, PIECES + 4)
    assert (five.seg_id, five.rej_id, len(five)) == (PIECES + 3, PIECES + 4, PIECES + 5)
    assert four.encode("<im_start><im_end>") == [1, PIECES + 2, PIECES + 3]
    assert five.encode("<im_start><im_end>") == [1, PIECES + 1, PIECES + 2]
    assert len(PieceVocabulary(path)) == PIECES + 4
    with pytest.raises(CheckpointError, match=f"{PIECES + 4} or {PIECES + 5} rows"):
        PieceVocabulary(path, PIECES + 6)


def test_every_part_is_encoded_by_itself(path: Path, vocabulary: PieceVocabulary) -> None:
    plain = sentencepiece.SentencePieceProcessor(model_file=str(path))
    space = plain.piece_to_id("▁")
    assert vocabulary.encode("") == [1]
    assert vocabulary.encode("the dog") == [1, *plain.encode("the dog")]
    assert vocabulary.encode("the [SEG], dog</s>USER") == [
        1, *plain.encode("the "), vocabulary.seg_id, *plain.encode(", dog"), 2, *plain.encode("USER"),
    ]  # fmt: skip
    assert [plain.id_to_piece(id_) for id_ in vocabulary.encode("[SEG], a")[2:4]] == ["▁", ","]
    # A space between two tokens is a part of its own, and gets another one before it.
    assert vocabulary.encode("[SEG] [REJ]") == [1, vocabulary.seg_id, space, space, vocabulary.rej_id]
    assert vocabulary.encode("ASSISTANT: [SEG]")[-2] == space


def test_the_image_is_no_token(vocabulary: PieceVocabulary) -> None:
    assert IMAGE_ID == -200
    ids = vocabulary.encode_with_image("USER: <im_start><image><im_end>\n What")
    start, end = vocabulary.encode("<im_start>")[1], vocabulary.encode("<im_end>")[1]
    assert ids == [*vocabulary.encode("USER: <im_start>"), -200, *vocabulary.encode("<im_end>\n What")[1:]]
    assert ids[ids.index(-200) - 1] == start and ids[ids.index(-200) + 1] == end
    assert ids.count(1) == 1
    assert vocabulary.decode(ids) == "USER: <im_start><image><im_end>\n What"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["[SEG]", "[REJ]", "</s>", "<image>", "man", " ", "\n", "é", "😀", ".", "a b"]), max_size=8
    )
)
def test_there_and_back(vocabulary: PieceVocabulary, parts: list[str]) -> None:
    text = "".join(parts)
    assert vocabulary.decode(vocabulary.encode_with_image(text)) == text


def test_it_crosses_process_borders_and_is_saved_as_it_was(vocabulary: PieceVocabulary, tmp_path: Path) -> None:
    twin = pickle.loads(pickle.dumps(vocabulary))
    assert twin.encode("the dog [SEG]") == vocabulary.encode("the dog [SEG]")
    assert vocabulary.save(tmp_path).read_bytes() == vocabulary.path.read_bytes()


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read[\s\S]*tokenizer.model"):
        PieceVocabulary(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="no SentencePiece model"):
        PieceVocabulary(tmp_path / "tokenizer.model")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/parity/gsva is absent")
def test_the_original_gives_the_same_ids() -> None:
    config = json.loads((SHARED / "config.json").read_text())
    ours = PieceVocabulary(SHARED / "tokenizer", config["vocab_size"])
    for entry in json.loads((SHARED / "data_expected.json").read_text())["tokenization"]:
        assert ours.encode(entry["text"]) == entry["ids"]
