"""The demonstration: every task of some models on drawn pictures, beside the truth, as one self-contained page."""

from __future__ import annotations

import base64
import html
import io
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import torch
from PIL import Image

import saccade
from saccade.data.sources.scenes import ScenesSource
from saccade.drawing import to_pil
from saccade.errors import UsageError
from saccade.predictor import Answer, Predictor, load
from saccade.results import (
    Caption,
    Centers,
    DepthMap,
    Grounding,
    Instances,
    Panoptic,
    Prediction,
    Referral,
    SemanticMap,
    from_truth,
)
from saccade.samples import Sample
from saccade.saving import write_json
from saccade.tasks import TASKS, Task

SPLIT = "val"
"""The scenes of the demonstration: the first ones of a split that nothing is trained on."""

MODELS = ("git-nano", "ait-nano")
"""What is shown where no model is named: bundled ones, each with tasks of its own."""

PICTURE_SIZE = 448
"""Height and width of the drawn pictures: large enough to read what is written on them."""

_TITLES = {
    Task.DETECTION: ("Detection", "Find every object: a box, a class and a score."),
    Task.INSTANCE: ("Instance segmentation", "Find every object and its outline."),
    Task.SEMANTIC: ("Semantic segmentation", "Give every pixel a class."),
    Task.CAPTION: ("Captioning", "Say in a sentence what the picture shows."),
    Task.GROUNDING: ("Visual grounding", "Find the one object that a phrase describes."),
    Task.DEPTH: (
        "Depth",
        "Say how far away every pixel is, in metres. The sky has no depth: what is said there was never taught.",
    ),
    Task.REFERRING: ("Referring segmentation", "Outline all that each phrase describes, or say that there is none."),
}


@dataclass(kw_only=True)
class _Shown:
    """One picture of one task, with everything that the page says about it."""

    task: Task
    model: str
    scene: int
    answer: Answer
    truth: Prediction
    captions: tuple[str, ...]
    command: str
    files: dict[str, str]
    drawn: dict[str, Image.Image]

    @property
    def prediction(self) -> Prediction:
        if self.answer.prediction is None:
            raise self.answer.error or UsageError("there is no prediction", where=self.answer.stem)
        return self.answer.prediction


def run_demo(out: Path, *, models: Sequence[str] = MODELS, images: int = 6, device: str = "auto") -> Path:
    """Runs every task of the models on drawn pictures and writes what they say, beside the truth.

    Written are ``pictures/`` (the drawn pictures), one folder per task with the annotated PNGs of prediction and truth,
    ``results.json``, and ``index.html``, which has its pictures inside. Nothing is downloaded. Running it again
    replaces the same files.

    Args:
        out: Folder to write to; made where it is missing.
        models: Bundled checkpoints or checkpoint folders; a task is shown by the first one that offers it.
        images: Pictures per task.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The path of ``index.html``.

    Raises:
        UsageError: Fewer than one picture, or no such model.
    """
    if images < 1:
        raise UsageError(f"the demonstration needs at least one picture, not {images}")
    predictors = {model: load(model, device=device) for model in models}
    speakers: dict[Task, str] = {}
    for model, predictor in predictors.items():
        for task in predictor.tasks:
            speakers.setdefault(task, model)
    out.mkdir(parents=True, exist_ok=True)
    _remove_earlier(out)
    (out / "pictures").mkdir(exist_ok=True)
    shown: list[_Shown] = []
    for task, model in speakers.items():
        scenes = ScenesSource(task=task, split=SPLIT, size=PICTURE_SIZE)
        samples = [scenes[number] for number in range(images)]
        if not shown:  # the scenes are the same for every task
            for sample in samples:
                to_pil(sample.image).save(out / _picture(sample))
        _ask(predictors[model], out, samples[0])  # once before the times count: the first call fills caches
        shown += [_show(predictors[model], sample, out, model) for sample in samples]
    facts = _facts(predictors, out, images)
    results = {"about": facts, "results": [_describe(one) for one in shown]}
    write_json(out / "results.json", results)
    page = out / "index.html"
    page.write_text(_page(facts, shown, tuple(speakers)), encoding="utf-8")
    return page


def _remove_earlier(out: Path) -> None:
    """Removes the pictures that an earlier demonstration lists as its own, and nothing else."""
    try:
        earlier = json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]
        files = {name for one in earlier for name in one["files"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    for name in files:
        path = out / name
        if path.resolve().is_relative_to(out.resolve()):
            path.unlink(missing_ok=True)
            if path.parent != out and not any(path.parent.iterdir()):
                path.parent.rmdir()


def _picture(sample: Sample) -> str:
    return f"pictures/{_name(sample)}.png"


def _name(sample: Sample) -> str:
    return f"scene_{sample.origin.image_id:05d}"


def _ask(predictor: Predictor, out: Path, sample: Sample) -> Answer:
    """The answer about the written picture of a scene."""
    phrases = sample.phrases or sample.phrase
    return next(iter(predictor.stream(out / _picture(sample), task=sample.task, phrases=phrases)))


def _show(predictor: Predictor, sample: Sample, out: Path, model: str) -> _Shown:
    """Asks the model about a scene and writes prediction and truth."""
    task = sample.task
    shown = _Shown(
        task=task,
        model=model,
        scene=int(sample.origin.image_id),
        answer=_ask(predictor, out, sample),
        truth=from_truth(sample),
        captions=sample.target.captions,
        command=_command(out / _picture(sample), model, sample),
        files={"picture": _picture(sample)},
        drawn={},
    )
    shown.drawn = {"prediction": shown.prediction.draw(sample.image), "truth": _draw_truth(shown.truth, sample)}
    (out / str(task)).mkdir(exist_ok=True)
    for kind, drawn in shown.drawn.items():
        shown.files[kind] = f"{task}/{_name(sample)}_{kind}.png"
        drawn.save(out / shown.files[kind], compress_level=3)
    return shown


def _draw_truth(truth: Prediction, sample: Sample) -> Image.Image:
    if isinstance(truth, Instances | Grounding | Referral):
        return truth.draw(sample.image, show_scores=False)
    return truth.draw(sample.image)


def _command(picture: Path, model: str, sample: Sample) -> str:
    """The command line that gives the same answer."""
    words = ["saccade", "predict", str(picture), "--model", model, "--task", TASKS[sample.task].alias]
    for phrase in sample.phrases or ((sample.phrase,) if sample.phrase is not None else ()):
        words += ["--phrase", phrase]
    return shlex.join(words)


def _facts(predictors: Mapping[str, Predictor], out: Path, images: int) -> dict[str, Any]:
    device = next(iter(predictors.values())).device
    words = ["saccade", "demo", "--out", str(out), "--model", *predictors, "--images", str(images)]
    return {
        "models": {
            model: {
                "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
                "weights_bytes": predictor.card.weights.get("bytes"),
                "provenance": predictor.card.provenance,
            }
            for model, predictor in predictors.items()
        },
        "pictures": f"drawn scenes 0 to {images - 1} of the split '{SPLIT}', {PICTURE_SIZE} x {PICTURE_SIZE} pixels",
        "command": shlex.join(words),
        "saccade": saccade.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _describe(shown: _Shown) -> dict[str, Any]:
    prediction = shown.prediction
    described: dict[str, Any] = {
        "task": str(shown.task),
        "model": shown.model,
        "scene": shown.scene,
        "prompt": _prompt(prediction),
        "seconds": round(shown.answer.seconds, 4),
        "command": shown.command,
        "files": shown.files,
        "prediction": prediction.to_dict(),
        "truth": shown.truth.to_dict(),
    }
    if isinstance(prediction, Caption):
        described["truth"]["references"] = list(shown.captions)
    if isinstance(prediction, Grounding) and isinstance(shown.truth, Grounding):
        described["iou"] = _iou(prediction, shown.truth)
    return described


def _iou(a: Grounding, b: Grounding) -> float:
    """Intersection over union of two boxes."""
    low, high = torch.maximum(a.box_xyxy[:2], b.box_xyxy[:2]), torch.minimum(a.box_xyxy[2:], b.box_xyxy[2:])
    shared = float((high - low).clamp(min=0).prod())
    both = sum(float((box.box_xyxy[2:] - box.box_xyxy[:2]).clamp(min=0).prod()) for box in (a, b)) - shared
    return shared / both if both > 0 else 0.0


# ---------------------------------------------------------------------- words


def _prompt(prediction: Prediction) -> str:
    if isinstance(prediction, Instances | SemanticMap | Panoptic):
        return ", ".join(prediction.classes.names)
    if isinstance(prediction, Referral):
        return ", ".join(prediction.phrases)
    return prediction.phrase if isinstance(prediction, Grounding) else "(none: the picture alone)"


def _words(prediction: Prediction, *, truth: bool) -> str:
    """What a result says, in a line."""
    if isinstance(prediction, Instances):
        names = zip(prediction.class_names, prediction.scores.tolist(), strict=True)
        listed = ", ".join(name if truth else f"{name} {score:.2f}" for name, score in names)
        return f"{len(prediction)} objects: {listed}" if len(prediction) else "no objects"
    if isinstance(prediction, SemanticMap):
        regions = sorted(prediction.to_dict()["regions"], key=lambda region: -region["share"])
        return ", ".join(f"{region['class_name']} {region['share']:.0%}" for region in regions)
    if isinstance(prediction, Panoptic):
        return f"{len(prediction.segments)} segments: {', '.join(prediction.class_names)}"
    if isinstance(prediction, Caption):
        return prediction.text or "(an empty sentence)"
    if isinstance(prediction, DepthMap):
        told = prediction.to_dict()
        return (
            f"{told['least_m']:.1f} m to {told['greatest_m']:.1f} m, half of the pixels within {told['median_m']:.1f} m"
        )
    if isinstance(prediction, Referral):
        return prediction.in_words(scores=not truth)
    if isinstance(prediction, Centers):
        return "centres at " + "; ".join(f"{x:.0f}, {y:.0f}" for x, y in prediction.points_xy.tolist())
    box = ", ".join(f"{value:.0f}" for value in prediction.box_xyxy.tolist())
    return f"box ({box})" + ("" if truth else f", score {prediction.score:.2f}")


def _seconds(values: Sequence[float]) -> str:
    """The median time, readable."""
    middle = sorted(values)[len(values) // 2]
    return f"{middle:.2f} s" if middle >= 1 else f"{middle * 1000:.0f} ms"


# ---------------------------------------------------------------------- the page


def _page(facts: dict[str, Any], shown: Sequence[_Shown], tasks: Sequence[Task]) -> str:
    rows, sections = [], []
    for task in tasks:
        title, purpose = _TITLES[task]
        cards = [one for one in shown if one.task is task]
        time = _seconds([one.answer.seconds for one in cards])
        rows.append(
            f'<tr><td><a href="#{task}">{_e(title)}</a></td><td>{_e(purpose)}</td>'
            f'<td>{_e(cards[0].model)}</td><td class="n">{_e(time)}</td></tr>'
        )
        body = "\n".join(_card(one) for one in cards)
        prompt = _prompt(cards[0].prediction) if TASKS[task].prompt == "classes" else ""
        asked = f'<p class="prompt"><b>Asked for</b> {_e(prompt)}</p>' if prompt else ""
        head = f"<h2>{_e(title)}</h2><p>{_e(purpose)}</p>{asked}"
        sections.append(f'<section id="{task}">{head}<div class="cards">{body}</div></section>')
    threads = "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    about = {
        **{f"Parameters of {model}": _size(told) for model, told in facts["models"].items()},
        "Pictures": facts["pictures"],
        "Computed on": f"{facts['device']}, {threads}, {facts['machine']}, torch {facts['torch']}",
        "Saccade": facts["saccade"],
    }
    return _PAGE.substitute(
        models=_e(" and ".join(facts["models"])),
        count=f"{_count(len(tasks), 'task')} of {_count(len(facts['models']), 'model')}".capitalize(),
        about="".join(f"<dt>{_e(key)}</dt><dd>{_e(value)}</dd>" for key, value in about.items()),
        command=_e(facts["command"]),
        rows="".join(rows),
        sections="\n".join(sections),
    )


def _size(told: Mapping[str, Any]) -> str:
    """Parameters of a model, and the size of its file."""
    size = told["weights_bytes"]
    return f"{told['parameters']:,}" + (f" ({size / 1e6:.1f} MB of weights)" if isinstance(size, int) else "")


def _count(number: int, noun: str) -> str:
    return f"one {noun}" if number == 1 else f"{number} {noun}s"


def _card(shown: _Shown) -> str:
    prediction = shown.prediction
    name = f"Scene {shown.scene}"
    predicted, true = _words(prediction, truth=False), _words(shown.truth, truth=True)
    lines = []
    if isinstance(prediction, Grounding | Referral):
        lines.append(("Asked for", f"“{_prompt(prediction)}”"))
    lines += [("Prediction", predicted), ("Truth", true)]
    lines += [("", sentence) for sentence in shown.captions[1:]]
    if isinstance(prediction, Grounding) and isinstance(shown.truth, Grounding):
        lines.append(("Overlap", f"IoU {_iou(prediction, shown.truth):.2f}"))
    lines.append(("Time", _seconds([shown.answer.seconds])))
    said = "".join(f"<dt>{_e(key)}</dt><dd>{_e(value)}</dd>" for key, value in lines)
    pictures = "".join(
        f'<figure><img alt="{_e(name)}, {kind}: {_e(words)}" src="{_inline(shown.drawn[kind])}">'
        f"<figcaption>{kind}</figcaption></figure>"
        for kind, words in (("prediction", predicted), ("truth", true))
    )
    return (
        f'<article><h3>{_e(name)}</h3><div class="pair">{pictures}</div><dl>{said}</dl>'
        f"<pre><code>{_e(shown.command)}</code></pre></article>"
    )


def _inline(picture: Image.Image) -> str:
    """A picture as a data address (JPEG: a sixth of the PNG, which lies beside the page)."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Saccade: $models</title>
<style>
:root { --back: #fafaf8; --card: #ffffff; --text: #1c1e21; --soft: #5d636b; --line: #dcdcd6; --mark: #005f99; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14161a; --card: #1d2025; --text: #e6e7e9; --soft: #a2a8b0; --line: #343941; --mark: #7cc0f0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .4rem; line-height: 1.2; }
h2 { font-size: 1.35rem; margin: 3rem 0 .2rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .6rem; }
p { margin: .2rem 0 .8rem; max-width: 75ch; }
a { color: var(--mark); }
.prompt, figcaption, dt { color: var(--soft); }
table { border-collapse: collapse; margin: 1.2rem 0; }
th, td { text-align: left; padding: .35rem 1.6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.n { text-align: right; padding-right: 0; font-variant-numeric: tabular-nums; white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: .7rem 0 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); gap: 1.2rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; min-width: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .7rem; align-items: start; }
figure { margin: 0; min-width: 0; }
img { width: 100%; height: auto; display: block; border-radius: 5px; }
figcaption { font-size: .85rem; }
pre { margin: .8rem 0 0; padding: .55rem .7rem; background: var(--back); border: 1px solid var(--line);
  border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.45 ui-monospace, monospace; }
@media (max-width: 480px) { .pair { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<main>
<h1>Every task of $models</h1>
<p>$count. The pictures are drawn by Saccade itself from seeds that were never
trained on, so that the truth beside each prediction is exact.</p>
<dl>$about</dl>
<pre><code>$command</code></pre>
<table>
<thead><tr><th>Task</th><th>What it does</th><th>Model</th><th class="n">Median time<br>per picture</th></tr></thead>
<tbody>$rows</tbody>
</table>
$sections
</main>
</body>
</html>
""")
