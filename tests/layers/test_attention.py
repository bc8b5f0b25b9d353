"""Attention against a plain reference that loops over heads, queries and keys."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from saccade.layers import attention as module
from saccade.layers.attention import Attention, decomposed_bias, relative_table

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def plain_table(table: Tensor, size: int) -> Tensor:
    """The table resized to ``2 * size - 1`` rows: linear, half-pixel centres, ends repeated."""
    length = 2 * size - 1
    rows = []
    for index in range(length):
        place = max(0.0, (index + 0.5) * len(table) / length - 0.5)
        low = math.floor(place)
        high = min(low + 1, len(table) - 1)
        rows.append(table[low] * (1 - (place - low)) + table[high] * (place - low))
    return torch.stack(rows)


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size_hw: tuple[int, int],
    tables: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Softmax attention with the whole bias matrix filled in entry by entry."""
    h, w = size_hw
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            logits = q[b, n] @ k[b, n].T / math.sqrt(q.shape[-1])
            if tables is not None:
                rel_h, rel_w = plain_table(tables[0], h), plain_table(tables[1], w)
                for i in range(h * w):
                    for j in range(h * w):
                        down, right = i // w - j // w + h - 1, i % w - j % w + w - 1
                        logits[i, j] = logits[i, j] + q[b, n, i] @ rel_h[down] + q[b, n, i] @ rel_w[right]
            if mask is not None:
                logits = logits + mask[b, 0]
            out[b, n] = logits.softmax(-1) @ v[b, n]
    return out


def make(*, width: int = 12, heads: int = 3, rel_pos_size: int | None = 3, seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    attention = Attention(width=width, heads=heads, rel_pos_size=rel_pos_size)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def tables(attention: Attention) -> tuple[Tensor, Tensor]:
    return attention.rel_pos_h, attention.rel_pos_w


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("rel_pos_size", "size_hw"),
    [(None, (3, 4)), (3, (3, 3)), (3, (2, 5)), (5, (4, 3)), (2, (4, 4))],
    ids=["no term", "own size", "smaller and larger", "smaller", "larger"],
)
def test_attend_equals_the_plain_reference(rel_pos_size: int | None, size_hw: tuple[int, int], gradients: bool) -> None:
    attention = make(rel_pos_size=rel_pos_size)
    x = torch.randn(2, size_hw[0] * size_hw[1], 12)
    q, k, v = attention.split_heads(x)
    with torch.set_grad_enabled(gradients):
        ours = attention.attend(q, k, v, size_hw)
    plain = plain_attention(q, k, v, size_hw, tables(attention) if rel_pos_size else None)
    torch.testing.assert_close(ours, plain, **CLOSE)


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("rel_pos_size", [3, None])
def test_text_tokens_get_no_position_term_and_the_mask_holds_everywhere(
    rel_pos_size: int | None, masked: bool, gradients: bool
) -> None:
    """Three text tokens after 3x3 pixels; each image has its own padding, text is causal."""
    attention = make(rel_pos_size=rel_pos_size)
    q, k, v = attention.split_heads(torch.randn(2, 12, 12))
    mask = torch.zeros(2, 1, 12, 12)
    mask[:, :, 9:, 9:] = torch.full((3, 3), -torch.inf).triu(1)
    mask[1, :, :, 11] = -torch.inf
    mask = mask if masked else None
    with torch.set_grad_enabled(gradients):
        ours = attention.attend(q, k, v, (3, 3), mask=mask)
    plain = plain_attention(q, k, v, (3, 3), tables(attention) if rel_pos_size else None, mask)
    torch.testing.assert_close(ours, plain, **CLOSE)


def test_gradients_equal_those_of_the_plain_reference() -> None:
    """Text tokens, a mask and resized tables at once, so that every path of the gradient is used."""
    attention = make(rel_pos_size=3)
    x = torch.randn(2, 8, 12)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :, 7] = -torch.inf
    weight = torch.randn(2, 3, 8, 4)
    found = []
    for plain in (True, False):
        attention.zero_grad()
        q, k, v = attention.split_heads(x)
        out = (
            plain_attention(q, k, v, (2, 3), tables(attention), mask)
            if plain
            else attention.attend(q, k, v, (2, 3), mask=mask)
        )
        (out * weight).sum().backward()
        found.append({name: p.grad.clone() for name, p in attention.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1]) == {"qkv.weight", "qkv.bias", "rel_pos_h", "rel_pos_w"}
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_forward_joins_the_parts() -> None:
    attention = make()
    x = torch.randn(2, 9, 12)
    q, k, v = attention.qkv(x).view(2, 9, 3, 3, 4).permute(2, 0, 3, 1, 4)
    plain = plain_attention(q, k, v, (3, 3), tables(attention)).transpose(1, 2).reshape(2, 9, 12)
    torch.testing.assert_close(attention(x, (3, 3)), attention.proj(plain), **CLOSE)


@pytest.mark.parametrize(
    ("budget", "parts"),
    [
        (2**30, [(4, 12)]),
        (3 * 2 * 12 * 12 * 4, [(3, 12), (1, 12)]),
        (2 * 12 * 12 * 4, [(1, 12)] * 4),
        (2 * 12 * 4 * 5, [(1, 5), (1, 5), (1, 2)] * 4),
        (1, [(1, 1)] * 12 * 4),
    ],
    ids=["whole", "some heads", "one head", "some rows", "one row"],
)
def test_a_large_bias_is_built_in_parts_to_the_same_result(
    budget: int, parts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inference holds a bounded buffer of the position term: a part is (heads, query rows)."""
    attention = make(heads=4, width=16)
    q, k, v = attention.split_heads(torch.randn(2, 12, 16))
    plain = plain_attention(q, k, v, (3, 4), tables(attention))
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Tensor, **kwargs: Tensor) -> Tensor:
        seen.append((args[0].shape[1], args[0].shape[2]))
        return real(*args, **kwargs)

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(module, "_BIAS_BYTES_CPU", budget)
    with torch.no_grad():
        torch.testing.assert_close(attention.attend(q, k, v, (3, 4)), plain, **CLOSE)
    assert seen == parts


@pytest.mark.parametrize(
    "budget", [2**30, 3 * 2 * 12 * 12 * 4, 2 * 12 * 4 * 5, 1], ids=["whole", "heads", "rows", "row"]
)
def test_gradients_of_an_image_map_in_parts_equal_the_plain_ones(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = make(heads=4, width=16)
    x = torch.randn(2, 12, 16, requires_grad=True)
    weight = torch.randn(2, 4, 12, 4)
    monkeypatch.setattr(module, "_BIAS_BYTES_CPU", budget)
    found = []
    for plain in (True, False):
        attention.zero_grad()
        q, k, v = attention.split_heads(x)
        out = plain_attention(q, k, v, (3, 4), tables(attention)) if plain else attention.attend(q, k, v, (3, 4))
        grads = torch.autograd.grad((out * weight).sum(), [x, attention.qkv.weight, *tables(attention)])
        found.append(grads)
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_gradients_in_bf16_are_near_those_in_float32() -> None:
    attention = make(heads=4, width=16)
    x, weight = torch.randn(2, 12, 16), torch.randn(2, 4, 12, 4)
    found = []
    for bf16 in (False, True):
        attention.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            q, k, v = attention.split_heads(x)
            out = attention.attend(q, k, v, (3, 4))
        (out.float() * weight).sum().backward()
        found.append(torch.cat([attention.qkv.weight.grad.flatten(), attention.rel_pos_h.grad.flatten()]))
    assert torch.nn.functional.cosine_similarity(found[0], found[1], dim=0) > 0.999


class Largest(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor that any operation made."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.found = max(self.found, tensor.numel() * tensor.element_size())
        return out


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_a_global_block_never_holds_a_tensor_of_all_pairs(gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BIAS_BYTES_CPU", 2**20)
    attention = make(heads=4, width=16)
    x = torch.randn(1, 1024, 16, requires_grad=gradients)
    with torch.set_grad_enabled(gradients), Largest() as largest:
        out = attention(x, (32, 32))
        if gradients:
            out.sum().backward()
    assert 2**19 < largest.found <= 2**20 < 4 * 1024 * 1024 * 4


def test_relative_table_resizes_along_its_length_only() -> None:
    table = torch.randn(5, 4)
    assert torch.equal(relative_table(table, 3)[2, 0], table[4])
    assert torch.equal(relative_table(table, 3)[0, 2], table[0])
    for size in (2, 4, 7):
        resized = plain_table(table, size)
        gathered = relative_table(table, size)
        for a in range(size):
            for b in range(size):
                torch.testing.assert_close(gathered[a, b], resized[a - b + size - 1], **CLOSE)


def test_relative_table_keeps_its_dtype() -> None:
    assert relative_table(torch.randn(5, 4, dtype=torch.bfloat16), 4).dtype is torch.bfloat16


def test_decomposed_bias_reads_rows_from_height_and_columns_from_width() -> None:
    """Only the vertical table is not zero: the term depends on the rows alone."""
    q = torch.randn(1, 1, 6, 4)
    rows, columns = decomposed_bias(q, torch.randn(3, 4), torch.zeros(5, 4), (2, 3))
    assert rows.shape == (1, 1, 6, 2)
    assert columns.shape == (1, 1, 6, 3)
    assert float(rows.abs().sum()) > 0
    assert float(columns.abs().sum()) == 0


def test_bias_forms() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 12)
    qv = Attention(width=12, heads=3, qkv_bias="qv")
    torch.nn.init.normal_(qv.q_bias)
    torch.nn.init.normal_(qv.v_bias)
    full = Attention(width=12, heads=3, qkv_bias="full")
    bias = torch.cat([qv.q_bias, torch.zeros(12), qv.v_bias])
    full.load_state_dict({"qkv.weight": qv.qkv.weight, "qkv.bias": bias} | proj(qv))
    torch.testing.assert_close(qv(x, (3, 3)), full(x, (3, 3)), **CLOSE)
    none = Attention(width=12, heads=3, qkv_bias="none")
    full.load_state_dict({"qkv.weight": none.qkv.weight, "qkv.bias": torch.zeros(36)} | proj(none))
    torch.testing.assert_close(none(x, (3, 3)), full(x, (3, 3)), **CLOSE)
    assert {name for name, _ in none.named_parameters()} == {"qkv.weight", "proj.weight", "proj.bias"}


def proj(attention: Attention) -> dict[str, Tensor]:
    return {"proj.weight": attention.proj.weight, "proj.bias": attention.proj.bias}


def test_bf16_is_near_float32() -> None:
    attention = make()
    x = torch.randn(2, 9, 12)
    with torch.no_grad():
        exact = attention(x, (3, 3))
        with torch.autocast("cpu", torch.bfloat16):
            near = attention(x, (3, 3))
    assert near.dtype is torch.bfloat16
    assert float((near.float() - exact).norm() / exact.norm()) < 2e-2
