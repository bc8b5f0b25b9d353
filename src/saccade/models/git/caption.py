"""Captioning: one response per image, decoded by beam search with the original's rules (specs section 5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import DataError
from saccade.layers.decoding import BeamState, beam_finish, beam_start, beam_step
from saccade.layers.distributed import mean_over_ranks
from saccade.models.git.config import CaptionConfig
from saccade.models.git.grid import ResponseLayout
from saccade.results import Caption, Prediction
from saccade.samples import Batch
from saccade.tasks import Task
from saccade.tokens.vocabulary import TextVocabulary, clean_caption

if TYPE_CHECKING:
    from saccade.models.git.model import GiT

_IGNORE = -100
_TEMPERATURE = 0.7
_LENGTH_EXPONENT = 0.75


def vocabulary(model: GiT, task: Task, classes: Sequence[str]) -> Tensor:
    """The whole word table ``[V, C]``."""
    return model.text_embed.words.weight


def encode_captions(captions: Sequence[str], words: TextVocabulary, length: int) -> tuple[Tensor, Tensor]:
    """Token ids of captions (cleaned first), ``[DEC] pieces [SEP]`` padded to the length.

    Returns:
        inputs ``[B, length]`` and targets ``[B, length - 1]`` (the next token; padding ignored).
    """
    ids, present = words.encode([clean_caption(text) for text in captions], max_length=length, pad_to=length)
    ids[:, 0] = words.dec_id
    return ids, ids.masked_fill(~present, _IGNORE)[:, 1:]


def loss(model: GiT, batch: Batch, *, select: Tensor | None = None) -> dict[str, Tensor]:
    """Cross-entropy of the next word, averaged over the words of the batch; see :meth:`GiT.loss`.

    One caption per sample is learned: the first of the target (the loader draws it).
    """
    config = _config(model)
    texts = [target.captions[0] if target.captions else None for target in batch.targets]
    if any(text is None for text in texts):
        raise DataError("a training sample has no caption", fix="use a captioning data set")
    ids, wanted = encode_captions([text for text in texts if text is not None], model.vocabulary, config.max_length)
    device = batch.images.device
    ids, wanted = ids.to(device), wanted.to(device)
    table = model.vocabulary_matrix(batch.task, ())
    rows = F.embedding(ids[:, 1:], table)[:, None]
    select = torch.zeros(len(batch), 1, dtype=torch.long, device=device)
    states = model.training_states(batch, rows, select)[:, 0, :-1]
    total = F.cross_entropy(
        (states @ table.T).float().flatten(0, 1), wanted.flatten(), ignore_index=_IGNORE, reduction="sum"
    )
    words = mean_over_ranks((wanted != _IGNORE).sum(), states).clamp(min=1)
    return {f"{batch.task}_loss_cls": total / words}


def search(model: GiT, batch: Batch, *, beams: int | None = None, on_step: list[BeamState] | None = None) -> BeamState:
    """Beam search over the batch.

    Args:
        model: The model.
        batch: Network inputs.
        beams: Beams; None = the config's.
        on_step: Receives the state after every step.

    Returns:
        The final beams; decoding stops early when every beam of every image has ended.
    """
    config = _config(model)
    k, b = beams or config.beams, len(batch)
    table = model.vocabulary_matrix(batch.task, ())
    end = model.vocabulary.sep_id
    state, seen, cache, _ = model.begin(batch.images, batch.task, config.max_length)
    beam = beam_start(state @ table.T, beams=k, end_id=end, temperature=_TEMPERATURE)
    layout = ResponseLayout.even(b, k, table.device)
    images = torch.arange(b, device=table.device)[:, None]
    cache.select(images.expand(b, k).flatten())
    # Beam k reads position p + k instead of p: a quirk of the original that its numbers depend on.
    slots = torch.arange(k, device=table.device)
    if on_step is not None:
        on_step.append(beam)
    for position in range(1, config.max_length):
        if bool(beam.finished.all()):
            break
        x = model.text_embed(table[beam.tokens[..., -1]], position + slots)
        state = model.respond(seen, batch.task, x.flatten(0, 1)[:, None], cache, layout)[:, 0]
        logits = (state @ table.T).unflatten(0, (b, k))
        beam = beam_step(beam, logits, end_id=end, temperature=_TEMPERATURE, scores_stay_in_slots=True)
        cache.select((beam.parents + images * k).flatten())
        if on_step is not None:
            on_step.append(beam)
    return beam


def predict(model: GiT, batch: Batch, *, beams: int | None = None) -> list[Prediction]:
    """One sentence per image."""
    beam = search(model, batch, beams=beams)
    best, scores, _ = beam_finish(beam, end_id=model.vocabulary.sep_id, length_exponent=_LENGTH_EXPONENT)
    answers: list[Prediction] = []
    for index, choice in enumerate(best.tolist()):
        text = model.vocabulary.decode(beam.tokens[index, choice].tolist())
        answers.append(Caption(text=text, score=float(scores[index, choice])))
    return answers


def _config(model: GiT) -> CaptionConfig:
    config = model.task_config(Task.CAPTION)
    assert isinstance(config, CaptionConfig)
    return config
