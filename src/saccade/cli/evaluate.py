"""``saccade eval``: the official metrics of a model on a data set."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from saccade.cli import suites
from saccade.cli.parser import (
    Parser,
    Verbs,
    add_depth_scale,
    add_detector_options,
    add_device,
    add_json,
    add_mask_suffix,
    comma_list,
    detector_options,
    natural,
    positive,
)
from saccade.errors import UsageError, nearest

if TYPE_CHECKING:
    from saccade.data.sources import SourceSpec
    from saccade.tasks import Task
    from saccade.training.evaluation import EvalResult

SCENES = "scenes"
"""The data set that needs no folder and has every task."""

TRUTH = "truth"
"""The word of ``--centers`` that is no model."""

_OF_DATA_SETS = (
    "data", "split", "images", "annotations", "classes", "mask_suffix", "depth_scale", "task", "engine", "protocol",
    "answers", "centers", "per_class", "soft_nms", "test_sizes", "test_flip",
)  # fmt: skip
"""What is only said of a data set, never of a suite."""


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "eval",
        summary="Measure a model on a data set with the official metrics.",
        examples=[
            "saccade eval git-nano --data scenes --task detection --limit 100",
            "saccade eval git-nano --data scenes                  (every task)",
            "saccade eval runs/lesions/checkpoints/best --data isic2018 --root isic --task semantic --centers truth",
            "saccade eval git-base --data coco --root /data/coco --task detection --json result.json",
            "saccade eval git-nano --suite visft.goi --root /data/coco",
        ],
        run=_run,
    )
    parser.add_argument("model", metavar="MODEL", help="a name from `saccade models list`, or a checkpoint folder")
    add_source(parser, split="val")
    parser.add_argument(
        "--task", metavar="TASKS", type=comma_list, help="one or several; scenes: default all of the model"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help=f"images per forward pass (default: 1; of suites: {suites.BATCH})",
    )
    parser.add_argument("--workers", type=natural, default=0, metavar="N", help="loader processes (default: 0)")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="default: float32")
    parser.add_argument(
        "--engine",
        choices=("pycocotools", "faster"),
        default="pycocotools",
        help="pycocotools (default): the reference programs, METEOR (Java) among them; faster: the same AP sooner, "
        "no METEOR",
    )
    parser.add_argument(
        "--protocol",
        default="",
        metavar="NAME",
        help="how detection and instance segmentation are scored: coco, boundary (masks too at their edges), lvis, "
        "voc07, voc10 (default: lvis for LVIS, else coco); label maps: areas (default), polar (as that paper); "
        "phrases: gsva, refzom, rela, res, reasonseg, lisa, grec "
        "(default: as the data set is); depth: nyu (default) or what differs, e.g. crop=none,max_m=80",
    )
    parser.add_argument(
        "--answers",
        choices=("given", "own", "free"),
        default="given",
        help="phrases: given (default): the model judges the true answers one by one, as published; own: it says of "
        "each phrase whether it is there, after its own answers before; free: it says everything, word by word",
    )
    parser.add_argument(
        "--centers",
        metavar="truth|MODEL",
        help="polar models: take the centres of the truth, or those that a model finds (default: its own finder)",
    )
    suites.add_options(parser)
    parser.add_argument("--per-class", action="store_true", help="also show the metrics of every class")
    add_detector_options(parser)
    add_device(parser)
    add_json(parser)


def add_source(parser: Parser, *, split: str) -> None:
    """Adds the options that say which data set to open.

    Args:
        parser: Where to.
        split: The default split.
    """
    parser.add_argument(
        "--data", default=SCENES, metavar="READER", help=f"how to read the data set (default: {SCENES})"
    )
    parser.add_argument("--root", default="", metavar="DIR", help="folder of the data set")
    parser.add_argument("--split", default=split, help=f"default: {split}")
    parser.add_argument(
        "--images", default="", metavar="DIR", help="image folder in the root, where the format leaves it open"
    )
    parser.add_argument(
        "--annotations", default="", metavar="FILE", help="annotation file (or mask folder) in the root, likewise"
    )
    parser.add_argument(
        "--classes", type=comma_list, default=(), metavar="A,B", help="class names, where the format has none"
    )
    add_mask_suffix(parser)
    add_depth_scale(parser)
    parser.add_argument(
        "--limit", type=natural, default=0, metavar="N", help="only the first N samples (default: 0, all)"
    )


def source_spec(arguments: argparse.Namespace, task: Task) -> SourceSpec:
    """The data set that the options of :func:`add_source` name, without empty pictures where its paper has none."""
    from saccade.data.sources import DRAWN, WITHOUT_EMPTY, SourceSpec

    if arguments.data not in DRAWN and not arguments.root:
        raise UsageError(f"--data {arguments.data} needs a folder", fix="--root DIR")
    return SourceSpec(
        task=task,
        reader=arguments.data,
        root=arguments.root,
        split=arguments.split,
        images=arguments.images,
        annotations=arguments.annotations,
        classes=tuple(arguments.classes),
        limit=arguments.limit,
        mask_suffix=arguments.mask_suffix,
        depth_scale=arguments.depth_scale,
        drop_empty=arguments.data in WITHOUT_EMPTY,
    )


def _run(arguments: argparse.Namespace) -> int:
    from saccade.cli import screen
    from saccade.data.sources import READERS, open_source
    from saccade.hub.resolve import load_model
    from saccade.models.systems import set_detector_options, set_finder
    from saccade.tasks import parse_task
    from saccade.training.distributed import resolve_device
    from saccade.training.evaluation import evaluate

    if arguments.suite:
        _refuse(
            arguments, _OF_DATA_SETS, "a suite opens its own data in its own way", "leave it out, or leave out --suite"
        )
        return suites.run(arguments)
    _refuse(arguments, suites.OPTIONS, "it says how a suite is run", "--suite NAME, or leave it out")
    if arguments.data not in READERS:
        raise UsageError(f"unknown reader '{arguments.data}'", fix=nearest(arguments.data, READERS))
    asked = [parse_task(name) for name in arguments.task or ()]
    if not asked and arguments.data != SCENES:
        raise UsageError("say which task to evaluate", where=f"--data {arguments.data}", fix="--task detection")
    device = resolve_device(arguments.device)
    model = load_model(arguments.model, device=device).model
    set_detector_options(model, detector_options(arguments))
    finder = "" if arguments.centers in (None, TRUTH) else arguments.centers
    if finder:
        set_finder(model, load_model(finder, device=device).model)
    results: dict[str, EvalResult] = {}
    for task in asked or model.tasks:
        source = open_source(source_spec(arguments, task))
        with screen.Steps(f"eval {task}") as steps:
            result = evaluate(
                model,
                source,
                batch_size=arguments.batch_size or 1,
                workers=arguments.workers,
                precision=arguments.precision,
                engine=arguments.engine,
                protocol=arguments.protocol,
                answer=arguments.answers,
                centers="truth" if arguments.centers == TRUTH else "own",
                finder=finder,
                progress=steps.update,
                checkpoint=arguments.model,
            )
        _show(str(task), result, per_class=arguments.per_class)
        results[str(task)] = result
    screen.write_json(arguments.json, {name: result.to_dict() for name, result in results.items()})
    return 0


def _refuse(arguments: argparse.Namespace, names: Iterable[str], why: str, fix: str) -> None:
    """Refuses options that would do nothing.

    Raises:
        UsageError: One of them has another value than its default.
    """
    for name in names:
        if getattr(arguments, name) != arguments.parser.get_default(name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} would have no effect here", where="saccade eval", why=why, fix=fix)


def _show(task: str, result: EvalResult, *, per_class: bool) -> None:
    from saccade.cli import screen

    title = f"{task}: {result.images} images in {result.seconds:.1f} s"
    rows: list[dict[str, Any]] = [{"metric": name, "value": value} for name, value in result.metrics.items()]
    screen.table(rows, title=title)
    if per_class and result.per_class:
        screen.table([{"class": name, **values} for name, values in result.per_class.items()])
    screen.say(f"protocol: {result.stamp['protocol']}")
    for text in result.stamp["notes"]:
        screen.note(f"note: {text}")
    for reason, count in result.stamp["left_out"].items():
        screen.note(f"left out: {count} ({reason})")
    screen.say("")
