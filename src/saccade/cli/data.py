"""``saccade data``: draw a data set, look for defects in one, bring one into another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from saccade.cli.parser import Verbs, add_json, natural, positive


def add(verbs: Verbs) -> None:
    """Adds the verb with its second words ``scenes``, ``check`` and ``convert``."""
    parser = verbs.add(
        "data",
        summary="Draw a data set, check one for defects, or convert one.",
        examples=[
            "saccade data scenes --out scenes --format coco --count 100",
            "saccade data check lesions/",
            "saccade data convert lesions/ --from mask_folder --to coco --out lesions_coco",
        ],
    )
    words = Verbs(parser)
    _add_scenes(words)


def _add_scenes(words: Verbs) -> None:
    parser = words.add(
        "scenes",
        summary="Draw scenes with the truth for every task and write them in an official layout.",
        examples=["saccade data scenes --out scenes --format coco --count 100 --split val"],
        run=_scenes,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="root folder of the data set")
    parser.add_argument(
        "--format", default="coco", help="coco, ade, karpathy, refcoco, grefcoco or nyu (default: coco)"
    )
    parser.add_argument("--count", type=positive, default=100, metavar="N", help="how many scenes (default: 100)")
    parser.add_argument("--split", default="val", help="train, val or test (default: val)")
    parser.add_argument("--size", type=positive, default=224, metavar="PX", help="height in pixels (default: 224)")
    parser.add_argument("--seed", type=natural, default=0, help="seed of the world (default: 0)")
    add_json(parser)


def _scenes(arguments: argparse.Namespace) -> int:
    from saccade.cli import screen
    from saccade.data.scenes import write_scenes

    with screen.Steps("draw") as steps:
        written = write_scenes(
            arguments.out,
            format=arguments.format,
            count=arguments.count,
            split=arguments.split,
            size=arguments.size,
            seed=arguments.seed,
            progress=lambda index: steps.update(index + 1, arguments.count),
        )
    screen.table([{"": key, "written": _shown(value)} for key, value in written.items()])
    screen.write_json(arguments.json, written)
    return 0


def _shown(value: object) -> object:
    if isinstance(value, list | tuple):
        return f"{len(value)}: {', '.join(str(item) for item in value[:3])}{' ...' if len(value) > 3 else ''}"
    return value
