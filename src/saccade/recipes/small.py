"""What small models that begin at random weights have in common."""

from __future__ import annotations

from saccade.training.config import LayerRates, OptimConfig

STEM_RATES = LayerRates(floor=0.1, frozen_until=-1, first_full=0)
"""A tenth of the rate for the patch embedding and the position table, the full rate elsewhere."""


def scratch_optim(steps: int) -> OptimConfig:
    """The optimiser of a run of ``steps`` steps; a recipe replaces what its model needs otherwise."""
    return OptimConfig(
        lr=1e-3,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        decay_matrices_only=True,
        clip_norm=1.0,
        warmup_steps=min(300, steps // 10),
        min_lr=1e-5,
    )
