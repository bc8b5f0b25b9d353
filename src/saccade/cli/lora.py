"""``saccade lora``: low-rank updates by themselves, added to the weights that they belong to, and taken out again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.cli.parser import Parser, Verbs, add_json, comma_list
from saccade.errors import UsageError

if TYPE_CHECKING:
    from saccade.hub.lora import Merged


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "lora",
        summary="Write low-rank updates by themselves, add them to weights for good, or take them out again.",
        examples=[
            "saccade lora extract runs/visft/lora_g/checkpoints/last --out eva_g_lora.pt",
            "saccade lora extract runs/cells/checkpoints/last --form peft --out adapter",
            "saccade lora merge runs/cells/checkpoints/last --out cells",
            "saccade lora merge eva_vit_g.pth eva_g_lora_50000.pt --out eva_vit_g_visft.pth",
            "saccade lora merge blip2_pretrained.pth eva_g_lora_50000.pt --leave-out 39 --out blip2_visft.pth",
            "saccade lora unmerge eva_vit_g_visft.pth eva_g_lora_50000.pt --out eva_vit_g_again.pth",
        ],
    )
    words = Verbs(parser)
    extract = words.add(
        "extract",
        summary="Write the low-rank updates of a checkpoint by themselves.",
        examples=["saccade lora extract model_50000.ckpt --out eva_g_lora_50000.pt"],
        run=_extract,
    )
    extract.add_argument("source", type=Path, metavar="CHECKPOINT", help="a folder of ours, or the authors' checkpoint")
    extract.add_argument("--out", type=Path, required=True, metavar="PATH", help="a file (peft: a folder) to write")
    extract.add_argument(
        "--form", choices=("official", "peft"), default="official", help="as ViSFT's authors, or for peft"
    )
    add_json(extract)
    merge = words.add(
        "merge",
        summary="Add low-rank updates to the weights; the result has the form that the weights had.",
        examples=["saccade lora merge eva_vit_g.pth eva_g_lora_50000.pt --out eva_vit_g_visft.pth"],
        run=_merge,
    )
    merge.add_argument(
        "base", type=Path, metavar="WEIGHTS", help="a checkpoint folder of ours, or an official file with a backbone"
    )
    merge.add_argument("updates", type=Path, nargs="?", metavar="UPDATES", help="an official file, or a checkpoint")
    _add_options(merge)
    unmerge = words.add(
        "unmerge",
        summary="Subtract low-rank updates from weights that they were added to.",
        examples=["saccade lora unmerge eva_vit_g_visft.pth eva_g_lora_50000.pt --out eva_vit_g_again.pth"],
        run=_unmerge,
    )
    unmerge.add_argument("merged", type=Path, metavar="WEIGHTS", help="what `saccade lora merge` wrote")
    unmerge.add_argument("updates", type=Path, metavar="UPDATES", help="what was added: a file, or a checkpoint")
    _add_options(unmerge)


def _add_options(parser: Parser) -> None:
    """Adds what merging and unmerging have alike."""
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="the folder or file to write")
    parser.add_argument(
        "--multiplier",
        type=int,
        choices=(1, 2),
        default=1,
        help="2: updates count twice, as in the official code in evaluation mode (default: 1)",
    )
    parser.add_argument(
        "--leave-out", type=comma_list, default=(), metavar="N,N", help="blocks that the weights do not have"
    )
    add_json(parser)


def _extract(arguments: argparse.Namespace) -> int:
    from saccade.cli import screen
    from saccade.hub.lora import extract

    done = extract(arguments.source, arguments.out, form=arguments.form)
    told = {"written": arguments.out, "layers": list(done.layers), "homeless": list(done.homeless)}
    screen.write_json(arguments.json, told)
    screen.note(f"wrote the updates of {len(done.layers)} layers to {arguments.out}")
    _tell_homeless(done.homeless)
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from saccade.hub.lora import merge_files

    _tell(merge_files(arguments.base, arguments.updates, arguments.out, **_options(arguments)), arguments)
    return 0


def _unmerge(arguments: argparse.Namespace) -> int:
    from saccade.cli import screen
    from saccade.hub.lora import unmerge_files

    unmerged = unmerge_files(arguments.merged, arguments.updates, arguments.out, **_options(arguments))
    _tell(unmerged, arguments)
    screen.note(f"no weight is further than {unmerged.rounding:.2g} from what it was before the updates were added")
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What :func:`_add_options` added, for the functions that it is meant for."""
    if not all(block.isdigit() for block in arguments.leave_out):
        raise UsageError("blocks are whole numbers", where="--leave-out", fix="--leave-out 39")
    return {"multiplier": arguments.multiplier, "leave_out": [int(block) for block in arguments.leave_out]}


def _tell(done: Merged, arguments: argparse.Namespace) -> None:
    from saccade.cli import screen

    told = {
        "written": done.path,
        "layers": list(done.layers),
        "left_out": list(done.left_out),
        "homeless": list(done.homeless),
        "multiplier": arguments.multiplier,
        "scale": done.scale,
        "rounding": done.rounding,
    }
    screen.write_json(arguments.json, told)
    screen.note(
        f"wrote {done.path}: {len(done.layers)} layers changed, B A counts {done.scale:g} "
        f"(multiplier {arguments.multiplier})"
    )
    _tell_homeless(done.homeless)


def _tell_homeless(names: Sequence[str]) -> None:
    """Says what was trained and is not in what was written."""
    from saccade.cli import screen
    from saccade.hub.adopt import listed

    if names:
        screen.note(f"left out, for it has no place there: {listed(names, most=4)}")
