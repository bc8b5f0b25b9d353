"""``saccade bench``: how long a task takes, against a reference measured in the same process."""

from __future__ import annotations

import argparse

from saccade.cli.parser import Verbs


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "bench",
        summary="Measure milliseconds per image, and the ratio to torchvision's ViT-B/16 at 224 px.",
        examples=[
            "saccade bench git --task detection --preset base",
            "saccade bench git --task detection --preset base --dtype bf16 --json bench.json",
        ],
        run=_run,
    )
    parser.add_argument("system", help="the system, e.g. git (random weights)")
    parser.add_argument("--task", default="detection", help="detection, instance, semantic, caption or grounding")
    parser.add_argument("--preset", default="base", help="the size (default: base)")


def _run(arguments: argparse.Namespace) -> int:
    return 0
