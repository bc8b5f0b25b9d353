"""A small pair on drawn scenes: the published claim at a size that a desk computer can train.

The tower has seen plain scenes only. It is asked about the same world in other styles: zero-shot about the colour, the
shape and the ground of the greatest object, by retrieval of captions, and by linear probes that are trained on plain
scenes (how many objects, and which object is in a box). Plain test scenes are a row of their own, for reference.

Shape legend: N scenes, M cells of the map, C channels, J joint channels, K answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saccade.data.scenes import SCENE_STYLES, THING_CLASSES
from saccade.data.scenes.language import captions
from saccade.metrics.ranking import recall_at_k
from saccade.models.visft.clip import CLIPPair
from saccade.suites.base import SuiteOptions, SuiteResult
from saccade.suites.classify import mean_point
from saccade.suites.features import extract
from saccade.suites.identify import Boxes, BoxProbe, fit_linear, linear_schedule, mean_in_boxes
from saccade.suites.pictures import CentreCrop
from saccade.suites.probes import about_probe, keep_probe, kept_probe
from saccade.suites.retrieve import caption_points
from saccade.suites.scene_questions import (
    ATTRIBUTES,
    MOST_OBJECTS,
    Drawn,
    Question,
    Styled,
    draw_scenes,
    how_many,
    prompts,
    which_in_boxes,
    which_value,
)
from saccade.suites.towers import Tower

UNSEEN = tuple(style for style in SCENE_STYLES if style != "plain")
TRAIN, TEST = 2_000, 500
"""Scenes that the linear probes are trained on, and scenes of each style that are asked about."""

_COMMONEST = "commonest"


@dataclass(kw_only=True, frozen=True)
class Seen:
    """What a tower makes of scenes.

    Attributes:
        means: ``[N, C]`` means of the maps.
        in_boxes: ``[boxes, C]`` means of the maps in the boxes, scene after scene.
        points: ``[N, J]`` points of the joint space; None without a text tower.
    """

    means: Tensor
    in_boxes: Tensor
    points: Tensor | None


def measure_scenes(tower: Tower, options: SuiteOptions) -> SuiteResult:
    """Everything, for every style, and on average over the unseen ones.

    Args:
        tower: Zero-shot questions and retrieval are left out where it has no text tower.
        options: ``limit`` and ``train_limit`` change the numbers of scenes; ``seed`` draws another world.
    """
    train, test = options.train_limit or TRAIN, options.limit or TEST
    counter, namer, note = _probes(tower, train, options)
    scenes = draw_scenes(tower.side, "test", test, options.seed)
    counting, boxes = how_many(scenes), which_in_boxes(scenes)
    asked: dict[str, Question] = {}
    if tower.pair is not None:
        asked = {name: which_value(name, scenes) for name in ATTRIBUTES}
        answers = {name: answer_points(tower.pair, name, options) for name in ATTRIBUTES}
        told = caption_points(tower.pair, [captions(scene.things) for scene in scenes], options)
    metrics: dict[str, float] = {}
    for style in SCENE_STYLES:
        seen = look(tower, scenes, style, options, split="test")
        found = counting.scores(_said(counter, seen.means)) | boxes.scores(_said(namer, seen.in_boxes))
        if seen.points is not None:
            for name, question in asked.items():
                found |= question.scores(seen.points @ answers[name].T)
            recalls = recall_at_k(seen.points, *told)
            found |= {f"retrieval/{name}": recalls[name] for name in ("i2t/R@5", "t2i/R@5")}
        metrics |= {f"{style}/{name}": value for name, value in found.items()}
    means = {f"mean/{name}": sum(metrics[f"{style}/{name}"] for style in UNSEEN) / len(UNSEEN) for name in found}
    for question in (counting, boxes, *asked.values()):
        metrics |= {f"{_COMMONEST}/{name}": value for name, value in question.commonest().items()}
    notes = [
        f"{test} scenes in each style, {len(boxes.truth)} boxes; the mean is that of {', '.join(UNSEEN)}",
        note,
        "without an ending all true answers weigh the same; top1: the share of right ones",
        f"{_COMMONEST}: the best that one answer to all would reach",
    ]
    return SuiteResult(metrics=means | metrics, items=test * len(SCENE_STYLES), notes=notes)


def look(tower: Tower, scenes: Sequence[Drawn], style: str, options: SuiteOptions, *, split: str) -> Seen:
    """Shows a tower scenes, each once.

    Args:
        tower: Any.
        scenes: Of the size of its nominal input.
        style: How they are to look.
        options: Batch size, precision, cache, progress.
        split: Where the scenes are from, for kept features.
    """
    data = f"scenes {split} {style}, seed {options.seed}"
    tokens_NMC = extract(
        tower.tokens,
        Styled(scenes, style),
        CentreCrop(side=tower.side, mean=tower.mean, std=tower.std),
        options=options,
        device=tower.device,
        about={"tower": tower.identity, "data": data, "what": "tokens"},
        what=f"{split}: {style}",
    )
    config = tower.vit.config
    cells_NMC = tokens_NMC[:, int(config.class_token) :]
    points = None
    if tower.pair is not None:
        with torch.inference_mode():
            points = tower.pair.joint(tokens_NMC[:, 0].to(tower.device)).cpu()
    return Seen(
        means=cells_NMC.mean(1),
        in_boxes=mean_in_boxes(
            cells_NMC.unflatten(1, (config.grid_size,) * 2), [one.boxes_xyxy for one in scenes], config.patch_size
        ),
        points=points,
    )


def answer_points(pair: CLIPPair, name: str, options: SuiteOptions) -> Tensor:
    """The mean point of the sentences of every answer, ``[K, J]``."""
    attribute, values = ATTRIBUTES[name]
    points = [mean_point(pair, prompts(attribute, value), batch_size=options.batch_size) for value in values]
    return torch.stack(points)


def _probes(tower: Tower, train: int, options: SuiteOptions) -> tuple[BoxProbe, BoxProbe, str]:
    """What counts objects, what names them in boxes, and whether both were kept or are trained on plain scenes now."""
    width = tower.vit.config.width
    counter, namer = (BoxProbe(width, answers).to(tower.device) for answers in (MOST_OBJECTS, len(THING_CLASSES)))
    both = nn.ModuleDict({"counting": counter, "box_class": namer})
    about = about_probe(
        "scenes", tower.identity, options, train_root=None, train_limit=train, **linear_schedule(options)
    )
    if not (note := kept_probe(options.probe, both, about)):
        scenes = draw_scenes(tower.side, "train", train, options.seed)
        seen = look(tower, scenes, "plain", options, split="train")
        fit_linear(counter, Boxes(features=seen.means, labels=how_many(scenes).truth), options)
        steps = fit_linear(namer, Boxes(features=seen.in_boxes, labels=which_in_boxes(scenes).truth), options)
        note = f"linear probes trained {steps} steps on {train} plain scenes of another split"
        keep_probe(options.probe, both.state_dict(), about, note)
    return counter, namer, note


def _said(probe: BoxProbe, features: Tensor) -> Tensor:
    with torch.inference_mode():
        return probe(features.to(next(probe.parameters()).device)).cpu()
