"""Autoregressive decoding shared by every model: key-value cache, greedy, beam and nucleus choice.

Shape legend: R rows (independent sequences), n heads, T tokens, d channels per head, V vocabulary, k beams.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class KVCache:
    """Keys and values of the tokens decoded so far, in memory laid out once.

    Args:
        layers: Number of attention layers that store.
        rows: Sequences R.
        heads: Heads n.
        length: Greatest number of tokens T.
        head_dim: Channels per head d.
        like: A tensor whose device and dtype are used.
    """

    def __init__(self, *, layers: int, rows: int, heads: int, length: int, head_dim: int, like: Tensor) -> None:
        shape = (layers, rows, heads, length, head_dim)
        self._keys = like.new_empty(shape)
        self._values = like.new_empty(shape)
        self.length = 0

    def append(self, layer: int, k_RnTd: Tensor, v_RnTd: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new tokens of a layer and returns all keys and values up to and including them (views).

        The length advances by :meth:`advance` after the last layer of a step.
        """
        end = self.length + k_RnTd.shape[2]
        self._keys[layer, :, :, self.length : end] = k_RnTd
        self._values[layer, :, :, self.length : end] = v_RnTd
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Ends a step of so many tokens."""
        self.length += tokens

    def select(self, rows: Tensor, *, length: int | None = None) -> None:
        """Keeps (or repeats, or permutes) rows by index; only the filled part is copied.

        Args:
            rows: ``[R']`` int64 indices into the current rows.
            length: New greatest number of tokens; None keeps it.
        """
        for name in ("_keys", "_values"):
            old: Tensor = getattr(self, name)
            size = old.shape[3] if length is None else length
            new = old.new_empty(old.shape[0], len(rows), old.shape[2], size, old.shape[4])
            new[:, :, :, : self.length] = old[:, rows, :, : self.length]
            setattr(self, name, new)


@dataclass(kw_only=True, frozen=True)
class Nucleus:
    """Nucleus (top-p) sampling.

    Attributes:
        top_p: Smallest probability mass that stays; 1 samples from everything, 0 takes the most likely token.
        temperature: Divides the logits.
        seed: Seeds the draw, so that a run repeats.
    """

    top_p: float = 0.9
    temperature: float = 1.0
    seed: int = 0


def nucleus_probs(logits: Tensor, nucleus: Nucleus) -> Tensor:
    """Probabilities ``[R, V]`` of the tokens of the nucleus, 0 for all others; the most likely token always stays."""
    probs, order = (logits.float() / nucleus.temperature).softmax(-1).sort(dim=-1, descending=True)
    before = probs.cumsum(-1) - probs
    kept = probs.masked_fill(before > nucleus.top_p, 0.0)
    kept[..., 0] = probs[..., 0]
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def sample_nucleus(logits: Tensor, nucleus: Nucleus, generator: torch.Generator) -> Tensor:
    """Draws one token per row from the smallest set of tokens whose probability reaches ``top_p``.

    All rows share one random number, so that what a row says does not depend on its company in the batch.

    Args:
        logits: ``[R, V]``.
        nucleus: The settings.
        generator: A CPU generator; the draw is made on the CPU, so that it does not depend on the device.

    Returns:
        ``[R]`` int64.
    """
    if nucleus.top_p == 0:
        return logits.argmax(-1)
    reached = nucleus_probs(logits, nucleus).cumsum(-1)
    point = torch.rand((), generator=generator).to(logits.device) * reached[:, -1:]
    return torch.searchsorted(reached, point, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


@dataclass(kw_only=True)
class BeamState:
    """Beams of B sequences after some steps.

    Attributes:
        tokens: ``[B, k, t]`` history.
        scores: ``[B, k]`` summed log-probabilities.
        finished: ``[B, k]`` bool, the beam has said its end token.
        parents: ``[B, k]`` int64, the beam each continues (for the cache).
        candidates: ``[B, k]`` values that won this step (probabilities at the first step).
        picks: ``[B, k]`` flat index ``beam * V + token`` of what won this step.
    """

    tokens: Tensor
    scores: Tensor
    finished: Tensor
    parents: Tensor
    candidates: Tensor
    picks: Tensor


def beam_start(logits: Tensor, *, beams: int, end_id: int, temperature: float = 1.0) -> BeamState:
    """The first step: the best ``beams`` tokens of ``[B, V]`` logits."""
    candidates, tokens = (logits.float() / temperature).softmax(-1).topk(beams, dim=-1)
    return BeamState(
        tokens=tokens[..., None],
        scores=candidates.log(),
        finished=tokens == end_id,
        parents=torch.zeros_like(tokens),
        candidates=candidates,
        picks=tokens,
    )


def beam_step(
    state: BeamState, logits: Tensor, *, end_id: int, temperature: float = 1.0, scores_stay_in_slots: bool = False
) -> BeamState:
    """One more token for every beam; a finished beam can only say its end token again, at no cost.

    Args:
        state: The beams so far.
        logits: ``[B, k, V]`` of the next token.
        end_id: The end token.
        temperature: Divides the logits.
        scores_stay_in_slots: GiT's rule (specs/git.md 5.4): a finished beam always survives at the top, and the score
            of a slot that is finished after this step is what stood in that slot before, whoever moved in. False is
            the textbook rule: scores travel with their beams.

    Returns:
        The new state.
    """
    _, k, vocab = logits.shape
    log_probs = (logits.float() / temperature).log_softmax(-1)
    total = log_probs + state.scores[..., None]
    at_end = torch.zeros(vocab, dtype=torch.bool, device=logits.device)
    at_end[end_id] = True
    if scores_stay_in_slots:
        total = total.masked_fill(state.finished[..., None] & at_end, 1e10)
    else:
        kept = torch.where(at_end, state.scores[..., None], -torch.inf)
        total = torch.where(state.finished[..., None], kept, total)
    candidates, picks = total.flatten(1).topk(k, dim=-1)
    parents, tokens = picks // vocab, picks % vocab
    history = state.tokens.gather(1, parents[..., None].expand(-1, -1, state.tokens.shape[-1]))
    finished = tokens == end_id
    scores = torch.where(finished, state.scores, candidates) if scores_stay_in_slots else candidates
    return BeamState(
        tokens=torch.cat([history, tokens[..., None]], dim=-1),
        scores=scores,
        finished=finished,
        parents=parents,
        candidates=candidates,
        picks=picks,
    )


def beam_finish(state: BeamState, *, end_id: int, length_exponent: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Chooses the best beam by its length-normalised score.

    Returns:
        best ``[B]`` int64, normalised scores ``[B, k]`` (-inf for an empty sentence), lengths ``[B, k]`` without ends.
    """
    lengths = (state.tokens != end_id).sum(-1)
    # A certain end (score 0) over no words would be NaN, which argmax prefers to every number.
    scores = (state.scores / lengths**length_exponent).masked_fill(lengths == 0, -torch.inf)
    return scores.argmax(-1), scores, lengths
