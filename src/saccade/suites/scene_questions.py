"""What is asked about drawn scenes, and what is true of them, whatever the style.

Shape legend: N scenes, K answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from saccade.data.scenes import COLOURS, MATERIALS, SIZES, SPLITS, THING_CLASSES, draw_scene
from saccade.data.scenes.dice import Dice
from saccade.data.scenes.language import Thing, captions
from saccade.data.scenes.styles import restyle
from saccade.metrics.ranking import TopK

Attribute = Literal["colour", "name", "ground"]

ATTRIBUTES: dict[str, tuple[Attribute, tuple[str, ...]]] = {
    "colour": ("colour", tuple(COLOURS)),
    "shape": ("name", THING_CLASSES),
    "ground": ("ground", ("grass", "road", "sand")),
}
"""What is asked zero-shot: which property of an object, and the possible answers."""

MOST_OBJECTS = 8
"""Objects of a scene are counted up to this."""

_CONTEXTS = 32  # made-up scenes of which the prompts tell


@dataclass(kw_only=True, frozen=True)
class Drawn:
    """A drawn scene, as far as it is needed; all but its look is the same in every style.

    Attributes:
        image: ``[H, W, 3]`` uint8, plain.
        depth_m: ``[H, W]`` float32.
        boxes_xyxy: ``[n, 4]`` float32 pixels.
        class_ids: ``[n]`` int64.
        things: The objects, the greatest first.
    """

    image: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    boxes_xyxy: Tensor
    class_ids: Tensor
    things: tuple[Thing, ...]


def draw_scenes(side: int, split: str, count: int, seed: int) -> list[Drawn]:
    """The first scenes of a split of a world."""
    drawn = []
    for index in range(count):
        scene = draw_scene((seed, SPLITS[split][0], index), (side, side))
        drawn.append(
            Drawn(
                image=scene.image,
                depth_m=scene.depth_m,
                boxes_xyxy=torch.from_numpy(scene.boxes_xyxy),
                class_ids=torch.from_numpy(scene.class_ids),
                things=scene.things,
            )
        )
    return drawn


class Styled:
    """The pictures of scenes in a style.

    Args:
        scenes: The scenes.
        style: One of ``SCENE_STYLES``.
    """

    def __init__(self, scenes: Sequence[Drawn], style: str) -> None:
        self._scenes, self._style = scenes, style

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Tensor:
        scene = self._scenes[index]
        return torch.from_numpy(restyle(scene.image, scene.depth_m, self._style)).permute(2, 0, 1).contiguous()


@dataclass(kw_only=True, frozen=True)
class Question:
    """The right answers to one question about scenes.

    Attributes:
        name: Of the metric.
        truth: ``[N]`` int64.
        answers: How many answers K there are.
        loose: Name of the second metric, which accepts more.
        accepted: ``[N, K]`` bool, what that one accepts; None = there is no second one.
    """

    name: str
    truth: Tensor
    answers: int
    loose: str = ""
    accepted: Tensor | None = None

    def scores(self, logits_NK: Tensor) -> dict[str, float]:
        """The mean over the true answers under the name, and the plain share of right answers and the loose one."""
        metric = TopK(self.answers, ks=(1,))
        metric.update(logits_NK, self.truth)
        found = metric.compute()
        scores = {self.name: found["mean_class"], f"{self.name}/top1": found["top1"]}
        if self.accepted is not None:
            best_N1 = logits_NK.argmax(1, keepdim=True)
            scores[f"{self.name}/{self.loose}"] = float(self.accepted.gather(1, best_N1).double().mean())
        return scores

    def commonest(self) -> dict[str, float]:
        """The same scores of whoever gives one answer to all, the best one for each: what looking has to beat."""
        constant = F.one_hot(torch.arange(self.answers), self.answers).float()
        tried = [self.scores(row.expand(len(self.truth), -1)) for row in constant]
        return {name: max(scores[name] for scores in tried) for name in tried[0]}


def how_many(scenes: Sequence[Drawn]) -> Question:
    """How many objects are there? Answer 0 stands for one."""
    truth = torch.tensor([min(len(scene.things), MOST_OBJECTS) - 1 for scene in scenes])
    near = (torch.arange(MOST_OBJECTS) - truth[:, None]).abs() <= 1
    return Question(name="counting", truth=truth, answers=MOST_OBJECTS, loose="within1", accepted=near)


def which_in_boxes(scenes: Sequence[Drawn]) -> Question:
    """Which object is in each box?"""
    truth = torch.cat([scene.class_ids for scene in scenes])
    return Question(name="box_class", truth=truth, answers=len(THING_CLASSES))


def which_value(name: str, scenes: Sequence[Drawn]) -> Question:
    """Which value has a property of the greatest object? Loosely: of any object.

    Args:
        name: One of :data:`ATTRIBUTES`.
        scenes: The scenes.
    """
    attribute, values = ATTRIBUTES[name]

    def numbers(things: Iterable[Thing]) -> list[int]:
        return [values.index(str(getattr(thing, attribute))) for thing in things]

    accepted = torch.zeros(len(scenes), len(values), dtype=torch.bool)
    for row, scene in zip(accepted, scenes, strict=True):
        row[numbers(scene.things)] = True
    return Question(
        name=f"zero_shot/{name}",
        truth=torch.tensor([numbers(scene.things[:1])[0] for scene in scenes]),
        answers=len(values),
        loose="any",
        accepted=accepted,
    )


def prompts(attribute: Attribute, value: str) -> list[str]:
    """Captions of made-up scenes whose greatest object has a property, in all else the same for every value.

    Args:
        attribute: The property.
        value: What it is.
    """
    told: dict[str, Any] = {attribute: value}
    dice = Dice(0)
    texts: list[str] = []
    for number in range(_CONTEXTS):
        # Captions count the objects: two to seven.
        made = [_made_up(dice) for _ in range(2 + number % 6)]
        texts += captions([dataclasses.replace(made[0], **told), *made[1:]])
    return texts


def _made_up(dice: Dice) -> Thing:
    """An object that is nowhere."""
    return Thing(
        name=dice.pick(THING_CLASSES),
        colour=dice.pick(tuple(COLOURS)),
        size=dice.pick(tuple(SIZES)),
        material=dice.pick(MATERIALS),
        ground=dice.pick(ATTRIBUTES["ground"][1]),
        column=dice.unit(),
        distance_m=dice.uniform(2.0, 12.0),
        area=0,
    )
