"""Scenes described whole: every object by its looks and its mask, from left to right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saccade.data.scenes import draw_scene
from saccade.data.sources import SourceSpec, open_source
from saccade.data.sources.scenes import ScenesSource
from saccade.draws import GeneratorDraws
from saccade.errors import UsageError
from saccade.models.gsva import prompts
from saccade.tasks import Task


def test_every_object_is_named_in_order() -> None:
    source = open_source(SourceSpec(task=Task.REFERRING, reader="scene_dialogues", split="val", size=64, limit=20))
    plain = ScenesSource(task=Task.REFERRING, split="val", size=64)
    for index in range(20):
        sample = source[index]
        ((question, answer),) = sample.dialogue
        scene = draw_scene((0, 1, index), (64, 64))
        order = sorted(range(len(scene)), key=lambda k: scene.things[k].column)
        things = [scene.things[k] for k in order]
        names = [f"the {one.size} {one.material} {one.colour} {one.name}" for one in things]
        assert (sample.image == plain[index].image).all()
        assert question == "What are the objects in this image?" and sample.phrases == tuple(names)
        assert answer == f"Sure, they are {', '.join(f'{name}:[SEG]' for name in names)}."
        assert torch.equal(sample.target.masks.as_subclass(torch.Tensor), torch.from_numpy(scene.masks[order]))


@pytest.mark.parametrize("one_seg", [False, True])
def test_a_description_teaches_every_mask_unless_an_answer_may_have_one(one_seg: bool) -> None:
    sample = ScenesSource(task=Task.REFERRING, size=64, dialogue=True)[0]
    (part,) = prompts.apart(sample) if one_seg else [sample]
    (conversation,) = prompts.training(part, GeneratorDraws(np.random.default_rng(0)), only_words=-1)
    ((_, answer),) = conversation.rounds
    assert answer.count("[SEG]") == len(conversation.expressions) == (0 if one_seg else len(sample.phrases))
    assert all(phrase in answer for phrase in sample.phrases)


def test_dialogues_are_for_one_task() -> None:
    with pytest.raises(UsageError, match="dialogues serve the trainings of referring segmentation"):
        open_source(SourceSpec(task=Task.DETECTION, reader="scene_dialogues"))
