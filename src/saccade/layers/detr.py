"""A detection transformer whose encoder may be narrower than its decoder, with a task token in front of the map.

Source: End-to-End Object Detection with Transformers, ECCV 2020, in the form of ViSFT (docs/visft.md): the encoder's
output is added to its input, and linear layers bring memory and positions to the width of the decoder.

Shape legend: B images, H W map, N = H * W cells, E encoder width, D decoder width, Q queries, L decoder layers.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError
from saccade.layers.positions import sine_positions


@dataclass(kw_only=True, frozen=True)
class DETRConfig:
    """Encoder and decoder.

    Attributes:
        encoder_width: Channels E.
        decoder_width: Channels D.
        heads: Attention heads of both.
        mlp_width: Hidden channels of the MLPs.
        encoder_layers: Layers over the map.
        decoder_layers: Layers L over the queries.
        dropout: On attention weights, inside the MLPs and on every branch.
        task_tokens: Rows of the table that the token in front of the map is taken from.
    """

    encoder_width: int = 128
    decoder_width: int = 256
    heads: int = 8
    mlp_width: int = 1024
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    task_tokens: int = 256

    def __post_init__(self) -> None:
        for name in ("encoder_width", "decoder_width"):
            width = getattr(self, name)
            if width % self.heads:
                raise ConfigError(f"{name} {width} is not a multiple of heads {self.heads}", where=f"detr.{name}")
        if self.encoder_width % 4:
            raise ConfigError(
                f"encoder_width {self.encoder_width} is not a multiple of 4",
                where="detr.encoder_width",
                why="sines and cosines of two axes share it",
            )
        if self.decoder_layers < 1:
            raise ConfigError("a decoder has at least one layer", where="detr.decoder_layers")


class ReLUMLP(nn.Module):
    """Linear layers with a ReLU, and dropout, between them.

    Args:
        widths: Channels in, of every hidden layer, and out.
        dropout: After every ReLU.
    """

    def __init__(self, *widths: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``[..., first width]`` to ``[..., last width]``."""
        for index, layer in enumerate(self.layers):
            x = layer(F.dropout(F.relu(x), self.dropout, self.training) if index else x)
        return x


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each normed after it is added."""

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.attn = nn.MultiheadAttention(width, config.heads, dropout=config.dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = ReLUMLP(width, config.mlp_width, width, dropout=config.dropout)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BNE: Tensor, positions_BNE: Tensor, padding_BN: Tensor | None) -> Tensor:
        """``[B, N, E]`` to the same shape; positions are added to queries and keys only."""
        placed = x_BNE + positions_BNE
        found = _attend(self.attn, placed, placed, x_BNE, padding_BN)
        x_BNE = self.norm1(x_BNE + self.dropout(found))
        return self.norm2(x_BNE + self.dropout(self.mlp(x_BNE)))


class DecoderLayer(nn.Module):
    """Attention among the queries, attention to the memory, MLP, each normed after it is added."""

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.attn = nn.MultiheadAttention(width, config.heads, dropout=config.dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.cross = nn.MultiheadAttention(width, config.heads, dropout=config.dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = ReLUMLP(width, config.mlp_width, width, dropout=config.dropout)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BQD: Tensor, queries_BQD: Tensor, keys_BND: Tensor, values_BND: Tensor, padding_BN: Tensor | None
    ) -> Tensor:
        """``[B, Q, D]`` to the same shape; the learned queries are added to queries and own keys only."""
        placed = x_BQD + queries_BQD
        x_BQD = self.norm1(x_BQD + self.dropout(_attend(self.attn, placed, placed, x_BQD, None)))
        found = _attend(self.cross, x_BQD + queries_BQD, keys_BND, values_BND, padding_BN)
        x_BQD = self.norm2(x_BQD + self.dropout(found))
        return self.norm3(x_BQD + self.dropout(self.mlp(x_BQD)))


def _attend(attn: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None) -> Tensor:
    found, _ = attn(q, k, v, key_padding_mask=padding, need_weights=False)
    return found


class DETR(nn.Module):
    """Reads a map with queries.

    Weights start as published: the encoder and the two projections Xavier-uniform, the decoder's layers as copies of
    one another.

    Args:
        config: Sizes.
    """

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        self.config = config
        inner, outer = config.encoder_width, config.decoder_width
        self.task_embed = nn.Embedding(config.task_tokens, inner)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.memory_proj = nn.Linear(inner, outer)
        self.position_proj = nn.Linear(inner, outer)
        for part in (self.encoder, self.memory_proj, self.position_proj):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
        layer = DecoderLayer(config)
        self.decoder = nn.ModuleList(deepcopy(layer) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(outer)

    def forward(
        self, x_BHWE: Tensor, queries_QD: Tensor, padding_BHW: Tensor | None = None, *, task: int = 0
    ) -> Tensor:
        """The normed states of the queries after every layer.

        Args:
            x_BHWE: The map at the width of the encoder.
            queries_QD: Learned queries.
            padding_BHW: Bool, True where a cell is padding; None = nowhere.
            task: Row of the token in front of the map.

        Returns:
            ``[L, B, Q, D]``.
        """
        memory_BND, positions_BND = self.encode(x_BHWE, padding_BHW, task=task)
        padding_BN = None if padding_BHW is None else padding_BHW.flatten(1)
        keys_BND = memory_BND + positions_BND
        queries_BQD = queries_QD.expand(len(x_BHWE), -1, -1)
        state, states = torch.zeros_like(queries_BQD), []
        for layer in self.decoder:
            state = layer(state, queries_BQD, keys_BND, memory_BND, padding_BN)
            states.append(self.norm(state))
        return torch.stack(states)

    def encode(self, x_BHWE: Tensor, padding_BHW: Tensor | None = None, *, task: int = 0) -> tuple[Tensor, Tensor]:
        """The memory and its positions, each ``[B, N, D]``; see :meth:`forward`."""
        if padding_BHW is None:
            valid = torch.ones(1, *x_BHWE.shape[1:3], dtype=torch.bool, device=x_BHWE.device)
            padding_BN = None
        else:
            valid = ~padding_BHW
            padding_BN = F.pad(padding_BHW.flatten(1), (1, 0))  # the token in front is no padding
        places = sine_positions(valid, self.config.encoder_width // 2).flatten(1, 2).to(x_BHWE.dtype)
        source = x_BHWE.flatten(1, 2)
        token = self.task_embed.weight[task].expand(len(source), 1, -1)
        x = torch.cat([token, source], dim=1)
        before = F.pad(places, (0, 0, 1, 0))
        for layer in self.encoder:
            x = layer(x, before, padding_BN)
        memory = self.memory_proj(source + x[:, 1:])
        return memory, self.position_proj(places).expand_as(memory)
