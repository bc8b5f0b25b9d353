"""The plain ViT: one config serves GiT, ViTDet, SAM and EVA.

Shape legend: B images, H W patch grid, C width, N tokens; windows are cut row-major and stand on the batch axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saccade.errors import ConfigError, UsageError
from saccade.layers.attention import Attention, QKVBias
from saccade.layers.convolution import ConvPropagation, ParallelConv, Propagation


@dataclass(kw_only=True)
class ViTConfig:
    """A plain ViT.

    Attributes:
        width: Channels.
        depth: Blocks.
        heads: Attention heads.
        mlp_width: Hidden channels of the MLP.
        patch_size: Side of a patch in pixels.
        image_size: Nominal input side in pixels; sizes the position table and the global relative-position tables.
        position_size: Side of the position table in patches, where it is not that of the nominal input (a table kept
            as it was pre-trained, and resized to every input); 0 = the nominal input.
        window_size: Side of an attention window in patches. Maps that are no whole number of windows are padded with
            zeros at the bottom and right, after the norm; the padding takes part in the softmax (ViTDet, SAM).
        global_blocks: Blocks (0-based) that attend over the whole image; all others attend in windows.
        shifted_windows: Every other windowed block moves its windows by half their side.
        conv_blocks: Blocks that a residual convolution follows, to carry information across windows.
        conv_kind: What that convolution is.
        parallel_conv: ViTAE's convolution branch beside the attention of every block: ``"two"`` or ``"three"``
            convolutions (ViTAE-B, ViTAE-S).
        rel_pos: Decomposed relative position in every block.
        abs_pos: Learned absolute position, resized bicubically to other inputs.
        qkv_bias: Bias form of the query-key-value projection.
        norm: Norm before each branch (``pre``) or after it (``post``: EVA-E).
        norm_eps: LayerNorm epsilon.
        final_norm: A LayerNorm over the last map.
        class_token: A learned token before the patches, with a position of its own (CLIP). Every block must be global.
        ragged: What becomes of rows and columns of pixels that fill no patch, at the bottom and right: ``refuse`` such
            an image, or ``drop`` them (EVA in ViSFT).
        layer_scale: Initial value of the branch scales; 0 = none.
        drop_path: Greatest stochastic-depth rate, reached linearly at the last block.
        drop_path_attention: Stochastic depth on the attention branch too (GiT has it on the MLP only).
    """

    width: int = 768
    depth: int = 18
    heads: int = 12
    mlp_width: int = 3072
    patch_size: int = 16
    image_size: int = 1120
    position_size: int = 0
    window_size: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    shifted_windows: bool = False
    conv_blocks: tuple[int, ...] = ()
    conv_kind: Propagation = "bottleneck"
    parallel_conv: Literal["none", "two", "three"] = "none"
    rel_pos: bool = True
    abs_pos: bool = True
    qkv_bias: QKVBias = "full"
    norm: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-6
    final_norm: bool = False
    class_token: bool = False
    ragged: Literal["refuse", "drop"] = "refuse"
    layer_scale: float = 0.0
    drop_path: float = 0.1
    drop_path_attention: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}", where="vit.width")
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
                where="vit.image_size",
            )
        maps_only = self.rel_pos or self.conv_blocks or self.parallel_conv != "none" or not self.abs_pos
        if self.class_token and (maps_only or set(self.global_blocks) != set(range(self.depth))):
            raise ConfigError(
                "a class token has no place on a map",
                where="vit.class_token",
                why="windows, convolutions and relative positions need one",
                fix="make every block global, with absolute positions alone",
            )

    @property
    def grid_size(self) -> int:
        """Patches per side at the nominal size."""
        return self.image_size // self.patch_size


class DropPath(nn.Module):
    """Stochastic depth along the first axis."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def draw(self, batch: int, like: Tensor) -> Tensor | None:
        """Draws the factors ``[batch]`` (0 or 1 / keep), or None where nothing is dropped."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        return torch.bernoulli(torch.full((batch,), keep, device=like.device, dtype=like.dtype)) / keep

    def forward(self, x: Tensor, factors: Tensor | None) -> Tensor:
        """Scales x along its first axis by factors drawn before."""
        return x if factors is None else x * factors.view(-1, *[1] * (x.ndim - 1))


class MLP(nn.Module):
    """Two linear layers with an exact (erf) GELU, and dropout, between them."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]`` to ``[..., C]``."""
        return self.fc2(F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training))


class Block(nn.Module):
    """A transformer block; ``window_size`` None means global attention.

    The branches are methods, so that a model with tokens of its own (GiT) can run them on any tokens.
    """

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__()
        width = config.width
        self.window_size = None if index in config.global_blocks else config.window_size
        windowed_before = sum(other not in config.global_blocks for other in range(index))
        self.shift = config.window_size // 2 if config.shifted_windows and windowed_before % 2 else 0
        self.post_norm = config.norm == "post"
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(
            width=width,
            heads=config.heads,
            qkv_bias=config.qkv_bias,
            rel_pos_size=(self.window_size or config.grid_size) if config.rel_pos else None,
        )
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, config.mlp_width)
        rate = config.drop_path * index / max(1, config.depth - 1)
        self.drop_path = DropPath(rate)
        self.drop_path_attn = DropPath(rate if config.drop_path_attention else 0.0)
        self.layer_scale = config.layer_scale > 0
        if self.layer_scale:
            self.gamma1 = nn.Parameter(torch.full((width,), config.layer_scale))
            self.gamma2 = nn.Parameter(torch.full((width,), config.layer_scale))
        self.parallel_conv = (
            None if config.parallel_conv == "none" else ParallelConv(width, config.mlp_width, config.parallel_conv)
        )
        self.residual = ConvPropagation(width, config.conv_kind) if index in config.conv_blocks else None

    def attention_input(self, x: Tensor) -> Tensor:
        """What the attention branch reads."""
        return x if self.post_norm else self.norm1(x)

    def add_attention(self, x: Tensor, branch: Tensor, factors: Tensor | None = None) -> Tensor:
        """Adds the (projected) attention branch to the stream."""
        branch = self.norm1(branch) if self.post_norm else branch
        branch = branch * self.gamma1 if self.layer_scale else branch
        return x + self.drop_path_attn(branch, factors)

    def add_mlp(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """Adds the MLP branch to the stream; ``factors`` come from ``drop_path.draw``."""
        branch = self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x))
        branch = branch * self.gamma2 if self.layer_scale else branch
        return x + self.drop_path(branch, factors)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """One block over an image map; windows are cut and joined here."""
        b = x_BHWC.shape[0]
        branch = self._attend(self.attention_input(x_BHWC))
        added = self.add_attention(x_BHWC, branch, self.drop_path_attn.draw(b, x_BHWC))
        if self.parallel_conv is not None:
            local = self.parallel_conv(x_BHWC)
            added = added + self.drop_path(local, self.drop_path.draw(b, local))
        x_BHWC = self.add_mlp(added, self.drop_path.draw(b, added))
        return x_BHWC if self.residual is None else self.residual(x_BHWC)

    def _attend(self, x_BHWC: Tensor) -> Tensor:
        """Attention over a map that may have to be padded to whole (shifted) windows."""
        size_hw = (x_BHWC.shape[1], x_BHWC.shape[2])
        if self.window_size is None:
            return self.attn(x_BHWC.flatten(1, 2), size_hw).unflatten(1, size_hw)
        side, first = self.window_size, (self.window_size - self.shift) % self.window_size
        # A shifted grid begins before the map; its first windows are cut off at the top and left.
        below, right = (-(size + first) % side for size in size_hw)
        padded = F.pad(x_BHWC, (0, 0, first, right, first, below)) if first or below or right else x_BHWC
        out = self.attn(to_windows(padded, side), (side, side))
        out = from_windows(out, side, (padded.shape[1], padded.shape[2]))
        return out[:, first : first + size_hw[0], first : first + size_hw[1]]


def to_windows(x_BHWC: Tensor, window: int | tuple[int, int]) -> Tensor:
    """Cuts a map into windows: ``[B * windows, h * w, C]``, windows row-major.

    Raises:
        UsageError: The map is not a whole number of windows.
    """
    b, height, width, c = x_BHWC.shape
    h, w = (window, window) if isinstance(window, int) else window
    if height % h or width % w:
        raise UsageError(
            f"a map of {height}x{width} patches is not a whole number of {h}x{w} windows",
            where="plain ViT",
            fix="choose an input size that is a multiple of patch_size * window_size",
        )
    if (h, w) == (height, width):
        return x_BHWC.flatten(1, 2)
    x = x_BHWC.view(b, height // h, h, width // w, w, c).transpose(2, 3)
    return x.reshape(-1, h * w, c)


def from_windows(x: Tensor, window: int | tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
    """The inverse of :func:`to_windows`: ``[B, H, W, C]``."""
    height, width = size_hw
    h, w = (window, window) if isinstance(window, int) else window
    if (h, w) == size_hw:
        return x.unflatten(1, size_hw)
    x = x.view(-1, height // h, width // w, h, w, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, height, width, x.shape[-1])


def resize_position(table: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resizes a position table ``[1, H, W, C]`` bicubically (align_corners False); a no-op at its own size."""
    if tuple(table.shape[1:3]) == tuple(size_hw):
        return table
    resized = F.interpolate(table.permute(0, 3, 1, 2).float(), size=size_hw, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).to(table.dtype)


class PlainViT(nn.Module):
    """Patches, positions and blocks; with a class token where the configuration has one.

    Args:
        config: Sizes and choices.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        if config.abs_pos:
            side = config.position_size or config.grid_size
            self.pos_embed = nn.Parameter(torch.zeros(1, side, side, config.width))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if config.class_token:
            self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
            self.class_position = nn.Parameter(torch.zeros(1, 1, config.width))
            nn.init.trunc_normal_(self.class_token, std=0.02)
            nn.init.trunc_normal_(self.class_position, std=0.02)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.final_norm else None
        self.activation_checkpointing = False

    def __iter__(self) -> Iterator[Block]:
        """The blocks in order."""
        return iter(cast("list[Block]", self.blocks))

    def embed(self, images_B3HW: Tensor) -> Tensor:
        """Patch embedding plus position: ``[B, 3, H, W]`` normalised pixels to ``[B, H / p, W / p, C]``.

        Raises:
            UsageError: The image is smaller than a patch, or is not a whole number of them and must be.
        """
        height, width, patch = images_B3HW.shape[2], images_B3HW.shape[3], self.config.patch_size
        if min(height, width) < patch:
            raise UsageError(f"an image of {height}x{width} pixels has no whole patch of {patch}", where="plain ViT")
        if self.config.ragged == "refuse" and (height % patch or width % patch):
            raise UsageError(
                f"an image of {height}x{width} pixels is not a whole number of {patch}x{patch} patches",
                where="plain ViT",
                why="the last rows or columns would be left out in silence",
                fix="resize or pad the image to a multiple of patch_size",
            )
        x_BHWC = self.patch_embed(images_B3HW).permute(0, 2, 3, 1)
        if self.config.abs_pos:
            x_BHWC = x_BHWC + resize_position(self.pos_embed, (x_BHWC.shape[1], x_BHWC.shape[2]))
        return x_BHWC.contiguous()

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Image map after the last block (and norm), ``[B, H / p, W / p, C]``."""
        return self.maps(images_B3HW, [self.config.depth - 1])[0]

    def maps(self, images_B3HW: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Image maps after the given blocks (0-based), each ``[B, H / p, W / p, C]``; the last block's is normed."""
        x_BHWC = self.embed(images_B3HW)
        if not self.config.class_token:
            return self._run(x_BHWC, after)
        size_hw = (x_BHWC.shape[1], x_BHWC.shape[2])
        return [row_B1NC[:, 0, 1:].unflatten(1, size_hw) for row_B1NC in self._run(self._with_class(x_BHWC), after)]

    def tokens(self, images_B3HW: Tensor) -> Tensor:
        """All tokens after the last block (and norm), ``[B, 1 + H W / p^2, C]``, the class token first.

        Raises:
            UsageError: The configuration has no class token.
        """
        if not self.config.class_token:
            raise UsageError("this backbone has no class token", where="plain ViT", fix="set vit.class_token=true")
        return self._run(self._with_class(self.embed(images_B3HW)), [self.config.depth - 1])[0][:, 0]

    def _with_class(self, x_BHWC: Tensor) -> Tensor:
        """The class token and the patches as one row, ``[B, 1, 1 + N, C]``: to a global block it is a map like any."""
        first_11C = self.class_token + self.class_position
        return torch.cat([first_11C.expand(len(x_BHWC), -1, -1), x_BHWC.flatten(1, 2)], dim=1)[:, None]

    def _run(self, x_BHWC: Tensor, after: Sequence[int]) -> list[Tensor]:
        return run_blocks(self, x_BHWC, self.norm, after, checkpointing=self.activation_checkpointing)


def run_blocks(
    blocks: Iterable[Block], x_BHWC: Tensor, norm: nn.LayerNorm | None, after: Sequence[int], *, checkpointing: bool
) -> list[Tensor]:
    """Runs a map through blocks and returns it as it stands after some of them.

    Args:
        blocks: In order.
        x_BHWC: The embedded image.
        norm: Applied to the map of the last block.
        after: Blocks (0-based) whose maps are wanted.
        checkpointing: Recompute activations in the backward pass.
    """
    kept: dict[int, Tensor] = {}
    for index, block in enumerate(blocks):
        if checkpointing and torch.is_grad_enabled():
            x_BHWC = checkpoint(block, x_BHWC, use_reentrant=False)
        else:
            x_BHWC = block(x_BHWC)
        kept[index] = x_BHWC
    if norm is not None:
        kept[max(kept)] = norm(x_BHWC)
    return [kept[index] for index in after]
