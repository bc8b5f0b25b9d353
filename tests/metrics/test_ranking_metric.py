"""Recall at k, top-k accuracy and word accuracy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import saccade.metrics.ranking as ranking
from saccade.errors import DataError
from saccade.metrics.ranking import TopK, recall_at_k
from saccade.metrics.words import bare, word_accuracy


def plain_recall(scores: torch.Tensor, image_of: list[int], k: int) -> tuple[float, float]:
    """Recall written down plainly from the sorted lists."""
    i2t = [
        any(image_of[t] == i for t in sorted(range(len(image_of)), key=lambda t, i=i: (-scores[i, t], t))[:k])
        for i in range(len(scores))
    ]
    t2i = [
        image_of[t] in sorted(range(len(scores)), key=lambda i, t=t: (-scores[i, t], i))[:k]
        for t in range(len(image_of))
    ]
    return sum(i2t) / len(i2t), sum(t2i) / len(t2i)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6), st.booleans())
def test_recall_equals_the_plain_definition(images: int, seed: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    image_of = [*range(images), *torch.randint(images, (5,), generator=generator).tolist()]
    points = [torch.randn(n, 3, generator=generator) for n in (images, len(image_of))]
    if ties:
        points = [p.round() for p in points]
    old, ranking._ROWS = ranking._ROWS, 4  # several chunks
    try:
        found = recall_at_k(points[0], points[1], torch.tensor(image_of), ks=(1, 3))
    finally:
        ranking._ROWS = old
    scores = points[0] @ points[1].T
    for k in (1, 3):
        assert (found[f"i2t/R@{k}"], found[f"t2i/R@{k}"]) == pytest.approx(plain_recall(scores, image_of, k))
    assert found["rsum"] == pytest.approx(100 * sum(value for name, value in found.items() if name != "rsum"))


def test_an_image_counts_once_and_every_caption_by_itself() -> None:
    images = torch.eye(2)
    captions = torch.tensor([[1.0, 0.0], [0.1, 1.0], [0.0, 1.0]])  # the second, of image 0, looks like image 1
    found = recall_at_k(images, captions, torch.tensor([0, 0, 1]), ks=(1,))
    assert found["i2t/R@1"] == 0.5  # for image 1 the misleading caption stands first
    assert found["t2i/R@1"] == pytest.approx(2 / 3)


def test_sets_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(DataError, match="captions, but"):
        recall_at_k(torch.eye(2), torch.eye(2), torch.tensor([0]))
    with pytest.raises(DataError, match="without a caption"):
        recall_at_k(torch.eye(2), torch.eye(2), torch.tensor([0, 0]))


def test_top_k_and_the_mean_over_classes() -> None:
    metric = TopK(3, ks=(1, 2, 5))
    metric.update(torch.tensor([[3.0, 2, 1], [1, 3, 2], [2, 3, 1]]), torch.tensor([0, 2, 0]))
    metric.update(torch.tensor([[3.0, 2, 1]]), torch.tensor([0]))
    assert metric.compute() == pytest.approx({"top1": 0.5, "top2": 1.0, "mean_class": (2 / 3 + 0) / 2})
    assert all(math.isnan(value) for value in TopK(3).compute().values())
    with pytest.raises(DataError, match="for 3 classes"):
        metric.update(torch.zeros(1, 3), torch.tensor([3]))


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert bare("Caf-É 24!") == "caf24"
    assert word_accuracy(["HELLO", "w0rld"], ["hello!", "world"]) == 0.5
    assert math.isnan(word_accuracy([], []))
    with pytest.raises(ValueError):
        word_accuracy(["a"], [])
