import subprocess
import sys

import pytest

_COUNT = """
import resource, sys
import torch
from saccade import memory
if sys.argv[1] == "keep" and not memory.keep_freed_memory():
    sys.exit(9)
torch.set_num_threads(1)
for _ in range(30):  # the first blocks are laid side by side
    torch.ones(20_000_000)  # 80 MB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    """Pages that a block of 80 MB has to ask the system for after many of its size."""
    found = subprocess.run([sys.executable, "-c", _COUNT, mode], check=False, capture_output=True, text=True)
    if found.returncode == 9:
        pytest.skip("the C library is not glibc")
    return int(found.stdout)


def test_a_freed_block_is_reused_without_a_page_fault() -> None:
    assert _faults("plain") > 10_000 and _faults("keep") < 100


def test_the_command_line_keeps_freed_memory_and_a_call_of_main_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade import cli

    kept: list[bool] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: kept.append(True))
    assert cli.main(["--version"]) == 0 and not kept
    monkeypatch.setattr(sys, "argv", ["saccade", "--version"])
    assert cli.main() == 0 and kept
