"""What a loss needs to know of other processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(value: Tensor | float, like: Tensor) -> Tensor:
    """The mean of a number over all processes (the number itself without a process group)."""
    total = torch.as_tensor(value, dtype=torch.float32, device=like.device).clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total
