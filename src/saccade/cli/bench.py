"""``saccade bench``: how long a task takes, against a reference measured in the same process."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from saccade.cli.parser import Verbs, add_device, add_json, comma_list, positive
from saccade.errors import UsageError

if TYPE_CHECKING:
    from saccade.tasks import Task


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "bench",
        summary="Measure milliseconds per image, and the ratio to torchvision's ViT-B/16 at 224 px.",
        examples=[
            "saccade bench git --task detection --preset base",
            "saccade bench git --task detection --preset base --dtype bf16",
            "saccade bench git --task caption,grounding --repeats 10 --json bench.json",
            "saccade bench vitdet --task backbone,instance",
            "saccade bench ait --task backbone,depth --preset depth-b-parallel",
            "saccade bench gsva --task backbone,masks --preset gsva-7b",
            "saccade bench gsva --task gres,read,read-twice,find,decode --preset gsva-7b --dtype bf16",
            "saccade bench polar --preset unet-polar",
            "saccade bench visft --preset eva-g --task backbone --side 1022 --lora 64",
            "saccade bench visft --preset eva-g --task detection-head,instance-head,instance-loss,caption-head",
        ],
        run=_run,
    )
    parser.add_argument(
        "system", metavar="SYSTEM", help="what to measure: git, vitdet, ait, gsva, visft or polar (random weights)"
    )
    parser.add_argument(
        "--task",
        type=comma_list,
        metavar="TASKS",
        help="one or several; backbone; masks, gres, read, read-twice, find, decode (of GSVA, of 8 phrases); "
        "detection-head, instance-head, instance-loss, caption-head (of ViSFT) (default: detection, GSVA: referring, "
        "polar: semantic)",
    )
    parser.add_argument("--preset", help="the size (default: base, vitdet-b, detection-b, gsva-nano, eva-g, unet)")
    parser.add_argument("--side", type=positive, default=0, metavar="N", help="ViSFT's backbone: side of the input")
    parser.add_argument(
        "--lora", type=positive, default=0, metavar="RANK", help="with low-rank updates of queries and values, unmerged"
    )
    parser.add_argument("--dtype", choices=("float32", "bf16"), default="float32", help="default: float32")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="timed passes (default: 3)")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="images per pass (default: 1)")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="threads of torch (default: 1)")
    add_device(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    from saccade.bench import precision_cost, run_bench
    from saccade.cli import screen
    from saccade.hub.resolve import bundled_checkpoints
    from saccade.tasks import Task
    from saccade.training.distributed import resolve_device

    device = str(resolve_device(arguments.device))
    asked = arguments.task or ({"gsva": "referring", "polar": "semantic"}.get(arguments.system, "detection"),)
    tasks = [_task(name) for name in asked]
    usual = {"vitdet": "vitdet-b", "ait": "detection-b", "gsva": "gsva-nano", "visft": "eva-g", "polar": "unet"}
    preset = arguments.preset or usual.get(arguments.system, "base")
    results = [
        run_bench(
            arguments.system,
            task=task,
            preset=preset,
            dtype=arguments.dtype,
            repeats=arguments.repeats,
            batch_size=arguments.batch_size,
            threads=arguments.threads,
            device=device,
            side=arguments.side,
            lora=arguments.lora,
        )
        for task in screen.progress(tasks, total=len(tasks), label="bench")
    ]
    first = results[0]
    title = (
        f"{first.system} {first.preset}, {first.dtype}, batch {first.batch}, {first.threads} thread(s): {first.machine}"
    )
    spoken = any(result.tokens_per_s for result in results)
    screen.table(
        [
            {
                "task": result.task,
                "input px": result.input_size,
                "ms per image": round(result.ms_per_image, 2),
                "reference ms": round(result.reference_ms, 2),
                "ratio": round(result.ratio, 2),
                **({"tokens per s": round(result.tokens_per_s, 1) or None} if spoken else {}),
                **({"peak GB": round(result.peak_gb, 2)} if device == "cuda" else {}),
            }
            for result in results
        ],
        title=title,
    )
    screen.say(f"reference: {first.reference}, float32; medians of {first.repeats} passes, interleaved")
    costs = {}
    if arguments.dtype == "bf16":
        trained = f"{arguments.system}-nano"
        if trained not in bundled_checkpoints():
            screen.say(f"what bf16 costs in accuracy is not measured: no {trained} comes with the package")
            tasks = []
        for task in tasks:
            if not isinstance(task, Task):  # a part of a model
                continue
            costs[str(task)] = cost = precision_cost(task, model=trained)
            shown = "  ".join(f"{name} {value:+.4f}" for name, value in cost["difference"].items())
            screen.say(f"{trained} on 100 scenes, {task}, bf16 minus float32: {shown}")
    report = {"results": [dataclasses.asdict(result) for result in results], "precision_cost": costs}
    screen.write_json(arguments.json, report)
    return 0


def _task(name: str) -> Task | str:
    """The task of a name; the name itself, where it is a part of a system, or nothing, which the bench says."""
    from saccade.tasks import parse_task

    try:
        return parse_task(name)
    except UsageError:
        return name
