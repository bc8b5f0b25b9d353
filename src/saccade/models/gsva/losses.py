"""Errors of masks as GSVA counts them.

Shape legend: E expressions, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_SCALE, _SMOOTH = 1000.0, 1e-6  # sums are divided by the scale before the smoothing is added


def mask_bce(logits_EHW: Tensor, truth_EHW: Tensor) -> Tensor:
    """Mean over the pixels of the cross-entropy, per mask ``[E]``; truths are 0 or 1, as floats."""
    return F.binary_cross_entropy_with_logits(logits_EHW, truth_EHW, reduction="none").flatten(1).mean(1)


def mask_dice(logits_EHW: Tensor, truth_EHW: Tensor) -> Tensor:
    """One minus the soft overlap, per mask ``[E]``; truths are 0 or 1, as floats."""
    said, wanted = logits_EHW.sigmoid().flatten(1), truth_EHW.flatten(1)
    overlap = 2 * (said / _SCALE * wanted).sum(1)
    return 1 - (overlap + _SMOOTH) / ((said / _SCALE).sum(1) + (wanted / _SCALE).sum(1) + _SMOOTH)
