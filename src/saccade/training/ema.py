"""An exponential moving average of the weights, which is what evaluation and saving use when it is on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from saccade.errors import CheckpointError


class WeightAverage:
    """Averages every trained parameter; of frozen ones and of buffers the model's own are used.

    The decay ramps up as ``min(decay, (1 + step) / (10 + step))``, so that a short run does not average in its random
    start. It depends on the step alone, so a resumed run needs no counter.

    Args:
        model: The model to follow; the average starts at its present weights.
        decay: Decay per optimiser step, 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: parameter.detach().clone() for name, parameter in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the present weights.

        Args:
            step: 0-based optimiser step just done.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        average = list(self._average.values())
        live = [parameter.detach() for parameter in self._live.values()]
        torch._foreach_lerp_(average, live, 1.0 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the context the model holds the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._live.items():
            parameter.data, self._average[name] = self._average[name], parameter.data

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by parameter name."""
        return dict(self._average)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`tensors` gave.

        Raises:
            CheckpointError: Other names than the model's.
        """
        if set(tensors) != set(self._average):
            odd = sorted(set(tensors) ^ set(self._average))
            raise CheckpointError("the averaged weights in the checkpoint do not fit the model", where=odd[:5])
        for name, value in tensors.items():
            self._average[name].copy_(value)
