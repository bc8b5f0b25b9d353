"""``saccade data``: draw a data set, look for defects in one, bring one into another format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from saccade.cli.parser import (
    Parser,
    Verbs,
    add_depth_scale,
    add_json,
    add_mask_suffix,
    comma_list,
    fraction,
    natural,
    positive,
)
from saccade.errors import SaccadeError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from saccade.data.check import Report
    from saccade.data.sources import SourceSpec

_BOXES_ONLY = ("voc", "objects365", "v3det", "crowdhuman", "crowdhuman_visible", "wider_face")
_PHRASES = ("grefcoco", "refzom", "reasonseg", "paco", "pascal_part", "llava_instruct")
_ALL_SPLITS = "caption_hdf5"  # written at once: its words are those of all splits
SPLITS = ("train", "val", "test", "testA", "testB")
"""Splits that are looked for where none is named."""


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
    _add_check(words)
    _add_convert(words)


# --- scenes ----------------------------------------------------------------------------------------------------------


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


# --- check -----------------------------------------------------------------------------------------------------------


def _add_check(words: Verbs) -> None:
    parser = words.add(
        "check",
        summary="Look for every defect of a data set; exit code 1 where there is one.",
        examples=[
            "saccade data check lesions/",
            "saccade data check cells/ --format voc --split train --json report.json",
        ],
        run=_check,
    )
    parser.add_argument("root", metavar="DIR", help="folder of the data set")
    parser.add_argument("--format", metavar="READER", help="coco, voc, mask_folder ... (default: recognised)")
    _add_files(parser)
    parser.add_argument("--task", help="which annotations, where there are several kinds: detection, semantic ...")
    parser.add_argument("--headers-only", action="store_true", help="do not decode the images (faster, sees less)")
    parser.add_argument("--examples", type=natural, default=5, metavar="N", help="examples per defect (default: 5)")
    add_json(parser)


def _add_files(parser: Parser) -> None:
    parser.add_argument("--split", help="only this split (default: every one that is found)")
    parser.add_argument("--images", default="", metavar="DIR", help="image folder in the root (default: looked for)")
    parser.add_argument(
        "--annotations", default="", metavar="FILE", help="annotation file or mask folder in the root (likewise)"
    )
    parser.add_argument("--classes", type=comma_list, default=(), metavar="A,B", help="the classes, where not all are")
    add_mask_suffix(parser)
    add_depth_scale(parser)


def _spec(arguments: argparse.Namespace, reader: str, split: str) -> SourceSpec:
    from saccade.data.sources import SourceSpec
    from saccade.tasks import Task, parse_task

    tasks = {
        "karpathy": Task.CAPTION,
        "caption_hdf5": Task.CAPTION,
        "refcoco": Task.GROUNDING,
        **dict.fromkeys(_PHRASES, Task.REFERRING),
        **dict.fromkeys(("panoptic", "coco_stuff", "mapillary"), Task.SEMANTIC),
        **dict.fromkeys(("nyu", "depth_folder"), Task.DEPTH),
        **dict.fromkeys(_BOXES_ONLY, Task.DETECTION),
    }
    return SourceSpec(
        task=parse_task(arguments.task) if arguments.task else tasks.get(reader, Task.INSTANCE),
        reader=reader,
        root=arguments.root,
        split=split,
        images=arguments.images,
        annotations=arguments.annotations,
        classes=tuple(arguments.classes),
        mask_suffix=arguments.mask_suffix,
        depth_scale=arguments.depth_scale,
    )


def _check(arguments: argparse.Namespace) -> int:
    from saccade.cli import screen
    from saccade.data.check import CHECKS

    if arguments.format is not None and arguments.format not in CHECKS:
        raise UsageError(f"unknown format '{arguments.format}'", fix=nearest(arguments.format, CHECKS))
    reports = _reports(arguments, [arguments.format] if arguments.format else _likely(arguments.root, CHECKS))
    for report in reports:
        _show(report)
    found = sum(finding.count for report in reports for finding in report.findings)
    screen.say(f"{found} defects" if found else "no defect")
    screen.write_json(arguments.json, {"ok": not found, "splits": [report.to_dict() for report in reports]})
    return 1 if found else 0


def _likely(root: str, readers: Iterable[str]) -> list[str]:
    """The readers in the order in which they are tried."""
    from saccade.data.sources.mask_folder import ADE20K_CLASS_FILE

    named = ["ade20k"] if (Path(root) / ADE20K_CLASS_FILE).is_file() else []
    return [*named, *(reader for reader in readers if reader not in named)]


def _splits(arguments: argparse.Namespace, reader: str) -> tuple[str, ...]:
    """The splits to look at: the one asked for; all of one file; or every one that may exist."""
    from saccade.data.sources import names_one_split

    if arguments.split:
        return (arguments.split,)
    return ("all",) if names_one_split(reader, arguments.annotations) else SPLITS


def _reports(arguments: argparse.Namespace, readers: list[str]) -> list[Report]:
    """The reports of every split, by the first reader that finds its files in the folder.

    Raises:
        UsageError: No such folder, or no reader finds anything in it; the reader that was asked for says why itself.
    """
    from saccade.cli import screen
    from saccade.data.check import check_dataset
    from saccade.data.checks.report import UNDIVIDED
    from saccade.data.sources.layout import data_root

    def look(reader: str, split: str) -> Report:
        with screen.Steps(f"check {reader} {split}") as steps:
            return check_dataset(
                _spec(arguments, reader, split),
                decode=not arguments.headers_only,
                max_examples=arguments.examples,
                progress=steps.update,
            )

    data_root(arguments.root)
    reasons: dict[str, UsageError] = {}
    for reader in readers:
        reports: list[Report] = []
        for split in _splits(arguments, reader):
            try:
                reports.append(look(reader, split))
            except UsageError as error:
                reasons.setdefault(reader, error)
                continue
            if UNDIVIDED in reports[-1].notes and not arguments.split:
                return [look(reader, "all")]  # its files are the same for every split
        filled = [report for report in reports if {finding.kind for finding in report.findings} != {"no_images"}]
        if filled or reports:
            return filled or reports[:1]  # a data set without an image is a defect, too
    if arguments.format:
        raise reasons[arguments.format]
    raise UsageError(
        "no data set is recognised in the folder",
        where=arguments.root,
        why="; ".join(f"{reader}: {reason.what}" for reader, reason in reasons.items()),
        fix="name the format with --format, and the files with --images and --annotations",
    )


def _show(report: Report) -> None:
    from saccade.cli import screen

    counts = ", ".join(f"{number} {what}" for what, number in report.counts.items())
    screen.say(f"{report.name} ({report.reader}): {counts or 'nothing'}")
    screen.table(
        [{"defect": one.kind, "count": one.count, "what": one.what, "fix": one.fix} for one in report.findings]
    )
    for finding in report.findings:
        for example in finding.examples:
            screen.say(f"  {finding.kind}: {example}")
    for text, number in report.notes.items():
        screen.say(f"  note: {text} ({number})")


# --- convert ---------------------------------------------------------------------------------------------------------


def _add_convert(words: Verbs) -> None:
    parser = words.add(
        "convert",
        summary="Write a data set in another format.",
        examples=[
            "saccade data convert lesions/ --from mask_folder --to coco --out lesions_coco",
            "saccade data convert data/coco --from coco --to mask_crops --split train --out data/maskcoco",
            "saccade data convert data/coco --from karpathy --to caption_hdf5 --words words.json --out captions",
        ],
        run=_convert,
    )
    parser.add_argument("root", metavar="DIR", help="folder of the data set")
    parser.add_argument("--from", dest="reader", required=True, metavar="READER", help="mask_folder, voc, coco ...")
    parser.add_argument("--to", default="coco", metavar="FORMAT", help="coco (default), mask_crops or caption_hdf5")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="root folder of the new data set")
    parser.add_argument(
        "--task", help="what to read: detection, instance or caption (default: all that the format has)"
    )
    parser.add_argument(
        "--least-region",
        type=fraction,
        default=0.0,
        metavar="SHARE",
        help="of coco: leave out objects below this share of their picture, e.g. 0.001 (default: 0, none is)",
    )
    parser.add_argument(
        "--words",
        type=Path,
        metavar="FILE",
        help="of caption_hdf5: WORDMAP_*.json, or dataset_coco.json to count (default: the captions are counted)",
    )
    _add_files(parser)
    add_json(parser)


def _convert(arguments: argparse.Namespace) -> int:
    from saccade.cli import screen
    from saccade.data.sources import READERS, Source, open_source
    from saccade.data.sources.caption_hdf5 import read_words, write_caption_hdf5
    from saccade.data.writers import WRITERS

    if arguments.reader not in READERS:
        raise UsageError(f"unknown reader '{arguments.reader}'", fix=nearest(arguments.reader, READERS))
    if arguments.reader == "scenes":
        raise UsageError("scenes are drawn, not converted", fix="saccade data scenes --out DIR")
    if arguments.to not in (*WRITERS, _ALL_SPLITS):
        raise UsageError(f"unknown format '{arguments.to}'", fix=nearest(arguments.to, [*WRITERS, _ALL_SPLITS]))
    if arguments.words is not None and arguments.to != _ALL_SPLITS:
        raise UsageError(f"--words has no meaning for {arguments.to}", fix=f"leave it out, or write --to {_ALL_SPLITS}")
    if arguments.least_region and arguments.to != "coco":
        raise UsageError(f"--least-region has no meaning for {arguments.to}", fix="leave it out, or write --to coco")
    options = {"least_region": arguments.least_region} if arguments.to == "coco" else {}
    sources: dict[str, Source] = {}
    first: SaccadeError | None = None
    for split in _splits(arguments, arguments.reader):
        if split == "all":
            raise UsageError(
                "one annotation file is one split", where=arguments.annotations, fix="say which one: --split train"
            )
        try:
            sources[split] = open_source(_spec(arguments, arguments.reader, split))
        except UsageError as error:  # no such split; told below where there is none at all
            first = first or error
    if first is not None and not sources:
        raise first
    rows: list[dict[str, object]] = []
    if arguments.to == _ALL_SPLITS:
        words = read_words(arguments.words) if arguments.words else None
        with screen.Steps("write") as steps:
            written = write_caption_hdf5(sources, arguments.out, words=words, progress=steps.update)
        rows.append({"split": ", ".join(sources), **written})
    else:
        for split, source in sources.items():
            with screen.Steps(f"write {split}") as steps:
                written = WRITERS[arguments.to](source, arguments.out, split=split, progress=steps.update, **options)
            rows.append({"split": split, **written})
    for split, source in sources.items():
        for reason, count in source.skipped.items():
            screen.note(f"{split}: left out: {count} ({reason})")
    screen.table(rows)
    screen.write_json(arguments.json, {"from": arguments.reader, "to": arguments.to, "splits": rows})
    return 0
