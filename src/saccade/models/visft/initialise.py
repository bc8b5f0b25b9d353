"""The start of a backbone that nothing was loaded into, as the EVA family publishes it; heads start by themselves.

A small backbone that learns from captions alone, as published, loses where things are: positions start at a thirtieth
of what patches are, and nothing asks for them. With :func:`initialise_local` they last, so that heads on the frozen map
can say boxes.
"""

from __future__ import annotations

import torch
from torch import nn

from saccade.layers.local_start import look_around, scale_linears, start_local
from saccade.layers.vit import PlainViT

_STD = 0.02
_POSITION_GAIN = 2.0  # where no norm stands before the first block


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
    """Heads that look at the patches around, by positions that last (:func:`saccade.layers.local_start.look_around`).

    A backbone of another family, whose heads have relative positions, starts as that family does
    (:func:`saccade.layers.local_start.start_local`).

    Args:
        backbone: Changed in place; draws from torch's CPU generator.

    Raises:
        UsageError: The backbone has no absolute positions to write to, or heads that cannot tell places.
    """
    vit = backbone.config
    if vit.rel_pos or not vit.abs_pos:
        start_local(backbone)
        return
    scale_linears(backbone, vit.depth, small=("attn.proj", "mlp.fc2"))
    tables = [block.attn.qkv.weight.split(vit.width) for block in backbone]
    look_around(backbone.patch_embed.weight, backbone.pos_embed, [(q, k) for q, k, _ in tables], heads=vit.heads)
    backbone.pos_embed.mul_(_POSITION_GAIN)
