"""``saccade demo``: every task on sample pictures, as a page to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

from saccade.cli.parser import Verbs, add_device, positive


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "demo",
        summary="Run every task on sample pictures; writes annotated PNGs, JSON and one page. Needs no network.",
        examples=["saccade demo --out demo", "saccade demo --out demo --model runs/mine/checkpoints/best --images 2"],
        run=_run,
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default: demo)")
    parser.add_argument("--images", type=positive, default=6, metavar="N", help="pictures per task (default: 6)")
    parser.add_argument(
        "--model",
        nargs="+",
        metavar="MODEL",
        help="names from `saccade models list`, or checkpoint folders; a task is shown by the first model that offers "
        "it (default: bundled ones)",
    )
    add_device(parser)


def _run(arguments: argparse.Namespace) -> int:
    from saccade.cli import screen
    from saccade.demo import MODELS, run_demo

    page = run_demo(arguments.out, models=arguments.model or MODELS, images=arguments.images, device=arguments.device)
    screen.say(f"open {page}")
    return 0
