"""Scenes described whole: every object by its looks, from left to right."""

from __future__ import annotations

import pytest

from saccade.data.scenes import draw_scene
from saccade.data.sources import SourceSpec, open_source
from saccade.data.sources.scenes import ScenesSource
from saccade.errors import UsageError
from saccade.tasks import Task


def test_every_object_is_named_in_order() -> None:
    source = open_source(SourceSpec(task=Task.REFERRING, reader="scene_dialogues", split="val", size=64, limit=20))
    plain = ScenesSource(task=Task.REFERRING, split="val", size=64)
    for index in range(20):
        sample = source[index]
        ((question, answer),) = sample.dialogue
        assert question == "What are the objects in this image?" and not sample.phrases and sample.target.masks is None
        things = sorted(draw_scene((0, 1, index), (64, 64)).things, key=lambda thing: thing.column)
        assert (sample.image == plain[index].image).all()
        named = answer.removeprefix("Sure, they are ").removesuffix(".").split(", ")
        assert named == [f"the {one.size} {one.material} {one.colour} {one.name}" for one in things]


def test_dialogues_are_for_one_task() -> None:
    with pytest.raises(UsageError, match="dialogues serve the trainings of referring segmentation"):
        open_source(SourceSpec(task=Task.DETECTION, reader="scene_dialogues"))
