"""What the benchmark of GSVA times is what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saccade import bench_gsva
from saccade.bench import run_bench
from saccade.errors import UsageError
from saccade.models.gsva.inputs import ConversationBatch
from saccade.models.gsva.model import GSVA
from saccade.models.gsva.presets import nano
from saccade.samples import Batch, Origin
from saccade.tasks import Task


@pytest.fixture(scope="module")
def model() -> GSVA:
    torch.manual_seed(0)
    return GSVA(nano(64)).eval()


@pytest.fixture
def batch(model: GSVA) -> ConversationBatch:
    origin = Origin(dataset="bench", image_id=0, path=None, size_hw=(48, 64))
    images = Batch(images=torch.randn(1, 3, 64, 64), task=Task.REFERRING, origins=[origin], input_sizes_hw=[(64, 64)])
    return bench_gsva.conversations(model, images, rejected=True)


def positions_read(model: GSVA, batch: ConversationBatch, part: bench_gsva.Part, *, passes: int = 1) -> list[int]:
    """How many positions each call of the language model reads, in the last of some passes."""
    work, read = bench_gsva.part_work(model, batch, part), []

    def record(_module: nn.Module, _args: tuple[object, ...], states: torch.Tensor) -> None:
        read.append(states.shape[1])

    hook = model.language.model.norm.register_forward_hook(record)
    with torch.inference_mode():
        for _ in range(passes):
            read.clear()
            work()
    hook.remove()
    return read


def test_half_of_the_phrases_are_rejected(model: GSVA, batch: ConversationBatch) -> None:
    ids = batch.input_ids[0].tolist()
    said = [id_ == model.config.seg_id for id_ in ids if id_ in (model.config.seg_id, model.config.rej_id)]
    assert said == [True, False] * 4 and batch.reevaluate


def test_the_second_reading_goes_from_the_first_rejection_on(model: GSVA, batch: ConversationBatch) -> None:
    whole = batch.input_ids.shape[1] - 1 + model.config.clip.tokens
    first = batch.input_ids[0].tolist().index(model.config.rej_id)
    assert positions_read(model, batch, "read") == [whole]
    assert positions_read(model, batch, "read-twice") == [whole, batch.input_ids.shape[1] - first]
    assert positions_read(model, batch, "gres") == [whole, batch.input_ids.shape[1] - first]


def test_own_choices_read_every_token_once(model: GSVA, batch: ConversationBatch) -> None:
    read = positions_read(model, batch, "find")
    assert len(read) == 8 and sum(read) == batch.input_ids.shape[1] - 2 + model.config.clip.tokens


def test_a_timed_answer_is_a_token_at_a_time(model: GSVA, batch: ConversationBatch) -> None:
    assert positions_read(model, batch, "decode", passes=2) == [1] * bench_gsva.TOKENS


def test_a_free_answer_is_about_one_picture() -> None:
    with pytest.raises(UsageError, match="timed about one picture"):
        run_bench("gsva", task="decode", preset="gsva-nano", batch_size=2, repeats=1)
