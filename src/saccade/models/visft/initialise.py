"""The start of a backbone that nothing was loaded into, as the EVA family publishes it; heads start by themselves."""

from __future__ import annotations

import torch
from torch import nn

from saccade.layers.vit import PlainViT

_STD = 0.02


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
