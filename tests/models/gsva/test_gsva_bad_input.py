"""What does not fit is one error that says where."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers_gsva import END, IMAGE, QUESTION, REJ, SEG, batch, model

from saccade.errors import CheckpointError, ConfigError, DataError, UsageError
from saccade.models.gsva.config import CLIPConfig, GSVAConfig, LanguageConfig
from saccade.models.gsva.convert import from_official, sizes_of, vocabulary_ids
from saccade.models.gsva.inputs import ConversationBatch
from saccade.models.gsva.presets import gsva_7b
from saccade.samples import Batch, Origin
from saccade.tasks import Task


def with_ids(*ids: int) -> ConversationBatch:
    row = torch.tensor([ids])
    one = batch({0: [(SEG, END)]})
    return dataclasses.replace(one, input_ids=row, attention_mask=row != 0, labels=row.clone())


@pytest.mark.parametrize("ids", [(1, 5, SEG, END), (1, IMAGE, 5, IMAGE, SEG)])
def test_no_image_or_two(ids: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"a conversation with [02] images"):
        model().loss(with_ids(*ids))


@pytest.mark.parametrize("token", [SEG, REJ])
def test_a_slot_before_the_image(token: int) -> None:
    with pytest.raises(DataError, match="stands before the image"):
        model().loss(with_ids(1, token, IMAGE, 5, END))


def test_more_tokens_than_positions() -> None:
    long = with_ids(*QUESTION, *[5] * 89)
    with pytest.raises(DataError, match=r"97 tokens, image included(.|\n)*ask in fewer words"):
        model().answer(dataclasses.replace(long, expressions=[()] * len(long.input_ids)))
    many = dataclasses.replace(long, expressions=[("a dog", "a cat")] * len(long.input_ids))
    with pytest.raises(DataError, match=r"97 tokens, image included(.|\n)*fewer expressions at once"):
        model().answer(many)
    full = dataclasses.replace(with_ids(*QUESTION, *[5] * 88), labels=None)
    with pytest.raises(DataError, match="97 tokens, image included"):
        model().answer(full)
    second = dataclasses.replace(batch({0: [(SEG, END)], 1: [(*[5] * 89, SEG, END)]}), labels=None)
    second.origins[1] = dataclasses.replace(second.origins[1], path="crowd.jpg")
    with pytest.raises(DataError, match=r"tokens, image included\n  where: crowd.jpg"):
        model().answer(second)


def test_more_slots_than_masks() -> None:
    one = batch({0: [(SEG, REJ, END)]})
    with pytest.raises(DataError, match=r"2 \[SEG\] and \[REJ\], but 1 masks"):
        model().loss(dataclasses.replace(one, masks=[one.masks[0][:1]]))


@pytest.mark.parametrize("answers", [[(SEG, END), (SEG, SEG, END)], [(SEG, END), (REJ, END)], [(SEG, END), (5, END)]])
def test_several_conversations_need_one_seg_each(answers: list[tuple[int, ...]]) -> None:
    with pytest.raises(DataError, match="2 conversations about one image"):
        model().loss(batch({1: answers}))


def test_a_truth_is_needed_to_learn() -> None:
    one = batch({0: [(SEG, END)]})
    for lacking in (dataclasses.replace(one, labels=None), dataclasses.replace(one, masks=[])):
        with pytest.raises(UsageError, match="without labels or masks"):
            model().loss(lacking)


def test_a_batch_of_another_kind() -> None:
    origin = Origin(dataset="test", image_id=0, path=None, size_hw=(8, 8))
    plain = Batch(images=torch.zeros(1, 3, 64, 64), task=Task.REFERRING, origins=[origin], input_sizes_hw=[(64, 64)])
    with pytest.raises(UsageError, match="reads conversations"):
        model().predict(plain)
    with pytest.raises(UsageError, match="does not offer the task 'caption'"):
        model().predict(dataclasses.replace(batch({0: [(SEG,)]}), task=Task.CAPTION))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"labels": torch.zeros(1, 3)}, "labels"),
        ({"attention_mask": torch.zeros(1, 3)}, "attention_mask"),
        ({"conversation_to_image": torch.zeros(2)}, "conversation_to_image"),
        ({"masks": [torch.zeros(1, 2, 2)] * 2}, "masks"),
        ({"expressions": [("a",), ("b",)]}, "expressions"),
    ],
)
def test_a_batch_that_contradicts_itself(changes: dict[str, object], field: str) -> None:
    with pytest.raises(DataError, match=field):
        dataclasses.replace(batch({0: [(SEG, END)]}), **changes)


# ---------------------------------------------------------------------- weights


def test_weights_of_another_family(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a released GSVA"):
        from_official({"backbone.blocks.0.norm1.weight": torch.zeros(3)}, {}, source="some.pth")


def test_a_vocabulary_of_no_known_form() -> None:
    assert vocabulary_ids(32004) == (32000, 32001) and vocabulary_ids(32005) == (32003, 32004)
    with pytest.raises(CheckpointError, match="32000 rows"):
        vocabulary_ids(32000)
    with pytest.raises(CheckpointError, match="do not tell its sizes"):
        sizes_of({"model.text_hidden_fcs.0.0.weight": (4, 4)}, gsva_7b())


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("kind", "name", "where"),
    [
        (LanguageConfig, "heads", "language.heads"),
        (LanguageConfig, "positions", "language.positions"),
        (CLIPConfig, "patch_size", "clip.patch_size"),
        (GSVAConfig, "max_new_tokens", "max_new_tokens"),
        (GSVAConfig, "max_length", "max_length"),
    ],
)
def test_sizes_below_one(kind: type, name: str, where: str) -> None:
    for value in (0, -2):
        with pytest.raises(ConfigError, match=f"{value} is less than 1\n  where: {where}$"):
            kind(**{name: value})
