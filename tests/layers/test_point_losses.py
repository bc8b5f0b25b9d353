"""Masks compared at points."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.layers.point_losses import draw_uniformly, mask_costs, point_errors, sample_masks, uncertain_points


@settings(max_examples=20, deadline=None)
@given(
    layers=st.integers(1, 2),
    queries=st.integers(1, 4),
    truths=st.integers(1, 3),
    hard=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_costs_are_those_of_the_formula(layers: int, queries: int, truths: int, hard: bool, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    masks = torch.randn(layers, queries, 5, 4, generator=rng) * 8
    wanted = torch.rand(truths, 9, 11, generator=rng)
    points = torch.rand(layers, 30, 2, generator=rng)
    entropy, dice = mask_costs(masks, wanted > 0.5 if hard else wanted, points)
    target = (wanted > 0.5).float() if hard else wanted
    assert entropy.shape == dice.shape == (layers, queries, truths)
    for layer in range(layers):
        said = sample_masks(masks[layer], points[layer].expand(queries, -1, -1))
        goal = sample_masks(target, points[layer].expand(truths, -1, -1))
        for q in range(queries):
            for g in range(truths):
                plain = F.binary_cross_entropy_with_logits(said[q], goal[g])
                torch.testing.assert_close(entropy[layer, q, g], plain, atol=1e-5, rtol=1e-4)
                chance = said[q].sigmoid()
                overlap = 1 - (2 * (chance * goal[g]).sum() + 1) / (chance.sum() + goal[g].sum() + 1)
                torch.testing.assert_close(dice[layer, q, g], overlap, atol=1e-5, rtol=1e-4)


def test_errors_of_pairs_are_the_costs_of_pairs() -> None:
    torch.manual_seed(0)
    masks, truths = torch.randn(3, 6, 7), torch.rand(5, 20, 30)
    points = torch.rand(1, 40, 2)
    entropy, dice = mask_costs(masks[None], truths, points)
    which = torch.tensor([4, 0, 2])
    of_pairs = point_errors(masks, truths, which, points.expand(3, -1, -1))
    torch.testing.assert_close(of_pairs[0], entropy[0, range(3), which])
    torch.testing.assert_close(of_pairs[1], dice[0, range(3), which])
    every = torch.tensor([2, 0, 1])
    of_all = point_errors(masks, truths[:3], every, points.expand(3, -1, -1))
    torch.testing.assert_close(of_all[0], entropy[0, range(3), every])


def test_only_the_logits_have_a_gradient() -> None:
    masks = torch.randn(2, 4, 4, requires_grad=True)
    truths = torch.rand(2, 8, 8, requires_grad=True)
    errors = point_errors(masks, truths, torch.arange(2), torch.rand(2, 10, 2))
    sum(error.sum() for error in errors).backward()
    assert masks.grad is not None and masks.grad.any() and truths.grad is None


def test_uncertain_points_lie_where_the_logit_changes_its_sign() -> None:
    torch.manual_seed(0)
    masks = torch.linspace(-4, 4, 40).expand(3, 40, 40)  # 0 in the middle column
    points = uncertain_points(masks, 200, oversample=3, importance=0.75)
    assert points.shape == (3, 200, 2)
    chosen, added = points[:, :150, 0], points[:, 150:, 0]
    # A quarter of the candidates is kept: they fill an eighth of the width on both sides. Zeros outside the map draw
    # the points of its border, too.
    inside = (points[:, :150, 1] - 0.5).abs() < 0.48
    assert ((chosen - 0.5).abs()[inside] < 0.2).all() and inside.float().mean() > 0.8
    assert ((added - 0.5).abs() > 0.2).any()


def test_recorded_points_are_chosen_as_drawn() -> None:
    masks = torch.linspace(-4, 4, 8).expand(1, 8, 8)
    calls = iter([torch.tensor([[[0.1, 0.5], [0.5, 0.5], [0.9, 0.5], [0.45, 0.5]]]), torch.tensor([[[0.2, 0.3]]])])
    points = uncertain_points(masks, 2, oversample=2, importance=0.5, draw=lambda *_: next(calls))
    assert points.tolist() == [[[0.5, 0.5], pytest.approx([0.2, 0.3])]]


def test_draws_are_uniform_and_inside() -> None:
    points = draw_uniformly(2, 5000, torch.device("cpu"))
    assert points.shape == (2, 5000, 2) and points.min() >= 0 and points.max() < 1
    assert abs(float(points.mean()) - 0.5) < 0.02
