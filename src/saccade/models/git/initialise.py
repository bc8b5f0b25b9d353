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

from saccade.layers.local_start import start_local
from saccade.models.git.config import GIT_TASKS

if TYPE_CHECKING:
    from saccade.models.git.model import GiT

_WORD_STD = 0.1
_MARKER_NORM = 2.0


@torch.no_grad()
def initialise_local(model: GiT) -> None:
    """Rewrites fresh weights in place; draws from torch's CPU generator.

    * Numbers that are one piece get a sinusoidal row: neighbouring bins are alike, so that coordinates are learned as
      quantities and not as hundreds of unrelated words.
    * The backbone starts local (:func:`saccade.layers.local_start.start_local`).
    * The first head of every block reads the grid token: task concepts carry a marker, text positions carry its
      negative, so that only the grid token shows it, and that head's keys answer to it.

    Raises:
        UsageError: The model has no relative or no absolute positions to write to.
    """
    vit = model.config.vit
    model.text_embed.words.weight.mul_(_WORD_STD / model.text_embed.words.weight.std())
    _order_numbers(model)
    marker = F.normalize(torch.randn(vit.width), dim=0)
    _mark_grid_tokens(model, marker * _MARKER_NORM)
    start_local(model.backbone, marker=marker)


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


def _mark_grid_tokens(model: GiT, marker: Tensor) -> None:
    model.text_embed.positions.weight.sub_(marker)
    names = [task.value for task in GIT_TASKS]
    ids, _ = model.vocabulary.encode(names, max_length=20)
    for row in ids[(ids[:, 3:] == 0).all(dim=1)]:  # task names of one piece are word rows
        model.text_embed.words.weight[row[1]] += marker
    model.concept_attention.out_proj.bias.add_(marker)  # the others are answers of the concept attention
