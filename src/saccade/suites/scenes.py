"""A small pair on drawn scenes: the published claim at a size that a laptop can train.

The tower has seen plain scenes only. It is asked about the same world in other styles: zero-shot about the colour, the
shape and the ground of the greatest object, by retrieval of captions, and by linear probes that are trained on plain
scenes (how many objects, and which object is in a box).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.data.scenes import COLOURS, SCENE_STYLES, SPLITS, THING_CLASSES, Scene, draw_scene
from saccade.data.scenes.language import Thing
from saccade.data.sources.scenes import ScenesSource
from saccade.metrics.ranking import TopK
from saccade.models.visft.clip import CLIPPair
from saccade.suites.base import SuiteOptions, SuiteResult
from saccade.suites.features import extract
from saccade.suites.identify import Boxes, BoxProbe, box_features, fit_linear
from saccade.suites.pictures import CentreCrop
from saccade.suites.retrieve import retrieval_of
from saccade.suites.towers import Tower
from saccade.tasks import Task

UNSEEN = tuple(style for style in SCENE_STYLES if style != "plain")
TRAIN, TEST = 2_000, 500
"""Scenes that the linear probes are trained on, and scenes of each style that are asked about."""

_MOST_OBJECTS = 8
_GROUNDS = ("grass", "road", "sand")  # what objects stand on


@dataclasses.dataclass(kw_only=True, frozen=True)
class Attribute:
    """What is asked zero-shot about the greatest object of a scene.

    Attributes:
        values: The possible answers.
        truth: The answer of an object.
        prompts: The sentences that say an answer.
    """

    values: tuple[str, ...]
    truth: Callable[[Thing], str]
    prompts: Callable[[str], list[str]]


ATTRIBUTES: dict[str, Attribute] = {
    "colour": Attribute(
        values=tuple(COLOURS),
        truth=lambda thing: thing.colour,
        prompts=lambda value: [f"a {value} {name} on the {ground}" for name in THING_CLASSES for ground in _GROUNDS],
    ),
    "shape": Attribute(
        values=THING_CLASSES,
        truth=lambda thing: thing.name,
        prompts=lambda value: [f"a {colour} {value} on the {ground}" for colour in COLOURS for ground in _GROUNDS],
    ),
    "ground": Attribute(
        values=_GROUNDS,
        truth=lambda thing: thing.ground,
        prompts=lambda value: [f"a {colour} {name} on the {value}" for colour in COLOURS for name in THING_CLASSES],
    ),
}
"""Name to question."""


def measure_scenes(tower: Tower, options: SuiteOptions) -> SuiteResult:
    """Everything, for every unseen style and on average over them.

    Args:
        tower: Zero-shot questions and retrieval are left out where it has no text tower.
        options: ``limit`` and ``train_limit`` change the numbers of scenes; ``seed`` draws another world.
    """
    train, test = options.train_limit or TRAIN, options.limit or TEST
    answers = {} if tower.pair is None else {name: _points(tower.pair, one) for name, one in ATTRIBUTES.items()}
    plain = _Scenes(tower.side, "train", "plain", train, options.seed)
    counter = BoxProbe(tower.vit.config.width, _MOST_OBJECTS).to(tower.device)
    fit_linear(counter, _counts(tower, plain, options, what="plain scenes"), options)
    boxes = BoxProbe(tower.vit.config.width, len(THING_CLASSES)).to(tower.device)
    known = box_features(tower, _source(tower, "train", "plain", train, options), options, most=train, what="boxes")
    fit_linear(boxes, known, options)
    metrics: dict[str, float] = {}
    for style in UNSEEN:
        scenes = _Scenes(tower.side, "test", style, test, options.seed)
        found = {"counting": _top1(counter, _counts(tower, scenes, options, what=style), _MOST_OBJECTS)}
        source = _source(tower, "test", style, test, options)
        seen = box_features(tower, source, options, most=test, what=f"{style}: boxes")
        found["box_class"] = _top1(boxes, seen, len(THING_CLASSES))
        if tower.pair is not None:
            found |= _zero_shot(tower, tower.pair, scenes, answers, options, what=f"{style}: zero-shot")
            captions = [scenes.scene(index).captions for index in range(len(scenes))]
            recalls = retrieval_of(tower, scenes, captions, dataclasses.replace(options, cache=None), data=style)
            found |= {f"retrieval/{name}": recalls[name] for name in ("i2t/R@5", "t2i/R@5")}
        metrics |= {f"{style}/{name}": value for name, value in found.items()}
    names = dict.fromkeys(name.partition("/")[2] for name in metrics)
    means = {f"mean/{name}": sum(metrics[f"{style}/{name}"] for style in UNSEEN) / len(UNSEEN) for name in names}
    notes = [f"{test} scenes of each of {', '.join(UNSEEN)}; linear probes trained on {train} plain scenes"]
    return SuiteResult(metrics=means | metrics, items=test * len(UNSEEN), notes=notes)


class _Scenes:
    """Drawn scenes, and what is true of them."""

    def __init__(self, side: int, split: str, style: str, count: int, seed: int) -> None:
        self._seed, self._size_hw, self._style = (seed, SPLITS[split][0]), (side, side), style
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.scene(index).image).permute(2, 0, 1).contiguous()

    def scene(self, index: int) -> Scene:
        return draw_scene((*self._seed, index), self._size_hw, style=self._style)


def _points(pair: CLIPPair, attribute: Attribute) -> Tensor:
    """The mean point of the sentences of every answer, ``[answers, J]``."""
    points = []
    for value in attribute.values:
        with torch.inference_mode():
            points.append(F.normalize(pair.encode_texts(attribute.prompts(value)).float().mean(0), dim=0).cpu())
    return torch.stack(points)


def _zero_shot(
    tower: Tower, pair: CLIPPair, scenes: _Scenes, answers: dict[str, Tensor], options: SuiteOptions, *, what: str
) -> dict[str, float]:
    points = extract(
        pair.encode_images,
        scenes,
        _fit(tower),
        options=dataclasses.replace(options, cache=None),
        device=tower.device,
        about={},
        what=what,
    )
    greatest = [scenes.scene(index).things[0] for index in range(len(scenes))]
    return {
        f"zero_shot/{name}": _share(points @ answers[name].T, [one.values.index(one.truth(it)) for it in greatest])
        for name, one in ATTRIBUTES.items()
    }


def _counts(tower: Tower, scenes: _Scenes, options: SuiteOptions, *, what: str) -> Boxes:
    """Mean features of whole scenes, and how many objects each has (0 stands for one)."""
    features = extract(
        lambda images: tower.vit(images).mean((1, 2)),
        scenes,
        _fit(tower),
        options=dataclasses.replace(options, cache=None),
        device=tower.device,
        about={},
        what=what,
    )
    objects = [min(len(scenes.scene(index)), _MOST_OBJECTS) - 1 for index in range(len(scenes))]
    return Boxes(features=features, labels=torch.tensor(objects))


def _source(tower: Tower, split: str, style: str, limit: int, options: SuiteOptions) -> ScenesSource:
    return ScenesSource(task=Task.DETECTION, split=split, size=tower.side, seed=options.seed, style=style, limit=limit)


def _top1(probe: BoxProbe, seen: Boxes, classes: int) -> float:
    metric = TopK(classes, ks=(1,))
    with torch.inference_mode():
        metric.update(probe(seen.features.to(next(probe.parameters()).device)), seen.labels)
    return metric.compute()["top1"]


def _share(logits: Tensor, labels: Sequence[int]) -> float:
    return float((logits.argmax(1) == torch.tensor(labels)).double().mean())


def _fit(tower: Tower) -> CentreCrop:
    return CentreCrop(side=tower.side, mean=tower.mean, std=tower.std)
