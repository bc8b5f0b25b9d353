"""WordPiece text vocabularies, from a local file: nothing is fetched here."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import Tensor

from saccade.errors import CheckpointError

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ADDED = ("[DEC]", "[ENC]")


def clean_caption(text: str) -> str:
    """Captions and phrases as GiT reads them: no punctuation, single spaces, lower case (specs, section 6.5)."""
    text = text.strip().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s{2,}", " ", text).lower()


class TextVocabulary:
    """A lower-casing BERT WordPiece vocabulary with ``[DEC]`` and ``[ENC]`` appended.

    Args:
        path: A ``vocab.txt``: one piece per line, the line number is the id. It must hold [PAD] as its first piece,
            and [UNK], [CLS], [SEP] and [MASK], and no piece twice.

    Raises:
        CheckpointError: The file is missing, is not UTF-8 text, lacks a special token or repeats a piece.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._bytes = self.path.read_bytes()
            pieces = self._bytes.decode("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                "the vocabulary file cannot be read",
                where=self.path,
                why=str(error),
                fix="pass a WordPiece vocab.txt (for the released GiT models: that of bert-base-uncased)",
            ) from error
        if pieces[-1] == "":
            pieces.pop()
        ids = {piece.rstrip("\r"): index for index, piece in enumerate(pieces)}
        if wrong := _defect(ids, len(pieces)):
            raise CheckpointError("not a WordPiece vocabulary that GiT can use", where=self.path, why=wrong)
        self.pad_id, self.sep_id = 0, ids["[SEP]"]
        tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*_SPECIAL, *_ADDED)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
        )
        self._tokenizer = tokenizer
        self.dec_id = len(ids)  # added tokens follow the file: [DEC], then [ENC]

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str], *, max_length: int, pad_to: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokenises sentences as ``[CLS] pieces [SEP]``, cut to max_length ([SEP] is kept), padded with [PAD].

        Args:
            texts: N sentences.
            max_length: Greatest number of ids.
            pad_to: Fixed length; None pads to the longest of the list.

        Returns:
            ids ``[N, T]`` int64 and mask ``[N, T]`` bool (True = a token, False = padding).
        """
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        rows = [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]
        length = pad_to or max((len(row) for row in rows), default=0)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = True
        return ids, mask

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text; special tokens are left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Ids to pieces, special tokens included."""
        return [self._tokenizer.id_to_token(int(index)) or "[UNK]" for index in ids]

    def save(self, folder: str | Path) -> Path:
        """Writes ``vocab.txt`` into the folder, byte for byte as it was read."""
        path = Path(folder) / "vocab.txt"
        path.write_bytes(self._bytes)
        return path


def _defect(ids: dict[str, int], lines: int) -> str | None:
    """What keeps the pieces of a file from being a vocabulary, or None."""
    missing = [token for token in _SPECIAL if token not in ids]
    if missing:
        return f"missing {missing}"
    if ids["[PAD]"] != 0:
        return "[PAD] must be the first line"
    added = [token for token in _ADDED if token in ids]
    if added:
        return f"{added} must not be in the file: they are appended to it"
    # The line number is the id: with a repeated line, [DEC] would take the id of the last piece.
    return f"{lines - len(ids)} lines say a piece twice" if len(ids) != lines else None
