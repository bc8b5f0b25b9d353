"""Multi-head attention with optional decomposed relative position.

Shape legend: B batch (images or windows), N tokens, T queries, S keys, C channels, n heads, d channels per head, H W
token grid.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from saccade.errors import ConfigError

QKVBias: TypeAlias = Literal["full", "qv", "none"]

# Greatest size of the bias buffer, on a CPU (a share of its caches) and on a GPU (few kernel launches).
_BIAS_BYTES_CPU, _BIAS_BYTES_GPU = 16 * 2**20, 512 * 2**20


def _relative_index(size: int, device: torch.device) -> Tensor:
    """``[size, size]`` rows of a table of ``2 * size - 1`` offsets: entry (a, b) is ``a - b + size - 1``."""
    position = torch.arange(size, device=device)
    return position[:, None] - position[None, :] + size - 1


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept tensors made during an evaluation must serve the next training step too
def _kept_relative_index(size: int, device: torch.device) -> Tensor:
    return _relative_index(size, device)


def relative_table(table: Tensor, size: int) -> Tensor:
    """Gathers a relative-position table into one vector per (query, key) position on an axis.

    Args:
        table: ``[2 * s - 1, d]`` learned offsets of an axis of s positions.
        size: Positions on the axis now. Where ``2 * size - 1`` differs from the table's length, the table is resized
            along its length, linearly (align_corners False), as SAM and GiT do.

    Returns:
        ``[size, size, d]``, query first.
    """
    length = 2 * size - 1
    if table.shape[0] != length:
        table = F.interpolate(table.float().T[None], size=length, mode="linear")[0].T.to(table.dtype)
    # A compiled graph keeps constants by itself, and cannot trace the cache.
    index = _relative_index if torch.compiler.is_compiling() else _kept_relative_index
    return table[index(size, table.device)]


def decomposed_bias(
    q_BnNd: Tensor, table_h: Tensor, table_w: Tensor, size_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The two halves of the decomposed relative-position term (MViTv2, as used by SAM and GiT).

    Args:
        q_BnNd: Unscaled queries of ``H * W`` tokens, row-major.
        table_h: ``[2 * H - 1, d]`` vertical offsets (any other length is resized).
        table_w: ``[2 * W - 1, d]`` horizontal offsets.
        size_hw: The token grid.

    Returns:
        ``[B, n, N, H]`` and ``[B, n, N, W]``; the logit of query i and key (y, x) gains ``first[i, y] + second[i, x]``.
    """
    h, w = size_hw
    b, n, _, d = q_BnNd.shape
    q_BnHWd = q_BnNd.reshape(b, n, h, w, d)
    rel_h = torch.einsum("bnhwd,hkd->bnhwk", q_BnHWd, relative_table(table_h, h))
    rel_w = torch.einsum("bnhwd,wkd->bnhwk", q_BnHWd, relative_table(table_w, w))
    return rel_h.flatten(2, 3), rel_w.flatten(2, 3)


class QKVProjection(nn.Linear):
    """A linear layer that takes another bias than its own where it is given one."""

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """``[..., C]`` to ``[..., 3 C]``."""
        return F.linear(input, self.weight, self.bias if bias is None else bias)


class Attention(nn.Module):
    """Self-attention over tokens; the parts are exposed so that a model can add keys of its own.

    Args:
        width: Channels C.
        heads: Heads n; C must be a multiple.
        qkv_bias: ``"full"``, ``"qv"`` (no bias on the keys: BEiT, EVA) or ``"none"``.
        rel_pos_size: Side of the square token grid whose relative-position tables are learned; None for no such term.
    """

    def __init__(self, *, width: int, heads: int, qkv_bias: QKVBias = "full", rel_pos_size: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.qkv = QKVProjection(width, 3 * width, bias=qkv_bias == "full")
        if qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.qkv_bias = qkv_bias
        self.proj = nn.Linear(width, width)
        self.rel_pos = rel_pos_size is not None
        if rel_pos_size is not None:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rel_pos_size - 1, self.head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * rel_pos_size - 1, self.head_dim))

    def split_heads(self, x_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``[B, n, N, d]``."""
        bias = None
        if self.qkv_bias == "qv":
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = self.qkv(x_BNC, bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def merge_heads(self, x_BnNd: Tensor) -> Tensor:
        """``[B, n, N, d]`` to the projected ``[B, N, C]``."""
        return self.proj(x_BnNd.transpose(1, 2).flatten(2))

    def attend(
        self,
        q_BnNd: Tensor,
        k_BnMd: Tensor,
        v_BnMd: Tensor,
        size_hw: tuple[int, int],
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Softmax attention; the first ``H * W`` tokens are the image and get the relative-position term.

        Args:
            q_BnNd: Queries (unscaled).
            k_BnMd: Keys.
            v_BnMd: Values.
            size_hw: The token grid of the image.
            mask: Additive ``[B, 1, N, M]`` (0 or -inf), or None.

        Returns:
            ``[B, n, N, d]``.
        """
        if not self.rel_pos:
            return F.scaled_dot_product_attention(q_BnNd, k_BnMd, v_BnMd, attn_mask=mask)
        pixels = size_hw[0] * size_hw[1]
        rel_h, rel_w = decomposed_bias(q_BnNd[:, :, :pixels], self.rel_pos_h, self.rel_pos_w, size_hw)
        b, n, tokens, d = q_BnNd.shape
        keys = k_BnMd.shape[2]
        if mask is None and tokens == keys == pixels:
            return cast("Tensor", _RelativeAttention.apply(q_BnNd, k_BnMd, v_BnMd, rel_h, rel_w))
        if torch.is_grad_enabled():
            # No fused kernel gives the gradient of a bias: this is their fallback, less its extra passes.
            bias = _join_bias(rel_h, rel_w, tokens, keys, mask).flatten(0, 1)
            logits = torch.baddbmm(bias, q_BnNd.flatten(0, 1) * d**-0.5, k_BnMd.flatten(0, 1).mT)
            return (logits.softmax(-1) @ v_BnMd.flatten(0, 1)).unflatten(0, (b, n))
        bias = _join_bias(rel_h, rel_w, tokens, keys, mask)
        return F.scaled_dot_product_attention(q_BnNd, k_BnMd, v_BnMd, attn_mask=bias)

    def forward(self, x_BNC: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Self-attention of ``H * W`` tokens, ``[B, N, C]`` to ``[B, N, C]``."""
        q, k, v = self.split_heads(x_BNC)
        return self.merge_heads(self.attend(q, k, v, size_hw))


class MapAttention(nn.Module):
    """Multi-head attention with separate projections, so that keys and values may come from elsewhere.

    Args:
        width: Channels C of all inputs and the output.
        heads: Heads n.
        inner: Channels inside (None = C).
    """

    def __init__(self, width: int, heads: int, *, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or width
        if inner % heads:
            raise ConfigError(f"{inner} inner channels for {heads} heads", where="heads")
        self.heads = heads
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.proj = nn.Linear(inner, width)

    def forward(self, queries_BTC: Tensor, keys_BSC: Tensor, values_BSC: Tensor) -> Tensor:
        """``[B, T, C]`` over S places to ``[B, T, C]``."""
        return self.attend(self.queries(queries_BTC), *self.keys_values(keys_BSC, values_BSC))

    def queries(self, x_BTC: Tensor) -> Tensor:
        """``[B, n, T, d]``."""
        return self._split(self.query(x_BTC))

    def keys_values(self, keys_from_BTC: Tensor, values_from_BTC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values, each ``[B, n, T, d]``; values of the same tokens, or of their form without position."""
        values_from_BTC = keys_from_BTC if values_from_BTC is None else values_from_BTC
        return self._split(self.key(keys_from_BTC)), self._split(self.value(values_from_BTC))

    def attend(self, q_BnTd: Tensor, k_BnSd: Tensor, v_BnSd: Tensor, *, causal: bool = False) -> Tensor:
        """The projected answer ``[B, T, C]``.

        Args:
            q_BnTd: Queries.
            k_BnSd: Keys.
            v_BnSd: Values.
            causal: A query sees no later key.
        """
        out = F.scaled_dot_product_attention(q_BnTd, k_BnSd, v_BnSd, is_causal=causal)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _split(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.unflatten(2, (self.heads, -1)).transpose(1, 2)


class _RelativeAttention(torch.autograd.Function):
    """Attention of an image map, a few heads or query rows at a time, forwards and backwards.

    A whole bias tensor (1.2 GB in a global block of 1120 px) costs more in memory traffic than the attention itself,
    and autograd would keep the probabilities of every block. Nothing of that size is made here: the backward pass
    computes the probabilities of a part again.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        buffer, parts = _parts(q, rel_h, rel_w)
        out = torch.empty_like(q)
        for head, row in parts:
            part = q[:, head, row]
            bias = buffer[:, : part.shape[1], : part.shape[2]]
            torch.add(rel_h[:, head, row, :, None], rel_w[:, head, row, None, :], out=bias)
            out[:, head, row] = F.scaled_dot_product_attention(part, k[:, head], v[:, head], attn_mask=bias.flatten(3))
        ctx.save_for_backward(q, k, v, rel_h, rel_w, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, ...]:
        q, k, v, rel_h, rel_w, out = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        grad_q, grad_rel_h, grad_rel_w = torch.empty_like(q), torch.empty_like(rel_h), torch.empty_like(rel_w)
        # Parts add up in float32, whatever the activations are kept in.
        grad_k, grad_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for head, row in _parts(q, rel_h, rel_w)[1]:
            q_part, grad_part, keys = q[:, head, row], grad_out[:, head, row], k[:, head]
            bias = (rel_h[:, head, row, :, None] + rel_w[:, head, row, None, :]).flatten(3)
            weights = ((q_part * scale) @ keys.mT).add_(bias).softmax(-1, dtype=torch.float32)
            grad_v[:, head] += weights.to(v.dtype).mT @ grad_part
            mean = (grad_part * out[:, head, row]).sum(-1, keepdim=True, dtype=torch.float32)
            grad_logits = (grad_part @ v[:, head].mT - mean).mul_(weights).to(q.dtype)
            grad_q[:, head, row] = (grad_logits @ keys).mul_(scale)
            grad_k[:, head] += (grad_logits.mT @ q_part).mul_(scale)
            grad_map = grad_logits.unflatten(-1, (rel_h.shape[-1], rel_w.shape[-1]))
            grad_rel_h[:, head, row] = grad_map.sum(-1)
            grad_rel_w[:, head, row] = grad_map.sum(-2)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_rel_h, grad_rel_w


def _parts(q_BnNd: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, list[tuple[slice, slice]]]:
    """A bias buffer within the budget of the device, and the slices of heads and query rows that fill it."""
    b, n, tokens, _ = q_BnNd.shape
    per_row = b * tokens * q_BnNd.element_size()
    budget = _BIAS_BYTES_GPU if q_BnNd.device.type == "cuda" else _BIAS_BYTES_CPU
    rows = max(1, min(tokens, budget // per_row))
    heads = max(1, min(n, budget // (per_row * tokens)))
    buffer = q_BnNd.new_empty(b, heads, rows, rel_h.shape[-1], rel_w.shape[-1])
    return buffer, [
        (slice(h, h + heads), slice(r, r + rows)) for h in range(0, n, heads) for r in range(0, tokens, rows)
    ]


def _join_bias(rel_h: Tensor, rel_w: Tensor, queries: int, keys: int, mask: Tensor | None) -> Tensor:
    """The one bias tensor ``[B, n, queries, keys]``: relative position for image-image, the mask elsewhere."""
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(3)
    if bias.shape[-2:] != (queries, keys):
        bias = F.pad(bias, (0, keys - bias.shape[-1], 0, queries - bias.shape[-2]))
    return bias if mask is None else bias + mask
