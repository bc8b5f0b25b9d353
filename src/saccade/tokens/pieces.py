"""Llama's SentencePiece vocabulary with the tokens that GSVA adds, in the way the released models were trained.

That way is transformers' ``legacy`` mode: the text is cut at the special tokens, and every part between them is encoded
by itself, with the leading space (``▁``) that SentencePiece puts before a text. So "▁," follows a [SEG], and a second
round of a conversation begins with "▁USER". Newer tokenisers give other ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from saccade.errors import CheckpointError

SEG, REJ = "[SEG]", "[REJ]"
"""Says: here is a mask; and: there is no such thing in the image."""

IMAGE = "<image>"
"""Where the image stands in a text; it is no token."""

IMAGE_ID = -200
"""What stands among the ids where the image's tokens go (one per conversation, before every [SEG] and [REJ])."""

IMAGE_START, IMAGE_END = "<im_start>", "<im_end>"
"""Tokens before and behind the image."""

_MARKS = (SEG, REJ, IMAGE, IMAGE_START, IMAGE_END, "<im_patch>", "<s>", "</s>", "<unk>", "ASSISTANT:", "[/INST]")
"""What cuts a conversation into its parts; in the words of a person it would do the same."""

WITHOUT_WORDS = "without words"

FILE = "tokenizer.model"

# Bases of Llama, and of LLaVA Lightning, whose word table has three more rows that its SentencePiece file lacks.
_FORMS: dict[int, tuple[str, ...]] = {
    4: (SEG, REJ, IMAGE_START, IMAGE_END),
    5: ("<im_patch>", IMAGE_START, IMAGE_END, SEG, REJ),
}
"""Rows that a word table has more than the file has pieces, to the tokens of these rows."""


def unsayable(text: str) -> str | None:
    """Why a model that converses cannot be told a text: the end of "a phrase ..."; None = it can.

    Args:
        text: Of a person or of a data set, before it is put into small letters.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return "that is no Unicode text"
    if not any(letter.isprintable() and not letter.isspace() and letter != "." for letter in text):
        return WITHOUT_WORDS
    # A model is asked in small letters: "<S>" becomes a mark, while "[seg]" is none.
    found = next((mark for mark in _MARKS if mark in text or (mark.startswith("<") and mark in text.lower())), None)
    return None if found is None else f"with '{found}' in it"


class PieceVocabulary:
    """The vocabulary.

    Args:
        path: Llama's ``tokenizer.model``, or a folder that holds it.
        rows: Rows of the language model's word table: they tell which of the two known forms the vocabulary has; None
            = the form in which the added tokens follow the pieces directly.

    Attributes:
        seg_id: Of ``[SEG]``.
        rej_id: Of ``[REJ]``.
        bos_id: What every text begins with.
        end_id: What an answer ends with (``</s>``).
        pad_id: Fills rows up; also stands for what the vocabulary does not know.

    Raises:
        CheckpointError: The file is missing or damaged, or no known form has that many rows.
    """

    def __init__(self, path: str | Path, rows: int | None = None) -> None:
        self.path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        self._pieces = _load(self.path)
        base = self._pieces.get_piece_size()
        if rows is None:
            rows = base + min(_FORMS)
        if rows - base not in _FORMS:
            raise CheckpointError(
                f"a word table of {rows} rows does not go with {base} pieces",
                where=self.path,
                why=f"it must have {' or '.join(str(base + more) for more in _FORMS)} rows",
                fix="take the tokenizer.model of the language model that the checkpoint was trained from",
            )
        self.bos_id, self.end_id, self.pad_id = (self._pieces.piece_to_id(piece) for piece in ("<s>", "</s>", "<unk>"))
        self._special = {"<s>": self.bos_id, "</s>": self.end_id, "<unk>": self.pad_id}
        self._special |= {token: base + index for index, token in enumerate(_FORMS[rows - base])}
        self._token_of = {id_: token for token, id_ in self._special.items()}
        self.seg_id, self.rej_id = self._special[SEG], self._special[REJ]
        # The longest first: a token may be the beginning of another one.
        longest_first = sorted(self._special, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def encode(self, text: str) -> list[int]:
        """The ids of a text, the first of them ``bos_id``."""
        ids = [self.bos_id]
        for part in self._cut.split(text):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids += self._pieces.encode(part)
        return ids

    def encode_with_image(self, text: str) -> list[int]:
        """The ids of a text, with :data:`IMAGE_ID` where it says ``<image>``."""
        first, *rest = (self.encode(part) for part in text.split(IMAGE))
        for ids in rest:
            first += [IMAGE_ID, *ids[1:]]
        return first

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens and ``<image>`` included; ``bos_id`` at the beginning is left out."""
        texts: list[str] = []
        run: list[int] = []
        for position, id_ in enumerate(ids):
            token = IMAGE if id_ == IMAGE_ID else self._token_of.get(id_)
            if token is None:
                run.append(id_)
                continue
            texts.append(self._pieces.decode(run))
            run = []
            if id_ != self.bos_id or position:
                texts.append(token)
        return "".join([*texts, self._pieces.decode(run)])

    def save(self, folder: str | Path) -> Path:
        """Writes ``tokenizer.model`` into the folder."""
        path = Path(folder) / FILE
        path.write_bytes(self._pieces.serialized_model_proto())
        return path


def _load(path: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            "the tokenizer cannot be read",
            where=path,
            why=error.strerror or str(error),
            fix="put the tokenizer.model of the language model (LLaVA, Vicuna or Llama) there",
        ) from error
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise CheckpointError(
            "the file is no SentencePiece model", where=path, why=str(error), fix="fetch the tokenizer.model again"
        ) from error
    unknown = pieces.unk_id()
    if any(pieces.piece_to_id(piece) == unknown for piece in ("<s>", "</s>")) or pieces.piece_to_id("<unk>") != unknown:
        raise CheckpointError(
            "the SentencePiece model lacks <s>, </s> or <unk>", where=path, fix="it must be a model of the Llama family"
        )
    return pieces
