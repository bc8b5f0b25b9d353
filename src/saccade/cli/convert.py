"""``saccade convert``: the authors' weight files to checkpoint folders, and back, with a report of every key."""

from __future__ import annotations

import argparse
from pathlib import Path

from saccade.cli.parser import Verbs, add_json
from saccade.errors import UsageError


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "convert",
        summary="Convert an official weight file into a checkpoint folder (or back), with a report of every key.",
        examples=[
            "saccade convert multi_base.pth --vocabulary vocab.txt --out git-base",
            "saccade convert multi_base.pth                     (only the report)",
            "saccade convert model_final_61ccd1.pkl --out vitdet-b",
            "saccade convert LLaVA-Lightning-7B-delta-v1-1 --base llama-7b --out llava-7b",
            "saccade convert sam_vit_h_4b8939.pth --part sam --out sam-h",
            "saccade convert eva_g_detection_heads.ckpt --base eva_vit_g.pth --out visft-detection",
            "saccade convert git-base --to-official multi_base.pth",
        ],
        run=_run,
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="FILE",
        help="a .pth, .pt, .bin, .pkl or .safetensors file, a folder or index of several; or our folder, or its name",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the folder to write; without it only the report is made"
    )
    parser.add_argument("--preset", help="the size, where the shapes leave it open: base, huge, vitdet-b ...")
    parser.add_argument(
        "--vocabulary", type=Path, metavar="FILE", help="the vocab.txt (tokenizer.model, WORDMAP_*.json) of the weights"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FILE",
        help="the LLaMA that a LLaVA is the difference from; the backbone of ViSFT's heads",
    )
    parser.add_argument(
        "--part",
        choices=("sam", "detection", "instance", "caption"),
        help="sam: all of it, for GSVA, and not its image encoder alone, for GiT; one of ViSFT's heads",
    )
    parser.add_argument("--to-official", type=Path, metavar="FILE", help="write a folder of ours as an official file")
    parser.add_argument("--every-key", action="store_true", help="list the matched keys too")
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    from saccade.cli import screen
    from saccade.hub.checkpoint import is_checkpoint
    from saccade.hub.convert import export_official, map_file, write_conversion
    from saccade.hub.report import mapping_table
    from saccade.hub.resolve import resolve

    if arguments.to_official is not None:
        for option in ("out", "preset", "vocabulary", "base", "part"):
            if getattr(arguments, option) is not None:
                raise UsageError(f"--{option} and --to-official exclude one another", where="saccade convert")
        report = export_official(resolve(arguments.source), arguments.to_official)
        written: Path | None = arguments.to_official
    else:
        if arguments.vocabulary is not None and arguments.out is None:
            raise UsageError("--vocabulary goes into the folder that --out names", where="saccade convert")
        if is_checkpoint(arguments.source):
            raise UsageError(
                "a folder is written as an official file, not converted",
                where=arguments.source,
                fix="add --to-official FILE.pth",
            )
        found = map_file(arguments.source, preset=arguments.preset, base=arguments.base, part=arguments.part)
        report, written = found.report, None
        if not report.gaps(found.allowed) and arguments.out is not None:
            written = write_conversion(found, arguments.out, vocabulary=arguments.vocabulary)
    screen.show(mapping_table(report, every_key=arguments.every_key))
    screen.write_json(arguments.json, {**report.to_dict(), "written": written})
    if arguments.to_official is None:
        report.check(allow=found.allowed)
    screen.note(f"wrote {written}" if written is not None else "nothing written: name a folder with --out")
    return 0
