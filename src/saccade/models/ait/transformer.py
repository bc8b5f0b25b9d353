"""AiT's transformer: an encoder over the map of the backbone, and a decoder of flat token sequences.

Shape legend: B sequences, N memory tokens, T tokens of a sequence, C width, n heads, d channels per head, R = B * n,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError
from saccade.layers.attention import MapAttention
from saccade.layers.lora import effective_weight
from saccade.layers.vit import MLP, DropPath

_STD = 0.02

Attend: TypeAlias = Callable[[Tensor], Tensor]
"""Normed tokens to what they find elsewhere, ``[..., C]`` both."""


@dataclass(kw_only=True)
class TransformerConfig:
    """The encoder and the decoder.

    Attributes:
        width: Channels C.
        heads: Attention heads.
        mlp_width: Hidden channels of the MLPs.
        encoder_blocks: Blocks over the map.
        decoder_blocks: Blocks over the sequence.
        grid: Side of the table of sine positions; a map may be smaller.
        length: Positions that each task has embeddings for.
        tasks: Tasks that have embeddings.
        dropout: On the map, and inside the MLPs.
        drop_path: Stochastic depth, the same in every block.
        parallel: Every token input is one learned vector, so that all tokens are decoded in one pass.
    """

    width: int = 256
    heads: int = 8
    mlp_width: int = 1024
    encoder_blocks: int = 6
    decoder_blocks: int = 6
    grid: int = 20
    length: int = 2100
    tasks: int = 4
    dropout: float = 0.1
    drop_path: float = 0.1
    parallel: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ConfigError(
                f"width {self.width} must be a multiple of 4 and of heads {self.heads}", where="transformer.width"
            )


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """``[rows, columns, width]``: sines and cosines of the row in the first half, of the column in the second."""
    half = width // 2
    parts = []
    for count, shape in ((rows, (rows, 1)), (columns, (1, columns))):
        waves = sine_waves(torch.arange(count).float(), half)
        parts.append(waves.view(*shape, half).expand(rows, columns, half))
    return torch.cat(parts, dim=-1)


def sine_waves(places_N: Tensor, channels: int) -> Tensor:
    """``[N, channels]``: a sine and a cosine of every place in turn, from the shortest wave to the longest."""
    frequency = 10_000 ** (2 * (torch.arange(channels) // 2) / channels)
    angle = places_N[:, None] / frequency
    return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)


class EncoderBlock(nn.Module):
    """Self-attention and MLP over the map, each on normed input."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = MapAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, config.mlp_width, dropout=config.dropout)
        self.drop_path = DropPath(config.drop_path)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """``[B, N, C]`` to the same shape."""
        normed = self.norm1(x_BNC)
        out = self.attn.attend(self.attn.queries(normed), *self.attn.keys_values(normed))
        x_BNC = _add(self.drop_path, x_BNC, out)
        return _add(self.drop_path, x_BNC, self.mlp(self.norm2(x_BNC)))


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the memory, MLP; one norm serves the queries and the memory."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = MapAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.cross = MapAttention(config.width, config.heads)
        self.norm3 = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, config.mlp_width, dropout=config.dropout)
        self.drop_path = DropPath(config.drop_path)

    def memory(self, memory_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory; the same for every step."""
        return self.cross.keys_values(self.norm2(memory_BNC))

    def forward(self, x_BTC: Tensor, memory_BNC: Tensor) -> Tensor:
        """A whole sequence ``[B, T, C]`` to the same shape."""
        keys, values = self.memory(memory_BNC)

        def look_back(normed: Tensor) -> Tensor:
            own = self.attn.keys_values(normed)
            return self.attn.attend(self.attn.queries(normed), *own, causal=True)

        return self.read(x_BTC, look_back, lambda normed: self.cross.attend(self.cross.queries(normed), keys, values))

    def read(self, x: Tensor, look_back: Attend, look_up: Attend) -> Tensor:
        """Tokens ``[..., C]`` to the same shape.

        Args:
            x: The tokens.
            look_back: Attention to the sequence.
            look_up: Attention to the memory.
        """
        x = _add(self.drop_path, x, look_back(self.norm1(x)))
        x = _add(self.drop_path, x, look_up(self.norm2(x)))
        return _add(self.drop_path, x, self.mlp(self.norm3(x)))


def _add(drop_path: DropPath, x: Tensor, branch: Tensor) -> Tensor:
    return x + drop_path(branch, drop_path.draw(len(branch), branch))


class Transformer(nn.Module):
    """Reads a map, speaks a sequence over one shared vocabulary.

    Args:
        config: Sizes.
        inputs: Channels of the map.
        vocabulary: Tokens V.
    """

    positions: Tensor

    def __init__(self, config: TransformerConfig, inputs: int, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.register_buffer("positions", sine_positions(config.grid, config.grid, width), persistent=False)
        self.input_proj = nn.Linear(inputs, width)
        self.input_norm = nn.LayerNorm(width)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_blocks))
        self.encoder_norm = nn.LayerNorm(width)
        self.memory_proj = nn.Linear(width, width)
        self.memory_norm = nn.LayerNorm(width)
        self.memory_mlp_norm = nn.LayerNorm(width)
        self.memory_mlp = MLP(width, config.mlp_width, dropout=config.dropout)
        self.memory_drop_path = DropPath(config.drop_path)
        self.task_embed = nn.Parameter(torch.empty(config.tasks, 1, width))
        self.position_embed = nn.Parameter(torch.empty(config.tasks, config.length, width))
        self.token_embed = nn.Parameter(torch.empty(vocabulary, width))
        self.token_bias = nn.Parameter(torch.empty(vocabulary))
        self.parallel_embed = nn.Parameter(torch.empty(1, 1, width)) if config.parallel else None
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_blocks))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD, a=-2, b=2)
                nn.init.zeros_(module.bias)
        for table in (self.task_embed, self.position_embed, self.token_embed, self.token_bias, self.parallel_embed):
            if table is not None:
                nn.init.trunc_normal_(table, std=_STD, a=-2, b=2)

    def encode(self, map_BCHW: Tensor) -> Tensor:
        """The memory ``[B, N, C]`` of a map, row-major."""
        _, _, height, width = map_BCHW.shape
        at = self.positions[:height, :width].flatten(0, 1)
        x = F.dropout(map_BCHW.flatten(2).mT, self.config.dropout, self.training)
        x = self.input_norm(self.input_proj(x)) + at
        for block in self.encoder:
            x = block(x)
        memory = self.memory_norm(self.memory_proj(self.encoder_norm(x))) + at
        return _add(self.memory_drop_path, memory, self.memory_mlp(self.memory_mlp_norm(memory)))

    def embed(self, tasks_B: Tensor, tokens_BT: Tensor) -> Tensor:
        """Inputs ``[B, 1 + T, C]`` of a whole sequence: the task, then the tokens, each at its position."""
        tokens = self.token_embed[tokens_BT]
        if self.parallel_embed is not None:
            tokens = self.parallel_embed.expand_as(tokens)
        x = torch.cat([self.task_embed[tasks_B], tokens], dim=1)
        return x + self.position_embed[tasks_B, : x.shape[1]]

    def decode(self, memory_BNC: Tensor, inputs_BTC: Tensor) -> Tensor:
        """Logits ``[B, T, V]`` of a whole sequence at once."""
        return self.logits(self.states(memory_BNC, inputs_BTC))

    def states(self, memory_BNC: Tensor, inputs_BTC: Tensor) -> Tensor:
        """Normed states ``[B, T, C]`` of a whole sequence at once."""
        x = inputs_BTC
        for block in self.decoder:
            x = block(x, memory_BNC)
        return self.norm(x)

    def logits(self, x_BTC: Tensor, tokens: slice = slice(None)) -> Tensor:
        """Logits of some of the tokens, ``[..., tokens]``."""
        return F.linear(x_BTC, self.token_embed[tokens], self.token_bias[tokens])

    def start(self, memory_BNC: Tensor, length: int) -> Decoding:
        """Begins to decode step by step, up to so many tokens."""
        return Decoding(self, memory_BNC, length)


class Decoding:
    """Sequences in the making, a token at a time: what was said and the memory, laid out once for the steps.

    Keys stand with their channels first, and the three projections of a token are one product: a step reads all weights
    and all keys for little arithmetic, and these are the forms that are read fastest.

    Args:
        transformer: The model.
        memory_BNC: What the sequences are about.
        length: Greatest number of steps.
    """

    def __init__(self, transformer: Transformer, memory_BNC: Tensor, length: int) -> None:
        self._transformer = transformer
        self._layers = [_Layer(block, memory_BNC, length) for block in cast("list[DecoderBlock]", transformer.decoder)]
        self._said = 0

    def step(self, inputs_B1C: Tensor) -> Tensor:
        """Reads the next inputs (positions included) and returns their normed states ``[B, 1, C]``."""
        # Two axes, not three: products of a vector are then taken as such.
        x = inputs_B1C[:, 0]
        for layer in self._layers:
            x = layer.read(x, self._said)
        self._said += 1
        return self._transformer.norm(x)[:, None]


class _Layer:
    """A block of a decoder in use.

    Args:
        block: The block.
        memory_BNC: What the sequences are about.
        length: Greatest number of steps.
    """

    def __init__(self, block: DecoderBlock, memory_BNC: Tensor, length: int) -> None:
        self._block = block
        keys, values = (part.flatten(0, 1) for part in block.memory(memory_BNC))
        self._memory = keys.mT.contiguous(), values.contiguous()
        rows, _, head_dim = keys.shape
        self._said = keys.new_empty(rows, head_dim, length), keys.new_empty(rows, length, head_dim)
        own = block.attn
        parts = (own.query, own.key, own.value)
        self._weight, self._bias = torch.cat([effective_weight(p) for p in parts]), torch.cat([p.bias for p in parts])

    def read(self, x_BC: Tensor, at: int) -> Tensor:
        """One more token of every sequence, ``[B, C]`` to the same shape."""
        block, (keys, values) = self._block, self._said
        rows, head_dim = keys.shape[:2]

        def look_back(normed: Tensor) -> Tensor:
            q, k, v = F.linear(normed, self._weight, self._bias).chunk(3, dim=1)
            keys[:, :, at] = k.reshape(rows, head_dim)
            values[:, at] = v.reshape(rows, head_dim)
            return block.attn.proj(_look(q, keys[:, :, : at + 1], values[:, : at + 1]))

        def look_up(normed: Tensor) -> Tensor:
            return block.cross.proj(_look(block.cross.query(normed), *self._memory))

        return block.read(x_BC, look_back, look_up)


def _look(q_BC: Tensor, keys_RdT: Tensor, values_RTd: Tensor) -> Tensor:
    """Attention of one token of every sequence, ``[B, C]``."""
    rows, head_dim = keys_RdT.shape[:2]
    q_R1d = q_BC.reshape(rows, 1, head_dim) * head_dim**-0.5
    return torch.bmm(torch.bmm(q_R1d, keys_RdT).softmax(-1), values_RTd).view(q_BC.shape)
