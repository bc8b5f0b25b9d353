"""``saccade models``: what can be loaded by name, and what its authors published about it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from saccade.cli.parser import Verbs
from saccade.errors import UsageError, nearest

if TYPE_CHECKING:
    from saccade.hub.checkpoint import CheckpointCard
    from saccade.models.systems import ModelConfig


_DETAIL = re.compile(r"AP[sml]$|AR")  # by size, and recall: the table of `saccade eval` has them


def add(verbs: Verbs) -> None:
    """Adds the verb with its second words ``list`` and ``show``."""
    parser = verbs.add(
        "models",
        summary="List the models that can be loaded by name, or show one.",
        examples=["saccade models list", "saccade models show git-base"],
    )
    words = Verbs(parser)
    listing = words.add("list", summary="List the models.", examples=["saccade models list --system git"], run=_list)
    listing.add_argument("--system", metavar="NAME", help="only this system, e.g. git")
    showing = words.add(
        "show",
        summary="Show one model: its file, its size and its published numbers.",
        examples=["saccade models show git-base", "saccade models show runs/cells/checkpoints/best"],
        run=_show,
    )
    showing.add_argument("name", metavar="MODEL", help="a name from `saccade models list`, or a checkpoint folder")


def _list(arguments: argparse.Namespace) -> int:
    from saccade.cli import screen
    from saccade.hub.report import zoo_table
    from saccade.hub.resolve import bundled_summaries
    from saccade.hub.zoo import list_entries

    screen.show(zoo_table(list_entries(arguments.system), bundled_summaries()))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from saccade.cli import screen
    from saccade.hub.checkpoint import read_card
    from saccade.hub.report import zoo_card
    from saccade.hub.resolve import bundled_checkpoints
    from saccade.hub.zoo import ZOO

    name, bundled = arguments.name, bundled_checkpoints()
    if name in ZOO and not Path(name).exists():
        screen.show(zoo_card(ZOO[name]))
    elif name in bundled or Path(name).exists():
        _show_card(read_card(bundled.get(name, Path(name))))
    else:
        raise UsageError(f"no model is called '{name}'", fix=nearest(name, [*bundled, *ZOO]))
    return 0


def _show_card(card: CheckpointCard) -> None:
    from saccade.cli import screen

    rows: list[tuple[str, object]] = [("folder", card.folder), ("system", card.system)]
    for task in card.tasks:
        height, width = card.preprocessing[task].size_hw
        listed = card.classes.get(task)
        classes = f", {len(listed)} classes: {', '.join(listed.names[:8])}" if listed else ""
        more = " ..." if listed and len(listed) > 8 else ""
        rows.append((str(task), f"{width} x {height} px{classes}{more}"))
    rows.append(("backbone", _backbone(card.config)))
    hidden = ("sha256", "files")
    rows += [("weights", ", ".join(f"{key} {value}" for key, value in card.weights.items() if key not in hidden))]
    rows += _origin(card.provenance)
    screen.table([{"": key, "value": str(value)} for key, value in rows])


def _backbone(config: ModelConfig) -> str:
    """What the backbone is, in a line."""
    from saccade.layers.swin import SwinV2Config
    from saccade.layers.unet import UNetConfig
    from saccade.layers.vit import ViTConfig
    from saccade.models.ait.config import AiTConfig
    from saccade.models.ait.vqvae import MapVQVAEConfig
    from saccade.models.gsva.config import GSVAConfig
    from saccade.models.polar.config import CentersConfig, LibraryConfig, PolarConfig, SegmenterConfig, ViTPixelsConfig

    if isinstance(config, MapVQVAEConfig):
        net = config.vqvae
        return f"VQ-VAE of {config.task}: {net.size} x {net.size} px in {net.tokens} of {net.codebook.codes} codes"
    if isinstance(config, GSVAConfig):
        words = config.language
        sam = config.sam.vit
        return f"Llama, {words.layers} blocks, width {words.width}; SAM, {sam.depth} blocks, width {sam.width}"
    if isinstance(config, PolarConfig):
        finder = "the centre is given" if config.finder is None else f"centres: {_backbone(config.finder)}"
        return f"{_backbone(config.segmenter)}, on unrolled pictures; {finder}"
    if isinstance(config, CentersConfig):
        return f"{config.network.stacks} stacked hourglasses, width {config.network.width}"
    if isinstance(config, SegmenterConfig) and isinstance(config.network, UNetConfig):
        return f"U-Net, {config.network.levels} levels, {config.network.features} channels and more"
    if isinstance(config, SegmenterConfig) and isinstance(config.network, LibraryConfig):
        return f"{config.network.architecture}, {config.network.encoder}"
    if isinstance(config, SegmenterConfig):
        vit: ViTConfig | SwinV2Config = cast(ViTPixelsConfig, config.network).vit
    else:
        vit = config.backbone if isinstance(config, AiTConfig) else config.vit
    if isinstance(vit, SwinV2Config):
        return f"SwinV2, {' + '.join(map(str, vit.depths))} blocks, width {vit.width}, windows of {vit.windows[0]}"
    return f"{vit.depth} blocks, width {vit.width}, {vit.heads} heads, patch {vit.patch_size}"


def _origin(provenance: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Where a checkpoint comes from, a row for every data set and for the metrics of every task."""
    rows: list[tuple[str, object]] = []
    for key, value in provenance.items():
        if key == "data":
            rows += [
                (key, f"{one['task']}: {one['name']}, {one['samples']:,} samples, weight {one['weight']:g}")
                for one in value
            ]
        elif key == "metrics":
            tasks = dict.fromkeys(name.partition("/")[0] for name in value)
            for task in tasks:
                own = [
                    (name, number)
                    for name, number in value.items()
                    if name.startswith(f"{task}/") and not _DETAIL.search(name)
                ]
                rows.append((key, f"{task}: " + ", ".join(f"{n.partition('/')[2]} {v:.4g}" for n, v in own)))
        else:
            rows.append((key, value))
    return rows
