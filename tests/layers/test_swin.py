"""SwinV2: windows, shift and padding against a plain reading of the paper, gradients, sizes, position bias."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.errors import ConfigError
from saccade.layers import swin
from saccade.layers.swin import (
    LogPosition,
    PatchMerging,
    SwinBlock,
    SwinV2,
    SwinV2Config,
    WindowAttention,
    log_offsets,
    window_groups,
)

TINY = SwinV2Config(
    width=8,
    depths=(2, 2),
    heads=(1, 2),
    windows=(4, 3),
    pretrained_windows=(3, 3),
    shifted=(True, True),
    drop_path=0.0,
    out_stages=(0, 1),
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def loud(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random parameters that all matter; some scales are above the limit of 100."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(4 + noise if "logit_scale" in name else 1 + 0.3 * noise if "norm" in name else 0.5 * noise)
    return module


def tiny_with(seed: int) -> SwinV2:
    net = SwinV2(TINY)
    loud(net, seed)
    return net


def tiny(**changes: object) -> SwinV2:
    net = SwinV2(dataclasses.replace(TINY, **changes))
    loud(net)
    return net


# ---------------------------------------------------------------------- the plain reading


def plain_bias(position: LogPosition, pretrained: int) -> Tensor:
    """``[n, N, N]``: the network asked for every pair of query and key."""
    window = position.window
    rows = []
    for query in range(window**2):
        for key in range(window**2):
            offsets = [query // window - key // window, query % window - key % window]
            scaled = [8 * offset / (pretrained - 1) for offset in offsets]
            coordinates = [math.copysign(math.log2(abs(u) + 1) / 3, u) for u in scaled]
            rows.append(coordinates)
    table = position.out(position.hidden(position.hidden.weight.new_tensor(rows)).relu())
    return 16 * table.sigmoid().T.unflatten(1, (window**2, window**2))


def plain_window(attention: WindowAttention, x_NC: Tensor, pretrained: int, apart_NN: Tensor) -> Tensor:
    """One window; ``apart`` are pairs that should not see one another."""
    width = x_NC.shape[1]
    q, k, v = (x_NC @ attention.qkv.weight.T).split(width, dim=1)
    q, v = q + attention.q_bias, v + attention.v_bias
    bias = plain_bias(attention.position, pretrained)
    heads = []
    for head in range(attention.heads):
        part = slice(head * width // attention.heads, (head + 1) * width // attention.heads)
        qs, ks = (t[:, part] / (t[:, part].norm(dim=1, keepdim=True) + 5e-5) for t in (q, k))
        scale = attention.logit_scale[head].clamp(max=math.log(100)).exp()
        logits = qs @ ks.T * scale + bias[head] - 100.0 * apart_NN
        heads.append(logits.softmax(1) @ v[:, part])
    return attention.proj(torch.cat(heads, dim=1))


def plain_attend(block: SwinBlock, x_HWC: Tensor, pretrained: int) -> Tensor:
    """Attention over one map: pad, roll, cut, attend, put back."""
    height, width, channels = x_HWC.shape
    side, shift = block.window, block.shift
    rows, columns = -(-height // side) * side, -(-width // side) * side
    padded = x_HWC.new_zeros(rows, columns, channels)
    padded[:height, :width] = x_HWC
    out = torch.zeros_like(padded)

    def region(place: int, total: int) -> int:
        return 0 if place < total - side else 1 if place < total - shift else 2

    for top in range(0, rows, side):
        for left in range(0, columns, side):
            places = [(top + dy, left + dx) for dy in range(side) for dx in range(side)]
            sources = [((y + shift) % rows, (x + shift) % columns) for y, x in places]
            tokens = torch.stack([padded[y, x] for y, x in sources])
            regions = [3 * region(y, rows) + region(x, columns) if shift else 0 for y, x in places]
            apart = torch.tensor([[float(a != b) for b in regions] for a in regions], dtype=x_HWC.dtype)
            for (y, x), answer in zip(sources, plain_window(block.attn, tokens, pretrained, apart), strict=True):
                out[y, x] = answer
    return out[:height, :width]


def plain_block(block: SwinBlock, x_BHWC: Tensor, pretrained: int) -> Tensor:
    x = x_BHWC + block.norm1(torch.stack([plain_attend(block, one, pretrained) for one in x_BHWC]))
    return x + block.norm2(block.mlp(x))


CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # the coordinates of the position network are kept in single precision
SIZES = [(4, 4), (8, 4), (3, 2), (5, 9), (7, 8), (1, 1)]


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("index", [0, 1])
def test_a_block_is_the_plain_one(index: int, size_hw: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    block = SwinBlock(dataclasses.replace(TINY, heads=(2, 2)), 0, index, 0.0)
    loud(block, seed=index).eval().double()
    assert block.shift == (0, 2)[index]
    x = torch.randn(2, *size_hw, 8, dtype=torch.float64)
    wanted = plain_block(block, x, 3)
    torch.testing.assert_close(block(x), wanted, **CLOSE)
    with torch.no_grad():
        # As it comes, a line of queries at a time, and all at once.
        for amount in (swin._LOGIT_BYTES, 1, 2**30):
            monkeypatch.setattr(swin, "_LOGIT_BYTES", amount)
            torch.testing.assert_close(block(x), wanted, **CLOSE)


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_without_gradients_are_those_with(shift: int) -> None:
    """To the bit, in the precision of training: what a GPU evaluates is what it was trained with."""
    attention = loud(WindowAttention(8, 2, 4, 3))
    groups = window_groups(2, (8, 4), 4, shift, torch.device("cpu"))
    windows = torch.randn(4, 16, 8)
    with_gradients = attention.forward_groups(windows, groups)
    assert with_gradients.requires_grad
    with torch.no_grad():
        assert torch.equal(attention.forward_groups(windows, groups), with_gradients)


@pytest.mark.parametrize("index", [0, 1])
def test_gradients_are_those_of_the_plain_block(index: int) -> None:
    block = SwinBlock(TINY, 1, index, 0.0)
    assert block.shift == (0, 1)[index]
    loud(block).double()
    x = torch.randn(2, 5, 4, 16, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 5, 4, 16, dtype=torch.float64)
    names, parameters = zip(*block.named_parameters(), strict=True)
    ours = torch.autograd.grad((block(x) * direction).sum(), (x, *parameters))
    plain = torch.autograd.grad((plain_block(block, x, 3) * direction).sum(), (x, *parameters))
    for name, one, other in zip(("x", *names), ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert float(one.abs().sum()) > 0 or "logit_scale" in name, name


def test_scales_stop_at_100() -> None:
    attention = WindowAttention(4, 2, 2, 2)
    loud(attention)
    x = torch.randn(1, 4, 4)
    outs = []
    for top in (math.log(100.0), 9.0):
        attention.logit_scale.data[:] = top
        outs.append(attention.forward_groups(x, [(None, None)]))
    assert torch.equal(*outs)
    attention.logit_scale.data[:] = 1.0
    assert not torch.allclose(outs[0], attention.forward_groups(x, [(None, None)]))


def test_windows_do_not_see_one_another_but_shifted_ones_join_them() -> None:
    x = torch.randn(1, 8, 8, 8)
    changed = x.clone()
    changed[0, 0, 0] += 1.0
    seen = []
    for index in (0, 1):
        block = loud(SwinBlock(TINY, 0, index, 0.0)).eval()
        block.attn.logit_scale.data[:] = 0.0  # everyone looks at everyone
        block.attn.position.out.weight.data *= 0.01
        with torch.no_grad():
            seen.append((block(x) - block(changed)).abs().sum(-1)[0] > 1e-9)
    assert not bool(seen[0][4:].any()) and not bool(seen[0][:, 4:].any()) and bool(seen[0][:4, :4].all())
    # The window of a corner is rolled round to pieces of the other borders, which it does not see.
    assert not bool(seen[1][2:].any()) and not bool(seen[1][:, 2:].any()) and bool(seen[1][:2, :2].all())


@settings(max_examples=30, deadline=None)
@given(
    images=st.integers(1, 3), rows=st.integers(1, 3), columns=st.integers(1, 3), side=st.integers(2, 5), data=st.data()
)
def test_every_window_is_in_one_group(images: int, rows: int, columns: int, side: int, data: st.DataObject) -> None:
    shift = data.draw(st.integers(0, side - 1))
    groups = window_groups(images, (rows * side, columns * side), side, shift, torch.device("cpu"))
    count = images * rows * columns
    every = [torch.arange(count) if chosen is None else chosen for chosen, _ in groups]
    assert sorted(torch.cat(every).tolist()) == list(range(count))
    for chosen, (_, mask) in zip(every, groups, strict=True):
        for window in chosen.tolist():
            last = ((window // columns) % rows == rows - 1, window % columns == columns - 1)
            split = bool(shift) and any(last)
            assert (mask is not None) == split
            if mask is not None:
                # As many pairs are kept apart as there are pairs of places in different pieces.
                pieces = [(side - shift, shift) if end else (side,) for end in last]
                together = sum((a * b) ** 2 for a in pieces[0] for b in pieces[1])
                assert int((mask < 0).sum()) == side**4 - together
                assert set(mask.unique().tolist()) <= {0.0, -100.0}


# ---------------------------------------------------------------------- the position bias


@settings(max_examples=20, deadline=None)
@given(window=st.integers(1, 6), pretrained=st.integers(2, 7), heads=st.integers(1, 3))
def test_the_bias_is_a_view_of_its_table_and_equals_a_plain_gather(window: int, pretrained: int, heads: int) -> None:
    position = LogPosition(heads, window, pretrained)
    loud(position)
    bias = position()
    length = 2 * window - 1
    assert bias.untyped_storage().nbytes() == 4 * heads * length**2
    whole = bias.flatten(3).flatten(1, 2).flip(1)
    torch.testing.assert_close(whole, plain_bias(position, pretrained), rtol=1e-5, atol=1e-5)


def test_offsets_reach_8_at_the_border_of_the_pretrained_window() -> None:
    wide = log_offsets(6, 3)
    assert len(wide) == 11 and float(wide[5]) == 0.0
    assert float(wide[5 + 2]) == pytest.approx(math.log2(9) / 3)
    torch.testing.assert_close(wide, -wide.flip(0))
    assert bool(log_offsets(1, 1).isfinite().all())


def counted(net: SwinV2) -> list[int]:
    """Counts how often a position network is computed."""
    calls: list[int] = []
    for stage in net.stages:
        for block in stage.blocks:
            block.attn.position.hidden.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_position_tables_are_kept_in_evaluation_and_made_anew_in_training() -> None:
    net = tiny().eval()
    images, wide = torch.randn(1, 3, 30, 30), torch.randn(1, 3, 30, 50)
    calls = counted(net)
    with torch.no_grad():
        first = net(images)
        assert len(calls) == 4
        with torch.inference_mode():
            assert torch.equal(net(images), first)
        net(wide)  # another size has other padding, but the same tables
        assert torch.equal(net(images), first)
    assert len(calls) == 4
    net(images)
    net(images)
    assert len(calls) == 12
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        net(images)
    with torch.no_grad():
        assert torch.equal(net(images), first)


def fused_step(net: SwinV2) -> None:
    """A step that raises no version of a tensor."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.05, fused=True)
    net(torch.randn(1, 3, 30, 30)).square().sum().backward()
    optimiser.step()


def plain_step(net: SwinV2) -> None:
    """A step on gradients that came from elsewhere (another process): no pass of this model went before."""
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape)
    torch.optim.SGD(net.parameters(), lr=0.05).step()


@pytest.mark.parametrize(
    "change",
    [
        fused_step,
        plain_step,
        lambda net: net.load_state_dict(tiny_with(5).state_dict()),
        lambda net: net.load_state_dict(tiny_with(5).state_dict(), assign=True),
        lambda net: [torch.no_grad()(p.lerp_)(torch.randn(p.shape), 0.3) for p in net.parameters()],
        lambda net: net.double(),
    ],
    ids=["fused step", "plain step", "load", "assign", "average", "double"],
)
def test_kept_position_tables_follow_the_weights(change: Callable[[SwinV2], object]) -> None:
    net = tiny().eval()
    images = torch.randn(1, 3, 30, 41)
    with torch.no_grad():
        before = net(images)
    change(net)
    images = images.to(net.patch_embed.weight.dtype)
    fresh = SwinV2(TINY).to(images.dtype).eval()
    fresh.load_state_dict(net.state_dict())
    with torch.no_grad():
        after = net(images)
        assert torch.equal(after, fresh(images))
    assert after.dtype != before.dtype or not torch.allclose(after, before)
    # Only the position networks of one block: nothing else may bring the change about.
    with torch.no_grad():
        net.stages[0].blocks[0].attn.position.out.weight.add_(1.0)
        assert not torch.equal(net(images), after)


def test_a_model_that_has_predicted_is_copied_with_what_it_keeps() -> None:
    net = tiny().eval()
    images = torch.randn(1, 3, 30, 41)
    with torch.inference_mode():
        wanted = net(images)
    copied = copy.deepcopy(net)
    with torch.inference_mode():
        assert torch.equal(copied(images), wanted)
    with torch.no_grad():
        copied.stages[0].blocks[0].attn.position.out.weight.add_(1.0)
        assert torch.equal(net(images), wanted)
        assert not torch.allclose(copied(images), wanted)


def test_one_graph_holds_the_whole_backbone() -> None:
    net = tiny().eval()
    images = torch.randn(1, 3, 45, 38)
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), net(images), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- the whole


@pytest.mark.parametrize("size_hw", [(4, 6), (5, 3), (1, 1), (2, 7)])
def test_merging_puts_four_neighbours_side_by_side(size_hw: tuple[int, int]) -> None:
    merging = loud(PatchMerging(3))
    x = torch.randn(2, *size_hw, 3)
    out = merging(x)
    height, width = size_hw
    assert out.shape == (2, -(-height // 2), -(-width // 2), 6)

    def at(image: int, y: int, x_place: int) -> Tensor:
        return x[image, y, x_place] if y < height and x_place < width else torch.zeros(3)

    for image in range(2):
        for row in range(out.shape[1]):
            for column in range(out.shape[2]):
                y, left = 2 * row, 2 * column
                parts = [at(image, y, left), at(image, y + 1, left), at(image, y, left + 1), at(image, y + 1, left + 1)]
                wanted = merging.norm(torch.cat(parts) @ merging.reduction.weight.T)
                torch.testing.assert_close(out[image, row, column], wanted)


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_any_size_goes_through(height: int, width: int) -> None:
    net = tiny().eval()
    image = torch.randn(1, 3, height, width)
    with torch.no_grad():
        fine, coarse = net.maps(image, [0, 1])
        rows, columns = -(-height // 4), -(-width // 4)
        assert fine.shape == (1, rows, columns, 8)
        assert coarse.shape == (1, -(-rows // 2), -(-columns // 2), 16)
        assert bool(coarse.isfinite().all())
        assert torch.equal(net(image), coarse)
        # The image is padded with zeros to whole patches.
        padded = torch.zeros(1, 3, rows * 4, columns * 4)
        padded[:, :, :height, :width] = image
        torch.testing.assert_close(net(padded), coarse)


def test_a_batch_equals_its_images_one_by_one_and_training_equals_evaluation() -> None:
    net = tiny()
    images = torch.randn(3, 3, 45, 38)
    with torch.no_grad():
        together = net.eval()(images)
        for index in range(3):
            torch.testing.assert_close(net(images[index : index + 1])[0], together[index], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.train()(images), together, rtol=1e-4, atol=1e-5)


def test_half_precision_follows() -> None:
    net = tiny().eval()
    for parameter in net.parameters():
        parameter.data *= 0.5
    images = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        exact = net(images)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            error = (net(images).detach().float() - exact).norm() / exact.norm()
        assert float(error) < 0.1


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_activation_checkpointing_changes_nothing(drop_path: float) -> None:
    grads = []
    for enabled in (False, True):
        net = tiny(drop_path=drop_path).train()
        net.activation_checkpointing = enabled
        torch.manual_seed(3)
        out = net(torch.randn(2, 3, 30, 30))
        out.square().sum().backward()
        grads.append([out.detach(), *(p.grad for name, p in net.named_parameters() if not name.startswith("norms.0"))])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert drop_path or all(float(g.abs().sum()) > 0 for g in grads[0][1:] if g.shape[1:] != (1, 1))


def test_drop_path_rises_linearly_and_takes_whole_branches() -> None:
    net = tiny(drop_path=0.6)
    rates = [block.drop_path.rate for stage in net.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.6])
    block = net.stages[1].blocks[1].train()
    torch.manual_seed(0)
    x = torch.randn(64, 3, 3, 16)
    unchanged = (block(x) == x).flatten(1).all(1)
    assert 0.6**2 - 0.2 < float(unchanged.float().mean()) < 0.6**2 + 0.2
    assert not bool((block.eval()(x) == x).flatten(1).all(1).any())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": (1,)}, "one entry per stage"), ({"heads": (3, 2)}, "8 channels are not a multiple of 3 heads")],
)
def test_configurations_that_do_not_fit_are_refused(changes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **changes)


def test_strides_and_widths() -> None:
    published = SwinV2Config()
    assert (published.stride, published.width_of(3)) == (32, 1024)
    assert TINY.stride == 8
