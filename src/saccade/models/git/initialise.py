"""A start for GiT models that are trained without any pre-training.

The published models start from SAM and BERT weights, which know where tokens stand and what resembles what. From
plain random weights a small model learns the language of the answers but not the picture: attention is uniform at
first, so what a response knows of its own grid point is 1 part in 200 of what it reads, and the gradient that could
change this is as small. :func:`initialise_local` writes the missing knowledge into the fresh weights; neither the
architecture nor what is trained changes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import UsageError
from saccade.tasks import Task

if TYPE_CHECKING:
    from saccade.models.git.model import GiT

_WORD_STD = 0.1
_PATCH_SCALE = 0.25
_POSITION_SCALE = 0.15
_MARKER_NORM = 2.0
_MARKER_LOGIT = 7.0
_QUERY_BIAS = 2.0
_LOCALITY = 0.7
# Share of a grid token that is the marker after LayerNorm, with the scales above.
_MARKER_SHARE = 0.62


@torch.no_grad()
def initialise_local(model: GiT) -> None:
    """Rewrites fresh weights in place; draws from torch's CPU generator.

    * Numbers that are one piece get a sinusoidal row: neighbouring bins are alike, so that coordinates are learned as
      quantities and not as hundreds of unrelated words.
    * The position table holds 2-D sinusoids, and patches and positions weigh about the same.
    * Queries and keys start equal, so that tokens attend to those like themselves.
    * Every head starts local: a bias of the queries meets relative-position tables that fall off around a shifted
      neighbour (as in ConViT).
    * The first head of every block reads the grid token: task concepts carry a marker, text positions carry its
      negative, so that only the grid token shows it, and that head's keys answer to it.

    Raises:
        UsageError: The model has no relative or no absolute positions to write to.
    """
    vit = model.config.vit
    if not (vit.rel_pos and vit.abs_pos):
        raise UsageError("the local start needs relative and absolute positions", where="model.vit")
    model.text_embed.words.weight.mul_(_WORD_STD / model.text_embed.words.weight.std())
    _order_numbers(model)
    model.backbone.patch_embed.weight.mul_(_PATCH_SCALE)
    if model.backbone.patch_embed.bias is not None:
        model.backbone.patch_embed.bias.mul_(_PATCH_SCALE)
    model.backbone.pos_embed.copy_(_sinusoids_2d(vit.grid_size, vit.width)[None] * _POSITION_SCALE)
    marker = F.normalize(torch.randn(vit.width), dim=0)
    _mark_grid_tokens(model, marker * _MARKER_NORM)
    for block in model.backbone:
        attention = block.attn
        d, width = attention.head_dim, vit.width
        attention.qkv.weight[width : 2 * width] = attention.qkv.weight[:width]
        for head in range(attention.heads):
            rows = slice(head * d, (head + 1) * d)
            direction = F.normalize(torch.randn(d), dim=0)
            attention.qkv.bias[rows].add_(_QUERY_BIAS * direction)
            for table in (attention.rel_pos_h, attention.rel_pos_w):
                offset = torch.arange(len(table)) - len(table) // 2 - int(torch.randint(-1, 2, ()))
                fall = (-_LOCALITY * offset.float() ** 2).clamp(min=-8)
                table.add_(fall[:, None] * direction / _QUERY_BIAS)
            if head == 0:
                gain = _MARKER_LOGIT * d**0.5 / (_QUERY_BIAS * _MARKER_SHARE * width**0.5)
                keys = slice(width + rows.start, width + rows.stop)
                attention.qkv.weight[keys] += gain * direction[:, None] * marker


def _order_numbers(model: GiT) -> None:
    configs = (model.config.detection, model.config.instance_segmentation, model.config.grounding)
    highest = max((config.num_bins for config in configs if config is not None), default=0)
    ids, _ = model.vocabulary.encode([str(number) for number in range(highest + 1)], max_length=20)
    numbers = (ids[:, 3:] == 0).all(dim=1).nonzero()[:, 0]
    half = model.config.vit.width // 2
    # Wavelengths from two ranges down to four bins.
    waves = math.pi * (highest / 4) ** (torch.arange(half) / (half - 1)) / max(highest, 1)
    angle = numbers[:, None] * waves
    rows = torch.cat([angle.sin(), angle.cos()], dim=1) * 2**0.5 * _WORD_STD
    model.text_embed.words.weight[ids[numbers, 1], : 2 * half] = rows


def _sinusoids_2d(side: int, width: int) -> Tensor:
    """``[side, side, width]``: sine and cosine of row and column, wavelengths from 4 to 40 positions."""
    quarter = width // 4
    waves = 2 * math.pi / (4 * 10 ** (torch.arange(quarter) / (quarter - 1)))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    parts = [wave(axis[..., None] * waves) for axis in (y, x) for wave in (torch.sin, torch.cos)]
    return F.pad(torch.cat(parts, dim=-1), (0, width - 4 * quarter))


def _mark_grid_tokens(model: GiT, marker: Tensor) -> None:
    model.text_embed.positions.weight.sub_(marker)
    names = [task.value for task in Task]
    ids, _ = model.vocabulary.encode(names, max_length=20)
    for row in ids[(ids[:, 3:] == 0).all(dim=1)]:  # task names of one piece are word rows
        model.text_embed.words.weight[row[1]] += marker
    model.concept_attention.out_proj.bias.add_(marker)  # the others are answers of the concept attention
