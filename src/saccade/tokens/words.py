"""A vocabulary of whole words: the WORDMAP of captioning models with a recurrent decoder.

Source of the format: "Show, Attend and Tell" as a public tutorial prepares COCO for it, which ViSFT reads; facts in
docs/visft.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from saccade.errors import CheckpointError
from saccade.tokens.vocabulary import clean_caption

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
_LEAST_COUNT = 6
FILE = "wordmap.json"


class WordMap:
    """Words and their ids.

    Args:
        ids: Word to id, 0 to the number of words - 1, with ``<pad>`` (0), ``<unk>``, ``<start>`` and ``<end>``.
        source: Where it came from, for errors.

    Raises:
        CheckpointError: A special word is missing, or the ids have gaps.
    """

    def __init__(self, ids: Mapping[str, int], *, source: object = None) -> None:
        missing = [word for word in (PAD, UNKNOWN, START, END) if word not in ids]
        if missing or ids[PAD] != 0 or sorted(ids.values()) != list(range(len(ids))):
            raise CheckpointError(
                "not a map of words",
                where=source,
                why=f"it lacks {', '.join(missing)}" if missing else "ids must be 0, 1, 2, ... with <pad> at 0",
                fix="give the WORDMAP_*.json that the captions were written with",
            )
        self.ids = dict(ids)
        self.words = sorted(self.ids, key=self.ids.__getitem__)
        self.unknown_id, self.start_id, self.end_id = (self.ids[word] for word in (UNKNOWN, START, END))

    @classmethod
    def load(cls, path: str | Path) -> WordMap:
        """Reads a WORDMAP file, or that of a folder written by :meth:`save`.

        Raises:
            CheckpointError: The file is missing or is no map of words.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError("the map of words cannot be read", where=path, why=str(error)) from error
        if not isinstance(content, dict) or not all(type(value) is int for value in content.values()):
            raise CheckpointError("not a map of words", where=path, why="it is no JSON object of words and numbers")
        return cls(content, source=path)

    @classmethod
    def count(cls, captions: Iterable[Sequence[str]], *, least: int = _LEAST_COUNT) -> WordMap:
        """The words that occur often enough, in the order in which they come first.

        Args:
            captions: The words of every caption of all splits.
            least: Least number of times that a word occurs.
        """
        counts = Counter(word for words in captions for word in words)
        kept = [word for word, count in counts.items() if count >= least]
        return cls({PAD: 0} | {word: at for at, word in enumerate([*kept, UNKNOWN, START, END], start=1)})

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordMap) and self.ids == other.ids

    __hash__ = None  # type: ignore[assignment]

    def encode(self, caption: str, *, most: int) -> list[int]:
        """``<start> words <end>``; words that the map lacks are ``<unk>``, those past ``most`` are cut off."""
        words = split_words(caption)[:most]
        return [self.start_id, *(self.ids.get(word, self.unknown_id) for word in words), self.end_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The sentence of ids; ``<pad>``, ``<start>`` and ``<end>`` are left out."""
        silent = {0, self.start_id, self.end_id}
        return " ".join(self.words[index] for index in ids if index not in silent)

    def save(self, folder: str | Path) -> Path:
        """Writes ``wordmap.json`` into the folder, in the official form."""
        path = Path(folder) / FILE
        path.write_text(json.dumps(self.ids), encoding="utf-8")
        return path


def split_words(caption: str) -> list[str]:
    """Lower-case words without punctuation, as Karpathy's split tokenises; ``<unk>`` stays."""
    cleaned = (word if word == UNKNOWN else clean_caption(word) for word in caption.split())
    return [word for word in cleaned if word]
