"""Claims of the papers at small scale: trains every variant with every seed and prints one table.

On drawn scenes; those of ``polar`` on real photographs of lesions (../shared/data/isic2018_512).

    python benchmarks/claims.py vitdet                  every variant, seeds 0 1 2, one after the other
    python benchmarks/claims.py ait --jobs 2            two trainings at a time
    python benchmarks/claims.py ait --only depth,depth-hard --seeds 0
    python benchmarks/claims.py ait --show              the table of what is there
    python benchmarks/claims.py lora                    updates or a whole fine-tuning, on cells (../shared/data/bccd)
    python benchmarks/claims.py polar --only unet,unet-polar,unet-polar-pass

Runs lie in ``runs/claims/SYSTEM/VARIANT-SEED``; what was stopped goes on. The figures of a finished run are kept with
its command in ``benchmarks/measured/SYSTEM.json``; what stands there with the same command is trained again only where
another variant needs its weights.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RECORDING = threading.Lock()

RUNS = Path("runs/claims")
MEASURED = Path(__file__).parent / "measured"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a table.

    Attributes:
        says: What it is, for the reader.
        words: Of ``saccade train``, or of ``saccade eval`` where another variant's checkpoint is only evaluated;
            ``{seed}`` and ``{runs}`` are filled in.
        needs: Variants whose checkpoints the words name.
        columns: Metrics that are shown: heading to name.
        evaluates: It trains nothing: the words are those of ``saccade eval``, behind its model.
        shared: It is trained with the seed 0 only, and every seed of the others builds on it.
        less: A variant that is taken off, seed by seed, in a row more: what changed from one to the other.
    """

    says: str
    words: str
    needs: tuple[str, ...] = ()
    columns: dict[str, str]
    evaluates: bool = False
    shared: bool = False
    less: str = ""


_BOXES = {"box AP": "detection/AP", "AP50": "detection/AP50"}
_METRES = {"depth RMSE": "depth/rmse", "d1": "depth/d1"}
_MASKS = {"mask AP": "instance_segmentation/mask_AP", "box AP": "instance_segmentation/AP"}

_PHRASES = {
    "gIoU": "referring_segmentation/gIoU",
    "cIoU": "referring_segmentation/cIoU",
    "N_acc": "referring_segmentation/N_acc",
    "T_acc": "referring_segmentation/T_acc",
}

_DESCRIBED = "start={runs}/describe-0/checkpoints/last"

_LESIONS = {
    "Dice": "semantic_segmentation/mean_Dice",
    "IoU": "semantic_segmentation/mean_IoU",
    "polar Dice": "semantic_segmentation/polar_Dice",
    "core minutes": "run/core_minutes",
}
_PLACES = {
    "centre error px": "center/distance_px",
    "within 5 %": "center/within",
    "core minutes": "run/core_minutes",
}

_CELLS = "recipe=finetune data.root=../shared/data/bccd task=detection model=git-nano device=cpu"
_SPENT = {
    "AP": "detection/AP",
    "AP50": "detection/AP50",
    "parameters trained": "run/trained",
    "GB": "run/memory_gb",
    "core minutes": "run/core_minutes",
}

_QUESTIONS = {
    "colour": "zero_shot/colour",
    "shape": "zero_shot/shape",
    "ground": "zero_shot/ground",
    "image to text R@5": "retrieval/i2t/R@5",
    "text to image R@5": "retrieval/t2i/R@5",
    "counting": "counting",
    "box class": "box_class",
}
_PROBES = {name: f"suite/mean/{metric}" for name, metric in _QUESTIONS.items()} | {
    f"plain: {name}": f"suite/plain/{metric}" for name, metric in _QUESTIONS.items()
}
_CELL_PROBE = {"cells": "suite/mean_class"}
_TOWER = "{runs}/clip-0/checkpoints/last"
_SCENE_SUITE = f"{_TOWER} --suite visft.scenes --seed {{seed}} --precision bf16 --device cpu"
_CELL_SUITE = (
    f"{_TOWER} --suite visft.goi --root ../shared/data/bccd --train-limit 150 --seed {{seed}} --precision bf16 "
    "--device cpu"
)
_HEADS = " ".join(f"{head}={{runs}}/{head}-{{seed}}/checkpoints/last" for head in ("detection", "instance", "caption"))

_DETECTOR = (
    "recipe=vitdet.nano_scenes size=192 model.input_size=192 model.backbone.image_size=192 model.backbone.width=128 "
    "model.backbone.heads=2 model.backbone.mlp_width=448 model.backbone.window_size=3 model.roi.mask=none "
    "train.0.task=detection val.0.task=detection train.0.batch_size=8 steps=1800"
)
_CODES = "depth_vqvae={runs}/codes-0/checkpoints/last"
_MASK_CODES = "mask_vqvae={runs}/mask-codes-0/checkpoints/last"
_LOST = "recipe=ait.nano_vqvae_depth size=128 holes=0.3"
_DEPTH = "recipe=ait.nano_depth size=128 steps=1500"
_INSTANCE = f"recipe=ait.nano_instance steps=1500 {_MASK_CODES}"
_CODES_192 = "depth_vqvae={runs}/codes-192-0/checkpoints/last"


_ISIC = "data=../shared/data/isic2018_512"
# 100 passes over 240 photographs. Crops would cut lesions off, which unrolling suffers from most: no network sees any.
_LESION_STEPS = (
    "train.0.batch_size=8 train.0.augment.crop_probability=0 optim.schedule=cosine optim.warmup_steps=100 "
    "precision=bf16 eval_every=0 device=cpu"
)
_UNET = f"recipe=polar.unet reader=mask_folder {_ISIC} size=128,128 features=16 augment=true {_LESION_STEPS}"
_GIT = f"recipe=polar.git {_ISIC} model=git-nano precision=bf16 eval_every=0 device=cpu"
_LAST = "{runs}/NAME-{seed}/checkpoints/last"


def _measured(says: str, model: str, centers: str, less: str) -> Variant:
    """A polar model with the centres that the checkpoint of another variant finds."""
    words = f"{_LAST.replace('NAME', model)} --data mask_folder --root ../shared/data/isic2018_512 --task semantic"
    return Variant(
        says=says,
        words=f"{words} --classes background,lesion --protocol polar --precision bf16 --batch-size 16 --device cpu "
        f"--centers {_LAST.replace('NAME', centers)}",
        needs=(model, centers),
        columns=_LESIONS,
        evaluates=True,
        less=less,
    )


def _head(head: str, steps: int, columns: dict[str, str]) -> Variant:
    """The first stage of ViSFT for one head."""
    words = f"recipe=visft.nano_{head} steps={steps} backbone={_TOWER}"
    return Variant(says=f"first stage: {head}", words=words, needs=("clip",), columns=columns)


def _updates(says: str, words: str) -> Variant:
    """The second stage of ViSFT, through all three heads."""
    return Variant(
        says=says,
        words=f"recipe=visft.nano_lora backbone={_TOWER} {_HEADS} {words}",
        needs=("clip", "detection", "instance", "caption"),
        columns={"box AP": "detection/AP", "mask AP": "instance_segmentation/mask_AP", "CIDEr": "caption/CIDEr"},
    )


def _suite(says: str, words: str, columns: dict[str, str], *, updates: str = "", less: str = "") -> Variant:
    """Probes of a tower, with the low-rank updates of another variant where one is named."""
    if updates:
        words += f" --lora {{runs}}/{updates}-{{seed}}/checkpoints/last"
    needs = ("clip", updates) if updates else ("clip",)
    return Variant(says=says, words=words, needs=needs, columns=columns, evaluates=True, less=less)


def _detector(says: str, words: str) -> Variant:
    return Variant(says=says, words=f"{_DETECTOR} {words}", columns=_BOXES)


CLAIMS: dict[str, dict[str, Variant]] = {
    "vitdet": {
        "none": _detector("windows, nothing between them", "model.backbone.global_blocks="),
        "global4": _detector("windows and 4 global blocks (simple pyramid)", ""),
        "conv": _detector(
            "windows and 4 convolutions", "model.backbone.global_blocks= model.backbone.conv_blocks=1,3,5,7"
        ),
        "all": _detector("8 global blocks", "model.backbone.global_blocks=0,1,2,3,4,5,6,7"),
        "fpn_stages": _detector("4 global blocks, FPN over stages", "model.pyramid.kind=fpn_stages"),
        "fpn_last": _detector("4 global blocks, FPN over the last map", "model.pyramid.kind=fpn_last"),
    },
    "ait": {
        "codes": Variant(
            says="VQ-VAE of depth", words="recipe=ait.nano_vqvae_depth size=128", columns=_METRES, shared=True
        ),
        "mask-codes": Variant(says="VQ-VAE of masks", words="recipe=ait.nano_vqvae_masks", columns=_MASKS, shared=True),
        "depth": Variant(says="depth, soft tokens", words=f"{_DEPTH} {_CODES}", needs=("codes",), columns=_METRES),
        "depth-parallel": Variant(
            says="depth, soft tokens, in one pass",
            words=f"{_DEPTH} {_CODES} parallel=true",
            needs=("codes",),
            columns=_METRES,
        ),
        "depth-hard": Variant(
            says="depth, hard tokens", words=f"{_DEPTH} {_CODES} soft=false", needs=("codes",), columns=_METRES
        ),
        "lost-codes-plain": Variant(says="VQ-VAE, 30 % of depth lost", words=f"{_LOST} hidden=0", columns=_METRES),
        "lost-codes-hidden": Variant(
            says="VQ-VAE, 30 % of depth lost, half of the patches hidden", words=f"{_LOST} hidden=0.5", columns=_METRES
        ),
        "lost-plain": Variant(
            says="depth, 30 % lost, codes without mask augmentation",
            words=f"{_DEPTH} holes=0.3 depth_vqvae={{runs}}/lost-codes-plain-{{seed}}/checkpoints/last",
            needs=("lost-codes-plain",),
            columns=_METRES,
        ),
        "lost-hidden": Variant(
            says="depth, 30 % lost, codes with mask augmentation",
            words=f"{_DEPTH} holes=0.3 depth_vqvae={{runs}}/lost-codes-hidden-{{seed}}/checkpoints/last",
            needs=("lost-codes-hidden",),
            columns=_METRES,
        ),
        "codes-192": Variant(
            says="VQ-VAE of depth, 192 px", words="recipe=ait.nano_vqvae_depth", columns=_METRES, shared=True
        ),
        "instance": Variant(
            says="masks alone, soft tokens (192 px, plain ViT)", words=_INSTANCE, needs=("mask-codes",), columns=_MASKS
        ),
        "instance-hard": Variant(
            says="masks alone, hard tokens (192 px, plain ViT)",
            words=f"{_INSTANCE} soft=false",
            needs=("mask-codes",),
            columns=_MASKS,
        ),
        "depth-192": Variant(
            says="depth alone (192 px, plain ViT)",
            words=f"recipe=ait.nano_depth_plain steps=1500 {_CODES_192}",
            needs=("codes-192",),
            columns=_METRES,
        ),
        "joint": Variant(
            says="masks and depth together (192 px, plain ViT)",
            words=f"recipe=ait.nano_joint steps=1500 {_CODES_192} {_MASK_CODES}",
            needs=("codes-192", "mask-codes"),
            columns=_METRES | _MASKS,
        ),
    },
    "visft": {
        "clip": Variant(says="", words="recipe=visft.nano_clip", columns={}, shared=True),
        "detection": _head("detection", 6000, {"box AP": "detection/AP"}),
        "instance": _head("instance", 2000, {"mask AP": "instance_segmentation/mask_AP"}),
        "caption": _head("caption", 3000, {"CIDEr": "caption/CIDEr"}),
        "lora": _updates("second stage: updates of queries and values", ""),
        "lora-all": _updates(
            "second stage: updates of all linear layers", "lora.targets=backbone.blocks.* optim.lr=2e-3"
        ),
        "before": _suite("the pair as it was pre-trained (one for all seeds)", _SCENE_SUITE, _PROBES),
        "after": _suite("the same, queries and values updated", _SCENE_SUITE, _PROBES, updates="lora", less="before"),
        "after-all": _suite(
            "the same, all linear layers updated", _SCENE_SUITE, _PROBES, updates="lora-all", less="before"
        ),
        "cells-before": _suite("cells, as it was pre-trained", _CELL_SUITE, _CELL_PROBE),
        "cells-after": _suite(
            "cells, queries and values updated", _CELL_SUITE, _CELL_PROBE, updates="lora", less="cells-before"
        ),
        "cells-after-all": _suite(
            "cells, all linear layers updated", _CELL_SUITE, _CELL_PROBE, updates="lora-all", less="cells-before"
        ),
    },
    "lora": {
        "full": Variant(says="all parameters", words=_CELLS, columns=_SPENT),
        "rank16": Variant(
            says="updates of queries and values, rank 16", words=f"{_CELLS} optim.lr=2e-3 lora.rank=16", columns=_SPENT
        ),
        "rank16-all": Variant(
            says="updates of all linear layers of the blocks, rank 16",
            words=f"{_CELLS} optim.lr=2e-3 lora.rank=16 lora.targets=backbone.blocks.*",
            columns=_SPENT,
        ),
    },
    "polar": {
        "unet": Variant(says="U-Net, plain pictures", words=f"{_UNET} steps=3000", columns=_LESIONS),
        "unet-twice": Variant(
            says="the same, twice as long (what a polar network and its finder cost together)",
            words=f"{_UNET} steps=6000",
            columns=_LESIONS,
        ),
        "centers": Variant(
            says="centre predictor (2 hourglasses)",
            words=f"recipe=polar.centers reader=mask_folder {_ISIC} small=true model.input_size=128 steps=3000 "
            f"{_LESION_STEPS.replace(' train.0.augment.crop_probability=0', '')}",
            columns=_PLACES,
        ),
        "unet-polar": Variant(
            says="U-Net, unrolled; centres of the truth",
            words=f"{_UNET} polar=true steps=3000",
            columns=_LESIONS,
            less="unet-twice",
        ),
        "unet-polar-pass": _measured("the same; centres of the plain U-Net", "unet-polar", "unet", "unet-twice"),
        "unet-polar-predictor": _measured("the same; centres of the predictor", "unet-polar", "centers", "unet-twice"),
        "git": Variant(says="GiT-nano, plain pictures", words=f"{_GIT} polar=false", columns=_LESIONS),
        "git-twice": Variant(
            says="the same, twice as long", words=f"{_GIT} polar=false steps=1800", columns=_LESIONS, less="git"
        ),
        "git-polar": Variant(
            says="GiT-nano, unrolled; centres of the truth", words=f"{_GIT} polar=true", columns=_LESIONS, less="git"
        ),
        "git-polar-pass": _measured("the same; centres of the plain GiT-nano", "git-polar", "git", "git"),
        "git-polar-predictor": _measured("the same; centres of the predictor", "git-polar", "centers", "git"),
    },
    "gsva": {
        "describe": Variant(says="", words="recipe=gsva.nano_describe", columns={}, shared=True),
        "several": Variant(
            says="several [SEG] and [REJ] in an answer",
            words=f"recipe=gsva.nano_scenes {_DESCRIBED} steps=1000 val.0.protocol=rela",
            needs=("describe",),
            columns=_PHRASES,
        ),
        "several-own": Variant(
            says="the same, behind its own earlier answers",
            words=f"{_LAST.replace('NAME', 'several')} --data scenes --task referring --limit 500 --protocol rela "
            "--answers own",
            needs=("several",),
            columns=_PHRASES,
            evaluates=True,
        ),
        "one": Variant(
            says="one [SEG] for every phrase, as LISA",
            words=f"recipe=gsva.nano_scenes {_DESCRIBED} steps=1000 val.0.protocol=rela model.one_seg=true",
            needs=("describe",),
            columns=_PHRASES,
        ),
    },
}
"""System to its variants."""


def command_of(system: str, name: str, seed: int) -> list[str]:
    """The words of ``saccade`` for one run."""
    variant, run = CLAIMS[system][name], f"{name}-{seed}"
    words = variant.words.format(seed=seed, runs=RUNS / system).split()
    if variant.evaluates:
        return ["eval", *words, "--json", str(RUNS / system / f"{run}.json")]
    return ["train", *words, f"name=claims/{system}/{run}", f"seed={seed}", "threads=1", "workers=0"]


def metrics_of(folder: Path) -> dict[str, float]:
    """``source/metric`` to value of the last evaluation of a finished run; empty where it is not finished.

    A variant that is only evaluated has one JSON file in the place of the folder.
    """
    alone = folder.with_suffix(".json")
    if alone.is_file():
        told = json.loads(alone.read_text())
        return _flat({"suite": told} if "metrics" in told else told)
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ends = [line for line in lines if line["kind"] == "eval" and line["step"] == _steps(folder)]
    found = _flat({line["source"]: line for line in ends})
    memory = [line["memory_gb"] for line in lines if line["kind"] == "train"]
    return found | ({"run/memory_gb": max(memory)} if found and memory else {})


def _flat(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """``source/metric`` to value, of all metrics that have one."""
    return {
        f"{source}/{name}": value
        for source, one in results.items()
        for name, value in one["metrics"].items()
        if value is not None
    }


def measured(system: str) -> dict[str, dict[str, float]]:
    """``VARIANT-SEED`` to its figures, of all runs that ever finished with the words that they have now."""
    found = {}
    for run, kept in _read(system).items():
        name, _, seed = run.rpartition("-")
        if name in CLAIMS[system] and kept["command"] == " ".join(command_of(system, name, int(seed))):
            found[run] = kept["figures"]
    return found


def record(system: str, run: str, words: Sequence[str], values: dict[str, float]) -> None:
    """Keeps the figures of a finished run."""
    with _RECORDING:
        MEASURED.mkdir(exist_ok=True)
        figures = {name: round(value, 6) for name, value in values.items()}
        kept = _read(system) | {run: {"command": " ".join(words), "figures": figures}}
        (MEASURED / f"{system}.json").write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def _read(system: str) -> dict[str, dict[str, Any]]:
    path = MEASURED / f"{system}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def train(system: str, name: str, seed: int, needs: Sequence[Future[None]]) -> None:
    """Trains one variant, unless it is finished; its lines go to a text file beside the run folder.

    Args:
        system: Whose claims.
        name: The variant.
        seed: Of everything drawn.
        needs: Trainings that must have ended; they were begun before.
    """
    for need in needs:
        need.result()
    folder, words = RUNS / system / f"{name}-{seed}", command_of(system, name, seed)
    shown, log = f"saccade {' '.join(words)}", folder.with_suffix(".txt")
    minutes = {}
    if not (_finished(folder) and log.is_file() and log.read_text().startswith(f"{shown}\n")):
        minutes = _run(words, shown, folder, log)
        if not _finished(folder):
            raise SystemExit(f"it was stopped; the same command goes on: {log}")
    elif folder.name in measured(system):
        return
    values = metrics_of(folder) | minutes
    if trained := re.search(r"^([\d,]+) of [\d,]+ parameters are trained", log.read_text(), re.MULTILINE):
        values["run/trained"] = int(trained[1].replace(",", ""))
    record(system, folder.name, words, values)


def _finished(folder: Path) -> bool:
    if folder.with_suffix(".json").is_file():
        return True
    return (folder / "config.json").is_file() and (folder / f"checkpoints/step-{_steps(folder):08d}").is_dir()


def _steps(folder: Path) -> int:
    """Of a whole run, finished or not."""
    steps: int = json.loads((folder / "config.json").read_text())["steps"]
    return steps


def _run(words: Sequence[str], shown: str, folder: Path, log: Path) -> dict[str, float]:
    """Runs one command; its processor time, unless a run of earlier went on."""
    print(shown, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = not folder.exists()
    with log.open("w" if fresh else "a") as out:
        if fresh:
            print(shown, file=out, flush=True)
        process = subprocess.Popen([sys.executable, "-m", "saccade", *words], stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"it failed: {log}")
    return {"run/core_minutes": (used.ru_utime + used.ru_stime) / 60} if fresh else {}


def table(system: str, seeds: Sequence[int]) -> str:
    """Mean and standard deviation over the seeds that are there, in Markdown."""
    headings = list(dict.fromkeys(column for one in CLAIMS[system].values() for column in one.columns))
    lines = [f"| {system} | seeds | {' | '.join(headings)} |", "|---" * (len(headings) + 2) + "|"]
    kept = measured(system)
    for name, variant in CLAIMS[system].items():
        if not variant.columns:
            continue
        found = {seed: kept[run] for seed in seeds if (run := f"{name}-{seed}") in kept}
        lines.append(_row(variant.says, headings, variant.columns, list(found.values())))
        if variant.less:
            other = CLAIMS[system][variant.less].columns
            pairs = [(found[seed], kept[run]) for seed in found if (run := f"{variant.less}-{seed}") in kept]
            changes = [{variant.columns[h]: a[variant.columns[h]] - b[other[h]] for h in other} for a, b in pairs]
            lines.append(_row(f"{variant.says}: change", headings, variant.columns, changes, signed=True))
    return "\n".join(lines)


def _row(
    says: str,
    headings: Sequence[str],
    columns: dict[str, str],
    found: Sequence[dict[str, float]],
    *,
    signed: bool = False,
) -> str:
    cells, form = [], "+.3f" if signed else ".3f"
    for heading in headings:
        numbers = [each[columns[heading]] for each in found if columns.get(heading) in each]
        form_here = ",.0f" if numbers and min(numbers) > 1000 else form
        spread = f" ± {statistics.stdev(numbers):.3f}" if len(set(numbers)) > 1 else ""
        cells.append(f"{statistics.mean(numbers):{form_here}}{spread}" if numbers else "")
    return f"| {says} | {len(found)} | {' | '.join(cells)} |"


def main() -> None:
    """Trains what is missing, the needed before the needing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=CLAIMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="variants, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--show", action="store_true", help="train nothing")
    asked = parser.parse_args()
    variants = CLAIMS[asked.system]
    wanted = asked.only.split(",") if asked.only else list(variants)
    if not asked.show:
        kept, jobs = measured(asked.system), {}

        def submit(name: str, seed: int, pool: ThreadPoolExecutor) -> Future[None]:
            seed = 0 if variants[name].shared else seed
            if (name, seed) not in jobs:
                needs = [submit(need, seed, pool) for need in variants[name].needs]
                jobs[name, seed] = pool.submit(train, asked.system, name, seed, needs)
            return jobs[name, seed]

        with ThreadPoolExecutor(asked.jobs) as pool:
            for seed in asked.seeds:
                for name in wanted:
                    if f"{name}-{0 if variants[name].shared else seed}" not in kept:
                        submit(name, seed, pool)
        for job in jobs.values():
            job.result()
    print(table(asked.system, asked.seeds))


if __name__ == "__main__":
    main()
