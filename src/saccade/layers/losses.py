"""Losses of dense maps that more than one part of the house uses."""

from __future__ import annotations

from torch import Tensor

_LEAST_DEPTH = 1e-3


def valid_squared_error(said: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error over the positions where the truth is above 0 (0 where there is none), any shape."""
    valid = wanted > 0
    return ((said - wanted).square() * valid).sum() / valid.sum().clamp(min=1)


def scale_invariant_log_error(said_m: Tensor, wanted_m: Tensor) -> Tensor:
    """``sqrt(mean d^2 - mean(d)^2 / 2)`` of the difference of log depths (Eigen et al., 2014).

    Args:
        said_m: Metres, any shape; values below 1 mm count as 1 mm.
        wanted_m: Metres; 0 marks what is unknown.

    Returns:
        A scalar, 0 where nothing is known.
    """
    valid = wanted_m > 0
    count = valid.sum().clamp(min=1)
    log = wanted_m.clamp(min=_LEAST_DEPTH).log() - said_m.clamp(min=_LEAST_DEPTH).log()
    d = log * valid
    # The square root of 0 would have no gradient.
    return (d.square().sum() / count - 0.5 * (d.sum() / count).square()).clamp(min=1e-12).sqrt() * valid.any()


def dice_error(said: Tensor, wanted: Tensor) -> Tensor:
    """One minus the soft Dice overlap of masks ``[R, ...]`` in 0..1 (clipped), per mask ``[R]``."""
    said, wanted = said.clamp(0, 1).flatten(1), wanted.flatten(1)
    return 1 - (2 * (said * wanted).sum(1) + 1) / (said.sum(1) + wanted.sum(1) + 1)
