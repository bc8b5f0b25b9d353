"""``saccade predict``: answers about pictures, on the screen and in files."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from saccade.cli.parser import (
    Verbs,
    add_detector_options,
    add_finder,
    add_model,
    amount,
    comma_list,
    detector_options,
    fraction,
    point,
    positive,
)
from saccade.errors import UsageError
from saccade.tasks import TASKS

if TYPE_CHECKING:
    from saccade.predictor import Answer, Report, Stream

DEFAULT_OUT = Path("predictions")
DEFAULT_SAVE = ("json", "overlay")


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "predict",
        summary="Say what is in pictures: a file, a folder, a pattern, or several of these.",
        examples=[
            "saccade predict photo.jpg --model git-nano --task detection",
            'saccade predict photo.jpg --model git-base --task detection --classes "cat,dog" '
            "--save coco,png,npy,overlay --out DIR",
            'saccade predict photo.jpg --phrase "the red ball" --phrase "the cup on the left"',
            'saccade predict photo.jpg --model gsva-7b-ft-gres --phrases "the man in red" "a dog" --save overlay,png',
            'saccade predict photo.jpg --model gsva-7b-ft-gres --ask "Segment everything one can sit on."',
            "saccade predict images/ --task instance --save coco,npy --out masks",
            "saccade predict lesion.jpg --model runs/polar/checkpoints/best --center 240,180 --save png,csv",
        ],
        run=_run,
    )
    parser.add_argument("inputs", nargs="+", metavar="PICTURE", help="a file, a folder, or a pattern such as 'a/*.jpg'")
    add_model(parser)
    parser.add_argument(
        "--task",
        help=f"{', '.join(spec.alias for spec in TASKS.values())} "
        "(default: the only one of the model, grounding with phrases, else detection)",
    )
    parser.add_argument(
        "--classes", type=comma_list, metavar="A,B", help="class names to look for (default: those of the model)"
    )
    parser.add_argument(
        "--phrase",
        action="append",
        dest="phrases",
        metavar="TEXT",
        help="what to find, or to segment; repeat for more",
    )
    parser.add_argument(
        "--phrases",
        action="extend",
        nargs="+",
        dest="phrases",
        metavar="TEXT",
        help="the same, several at once (behind the pictures)",
    )
    parser.add_argument("--ask", metavar="TEXT", help="a question in any words, for a model that converses")
    add_finder(parser)
    parser.add_argument(
        "--center",
        action="append",
        dest="centers_xy",
        type=point,
        metavar="X,Y",
        help="polar models: where the object is, in pixels from the left and from the top; repeat for several objects",
    )
    parser.add_argument("--score", type=fraction, metavar="S", help="leave out objects below this score (default: 0.3)")
    parser.add_argument(
        "--save",
        type=comma_list,
        metavar="FORMATS",
        help=f"json, coco, png, npy, csv, overlay (default: nothing; with --out {','.join(DEFAULT_SAVE)})",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to save (default: {DEFAULT_OUT}/)")
    parser.add_argument(
        "--precision", choices=("float32", "bf16"), default="float32", help="bf16 is faster (default: float32)"
    )
    parser.add_argument(
        "--quantize",
        choices=("none", "int8", "int4"),
        default="none",
        help="keep a language model's weights in 8 or 4 bits (default: none)",
    )
    parser.add_argument(
        "--gpu-memory",
        type=amount,
        metavar="GB",
        help="what the weights of a model with a language model may take; blocks beyond it wait in main memory",
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="pictures at once (default: 1, on a GPU 8)")
    add_detector_options(parser)


def _run(arguments: argparse.Namespace) -> int:
    from saccade.cli import screen
    from saccade.measures import MeasureCollector
    from saccade.models.systems import set_detector_options, set_finder
    from saccade.predictor import load
    from saccade.saving import CocoCollector, check_formats, save
    from saccade.tasks import Task

    formats = arguments.save or (DEFAULT_SAVE if arguments.out else ())
    check_formats(formats)
    if arguments.centers and arguments.centers_xy:
        raise UsageError(
            "the centre is given, and a model is named that would find it", fix="leave out --center, or --centers"
        )
    predictor = load(
        arguments.model,
        device=arguments.device,
        precision=arguments.precision,
        quantize=arguments.quantize,
        gpu_memory_gb=arguments.gpu_memory,
    )
    set_detector_options(predictor.model, detector_options(arguments))
    if arguments.centers:
        set_finder(predictor.model, load(arguments.centers, device=arguments.device).model)
    stream: Stream = predictor.stream(
        arguments.inputs,
        task=arguments.task,
        classes=arguments.classes,
        phrases=arguments.phrases,
        ask=arguments.ask,
        score=arguments.score,
        centers=arguments.centers_xy,
        batch_size=arguments.batch_size,
    )
    check_formats(formats, stream.task)
    folder = arguments.out or DEFAULT_OUT
    collector, measures = CocoCollector(), MeasureCollector()
    files = 0
    each = len(arguments.phrases) if arguments.phrases and stream.task is Task.GROUNDING else 1
    for answer in screen.progress(stream, total=stream.total * each, label="predict"):
        if answer.prediction is None or answer.image is None:
            screen.note(f"no answer: {answer.error}")
            continue
        screen.say(f"{answer.origin.path or answer.stem}: {describe(answer)}")
        if formats:
            files += len(
                save(
                    answer.prediction,
                    answer.image,
                    answer.stem,
                    folder,
                    formats,
                    origin=answer.origin,
                    collector=collector,
                    measures=measures,
                )
            )
    if "coco" in formats and len(collector):
        files += len(collector.write(folder))
    if "csv" in formats and len(measures):
        files += len(measures.write(folder, add=True))
    _sum_up(stream.report, files, folder)
    return 1 if stream.report.failed else 0


def describe(answer: Answer) -> str:
    """The answer in one line: ``2 cat, 1 dog``, a sentence, a box, or how far away things are."""
    from saccade.results import Caption, Centers, DepthMap, Grounding, Instances, Panoptic, Referral, SemanticMap

    prediction = answer.prediction
    if isinstance(prediction, Instances | Panoptic):
        counts = Counter(prediction.class_names)
        return ", ".join(f"{number} {name}" for name, number in counts.most_common()) or "nothing found"
    if isinstance(prediction, SemanticMap):
        shares = {
            name: float((prediction.labels == k).float().mean()) for k, name in enumerate(prediction.classes.names)
        }
        largest = sorted(shares.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= 0.005)
    if isinstance(prediction, Caption):
        return prediction.text
    if isinstance(prediction, Grounding):
        x0, y0, x1, y1 = (round(float(value)) for value in prediction.box_xyxy)
        return f"'{prediction.phrase}' at x {x0} to {x1}, y {y0} to {y1} (score {prediction.score:.2f})"
    if isinstance(prediction, Referral):
        return prediction.in_words()
    if isinstance(prediction, Centers):
        points = ", ".join(f"x {x:.0f}, y {y:.0f}" for x, y in prediction.points_xy.tolist())
        return f"at {points}"
    if isinstance(prediction, DepthMap):
        told = prediction.to_dict()
        if told["median_m"] is None:
            return "no depth known"
        return f"{told['least_m']:.1f} m to {told['greatest_m']:.1f} m, median {told['median_m']:.1f} m"
    return "no answer"


def _sum_up(report: Report, files: int, folder: Path) -> None:
    from saccade.cli import screen

    parts = [f"{report.done} pictures in {report.seconds:.1f} s"]
    if files:
        parts.append(f"{files} files in {folder}/")
    if report.failed:
        parts.append(f"{len(report.failed)} could not be read")
    if report.passed_over:
        parts.append(f"{len(report.passed_over)} files passed over (no image suffix)")
    screen.note("; ".join(parts))
