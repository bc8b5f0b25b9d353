"""Loaders make conversations of samples, in one process or several, and the order does not depend on it."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tokens"))
from helpers_pieces import train_pieces

from saccade.data.loader import EvalLoader, SourceEntry, TrainLoader
from saccade.data.phrases import PhraseAugment
from saccade.data.sources.scenes import ScenesSource
from saccade.models.gsva.collate import Conversing
from saccade.models.gsva.inputs import ConversationBatch
from saccade.samples import Preprocess
from saccade.tasks import Task
from saccade.tokens.pieces import PieceVocabulary

SAM = Preprocess(size_hw=(64, 64), keep_ratio=True, interpolation="pillow", pad_multiple=64)


@pytest.fixture(scope="module")
def conversing(tmp_path_factory: pytest.TempPathFactory) -> Conversing:
    vocabulary = PieceVocabulary(train_pieces(tmp_path_factory.mktemp("pieces")))
    return Conversing(vocabulary=vocabulary, clip_size=28, image_tokens=4)


def source() -> ScenesSource:
    return ScenesSource(task=Task.REFERRING, split="val", size=96, limit=5)


def batches(conversing: Conversing, count: int, **options: Any) -> list[ConversationBatch]:
    entry = SourceEntry(source=source(), preprocess=SAM, augment=PhraseAugment(count=3), batch_size=2, extra=conversing)
    return list(islice(iter(TrainLoader([entry], seed=1, **options)), count))


def test_training(conversing: Conversing) -> None:
    alone, shared = batches(conversing, 3), batches(conversing, 3, workers=2)
    for one, other in zip(alone, shared, strict=True):
        assert isinstance(one, ConversationBatch) and torch.equal(one.input_ids, other.input_ids)
        assert one.images.shape == (2, 3, 64, 64) and torch.equal(one.images_clip, other.images_clip)
        assert [tuple(mask.shape) for mask in one.masks] == [(3, 96, 96)] * 2  # in the frame of the original
        slots = (one.input_ids == conversing.vocabulary.seg_id) | (one.input_ids == conversing.vocabulary.rej_id)
        said = [one.input_ids[row][slots[row]] == conversing.vocabulary.seg_id for row in range(2)]
        for flags, masks in zip(said, one.masks, strict=True):
            assert torch.equal(flags, masks.flatten(1).any(1))
    later = batches(conversing, 1, start_step=2)
    assert torch.equal(later[0].input_ids, alone[2].input_ids)


def test_without_augmentation_all_phrases_are_asked(conversing: Conversing) -> None:
    entry = SourceEntry(source=source(), preprocess=SAM, batch_size=1, extra=conversing)
    batch = next(iter(TrainLoader([entry], seed=1)))
    assert len(batch.masks[0]) == len(batch.expressions[0]) > 3


def test_evaluation(conversing: Conversing) -> None:
    seen = 0
    for samples, batch in EvalLoader(source(), preprocess=SAM, extra=conversing, batch_size=2):
        assert isinstance(batch, ConversationBatch) and batch.labels is not None
        assert batch.expressions == [sample.phrases for sample in samples]
        for sample, masks in zip(samples, batch.masks, strict=True):
            assert torch.equal(masks, sample.target.masks.as_subclass(torch.Tensor))
        seen += len(samples)
    assert seen == 5
