"""One process or many: what a rank needs to know, and how ranks agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from saccade.errors import ConfigError, TrainingError

T = TypeVar("T")


@dataclass(kw_only=True, frozen=True)
class World:
    """This process among all processes of the run.

    Attributes:
        rank: 0..size-1.
        size: Processes of the run.
        device: Where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Element-wise "on at least one rank"; every rank must call it at the same point."""
        if self.size == 1:
            return list(flags)
        votes = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def gather(self, value: T) -> list[T]:
        """The value of every rank, on every rank, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, work: Callable[[], T]) -> T:
        """Does something on the main process only, and gives its result to every rank.

        Every rank must call it at the same point. If it fails on the main process, it fails on every rank.
        """
        if self.size == 1:
            return work()
        result: T | None = None
        failure: Exception | None = None
        if self.is_main:
            try:
                result = work()
            except Exception as error:
                failure = error
        value, message = self.gather((result, None if failure is None else str(failure)))[0]
        if failure is not None:
            raise failure
        if message is not None:
            raise TrainingError("the main process failed", where="rank 0", why=message)
        return cast(T, value)


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """Joins the processes that ``torchrun`` started, or makes a world of one.

    Args:
        device: ``auto`` (the GPU of this local rank where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Yields:
        This process's world; the process group is closed on exit if it was opened here.

    Raises:
        ConfigError: A GPU is asked for and none is found, or one fixed GPU for several processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = resolve_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")), processes=size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    opened = size > 1 and not dist.is_initialized()
    if opened:
        # Control messages (stop requests, logs, metrics) travel as CPU tensors, gradients on the device.
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank=dist.get_rank() if size > 1 else 0, size=size, device=chosen)
    finally:
        if opened:
            dist.destroy_process_group()


def resolve_device(device: str, *, local_rank: int = 0, processes: int = 1) -> torch.device:
    """Turns the configured device into a concrete one.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        local_rank: Number of this process on its machine.
        processes: Processes of the run.

    Raises:
        ConfigError: See :func:`open_world`.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device '{device}'", fix="use auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device '{device}' is asked for, but torch sees no GPU", fix="use device=cpu or auto")
        if chosen.index is not None and processes > 1:
            raise ConfigError(f"device '{device}' names one GPU, but {processes} processes run", fix="use device=cuda")
        index = chosen.index if chosen.index is not None else local_rank
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"there is no GPU number {index}", why=f"torch sees {torch.cuda.device_count()} GPU(s), counted from 0"
            )
        chosen = torch.device("cuda", index)
    return chosen
