"""A GSVA of random weights is evaluated on scenes from end to end: loader, model, metric, stamp."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from helpers_gsva import config

sys.path.insert(0, str(Path(__file__).parents[2] / "tokens"))
from helpers_pieces import train_pieces

from saccade.data.sources.scenes import ScenesSource
from saccade.models.gsva.inputs import Answering
from saccade.models.gsva.model import GSVA
from saccade.samples import Sample, Target
from saccade.tasks import Task
from saccade.tokens.pieces import PieceVocabulary
from saccade.training.evaluation import evaluate


@pytest.fixture
def model(tmp_path: Path) -> GSVA:
    torch.manual_seed(0)
    vocabulary = PieceVocabulary(train_pieces(tmp_path))
    sizes = config()
    sizes.language.vocab_size, sizes.language.positions, sizes.max_length = len(vocabulary), 1024, 1024
    sizes.seg_id, sizes.rej_id, sizes.max_new_tokens = vocabulary.seg_id, vocabulary.rej_id, 4
    return GSVA(sizes, vocabulary)


@pytest.mark.parametrize(("answer", "protocol"), [("given", "gsva"), ("given", "rela"), ("free", ""), ("own", "")])
def test_evaluation_from_end_to_end(model: GSVA, answer: Answering, protocol: str) -> None:
    source = ScenesSource(task=Task.REFERRING, split="val", size=64, limit=3)
    result = evaluate(model, source, batch_size=2, answer=answer, protocol=protocol)
    assert result.images == 3 and 0 <= result.metrics["gIoU"] <= 1 and 0 <= result.metrics["N_acc"] <= 1
    assert result.stamp["protocol"].startswith("GRES as ReLA" if protocol == "rela" else "GRES as GSVA")
    assert result.stamp["answers"] == answer and result.stamp["task"] == "referring_segmentation"
    assert any("has no mask" in note for note in result.stamp["notes"]) == (answer != "given")
    if answer == "free":  # four tokens of a random model say nothing
        assert result.metrics["N_acc"] == 1 and result.metrics["T_acc"] == 0


@pytest.mark.parametrize("answer", ["given", "own", "free"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_picture_of_which_nothing_is_named_is_no_error(model: GSVA, answer: Answering, batch_size: int) -> None:
    class Source(ScenesSource):
        """Two scenes; of the first one nothing is asked."""

        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            if index:
                return sample
            return dataclasses.replace(sample, phrases=(), target=Target(masks=sample.target.masks[:0]))

    source = Source(task=Task.REFERRING, split="val", size=64, limit=2)
    result = evaluate(model, source, batch_size=batch_size, answer=answer)
    assert result.images == 2 and 0 <= result.metrics["gIoU"] <= 1


def test_a_model_that_says_more_than_it_was_asked_is_scored(model: GSVA) -> None:
    model.config.max_new_tokens = 30
    with torch.no_grad():  # of positive states, [SEG] is always the likeliest word
        model.language.lm_head.weight.zero_()
        model.language.lm_head.weight[model.config.seg_id] = 1.0
    model.language.model.norm.register_forward_hook(lambda module, given, states: states.abs())
    source = ScenesSource(task=Task.REFERRING, split="val", size=64, limit=2)
    result = evaluate(model, source, answer="free")
    assert result.metrics["T_acc"] == 1 and any("more than were asked for" in note for note in result.stamp["notes"])
