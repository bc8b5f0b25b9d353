"""The start of a backbone that nothing was loaded into, as the EVA family publishes it; heads start by themselves.

A small backbone that learns from captions alone, as published, loses where things are: positions start at a thirtieth
of what patches are, and nothing asks for them. :func:`initialise_local` makes them strong enough to last, so that heads
on the frozen map can say boxes.
"""

from __future__ import annotations

import torch
from torch import nn

from saccade.layers.local_start import sinusoids_2d, start_local
from saccade.layers.vit import PlainViT

_STD = 0.02
_POSITION_SCALE = 0.3


@torch.no_grad()
def initialise_published(backbone: PlainViT) -> None:
    """Draws the linear layers anew: deviation 0.02 (cut at 2), biases 0, outputs of block i divided by sqrt(2 i).

    Args:
        backbone: Changed in place; draws from torch's CPU generator.
    """
    for number, block in enumerate(backbone, start=1):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD, a=-2, b=2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.div_((2 * number) ** 0.5)


@torch.no_grad()
def initialise_local(backbone: PlainViT) -> None:
    """The published start with a position table of 2-D sinusoids, a third of what patches are.

    A backbone of another family, whose heads have relative positions, starts as that family does
    (:func:`saccade.layers.local_start.start_local`).

    Args:
        backbone: Changed in place; draws from torch's CPU generator.

    Raises:
        UsageError: The backbone has no absolute positions to write to.
    """
    if backbone.config.rel_pos or not backbone.config.abs_pos:
        start_local(backbone)
        return
    initialise_published(backbone)
    backbone.pos_embed.copy_(sinusoids_2d(backbone.pos_embed.shape[1], backbone.config.width)[None] * _POSITION_SCALE)
