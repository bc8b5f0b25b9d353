"""Steps of a published number of images, on as many processes as there are."""

from __future__ import annotations

import os

from saccade.errors import UsageError


def world_size(processes: int) -> int:
    """The processes asked for; 0 = those that torchrun started."""
    return processes or int(os.environ.get("WORLD_SIZE", "1"))


def batches_per_step(total: int, *, processes: int, images: int) -> int:
    """Batches that every process gathers until a step has ``total`` images.

    Raises:
        UsageError: ``images`` at a time on every process do not add up to it.
    """
    together = world_size(processes) * images
    if together < 1 or total % together:
        raise UsageError(
            f"{together} images at a time do not make a step of {total}",
            where="processes, images",
            fix=f"choose processes and images whose product divides {total}",
        )
    return total // together
