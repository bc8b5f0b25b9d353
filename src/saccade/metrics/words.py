"""Word accuracy of scene-text recognition."""

from __future__ import annotations

from collections.abc import Sequence

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
"""The 36 signs that the benchmarks compare: case and punctuation do not count."""


def bare(text: str) -> str:
    """A word as it is compared: lower case, letters and digits only."""
    return "".join(sign for sign in text.lower() if sign in ALPHABET)


def word_accuracy(said: Sequence[str], truths: Sequence[str]) -> float:
    """Share of words that are read without a mistake (NaN of none)."""
    pairs = list(zip(said, truths, strict=True))
    return sum(bare(one) == bare(other) for one, other in pairs) / len(pairs) if pairs else float("nan")
