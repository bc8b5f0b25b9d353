"""What the comparisons of ViSFT's parts share: tolerances, heads with official weights, and one file's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from saccade.layers.point_losses import Draw
from saccade.mapping import apply_mapping, rename

if TYPE_CHECKING:
    from check import Report

FLOAT, GRADIENT = 1e-4, 1e-3

Head = TypeVar("Head", bound=nn.Module)


def load_weights(head: Head, rules: Sequence[tuple[str, str]], folder: Path) -> Head:
    """Gives a head the weights of the fixture, mapped from official names; the names map back to what they were."""
    official = {k: v for k, v in load_file(folder / "weights.safetensors").items() if rename(k, rules) is not None}
    expected = {key: tuple(tensor.shape) for key, tensor in head.state_dict().items()}
    mapped, report = apply_mapping(official, expected=expected, rename=lambda key: rename(key, rules))
    report.check()
    back = [(ours, theirs) for theirs, ours in rules]
    assert all(rename(ours, back) == theirs for theirs, ours in report.matched.items())
    head.load_state_dict(mapped)
    return head.eval()


class Tensors:
    """The tensors of one file, every one of which has to be compared or read.

    Args:
        report: Where rows go.
        path: The file; its rows are named after it.
    """

    def __init__(self, report: Report, path: Path) -> None:
        self.report, self.file, self.values = report, path.name, load_file(path)
        report.expect(self.file, list(self.values))

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def read(self, name: str) -> Tensor:
        """An input: nothing is left to compare."""
        self.report.skip(f"{self.file}/{name}")
        return self.values[name]

    def close(self, name: str, ours: Tensor, tolerance: float = FLOAT) -> None:
        """Compares floats."""
        self.report.close(f"{self.file}/{name}", ours, self.values[name], tolerance)

    def same(self, name: str, ours: Tensor, allowed: float = 0.0) -> None:
        """Compares integers and truth values."""
        self.report.same(f"{self.file}/{name}", ours, self.values[name], allowed=allowed)

    def equal(self, name: str, ours: object, reference: object) -> None:
        """Compares what is no tensor of the file."""
        self.report.equal(f"{self.file}/{name}", ours, reference)


def recorded_draws(calls: Sequence[Tensor]) -> Draw:
    """Draws of the original for one image, in our order.

    Args:
        calls: Points of the assignment, to choose from, and added, of the last prediction; the same of the first, the
            second ...: the order of the original's calls.
    """
    layers = [calls[start : start + 3] for start in (*range(3, len(calls), 3), 0)]
    queue = [torch.cat([layer[0] for layer in layers]), *(points for layer in layers for points in layer[1:])]
    waiting = iter(queue)

    def draw(rows: int, points: int, device: torch.device) -> Tensor:
        drawn = next(waiting)
        assert drawn.shape == (rows, points, 2), f"{tuple(drawn.shape)} were drawn, not {(rows, points, 2)}"
        return drawn.to(device)

    return draw
