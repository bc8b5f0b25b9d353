"""Averages of a logging interval: losses, speed, share of time waiting for data, memory."""

from __future__ import annotations

import resource
import sys
from collections import defaultdict
from pathlib import Path

import torch

from saccade.training.distributed import World
from saccade.training.engine import StepReport


class Meter:
    """Collects step reports until :meth:`flush`.

    Args:
        world: This process among all; losses are averaged and images summed over its ranks.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._norms: list[float] = []
        self._images, self._waited_s, self._seconds, self._lr = 0, 0.0, 0.0, 0.0

    def add(self, report: StepReport, *, waited_s: float, seconds: float) -> None:
        """Adds one step.

        Args:
            report: What the engine said.
            waited_s: Seconds spent waiting for the step's batches.
            seconds: Seconds of the whole step, waiting included.
        """
        for task, losses in report.losses:
            for name, value in losses.items():
                entry = self._sums[loss_key(task, name)]
                entry[0] += value
                entry[1] += 1
        self._images += report.images
        self._waited_s += waited_s
        self._seconds += seconds
        self._norms.append(report.grad_norm)
        self._lr = report.lr

    def flush(self) -> dict[str, float]:
        """Means over the interval and all ranks; every rank must call it at the same step.

        Returns:
            ``loss`` (mean total over all batches), ``<task>/<loss>`` per named loss, ``lr``, ``grad_norm``,
            ``images_per_s`` (all ranks), ``data_wait`` (0..1, the worst rank), ``memory_gb`` (the greatest rank).
        """
        ranks = self.world.gather(
            (dict(self._sums), self._images, self._waited_s / max(1e-9, self._seconds), memory_gb(self.world.device))
        )
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for entries, *_ in ranks:
            for key, (total, count) in entries.items():
                sums[key][0] += total
                sums[key][1] += count
        totals = [entry for key, entry in sums.items() if key.endswith("/total")]
        values = {"loss": sum(total for total, _ in totals) / max(1.0, sum(count for _, count in totals))}
        values |= {key: total / count for key, (total, count) in sorted(sums.items())}
        values |= {
            "lr": self._lr,
            "grad_norm": sum(self._norms) / max(1, len(self._norms)),
            "images_per_s": sum(images for _, images, _, _ in ranks) / max(1e-9, self._seconds),
            "data_wait": max(wait for _, _, wait, _ in ranks),
            "memory_gb": max(memory for *_, memory in ranks),
        }
        self._clear()
        return values


def loss_key(task: str, name: str) -> str:
    """``<task>/<loss>``; a task name repeated at the front of the loss name is dropped."""
    return f"{task}/{name.removeprefix(f'{task}_')}"


def memory_gb(device: torch.device) -> float:
    """Memory in GB (10^9 bytes): the peak of torch's allocator on a GPU, the resident set of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e9
    # Without /proc only the peak is known: kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1000) / 1e9
