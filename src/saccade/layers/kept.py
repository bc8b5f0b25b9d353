"""Tensors that follow from weights, kept as long as those stand still."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def stamp_of(weights: Iterable[Tensor]) -> tuple[object, ...]:
    """What changes when one of the weights does, or the arithmetic they are used in.

    In-place updates (optimiser, EMA, loading) raise a tensor's version; moves change its address. Fused optimisers
    raise no version: who keeps something drops it in a pass with gradients, for such a step may follow.
    """
    weights = list(weights)
    if any(w.is_inference() for w in weights):
        return (object(),)  # such tensors count no versions: nothing is kept
    stamp = tuple((w._version, w.data_ptr(), w.dtype) for w in weights)
    device = weights[0].device.type
    return (*stamp, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)
