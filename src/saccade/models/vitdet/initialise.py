"""The start of a detector that nothing was loaded into, as the two families publish it (docs/vitdet.md)."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from saccade.models.vitdet.model import ViTDet

_STD = 0.02
_MASK_LOGITS_STD = 0.001


@torch.no_grad()
def initialise_published(model: ViTDet) -> None:
    """Draws the linear layers of the backbone anew, and what the families start differently in pyramid and heads.

    Backbone: linear weights from a normal distribution of deviation 0.02 (cut at 2), biases 0. The ViTAE repository:
    Xavier-uniform pyramid. detectron2: the fully connected layer of the box head uniform (Kaiming with a = 1, which
    Caffe calls Xavier), mask logits from a normal distribution of deviation 0.001.

    Args:
        model: Changed in place; draws from torch's CPU generator.
    """
    for module in model.backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_STD, a=-2, b=2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.config.rpn.norm_eps:  # the ViTAE repository's form: detectron2's proposal network has no norm
        for part in (model.pyramid.lateral, model.pyramid.output):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)
        return
    for head in model.roi.box_heads:
        nn.init.kaiming_uniform_(cast(nn.Linear, head.fc).weight, a=1)
    for head in model.roi.mask_heads:
        nn.init.normal_(cast(nn.Conv2d, head.logits).weight, std=_MASK_LOGITS_STD)
