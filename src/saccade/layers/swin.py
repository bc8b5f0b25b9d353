"""Swin Transformer V2 with log-coordinate position (arXiv 2111.09883), in the form that AiT uses (docs/ait.md).

Shape legend: B images, H W map, C channels, w side of a window, K windows, N = w * w tokens of a window, n heads,
d channels per head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saccade.errors import ConfigError
from saccade.layers.attention import Attention
from saccade.layers.kept import stamp_of
from saccade.layers.map_windows import OTHER_REGION, window_kinds
from saccade.layers.vit import MLP, DropPath, from_windows, to_windows

_MAX_LOG_SCALE = math.log(100.0)
_NORM_EPS = 5e-5
_POSITION_WIDTH = 512
_LOGIT_BYTES = 2**20  # of the logits that are worked on at a time on a CPU: a share of its caches
_EPS = 1e-6
_KEPT_SIZES = 16


@dataclass(kw_only=True)
class SwinV2Config:
    """A Swin Transformer V2 with four stages, each half as fine as the one before.

    Attributes:
        width: Channels of the first stage; they double with every stage.
        depths: Blocks per stage.
        heads: Attention heads per stage.
        windows: Side of the windows per stage, in positions of its map.
        pretrained_windows: Side of the windows that the position network was first trained with.
        shifted: Whether every other block of a stage moves its windows by half their side.
        patch_size: Side of a patch in pixels.
        drop_path: Greatest stochastic-depth rate, reached linearly at the last block.
        out_stages: Stages whose maps can be asked for; each has a norm of its own.
    """

    width: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    windows: tuple[int, ...] = (30, 30, 30, 15)
    pretrained_windows: tuple[int, ...] = (12, 12, 12, 6)
    shifted: tuple[bool, ...] = (True, True, True, True)
    patch_size: int = 4
    drop_path: float = 0.1
    out_stages: tuple[int, ...] = (3,)

    def __post_init__(self) -> None:
        lengths = {len(per) for per in (self.depths, self.heads, self.windows, self.pretrained_windows, self.shifted)}
        if lengths != {len(self.depths)}:
            raise ConfigError("depths, heads, windows and shifted need one entry per stage", where="swin")
        for stage, heads in enumerate(self.heads):
            if self.width_of(stage) % heads:
                raise ConfigError(
                    f"{self.width_of(stage)} channels are not a multiple of {heads} heads", where=f"swin.heads.{stage}"
                )

    def width_of(self, stage: int) -> int:
        """Channels of a stage."""
        return self.width * 2**stage

    @property
    def stride(self) -> int:
        """Pixels per position of the last map."""
        return self.patch_size * 2 ** (len(self.depths) - 1)


def log_offsets(window: int, pretrained_window: int) -> Tensor:
    """``[2 * w - 1]`` offsets -(w-1)..w-1, scaled so that the pre-trained window reaches 8, on a log scale."""
    offsets = torch.arange(1 - window, window).float() * 8 / max(1, pretrained_window - 1)
    return offsets.sign() * (offsets.abs() + 1).log2() / 3


class LogPosition(nn.Module):
    """A position bias that a small network computes from log-spaced offsets; any window size without interpolation.

    Args:
        heads: Heads n.
        window: Side w of the window.
        pretrained_window: Side that the coordinates are scaled by.
    """

    coordinates: Tensor

    def __init__(self, heads: int, window: int, pretrained_window: int) -> None:
        super().__init__()
        self.window = window
        self.hidden = nn.Linear(2, _POSITION_WIDTH)
        self.out = nn.Linear(_POSITION_WIDTH, heads, bias=False)
        logs = log_offsets(window, pretrained_window)
        table = torch.stack(torch.meshgrid(logs, logs, indexing="ij"), dim=-1)
        self.register_buffer("coordinates", table, persistent=False)
        self._kept: _Kept | None = None

    def forward(self) -> Tensor:
        """``[n, w, w, w, w]``, queries in reverse order first: a view of ``n * (2 * w - 1)^2`` numbers.

        Without gradients it is kept as long as the weights stand still.
        """
        if torch.is_grad_enabled():
            self._kept = None
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._bias()
        return self._keep().bias

    def of_padding(self, size_hw: tuple[int, int], shift: int) -> list[Tensor | None]:
        """For each of :func:`window_kinds` the logits of its padding ``[n, N]`` (None = none), kept like the bias.

        Args:
            size_hw: The map.
            shift: Of its windows.
        """
        kept, key = self._keep(), (size_hw, shift)
        if key not in kept.paddings:
            if len(kept.paddings) >= _KEPT_SIZES:
                kept.paddings.clear()
            kinds = window_kinds(size_hw, self.window, shift)
            kept.paddings[key] = [kind.padding_logits(kept.bias) for kind in kinds]
        return kept.paddings[key]

    def _keep(self) -> _Kept:
        stamp = stamp_of(self.parameters())
        if self._kept is None or self._kept.stamp != stamp:
            self._kept = _Kept(stamp, self._bias(), {})
        return self._kept

    def _bias(self) -> Tensor:
        table = self.out(F.relu(self.hidden(self.coordinates)))
        # Entry (y, x) is an offset query minus key. Read backwards, the keys of a query are a window of the table that
        # moves on by one from the query to the one before it.
        table = (16 * table.sigmoid()).permute(2, 0, 1).flip(1, 2).contiguous()
        return table.unfold(1, self.window, 1).unfold(2, self.window, 1)


class _Kept(NamedTuple):
    """What follows from the weights of a position network as they stand."""

    stamp: tuple[object, ...]
    bias: Tensor
    paddings: dict[tuple[tuple[int, int], int], list[Tensor | None]]


class WindowAttention(Attention):
    """Attention inside windows by the cosine between queries and keys.

    Args:
        width: Channels C.
        heads: Heads n.
        window: Side of a window.
        pretrained_window: See :class:`LogPosition`.
    """

    def __init__(self, width: int, heads: int, window: int, pretrained_window: int) -> None:
        super().__init__(width=width, heads=heads, qkv_bias="qv")
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.position = LogPosition(heads, window, pretrained_window)

    def forward_groups(self, x_KNC: Tensor, groups: Sequence[tuple[Tensor | None, Tensor | None]]) -> Tensor:
        """Attention in every window.

        Args:
            x_KNC: Windows.
            groups: Windows (None = all) that share a mask, and that mask (:func:`window_groups`); together all windows.
        """
        q, k, v = self._normed(x_KNC)
        q = q.flip(2)
        scale, bias = self._scale().to(q.dtype), self.position().to(q.dtype)
        out = torch.empty_like(v)
        for rows, mask in groups:
            if rows is None:
                out = cosine_attention(q, k, v, scale, bias, mask)
            else:
                out = out.index_put((rows,), cosine_attention(q[rows], k[rows], v[rows], scale, bias, mask))
        return self.merge_heads(out.flip(2))

    def forward_map(self, x_BHWC: Tensor, shift: int) -> Tensor:
        """The same for a map, without gradients, and without work for what pads it.

        Padding is zeros, and keys have no bias: its keys are 0, and all its values are ``v_bias``. To a query, all of
        it is one key, whose logit is the logarithm of the sum.
        """
        b, height, width, _ = x_BHWC.shape
        q, k, v = self._normed(x_BHWC.flatten(1, 2))
        scales = self._scale().flatten().tolist()
        bias, paddings = self.position(), self.position.of_padding((height, width), shift)
        out = torch.empty_like(v.transpose(1, 2)).transpose(1, 2)
        kinds = window_kinds((height, width), self.position.window, shift)
        for kind, padding in zip(kinds, paddings, strict=True):
            keys_at = kind.places_KN
            queries_at = keys_at.flip(1)
            queries, keys, values = (
                part.index_select(2, at.flatten()).unflatten(2, at.shape)
                for part, at in ((q, queries_at), (k, keys_at), (v, keys_at))
            )
            if padding is not None:
                keys = F.pad(keys, (0, 0, 0, 1))
                tail = self.v_bias.to(v.dtype).view(1, self.heads, 1, 1, self.head_dim)
                values = torch.cat([values, tail.expand(b, -1, len(keys_at), -1, -1)], dim=3)
            own_bias = q.new_empty(queries.shape[3], keys.shape[3])
            for head in range(self.heads):
                kind.write_bias(bias[head], own_bias)
                if padding is not None:
                    own_bias[:, -1] = padding[head]
                for image, window in product(range(b), range(len(keys_at))):
                    at = (image, head, window)
                    attend_in_parts(queries[at], keys[at], values[at], scales[head], own_bias)
            out.index_copy_(2, queries_at.flatten(), queries.flatten(2, 3).to(out.dtype))
        return self.merge_heads(out).view(x_BHWC.shape)

    def _normed(self, x_KNC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys of length 1, and values, ``[K, n, N, d]``."""
        q, k, v = self.split_heads(x_KNC)
        q, k = (part / (part.norm(dim=-1, keepdim=True) + _NORM_EPS) for part in (q, k))
        return q, k, v

    def _scale(self) -> Tensor:
        return self.logit_scale.clamp(max=_MAX_LOG_SCALE).exp()


def attend_in_parts(q_Nd: Tensor, k_Sd: Tensor, v_Sd: Tensor, scale: float, bias_NS: Tensor) -> None:
    """``softmax(q k^T * scale + bias) v`` of a window and a head, in the place of q.

    A few queries at a time: their logits stay in the cache. Fused attention is faster by a fifth, but rounds otherwise
    than the original, which scales of 100 make loud.
    """
    count = max(1, _LOGIT_BYTES // (k_Sd.shape[0] * q_Nd.element_size()))
    logits, weights = q_Nd.new_empty(2, min(count, len(q_Nd)), len(k_Sd))
    for q, bias in zip(q_Nd.split(count), bias_NS.split(count), strict=True):
        part, share = logits[: len(q)], weights[: len(q)]
        torch.mm(q, k_Sd.T, out=part)
        torch.softmax(part.mul_(scale).add_(bias), -1, out=share)
        torch.mm(share, v_Sd, out=q)


def cosine_attention(
    q_KnNd: Tensor, k_KnNd: Tensor, v_KnNd: Tensor, scale_n11: Tensor, bias_nwwww: Tensor, mask_NN: Tensor | None
) -> Tensor:
    """``softmax(q k^T * scale + bias + mask) v`` with a scale and a bias per head, ``[K, n, N, d]``.

    The scale, up to 100, multiplies the product: on the queries its rounding would be a hundred times as loud.
    """
    bias = bias_nwwww.flatten(3).flatten(1, 2)
    bias = bias if mask_NN is None else bias + mask_NN
    return ((q_KnNd @ k_KnNd.mT) * scale_n11 + bias).softmax(-1) @ v_KnNd


class SwinBlock(nn.Module):
    """Window attention and an MLP, each normed behind its branch."""

    def __init__(self, config: SwinV2Config, stage: int, index: int, drop_path: float) -> None:
        super().__init__()
        width = config.width_of(stage)
        self.window = config.windows[stage]
        self.shift = self.window // 2 if config.shifted[stage] and index % 2 else 0
        self.attn = WindowAttention(width, config.heads[stage], self.window, config.pretrained_windows[stage])
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = MLP(width, 4 * width)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """``[B, H, W, C]`` to the same shape."""
        b = x_BHWC.shape[0]
        x_BHWC = x_BHWC + self.drop_path(self.norm1(self._attend(x_BHWC)), self.drop_path.draw(b, x_BHWC))
        return x_BHWC + self.drop_path(self.norm2(self.mlp(x_BHWC)), self.drop_path.draw(b, x_BHWC))

    def _attend(self, x_BHWC: Tensor) -> Tensor:
        """Attention over a map that may have to be padded; the padding takes part, as in the original."""
        b, height, width, _ = x_BHWC.shape
        side, shift = self.window, self.shift
        if x_BHWC.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self.attn.forward_map(x_BHWC, shift)
        x = F.pad(x_BHWC, (0, 0, 0, -width % side, 0, -height % side))
        size_hw = (x.shape[1], x.shape[2])
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        groups = window_groups(b, size_hw, side, shift, x.device)
        x = from_windows(self.attn.forward_groups(to_windows(x, side), groups), side, size_hw)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]


def window_groups(
    images: int, size_hw: tuple[int, int], side: int, shift: int, device: torch.device
) -> list[tuple[Tensor | None, Tensor | None]]:
    """Which windows of a rolled map share a mask: only the last row and column hold pieces from both ends.

    Args:
        images: Images of the batch.
        size_hw: The map, whole windows.
        side: Of the windows.
        shift: By how much the map was rolled.
        device: Of the tensors.

    Returns:
        Window numbers (None = all) and their additive mask ``[N, N]``, queries in reverse order (None = none).
    """
    if not shift:
        return [(None, None)]
    rows, columns = (size // side for size in size_hw)
    number = torch.arange(images * rows * columns, device=device).view(images, rows, columns)
    moved = torch.arange(side, device=device) >= side - shift
    groups: list[tuple[Tensor | None, Tensor | None]] = []
    for last_row in (False, True):
        for last_column in (False, True):
            chosen = number[:, -1:] if last_row else number[:, :-1]
            chosen = (chosen[:, :, -1:] if last_column else chosen[:, :, :-1]).flatten()
            if not len(chosen):
                continue
            region = 2 * (moved & last_row).long()[:, None] + (moved & last_column).long()
            region = region.flatten()
            mask = (region.flip(0)[:, None] != region).float() * OTHER_REGION
            whole = len(chosen) == number.numel()
            groups.append((None if whole else chosen, mask if last_row or last_column else None))
    return groups


class PatchMerging(nn.Module):
    """Halves a map: the four neighbours side by side, reduced, then normed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width, eps=_EPS)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """``[B, H, W, C]`` to ``[B, ceil(H / 2), ceil(W / 2), 2 * C]``."""
        x = F.pad(x_BHWC, (0, 0, 0, x_BHWC.shape[2] % 2, 0, x_BHWC.shape[1] % 2))
        quarters = [x[:, dy::2, dx::2] for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.norm(self.reduction(torch.cat(quarters, dim=-1)))


class SwinStage(nn.Module):
    """Blocks at one resolution, and the step to the next one."""

    def __init__(self, config: SwinV2Config, stage: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(config, stage, index, rate) for index, rate in enumerate(drop_paths))
        last = stage == len(config.depths) - 1
        self.downsample = None if last else PatchMerging(config.width_of(stage))


class SwinV2(nn.Module):
    """The backbone; any input size.

    Args:
        config: Sizes and choices.
    """

    def __init__(self, config: SwinV2Config) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.patch_norm = nn.LayerNorm(config.width, eps=_EPS)
        total = sum(config.depths)
        rates = [config.drop_path * index / max(1, total - 1) for index in range(total)]
        starts = [sum(config.depths[:stage]) for stage in range(len(config.depths) + 1)]
        self.stages = nn.ModuleList(
            SwinStage(config, stage, rates[starts[stage] : starts[stage + 1]]) for stage in range(len(config.depths))
        )
        self.norms = nn.ModuleDict(
            {str(stage): nn.LayerNorm(config.width_of(stage), eps=_EPS) for stage in config.out_stages}
        )
        self.activation_checkpointing = False

    def embed(self, images_B3HW: Tensor) -> Tensor:
        """Patches ``[B, ceil(H / p), ceil(W / p), C]``; the image is padded with zeros at the bottom and right."""
        patch = self.config.patch_size
        height, width = images_B3HW.shape[2:]
        padded = F.pad(images_B3HW, (0, -width % patch, 0, -height % patch))
        return self.patch_norm(self.patch_embed(padded).permute(0, 2, 3, 1))

    def maps(self, images_B3HW: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Normed maps of the given stages (0-based), each ``[B, H / stride, W / stride, channels]``."""
        x_BHWC = self.embed(images_B3HW)
        found: dict[int, Tensor] = {}
        for number, stage in enumerate(cast("list[SwinStage]", self.stages)):
            for block in stage.blocks:
                if self.activation_checkpointing and torch.is_grad_enabled():
                    x_BHWC = checkpoint(block, x_BHWC, use_reentrant=False)
                else:
                    x_BHWC = block(x_BHWC)
            if number in after:
                found[number] = self.norms[str(number)](x_BHWC)
            if stage.downsample is not None:
                x_BHWC = stage.downsample(x_BHWC)
        return [found[number] for number in after]

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """The normed map of the last stage, ``[B, H / 32, W / 32, C]``."""
        return self.maps(images_B3HW, [len(self.config.depths) - 1])[0]
