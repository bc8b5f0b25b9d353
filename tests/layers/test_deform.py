"""Deformable attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.errors import ConfigError, UsageError
from saccade.layers.deform import DeformableAttention, bilinear_taps, deformable_sample


def plain_sample(values: Tensor, sizes: list[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    """The same by ``grid_sample``, level by level and head by head."""
    b, _, heads, _ = values.shape
    total: Tensor | float = 0.0
    levels = values.split([h * w for h, w in sizes], dim=1)
    for level, (part, size) in enumerate(zip(levels, sizes, strict=True)):
        maps = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, size)
        grid = (2 * places[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        read = F.grid_sample(maps, grid, align_corners=False)
        total = total + (read * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    assert isinstance(total, Tensor)
    return total.unflatten(0, (b, heads)).permute(0, 3, 1, 2).flatten(2)


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    points=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_it_is_grid_sample_with_its_gradients(
    sizes: list[tuple[int, int]], batch: int, heads: int, points: int, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, sum(h * w for h, w in sizes), heads, 4, generator=rng)
    shape = (batch, 5, heads, len(sizes), points)
    places = torch.rand(*shape, 2, generator=rng) * 1.6 - 0.3
    weights = torch.rand(shape, generator=rng)
    inputs = [tensor.double().requires_grad_() for tensor in (values, places, weights)]
    ours = deformable_sample(inputs[0], sizes, inputs[1], inputs[2])
    plain = plain_sample(inputs[0], sizes, inputs[1], inputs[2])
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn(ours.shape, generator=rng).double()
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_places_far_outside_read_nothing() -> None:
    _, share = bilinear_taps(torch.tensor([[1e30, 0.5], [-7.0, 0.5], [0.5, 0.5]]), (3, 3))
    assert share.sum(-1).tolist() == [0.0, 0.0, 1.0]


def test_the_start_is_a_ring_of_points() -> None:
    attention = DeformableAttention(16, heads=4, points=3, levels=2)
    bias = attention.offsets.bias.view(4, 2, 3, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for level in range(2):
        for point in range(3):
            torch.testing.assert_close(bias[:, level, point], expected * (point + 1), atol=1e-6, rtol=0)
    assert not attention.offsets.weight.any() and not attention.weights.weight.any()
    eight = DeformableAttention(16, heads=8).offsets.bias.view(8, 4, 2)
    torch.testing.assert_close(eight[1, 0], torch.ones(2))


def test_boxes_reach_from_the_centre_to_the_edge() -> None:
    attention = DeformableAttention(8, heads=4, points=1)
    with torch.no_grad():
        attention.value.weight.copy_(torch.eye(8))
        attention.proj.weight.copy_(torch.eye(8))
    x = (torch.arange(64) + 0.5) / 64
    memory = x.expand(64, 64).reshape(1, -1, 1).expand(-1, -1, 8)
    box = torch.tensor([0.5, 0.5, 0.4, 0.2]).view(1, 1, 1, 4)
    found = attention(torch.zeros(1, 1, 8), box, memory, [(64, 64)])[0, 0]
    # Heads look to the right, down, left and up of the centre, two channels each; the map holds x.
    torch.testing.assert_close(found, torch.tensor([0.7, 0.7, 0.5, 0.5, 0.3, 0.3, 0.5, 0.5]))


def test_padding_gives_nothing() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(8, heads=2)
    memory, queries = torch.randn(1, 12, 8), torch.randn(1, 3, 8)
    padding = torch.zeros(1, 12, dtype=torch.bool)
    padding[:, 6:] = True
    references = torch.rand(1, 3, 1, 2)
    found = attention(queries, references, memory, [(3, 4)], padding)
    changed = memory.masked_fill(padding[..., None], 1e6)
    torch.testing.assert_close(attention(queries, references, changed, [(3, 4)], padding), found)


def test_half_precision_stays_close() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(16, heads=2).eval()
    memory, queries, references = torch.randn(2, 20, 16), torch.randn(2, 7, 16), torch.rand(1, 7, 1, 2)
    full = attention(queries, references, memory, [(4, 5)])
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(queries, references, memory, [(4, 5)])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.05)


def test_sizes_that_do_not_fit_are_refused() -> None:
    attention = DeformableAttention(8, heads=2)
    with pytest.raises(UsageError, match="does not hold"):
        attention(torch.zeros(1, 1, 8), torch.zeros(1, 1, 1, 2), torch.zeros(1, 5, 8), [(2, 2)])
    with pytest.raises(UsageError, match="neither points nor boxes"):
        attention(torch.zeros(1, 1, 8), torch.zeros(1, 1, 1, 3), torch.zeros(1, 4, 8), [(2, 2)])
    with pytest.raises(ConfigError):
        DeformableAttention(9, heads=2)
