"""The Q-Former: a few learned queries that read the tokens of a frozen image tower.

Source: BLIP-2, ICML 2023, section 3.1; the form of its second stage, in which no text enters. Shape legend: B images,
N image tokens, Q queries, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError
from saccade.layers.attention import MapAttention
from saccade.layers.vit import MLP

_STD = 0.02


@dataclass(kw_only=True, frozen=True)
class QFormerConfig:
    """Sizes; the defaults are those of BLIP-2, which are those of BERT-base.

    Attributes:
        queries: Learned queries Q.
        width: Channels C.
        layers: Post-norm layers.
        heads: Attention heads.
        mlp_width: Hidden channels of the MLP.
        cross_every: Every so many layers, from the first on, look at the image.
        norm_eps: LayerNorm epsilon.
        dropout: Behind every branch.
    """

    queries: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    cross_every: int = 2
    norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.queries, self.layers, self.cross_every) < 1:
            raise ConfigError("queries, layers and cross_every must be at least 1", where="qformer")


class _Layer(nn.Module):
    def __init__(self, config: QFormerConfig, image_width: int | None) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.dropout = config.dropout
        self.attn = MapAttention(width, config.heads)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.cross = None
        if image_width is not None:
            self.cross = nn.MultiheadAttention(
                width, config.heads, kdim=image_width, vdim=image_width, batch_first=True
            )
            self.cross_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, config.mlp_width)
        self.norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x_BQC: Tensor, image_BNC: Tensor) -> Tensor:
        x_BQC = self.norm1(x_BQC + self._drop(self.attn(x_BQC, x_BQC, x_BQC)))
        if self.cross is not None:
            read, _ = self.cross(x_BQC, image_BNC, image_BNC, need_weights=False)
            x_BQC = self.cross_norm(x_BQC + self._drop(read))
        return self.norm2(x_BQC + self._drop(self.mlp(x_BQC)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class QFormer(nn.Module):
    """Image tokens to a fixed number of vectors.

    Args:
        config: Sizes.
        image_width: Channels of the image tokens.
    """

    def __init__(self, config: QFormerConfig, image_width: int) -> None:
        super().__init__()
        self.config = config
        self.image_norm = nn.LayerNorm(image_width, eps=1e-5)
        self.queries = nn.Parameter(torch.zeros(1, config.queries, config.width))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.layers = nn.ModuleList(
            _Layer(config, None if index % config.cross_every else image_width) for index in range(config.layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.queries, std=_STD)

    def __iter__(self) -> Iterator[_Layer]:
        """The layers in order."""
        return iter(cast("list[_Layer]", self.layers))

    def forward(self, image_BNC: Tensor) -> Tensor:
        """``[B, N, image_width]`` to ``[B, Q, C]``."""
        image_BNC = self.image_norm(image_BNC)
        x_BQC = F.dropout(self.norm(self.queries), self.config.dropout, self.training).expand(len(image_BNC), -1, -1)
        for layer in self:
            x_BQC = layer(x_BQC, image_BNC)
        return x_BQC
