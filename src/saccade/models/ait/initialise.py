"""A start for AiT models that are trained without any pre-training.

The published solvers start from SimMIM, on 24,000 rooms or 117,000 photographs. From plain random weights a small
solver learns the grammar of the codes first, which token follows which, and says the same map whatever it sees: what a
token reads of the memory is an average of all of it. :func:`initialise_local` writes into the fresh weights where
things are; neither the architecture nor what is trained changes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from saccade.layers.local_start import start_local
from saccade.layers.swin import PatchMerging, SwinBlock, SwinV2
from saccade.layers.vit import PlainViT
from saccade.models.ait.config import TASK_ROWS
from saccade.models.ait.transformer import DecoderBlock, sine_positions
from saccade.tasks import Task

if TYPE_CHECKING:
    from saccade.models.ait.model import AiT

_LOOK = 3.0  # gain of the places in queries and in keys to the memory


@torch.no_grad()
def initialise_local(model: AiT) -> None:
    """Rewrites fresh weights in place; draws from torch's CPU generator.

    * The blocks of a SwinV2 begin as nothing (their norms have the weight 0, as in its own paper), patches and merges
      as rotations, so that the last map is a picture in fewer, richer pixels. A plain ViT starts local.
    * Coordinates get sinusoidal rows: neighbouring bins are alike, so that they are learned as quantities.
    * The place of a depth code in the sequence is known as its place in the map. The memory says its places where the
      sines tell neighbours apart, and nothing else there; half of every head compares just that. So every code looks
      first at its own cell or at one beside it.
    """
    if isinstance(model.backbone, PlainViT):
        start_local(model.backbone)
    else:
        _start_swin(model.backbone)
    net = model.transformer
    width = net.config.width
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    net.token_embed.normal_(std=width**-0.5)
    _order_coordinates(net.token_embed[model.config.coordinate_tokens])
    head_dim = width // net.config.heads
    quarter = torch.arange(head_dim // 4)
    places = torch.cat([quarter, width // 2 + quarter])  # the fastest waves of rows and of columns
    net.memory_norm.weight[places] = 0
    net.memory_mlp.fc2.weight[places] = 0
    for block in cast("list[DecoderBlock]", net.decoder):
        query = block.cross.query.weight
        for first in range(0, width, head_dim):
            query[first : first + len(places)] = 0
            query[first + torch.arange(len(places)), places] = _LOOK
        block.cross.key.weight.copy_(query)
    if model.config.depth is not None:
        grid = model.config.depth.depth.grid
        cells = sine_positions(grid, grid, width).flatten(0, 1)
        net.position_embed[TASK_ROWS[Task.DEPTH], : len(cells)] = cells


def _start_swin(backbone: SwinV2) -> None:
    nn.init.orthogonal_(backbone.patch_embed.weight)
    assert backbone.patch_embed.bias is not None
    nn.init.zeros_(backbone.patch_embed.bias)
    for module in backbone.modules():
        if isinstance(module, SwinBlock):
            nn.init.zeros_(module.norm1.weight)
            nn.init.zeros_(module.norm2.weight)
        elif isinstance(module, PatchMerging):
            nn.init.orthogonal_(module.reduction.weight)


def _order_coordinates(rows_KC: Tensor) -> None:
    """Overwrites the rows by waves from two ranges down to four bins, of the same length as before."""
    count, width = rows_KC.shape
    half = width // 2
    waves = math.pi * (count / 4) ** (torch.arange(half) / (half - 1)) / count
    angle = torch.arange(count)[:, None] * waves
    rows_KC[:, : 2 * half] = torch.cat([angle.sin(), angle.cos()], dim=1) * (2 / width) ** 0.5
