"""ViSFT's BLEU-4 of told captions: values of NLTK 3.x ``corpus_bleu`` on the same lists."""

from __future__ import annotations

import pytest

from saccade.metrics.caption import teacher_forced_bleu4

REFERENCES = [[[5, 6, 7, 8, 9], [5, 6, 7, 9]], [[1, 2, 3, 4, 9], [2, 3, 9]], [[3, 9]]]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([[5, 6, 7, 8, 9], [1, 2, 3, 9], [3, 9]], 0.8034284189446518),
        ([[5, 6, 7, 8], [1, 2, 3, 9], [3]], 0.691441569283882),
        ([[5, 6, 7], [1, 2, 3], [3]], 0.0),
    ],
)
def test_values_of_nltk(said: list[list[int]], expected: float) -> None:
    assert teacher_forced_bleu4(REFERENCES, said) == pytest.approx(expected, abs=1e-12)
