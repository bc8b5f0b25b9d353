"""The mask decoder of Segment Anything: prompt tokens and an image map look at each other, then tokens become masks.

Shape legend: n prompts, T tokens, C width, P positions of the image map (h * w), M mask tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.layers.attention import MapAttention
from saccade.layers.convolution import ChannelNorm

_MAP_EPS = 1e-6  # of the upscaling; the norms of the transformer have torch's 1e-5


@dataclass(kw_only=True)
class MaskDecoderConfig:
    """The mask decoder.

    Attributes:
        depth: Two-way layers.
        heads: Attention heads.
        mlp_width: Hidden channels of the token MLP.
        attention_downsample: Attention between tokens and image works on that fraction of the channels.
        mask_tokens: One for the single best mask, the others for ambiguous prompts.
        iou_depth: Layers of the head that guesses how good each mask is.
        iou_width: Its hidden channels.
    """

    depth: int = 2
    heads: int = 8
    mlp_width: int = 2048
    attention_downsample: int = 2
    mask_tokens: int = 4
    iou_depth: int = 3
    iou_width: int = 256


class TokenMLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        sizes: Channels, from the input to the output.
    """

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., first]`` to ``[..., last]``."""
        for index, layer in enumerate(self.layers):
            x = layer(F.relu(x) if index else x)
        return x


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to image, an MLP on the tokens, image to tokens; a norm after each.

    Args:
        config: Sizes.
        width: Channels C.
        first: The tokens carry their position already: their attention takes none, and replaces them.
    """

    def __init__(self, config: MaskDecoderConfig, width: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = MapAttention(width, config.heads)
        self.norm1 = nn.LayerNorm(width)
        self.tokens_to_image = MapAttention(width, config.heads, inner=width // config.attention_downsample)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TokenMLP(width, config.mlp_width, width)
        self.norm3 = nn.LayerNorm(width)
        self.image_to_tokens = MapAttention(width, config.heads, inner=width // config.attention_downsample)
        self.norm4 = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``[n, T, C]`` and image ``[n, P, C]``, with their positions, to the same shapes."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_pe
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.tokens_to_image(tokens + token_pe, image + image_pe, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.image_to_tokens(image + image_pe, tokens + token_pe, tokens))
        return tokens, image


class MaskDecoder(nn.Module):
    """Two-way transformer, upscaling, and one small network per mask token that turns it into a filter.

    Args:
        config: Sizes.
        width: Channels C of features and prompts.
    """

    def __init__(self, config: MaskDecoderConfig, width: int) -> None:
        super().__init__()
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(config.mask_tokens, width)
        self.layers = nn.ModuleList(TwoWayBlock(config, width, first=index == 0) for index in range(config.depth))
        self.final_attn = MapAttention(width, config.heads, inner=width // config.attention_downsample)
        self.final_norm = nn.LayerNorm(width)
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, stride=2),
            ChannelNorm(width // 4, eps=_MAP_EPS),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2),
            nn.GELU(),
        )
        self.filters = nn.ModuleList(TokenMLP(width, width, width, width // 8) for _ in range(config.mask_tokens))
        self.iou_head = TokenMLP(width, *[config.iou_width] * (config.iou_depth - 1), config.mask_tokens)

    def forward(
        self, features_nChw: Tensor, image_pe_1Chw: Tensor, sparse_nTC: Tensor, dense_nChw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks of prompts.

        Args:
            features_nChw: Image features, one per prompt or one for all.
            image_pe_1Chw: Their positions.
            sparse_nTC: Prompt tokens.
            dense_nChw: Mask prompts, one per prompt or one for all.

        Returns:
            Logits ``[n, M, 4h, 4w]``, and the believed overlap of each with the truth ``[n, M]``.
        """
        n = len(sparse_nTC)
        h, w = features_nChw.shape[2:]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        start = torch.cat([own.expand(n, -1, -1), sparse_nTC], dim=1)
        image = (features_nChw + dense_nChw).expand(n, -1, -1, -1).flatten(2).mT
        image_pe = image_pe_1Chw.flatten(2).mT
        tokens = start
        for layer in self.layers:
            tokens, image = layer(tokens, image, start, image_pe)
        tokens = self.final_norm(tokens + self.final_attn(tokens + start, image + image_pe, image))
        map_nchw = self.upscale(image.mT.unflatten(2, (h, w)))
        filters = [filt(tokens[:, 1 + index]) for index, filt in enumerate(self.filters)]
        masks = torch.stack(filters, dim=1) @ map_nchw.flatten(2)
        return masks.unflatten(2, (4 * h, 4 * w)), self.iou_head(tokens[:, 0])
