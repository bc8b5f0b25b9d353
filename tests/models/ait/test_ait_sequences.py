"""Noise objects, corrupted classes and targets: what must hold for any draw."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.models.ait.config import AiTConfig
from saccade.models.ait.sequences import (
    IGNORED,
    Draws,
    Vocabulary,
    corrupt_classes,
    noise_objects,
    object_tokens,
    sequence_error,
    sequence_targets,
)

WORDS = Vocabulary(bins=20, classes=21, num_classes=5, noise=27, codes=28, side=64)


def boxes(count: int, size_hw: tuple[int, int]) -> Tensor:
    height, width = size_hw
    corner = torch.rand(count, 2) * torch.tensor([width, height]) * 0.6
    side = (0.05 + 0.35 * torch.rand(count, 2)) * torch.tensor([width, height])
    return torch.cat([corner, corner + side], dim=1)


class Copies(Draws):
    """As many jittered copies as asked."""

    def __init__(self, copies: int) -> None:
        self.copies = copies

    def integer(self, high: int) -> int:
        assert 0 <= self.copies <= high
        return self.copies


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(0, 6),
    count=st.integers(0, 20),
    share=st.floats(0, 1),
    size_hw=st.tuples(st.integers(20, 64), st.integers(20, 64)),
    seed=st.integers(0, 10**6),
)
def test_noise_objects_fill_up_inside_the_picture(
    number: int, count: int, share: float, size_hw: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    truth = boxes(number, size_hw)
    copies = round(share * count)
    noise = noise_objects(truth, size_hw, count, Copies(copies))
    assert noise.boxes_xyxy.shape == (count, 4) and noise.source.shape == (count,)
    x, y = noise.boxes_xyxy[:, 0::2], noise.boxes_xyxy[:, 1::2]
    assert bool(((x >= 0) & (x <= size_hw[1]) & (y >= 0) & (y <= size_hw[0])).all())
    copied = noise.source >= 0
    assert int(copied.sum()) == (copies if number else 0)
    assert bool((noise.source[copied] < max(number, 1)).all())
    # A copy is moved by at most a tenth of a side.
    for box, source in zip(noise.boxes_xyxy[copied], noise.source[copied], strict=True):
        sides = (truth[source, 2:] - truth[source, :2]).repeat(2)
        assert bool(((box - truth[source]).abs() <= 0.1 * sides + 1e-4).all())
    # Copies are of all truths alike.
    if number:
        used = torch.bincount(noise.source[copied], minlength=number)
        assert int(used.max()) <= count // number + 1


def test_noise_is_mixed_and_of_every_kind() -> None:
    torch.manual_seed(0)
    truth = boxes(3, (64, 64))
    noise = noise_objects(truth, (64, 64), 300, Copies(100))
    copied = noise.source >= 0
    assert 20 < int(copied[:150].sum()) < 80
    # Of the others about half have the size of a truth (less where the border cuts them).
    others = noise.boxes_xyxy[~copied]
    inside = ((others > 0) & (others < 64)).all(1)
    sides = (others[:, 2:] - others[:, :2])[inside]
    known = (sides[:, None] - (truth[:, 2:] - truth[:, :2])).abs().amax(2).amin(1) < 1e-3
    assert 0.2 < float(known.float().mean()) < 0.95


@settings(max_examples=40, deadline=None)
@given(images=st.integers(1, 3), real=st.integers(0, 4), codes=st.integers(0, 3), seed=st.integers(0, 1000))
def test_classes_are_corrupted_and_only_real_objects_are_told(images: int, real: int, codes: int, seed: int) -> None:
    torch.manual_seed(seed)
    tokens = torch.randint(0, 20, (images, 4, 5 + codes))
    there = torch.arange(4).expand(images, 4) < real
    tokens[..., 4] = torch.where(there, torch.randint(21, 26, (images, 4)), WORDS.noise)
    kept = tokens.clone()
    read = corrupt_classes(tokens, WORDS, Draws())
    assert torch.equal(tokens, kept)
    others = [place for place in range(5 + codes) if place != 4]
    assert torch.equal(read[..., others], tokens[..., others])
    assert set(read[..., 4].flatten().tolist()) <= {WORDS.noise, *range(21, 26)}
    said = sequence_targets(tokens, there)
    assert torch.equal(said[there], tokens[there])
    assert bool((said[~there][:, others] == IGNORED).all()) and bool((said[~there][:, 4] == WORDS.noise).all())


def test_half_of_the_classes_that_are_read_say_noise() -> None:
    torch.manual_seed(0)
    read = corrupt_classes(torch.zeros(10, 200, 5, dtype=torch.long), WORDS, Draws())[..., 4]
    assert 0.45 < float((read == WORDS.noise).float().mean()) < 0.55
    assert set(read.unique().tolist()) == {WORDS.noise, *range(21, 26)}


@settings(max_examples=40, deadline=None)
@given(corners=st.lists(st.floats(-20, 90), min_size=4, max_size=4), codes=st.booleans())
def test_corners_are_counted_in_the_padded_picture(corners: list[float], codes: bool) -> None:
    box = torch.tensor([corners])
    tokens = object_tokens(box, torch.tensor([23]), torch.tensor([[2, 0]]) if codes else None, WORDS)
    for token, corner in zip(tokens[0, :4].tolist(), box[0].tolist(), strict=True):
        assert 0 <= token <= 20
        if 0 <= corner <= 64:
            assert abs(token * 64 / 20 - corner) <= 64 / 20 / 2 + 1e-4
        else:
            assert token == (0 if corner < 0 else 20)
    assert tokens[0, 4:].tolist() == ([23, 30, 28] if codes else [23])


def test_the_published_vocabulary_holds_every_token() -> None:
    own = AiTConfig()
    words = dataclasses.replace(WORDS, bins=own.bins, classes=own.class_tokens.start, noise=own.noise_token)
    tokens = object_tokens(torch.tensor([[0.0, 0.0, 64.0, 64.0]]), torch.tensor([words.noise]), None, words)
    assert tokens.tolist() == [[0, 0, 2000, 2000, 2082]]


def test_the_error_is_a_sum_over_what_is_told() -> None:
    logits, targets = torch.randn(2, 3, 7), torch.tensor([[1, IGNORED, 3], [IGNORED, IGNORED, 6]])
    plain = -sum(logits[b, t].log_softmax(0)[targets[b, t]] for b, t in ((0, 0), (0, 2), (1, 2)))
    torch.testing.assert_close(sequence_error(logits, targets), plain)
    assert float(sequence_error(logits, torch.full((2, 3), IGNORED))) == 0.0
