"""``saccade eval --suite``: evaluations of a frozen image tower."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from saccade.cli.parser import Parser, natural
from saccade.errors import UsageError

BATCH = 32
"""Pictures per forward pass where nothing else is said."""

OPTIONS = (
    "lora", "lora_multiplier", "vocabulary", "language", "train_root", "train_limit", "steps", "learning_rate",
    "probe", "cache", "seed",
)  # fmt: skip
"""What :func:`add_options` adds beside ``--suite``, as attributes."""


def add_options(parser: Parser) -> None:
    """Adds the options of suites to ``saccade eval``."""
    group = parser.add_argument_group(
        "suites", "frozen features measured zero-shot, by probes, or through a language model (docs/suites.md)"
    )
    group.add_argument(
        "--suite",
        default="",
        metavar="NAME",
        help="zero-shot: visft.imagenet, visft.imagenet_a, visft.imagenet_r, visft.imagenet_v2, visft.imagenet_sketch, "
        "visft.objectnet, visft.flickr30k, visft.coco_retrieval; probes: visft.ocr, visft.goi; by a language model: "
        "visft.vqav2, visft.okvqa, visft.nocaps; drawn, without data: visft.scenes. --root is the folder of the data",
    )
    group.add_argument(
        "--lora", type=Path, metavar="PATH", help="low-rank updates for the tower: an official file, or a checkpoint"
    )
    group.add_argument(
        "--lora-multiplier",
        type=int,
        choices=(1, 2),
        default=1,
        help="how often updates count: 1 (default), or 2 as the authors' code does in evaluation mode",
    )
    group.add_argument(
        "--vocabulary", type=Path, metavar="FILE", help="CLIP's bpe_simple_vocab_16e6.txt.gz, for released files"
    )
    group.add_argument("--language", type=Path, metavar="DIR", help="a language model of the OPT family (vqa, nocaps)")
    group.add_argument("--train-root", type=Path, metavar="DIR", help="what a probe is trained on")
    group.add_argument("--train-limit", type=natural, default=0, metavar="N", help="only N training samples")
    group.add_argument("--steps", type=natural, default=0, metavar="N", help="of a probe (default: as the suite says)")
    group.add_argument("--learning-rate", type=float, default=0.0, metavar="X", help="of a probe, likewise")
    group.add_argument("--probe", type=Path, metavar="FILE", help="a trained probe: read where it exists, else written")
    group.add_argument("--cache", type=Path, metavar="DIR", help="keep features there: a stopped run goes on")
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of everything that is drawn (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Runs one suite and shows what it found, and how."""
    from saccade.cli import screen
    from saccade.suites.base import SuiteOptions
    from saccade.suites.registry import find_suite, run_suite
    from saccade.suites.towers import open_tower
    from saccade.training.distributed import resolve_device

    if find_suite(arguments.suite).layout and not arguments.root:
        raise UsageError(f"--suite {arguments.suite} needs a folder", fix="--root DIR")
    tower = open_tower(
        arguments.model,
        lora=arguments.lora,
        multiplier=arguments.lora_multiplier,
        vocabulary=arguments.vocabulary,
        device=resolve_device(arguments.device),
    )
    with _Bars(arguments.suite) as bars:
        result = run_suite(
            arguments.suite,
            tower,
            SuiteOptions(
                root=Path(arguments.root),
                train_root=arguments.train_root,
                limit=arguments.limit,
                train_limit=arguments.train_limit,
                batch_size=arguments.batch_size or BATCH,
                workers=arguments.workers,
                precision=arguments.precision,
                cache=arguments.cache,
                probe=arguments.probe,
                steps=arguments.steps,
                learning_rate=arguments.learning_rate,
                language=arguments.language,
                seed=arguments.seed,
                progress=bars.update,
            ),
        )
    stamp = result.stamp
    rows = [{"metric": name, "value": value} for name, value in result.metrics.items()]
    screen.table(rows, title=f"{arguments.suite}: {result.items} items in {stamp['seconds']:.1f} s")
    screen.say(f"tower: {stamp['tower']}; {stamp['lora']}")
    screen.say(f"as published: {stamp['as_published']}")
    screen.say(f"reconstructed: {stamp['reconstructed']}")
    for text in result.notes:
        screen.note(f"note: {text}")
    for reason, count in result.left_out.items():
        screen.note(f"left out: {count} ({reason})")
    screen.write_json(arguments.json, result.to_dict())
    return 0


class _Bars:
    """One bar after the other, each with its own subject."""

    def __init__(self, suite: str) -> None:
        self._suite, self._what, self._open = suite, "", ExitStack()
        self._show: Callable[[int, int], None] = _nothing

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def update(self, what: str, done: int, total: int) -> None:
        """Shows how much of something is done."""
        from saccade.cli import screen

        if what != self._what:
            self._open.close()
            self._what, self._show = what, self._open.enter_context(screen.Steps(f"{self._suite}: {what}")).update
        self._show(done, total)


def _nothing(done: int, total: int) -> None:
    """Shows nothing: no subject is known yet."""
