"""The polar transform: there and back, what a rotation becomes, and what it refuses (fixtures: tests/parity)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.errors import DataError
from saccade.layers.polar import Interpolation, from_polar, greatest_radius, to_polar


def waves(size_hw: tuple[int, int], center: Tensor, *, turned: float = 0.0) -> Tensor:
    """A smooth map ``[1, 1, H, W]`` that depends on angle and radius, turned around the centre."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in size_hw), indexing="ij")
    dx, dy = x - center[0], y - center[1]
    angle, radius = torch.atan2(dy, dx) - turned, torch.hypot(dx, dy)
    return (2 + torch.cos(2 * angle) * (radius / 10).clamp(max=1)).float()[None, None]


sizes = st.tuples(st.integers(48, 90), st.integers(48, 90))
shares = st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7))


@settings(deadline=None, max_examples=25)
@given(size_hw=sizes, share=shares)
def test_a_map_comes_back_within_the_greatest_radius(size_hw: tuple[int, int], share: tuple[float, float]) -> None:
    center = torch.tensor([share[0] * size_hw[1], share[1] * size_hw[0]])
    maps = waves(size_hw, center)
    unrolled = to_polar(maps, center[None])
    assert unrolled.shape == (1, 1, size_hw[1], size_hw[0])
    back = from_polar(unrolled, center[None])
    y, x = torch.meshgrid(*(torch.arange(side) for side in size_hw), indexing="ij")
    radius = torch.hypot(x - center[0], y - center[1])
    border = torch.minimum(torch.minimum(x, y), torch.minimum(size_hw[1] - 1 - x, size_hw[0] - 1 - y))
    step = 2 * math.pi * greatest_radius(size_hw) / size_hw[0]  # pixels between two angles, where they are most
    inside = (radius < greatest_radius(size_hw) - 2) & (radius > 3) & (border > step)
    assert (back - maps)[0, 0][inside].abs().max() < 0.1


@settings(deadline=None, max_examples=25)
@given(size_hw=sizes, columns=st.integers(0, 40))
def test_a_rotation_becomes_a_shift(size_hw: tuple[int, int], columns: int) -> None:
    center = torch.tensor([size_hw[1] / 2, size_hw[0] / 2])
    still = to_polar(waves(size_hw, center), center[None])
    turned = to_polar(waves(size_hw, center, turned=columns * 2 * math.pi / size_hw[0]), center[None])
    # Rows whose circle, with the neighbours that it is mixed from, lies in the map.
    share = (min(size_hw) / 2 - 1) / math.hypot(size_hw[0] / 2, size_hw[1] / 2)
    radii = slice(size_hw[1] - 1 - int(share * size_hw[1]), size_hw[1] - 4)
    # A column to the right is an angle further on: the left column is the angle 0.
    assert torch.allclose(still.roll(columns, -1)[..., radii, :], turned[..., radii, :], atol=0.05)


def test_the_centre_is_the_bottom_row_and_the_radius_grows_upwards() -> None:
    disc = (waves((64, 64), torch.tensor([30.0, 20.0])) * 0).clone()
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc[0, 0] = (torch.hypot(x - 30.0, y - 20.0) < 12).float()
    unrolled = to_polar(disc, torch.tensor([[30.0, 20.0]]), mode="nearest")[0, 0]
    rows = unrolled.mean(dim=1)
    edge = round(12 / greatest_radius((64, 64)) * 64)
    assert (rows[-edge + 2 :] == 1).all() and (rows[: -edge - 2] == 0).all()


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_every_map_has_its_own_centre(mode: Interpolation) -> None:
    maps, centers = torch.rand(3, 2, 20, 31), torch.tensor([[4.0, 5.0], [15.2, 10.7], [30.0, 0.0]])
    together = to_polar(maps, centers, mode=mode)
    back = from_polar(together, centers, mode=mode)
    for k in range(3):
        assert torch.equal(together[k : k + 1], to_polar(maps[k : k + 1], centers[k : k + 1], mode=mode))
        assert torch.equal(back[k : k + 1], from_polar(together[k : k + 1], centers[k : k + 1], mode=mode))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.bfloat16, torch.float64])
def test_nearest_invents_no_value_and_keeps_the_type(dtype: torch.dtype) -> None:
    maps = torch.randint(0, 2, (1, 1, 17, 23)).mul(3).to(dtype)
    unrolled = to_polar(maps, torch.tensor([[8.0, 6.5]]), mode="nearest")
    assert unrolled.dtype == dtype
    assert set(unrolled.float().unique().tolist()) <= {0.0, float(maps.float().max())}


def test_half_precision_maps_are_sampled_at_exact_places() -> None:
    maps = torch.randint(0, 200, (1, 1, 300, 400)).float()
    center = torch.tensor([[151.0, 203.0]]).flip(-1)
    exact = to_polar(maps, center, mode="nearest")
    assert torch.equal(to_polar(maps.bfloat16(), center, mode="nearest").float(), exact.bfloat16().float())


def test_gradients_flow_to_the_map() -> None:
    maps = torch.rand(1, 1, 12, 12, requires_grad=True)
    from_polar(to_polar(maps, torch.tensor([[6.0, 5.0]])), torch.tensor([[6.0, 5.0]])).sum().backward()
    assert maps.grad is not None and maps.grad.abs().sum() > 0


def test_tiny_maps() -> None:
    for size in ((1, 1), (1, 5), (2, 3)):
        center = torch.tensor([[0.0, 0.0]])
        for mode in ("bilinear", "nearest"):
            unrolled = to_polar(torch.ones(1, 1, *size), center, mode=mode)
            assert unrolled.shape == (1, 1, size[1], size[0])
            assert from_polar(unrolled, center, mode=mode).isfinite().all()


@pytest.mark.parametrize("center", [(-1.0, 5.0), (5.0, 20.0), (31.0, 5.0), (math.nan, 5.0)])
def test_a_centre_outside_is_refused(center: tuple[float, float]) -> None:
    maps = torch.zeros(2, 1, 20, 31)
    centers = torch.tensor([(3.0, 3.0), center])
    with pytest.raises(DataError, match="outside"):
        to_polar(maps, centers)
    with pytest.raises(DataError, match="outside"):
        from_polar(to_polar(maps, torch.zeros(2, 2)), centers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("size_hw", [(20, 31), (300, 400)])
def test_a_gpu_picks_the_same_values(size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps, centers = torch.rand(2, 3, *size_hw), torch.tensor([[4.0, 5.0], [15.2, 10.7]])
    for mode in ("bilinear", "nearest"):
        unrolled = to_polar(maps, centers, mode=mode)
        back = from_polar(unrolled, centers, mode=mode)
        on_gpu = to_polar(maps.cuda(), centers, mode=mode), from_polar(unrolled.cuda(), centers.cuda(), mode=mode)
        for here, there in zip((unrolled, back), on_gpu, strict=True):
            assert there.is_cuda and there.shape == here.shape
            # Sines and roots may differ in the last bit, which turns a place between two pixels to the other one.
            off = (here - there.cpu()).abs() > 1e-3
            assert off.float().mean() <= (0 if mode == "bilinear" else 1e-3)
