"""A GSVA of random weights is evaluated on scenes from end to end: loader, model, metric, stamp."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers_gsva import config

sys.path.insert(0, str(Path(__file__).parents[2] / "tokens"))
from helpers_pieces import train_pieces

from saccade.data.sources.scenes import ScenesSource
from saccade.models.gsva.model import GSVA
from saccade.tasks import Task
from saccade.tokens.pieces import PieceVocabulary
from saccade.training.evaluation import evaluate


@pytest.mark.parametrize(("answer", "protocol"), [("given", "gsva"), ("given", "rela"), ("free", "")])
def test_evaluation_from_end_to_end(tmp_path: Path, answer: Literal["given", "free"], protocol: str) -> None:
    torch.manual_seed(0)
    vocabulary = PieceVocabulary(train_pieces(tmp_path))
    sizes = config()
    sizes.language.vocab_size, sizes.language.positions = len(vocabulary), 1024
    sizes.seg_id, sizes.rej_id, sizes.max_new_tokens = vocabulary.seg_id, vocabulary.rej_id, 4
    model = GSVA(sizes, vocabulary)
    source = ScenesSource(task=Task.REFERRING, split="val", size=64, limit=3)
    result = evaluate(model, source, batch_size=2, answer=answer, protocol=protocol)
    assert result.images == 3 and 0 <= result.metrics["gIoU"] <= 1 and 0 <= result.metrics["N_acc"] <= 1
    assert result.stamp["protocol"].startswith("GRES as ReLA" if protocol == "rela" else "GRES as GSVA")
    assert result.stamp["answers"] == answer and result.stamp["task"] == "referring_segmentation"
    if answer == "free":  # four tokens of a random model say nothing
        assert result.metrics["N_acc"] == 1 and result.metrics["T_acc"] == 0
