"""CLIP's byte-pair vocabulary, from a local file: nothing is fetched here.

Source: the vocabulary of Learning Transferable Visual Models From Natural Language Supervision, ICML 2021. What the
original repairs with ``ftfy`` (text in a wrong encoding) is left as it is.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from saccade.errors import CheckpointError

FILE = "merges.txt"
_MERGES = 48_894  # the file lists more; the vocabulary ends here
_END_OF_WORD = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _bytes() -> list[str]:
    """The letter that stands for every byte, in the order of the vocabulary: printable ones first, as themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = 256 - len(plain)
    return [chr(code) for code in plain] + [chr(256 + index) for index in range(others)]


class CLIPPieces:
    """The vocabulary: lower-cased text cut into words, words into byte pairs.

    Args:
        path: ``bpe_simple_vocab_16e6.txt.gz`` (packed or not) or a ``merges.txt``, or a folder that holds one.

    Attributes:
        start_id: What every text begins with.
        end_id: What every text ends with: the greatest id.

    Raises:
        CheckpointError: The file is missing, or is no list of merges.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        self._merges = _read_merges(self.path)
        letters = _bytes()
        pieces = [
            *letters,
            *(letter + _END_OF_WORD for letter in letters),
            *(first + second for first, second in self._merges),
        ]
        ids = {piece: index for index, piece in enumerate(pieces)}
        if len(ids) < len(pieces):
            raise CheckpointError("a list of merges that makes a piece twice", where=self.path)
        self.start_id, self.end_id = len(pieces), len(pieces) + 1
        try:
            self._tokenizer = Tokenizer(BPE(ids, self._merges, end_of_word_suffix=_END_OF_WORD))
        except Exception as error:  # tokenizers raises no narrower type
            raise CheckpointError("not a list of merges", where=self.path, why=str(error)) from error
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def __len__(self) -> int:
        return self.end_id + 1

    def encode(self, texts: Sequence[str], *, max_length: int) -> tuple[Tensor, Tensor]:
        """Tokenises sentences as ``start pieces end``, cut to max_length (the end is kept), padded with 0.

        Args:
            texts: N sentences.
            max_length: Greatest number of ids.

        Returns:
            ids ``[N, T]`` int64 and mask ``[N, T]`` bool (True = a token), T that of the longest.
        """
        cleaned = [" ".join(html.unescape(html.unescape(text)).split()).lower() for text in texts]
        rows = [
            [self.start_id, *found.ids[: max_length - 2], self.end_id]
            for found in self._tokenizer.encode_batch(cleaned)
        ]
        longest = max((len(row) for row in rows), default=0)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = True
        return ids, mask

    def save(self, folder: str | Path) -> Path:
        """Writes the merges that are in use into the folder."""
        path = Path(folder) / FILE
        lines = ["#version: 0.2", *(f"{first} {second}" for first, second in self._merges)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "the vocabulary file cannot be read",
            where=path,
            why=str(error),
            fix="pass CLIP's bpe_simple_vocab_16e6.txt.gz",
        ) from error
    # The first line is a heading in both forms of the file.
    lines = [line for line in text.split("\n")[1 : _MERGES + 1] if line.strip()]
    pairs = [tuple(line.split(" ")) for line in lines]
    wrong = next((number for number, pair in enumerate(pairs, start=2) if len(pair) != 2), None)
    if not pairs or wrong is not None:
        raise CheckpointError(
            "not a list of merges", where=path, why="it is empty" if not pairs else f"line {wrong} is no pair"
        )
    return [(pair[0], pair[1]) for pair in pairs]
