"""Visual grounding: the phrase runs through the layers beside the image, one response says the box (specs 5.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import DataError, UsageError
from saccade.layers.distributed import mean_over_ranks
from saccade.models.git.config import GroundingConfig
from saccade.results import Grounding, Prediction
from saccade.samples import Batch
from saccade.tasks import Task
from saccade.tokens.boxes import cxcywh_to_xyxy, decode_boxes, encode_boxes
from saccade.tokens.vocabulary import clean_caption

if TYPE_CHECKING:
    from saccade.models.git.model import GiT, Text


def vocabulary(model: GiT, task: Task, classes: Sequence[str]) -> Tensor:
    """The bins, ``[num_bins + 1, C]``."""
    return model.concepts([str(value) for value in range(_config(model).num_bins + 1)])


def _embed(model: GiT, batch: Batch) -> Text:
    if batch.phrases is None:
        raise UsageError("grounding needs a phrase per image", fix='pass phrases, e.g. --phrases "the red ball"')
    patch = model.config.vit.patch_size
    pixels = (batch.images.shape[-2] // patch) * (batch.images.shape[-1] // patch)
    phrases = [clean_caption(phrase) for phrase in batch.phrases]
    return model.embed_phrases(phrases, pixels, max_length=_config(model).max_text_length)


def loss(model: GiT, batch: Batch, *, select: Tensor | None = None) -> dict[str, Tensor]:
    """Cross-entropy of the four box tokens; see :meth:`GiT.loss`."""
    config = _config(model)
    size_hw = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    boxes = [target.boxes for target in batch.targets]
    if any(box is None or len(box) != 1 for box in boxes):
        raise DataError("a grounding sample must have exactly one box", fix="use a grounding data set")
    boxes_xyxy = torch.cat([box.as_subclass(Tensor) for box in boxes if box is not None])
    centre = boxes_xyxy.new_full((len(batch), 2), 0.5)
    tokens = encode_boxes(boxes_xyxy, centre, size_hw, config.num_bins)
    table = model.vocabulary_matrix(batch.task, ())
    text = _embed(model, batch)
    select = torch.zeros(len(batch), 1, dtype=torch.long, device=tokens.device)
    states = model.training_states(
        batch, F.embedding(tokens[:, :-1], table)[:, None], select, text=text, position=text.x_BTC.shape[1]
    )[:, 0]
    total = F.cross_entropy((states @ table.T).float().flatten(0, 1), tokens.flatten(), reduction="sum")
    count = mean_over_ranks(float(tokens.numel()), states).clamp(min=1)
    return {f"{batch.task}_loss_reg": total / count}


def decode(model: GiT, batch: Batch) -> tuple[Tensor, Tensor]:
    """Greedy box tokens.

    Returns:
        tokens ``[B, 4]`` and their probabilities ``[B, 4]``.
    """
    table = model.vocabulary_matrix(batch.task, ())
    text = _embed(model, batch)
    first = text.x_BTC.shape[1]
    state, seen, cache, layout = model.begin(batch.images, batch.task, 4, text=text, position=first)
    tokens, chances = [], []
    for index in range(4):
        chance, token = (state @ table.T).float().softmax(-1).max(-1)
        tokens.append(token)
        chances.append(chance)
        if index < 3:
            x = model.text_embed(table[token], torch.tensor(first + index + 1, device=table.device))
            state = model.respond(seen, batch.task, x[:, None], cache, layout)[:, 0]
    return torch.stack(tokens, dim=-1), torch.stack(chances, dim=-1)


def predict(model: GiT, batch: Batch) -> list[Prediction]:
    """One box per image, in the frame of the original image."""
    tokens, chances = decode(model, batch)
    centre = torch.full((len(batch), 2), 0.5, device=tokens.device)
    corners = cxcywh_to_xyxy(decode_boxes(tokens, centre, _config(model).num_bins)).unflatten(-1, (2, 2))
    h, w = batch.images.shape[-2:]
    size = corners.new_tensor([w, h])
    answers: list[Prediction] = []
    for index, phrase in enumerate(batch.phrases or []):
        (in_h, in_w), (out_h, out_w) = batch.input_sizes_hw[index], batch.origins[index].size_hw
        box = (corners[index] * size).clamp(min=0).minimum(size) / corners.new_tensor([in_w / out_w, in_h / out_h])
        score = float(chances[index].log().mean().exp())
        answers.append(Grounding(phrase=phrase, box_xyxy=box.flatten().cpu(), score=score))
    return answers


def _config(model: GiT) -> GroundingConfig:
    config = model.task_config(Task.GROUNDING)
    assert isinstance(config, GroundingConfig)
    return config
