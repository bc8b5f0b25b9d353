"""Errors of masks as GSVA counts them.

Shape legend: E expressions, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from saccade.layers.precision import full_precision

_SCALE, _SMOOTH = 1000.0, 1e-6  # sums are divided by the scale before the smoothing is added


def mask_bce(logits_EHW: Tensor, truth_EHW: Tensor) -> Tensor:
    """Mean over the pixels of the cross-entropy, per mask ``[E]``; truths are 0 or 1, as floats."""
    return F.binary_cross_entropy_with_logits(logits_EHW, truth_EHW, reduction="none").flatten(1).mean(1)


def mask_dice(logits_EHW: Tensor, truth_EHW: Tensor) -> Tensor:
    """One minus the soft overlap, per mask ``[E]``; truths are 0 or 1, as floats."""
    said, wanted = logits_EHW.float().sigmoid().flatten(1), truth_EHW.float().flatten(1)
    # A product of vectors, so that no map of products is kept for the backward pass; in bfloat16 it would be the only
    # sum of the three that is rounded, and a good mask would have less than no error.
    with full_precision(logits_EHW.device):
        overlap = 2 * (said[:, None] @ wanted[..., None])[:, 0, 0] / _SCALE
    return 1 - (overlap + _SMOOTH) / ((said.sum(1) + wanted.sum(1)) / _SCALE + _SMOOTH)
