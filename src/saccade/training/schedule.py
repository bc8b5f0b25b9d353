"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from saccade.training.config import OptimConfig

_LINEAR_END = 0.01


def learning_rate(step: int, *, steps: int, optim: OptimConfig, multiplier: float = 1.0) -> float:
    """Learning rate of one parameter group at one step.

    Without warm-up the cosine is that of the GiT recipes:
    ``lr(t) = min_lr + (base - min_lr) * (1 + cos(pi * t / T)) / 2`` with ``base = lr * multiplier``. ``min_lr`` is
    absolute: groups with a small multiplier end at the same rate as the others. With warm-up the first ``warmup_steps``
    steps rise linearly to ``base`` and the cosine spans the rest (or the whole, with ``warmup_counted``). With
    ``warmup_start`` the rise is that of mmcv and detectron2: it begins with that share and reaches ``base`` at step
    ``warmup_steps``. The schedules ``deepspeed`` and ``transformers`` have their own warm-up, from 0.

    Args:
        step: 0-based optimiser step.
        steps: Steps of the whole run (T).
        optim: Base rate, schedule, warm-up.
        multiplier: Layer multiplier of the group.
    """
    base = optim.lr * multiplier
    warmup = min(optim.warmup_steps, steps)
    if optim.schedule == "deepspeed":
        late = step - 1  # its scheduler first acts behind the first step
        rise = 1.0 if late < 0 else late / warmup if late < warmup else 1.0
        return base * min(rise, max(0.0, (steps - max(late, 0)) / max(1, steps - warmup)))
    if optim.schedule == "transformers":
        if step < warmup:
            return base * step / warmup
        return base * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    drops = sum(step >= milestone for milestone in optim.milestones) if optim.schedule == "steps" else 0
    base *= optim.milestone_factor**drops
    if optim.schedule == "linear":
        base *= 1 - (1 - _LINEAR_END) * step / steps
    if step < warmup:
        if optim.warmup_start:
            return base * (optim.warmup_start + (1 - optim.warmup_start) * step / warmup)
        return base * (step + 1) / warmup
    if optim.schedule != "cosine":
        return base
    before = 0 if optim.warmup_counted else warmup
    progress = (step - before) / max(1, steps - before)
    return optim.min_lr + (base - optim.min_lr) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
