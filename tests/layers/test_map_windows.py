"""Windows of padded, rolled maps: what they hold, and attention that leaves the padding out against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.layers.map_windows import OTHER_REGION, axis_kinds, window_kinds
from saccade.layers.swin import LogPosition, SwinBlock, SwinV2Config, window_groups
from saccade.layers.vit import to_windows


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@st.composite
def maps(draw: st.DrawFn) -> tuple[tuple[int, int], int, int]:
    """A map, the side of its windows, and how far it is rolled."""
    side = draw(st.integers(2, 6))
    return (draw(st.integers(1, 17)), draw(st.integers(1, 17))), side, draw(st.integers(0, side - 1))


@settings(max_examples=60, deadline=None)
@given(maps())
def test_windows_hold_every_place_of_the_map_once(made: tuple[tuple[int, int], int, int]) -> None:
    size_hw, side, shift = made
    held = torch.cat([kind.places_KN.flatten() for kind in window_kinds(size_hw, side, shift)])
    assert sorted(held.tolist()) == list(range(size_hw[0] * size_hw[1]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(2, 8), st.data())
def test_runs_are_where_the_map_is(length: int, side: int, data: st.DataObject) -> None:
    shift = data.draw(st.integers(0, side - 1))
    padded = length + -length % side
    # Numbered from 1, padded with 0 and rolled.
    rolled = F.pad(torch.arange(1, length + 1), (0, padded - length)).roll(-shift)
    unseen = [window.tolist() for window in rolled.split(side)]
    for kind, windows in axis_kinds(length, side, shift).items():
        for window in windows.tolist():
            placed = [0] * side
            places = [place for start, stop in kind.runs for place in range(start, stop)]
            for place, holds in zip(places, window, strict=True):
                placed[place] = holds + 1
            unseen.remove(placed)
    assert not unseen


@settings(max_examples=60, deadline=None)
@given(maps())
def test_the_bias_of_what_is_held_and_the_logits_of_padding(made: tuple[tuple[int, int], int, int]) -> None:
    """Against the whole bias with the mask of every window, from which the padding is then taken out."""
    size_hw, side, shift = made
    position = LogPosition(2, side, 4)
    with torch.no_grad():
        bias = position()
    whole = bias.flatten(3).flatten(1, 2).flip(1)
    (height, width) = size_hw
    down, right = -height % side, -width % side
    number = torch.arange(1, height * width + 1).view(1, height, width, 1)
    rolled = F.pad(number, (0, 0, 0, right, 0, down)).roll((-shift, -shift), (1, 2))
    windows = to_windows(rolled, side)[..., 0]
    masks: dict[tuple[int, ...], torch.Tensor] = {}
    for chosen, mask in window_groups(1, (height + down, width + right), side, shift, torch.device("cpu")):
        for window in windows if chosen is None else windows[chosen]:
            masks[tuple(window.tolist())] = torch.zeros(side**2, side**2) if mask is None else mask.flip(0)
    for kind in window_kinds(size_hw, side, shift):
        for places in kind.places_KN:
            (window,) = [key for key in masks if sorted(filter(None, key)) == sorted((places + 1).tolist())]
            real = torch.tensor([window.index(place + 1) for place in places.tolist()])
            padding = torch.tensor([place for place, holds in enumerate(window) if not holds], dtype=torch.long)
            wanted = (whole + masks[window])[:, real].flip(1)
            logits = kind.padding_logits(bias)
            assert (logits is None) == (not len(padding))
            out = torch.full((len(real), len(real) + (logits is not None)), 7.0)
            for head in range(2):
                kind.write_bias(bias[head], out)
                torch.testing.assert_close(out[:, : len(real)], wanted[head][:, real])
                if logits is not None:
                    assert bool((out[:, -1] == 7.0).all())
                    torch.testing.assert_close(logits[head], wanted[head][:, padding].logsumexp(-1))
    assert OTHER_REGION == -100.0


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 14), st.integers(1, 14)), st.integers(2, 6), st.integers(1, 2), st.booleans(), st.data()
)
def test_attention_without_padding_is_that_with_padding(
    size_hw: tuple[int, int], side: int, images: int, shifted: bool, data: st.DataObject
) -> None:
    config = SwinV2Config(
        width=8,
        depths=(2,),
        heads=(2,),
        windows=(side,),
        pretrained_windows=(4,),
        shifted=(True,),
        drop_path=0.0,
        out_stages=(0,),
    )
    block = SwinBlock(config, 0, int(shifted), 0.0).double()
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    for name, parameter in block.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(4 + noise if "logit_scale" in name else noise)
    x = torch.randn(images, *size_hw, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ours = block(x)
    torch.testing.assert_close(ours, block(x).detach(), rtol=1e-9, atol=1e-9)
