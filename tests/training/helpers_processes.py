"""Processes of tests: started from a clean server, and ranks that talk to one another."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import torch

# A server that has imported everything once and computed nothing: its forks start at once and are clean.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["saccade.training.trainer", "helpers_training"])


def run(target: Callable[..., None], *arguments: object) -> BaseProcess:
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def finish(*processes: BaseProcess, timeout_s: float = 120) -> list[int | None]:
    for process in processes:
        process.join(timeout_s)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def ranks(target: Callable[..., None], *arguments: object) -> None:
    """Runs the target on two ranks and waits for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [run(_as_rank, rank, port, target, *arguments) for rank in range(2)]
    assert finish(*ranks) == [0, 0]


def _as_rank(rank: int, port: int, target: Callable[..., None], *arguments: object) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    target(*arguments)
