"""Cache, beams and nucleus against slow, straightforward versions of themselves."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.layers import distributed
from saccade.layers.decoding import (
    BeamState,
    KVCache,
    Nucleus,
    beam_finish,
    beam_start,
    beam_step,
    sample_nucleus,
)

# ---------------------------------------------------------------------- cache


def make_cache(rows: int = 3, length: int = 6) -> KVCache:
    return KVCache(layers=2, rows=rows, heads=2, length=length, head_dim=4, like=torch.zeros(1))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_append_and_select_equal_concatenation_and_indexing(data: st.DataObject) -> None:
    """Any order of steps and row choices, against lists of tensors that are concatenated and indexed."""
    rows = data.draw(st.integers(1, 4))
    cache = make_cache(rows, length=8)
    plain: list[list[tuple[Tensor, Tensor]]] = [[], []]
    while cache.length < 8 and data.draw(st.booleans() if cache.length else st.just(True)):
        tokens = data.draw(st.integers(1, min(3, 8 - cache.length)))
        for layer in range(2):
            k, v = torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 4)
            plain[layer].append((k, v))
            keys, values = cache.append(layer, k, v)
            assert torch.equal(keys, torch.cat([part[0] for part in plain[layer]], dim=2))
            assert torch.equal(values, torch.cat([part[1] for part in plain[layer]], dim=2))
        cache.advance(tokens)
        if data.draw(st.booleans()):
            chosen = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=5))
            rows = len(chosen)
            index = torch.tensor(chosen)
            cache.select(index)
            plain = [[(k[index], v[index]) for k, v in layer] for layer in plain]


def test_append_returns_views_of_the_same_memory() -> None:
    cache = make_cache()
    first, _ = cache.append(0, torch.ones(3, 2, 1, 4), torch.ones(3, 2, 1, 4))
    cache.advance(1)
    second, _ = cache.append(0, torch.zeros(3, 2, 1, 4), torch.zeros(3, 2, 1, 4))
    assert first.data_ptr() == second.data_ptr()


def test_cache_takes_device_and_dtype_of_its_model() -> None:
    cache = KVCache(layers=1, rows=1, heads=1, length=1, head_dim=2, like=torch.zeros(1, dtype=torch.bfloat16))
    keys, _ = cache.append(0, torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert keys.dtype is torch.bfloat16


# ---------------------------------------------------------------------- beams

END = 0


class MarkovChain:
    """A language model whose next word depends on the last one only."""

    def __init__(self, seed: int, vocab: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(vocab, generator=generator)
        self.next = torch.randn(vocab, vocab, generator=generator) * 2

    def decode(self, beams: int, steps: int, *, temperature: float = 1.0, slots: bool = False) -> list[BeamState]:
        state = beam_start(self.first[None], beams=beams, end_id=END, temperature=temperature)
        states = [state]
        for _ in range(steps - 1):
            logits = self.next[state.tokens[..., -1]]
            state = beam_step(state, logits, end_id=END, temperature=temperature, scores_stay_in_slots=slots)
            states.append(state)
        return states

    def sentences(self, steps: int) -> dict[tuple[int, ...], float]:
        """Log-probability of every sentence; what has ended says its end token on, at no cost."""
        vocab = len(self.first)
        found = {}
        for tokens in itertools.product(range(vocab), repeat=steps):
            ended = [i for i, token in enumerate(tokens) if token == END]
            if ended and any(tokens[ended[0] :]):
                continue
            total = float(self.first.log_softmax(-1)[tokens[0]])
            for before, token in itertools.pairwise(tokens):
                total += 0.0 if before == END else float(self.next[before].log_softmax(-1)[token])
            found[tokens] = total
        return found


@pytest.mark.parametrize("seed", range(5))
def test_as_many_beams_as_words_find_the_best_sentences_of_two_words(seed: int) -> None:
    """With every first word kept, two steps are an exhaustive search."""
    chain = MarkovChain(seed, vocab=5)
    state = chain.decode(5, 2)[-1]
    best = sorted(chain.sentences(2).items(), key=lambda item: -item[1])[:5]
    assert [tuple(row) for row in state.tokens[0].tolist()] == [tokens for tokens, _ in best]
    assert state.scores[0].tolist() == pytest.approx([score for _, score in best], abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_textbook_beams_equal_a_search_that_keeps_the_best_prefixes(seed: int) -> None:
    chain, k, steps = MarkovChain(seed, vocab=6), 3, 5
    beams = sorted(((float(p), (t,)) for t, p in enumerate(chain.first.log_softmax(-1))), reverse=True)[:k]
    states = chain.decode(k, steps)
    for step in range(1, steps):
        grown = []
        for score, tokens in beams:
            if tokens[-1] == END:
                grown.append((score, (*tokens, END)))
                continue
            for token, p in enumerate(chain.next[tokens[-1]].log_softmax(-1)):
                grown.append((score + float(p), (*tokens, token)))
        beams = sorted(grown, reverse=True)[:k]
        assert [tuple(row) for row in states[step].tokens[0].tolist()] == [tokens for _, tokens in beams]
        assert states[step].scores[0].tolist() == pytest.approx([score for score, _ in beams], abs=1e-5)
        assert states[step].finished[0].tolist() == [tokens[-1] == END for _, tokens in beams]
    # Every beam is a real sentence with its real probability, and a finished beam never speaks again.
    sentences = chain.sentences(steps)
    for tokens, score in zip(states[-1].tokens[0].tolist(), states[-1].scores[0].tolist(), strict=True):
        assert score == pytest.approx(sentences[tuple(tokens)], abs=1e-4)


def test_parents_lead_back_through_the_history() -> None:
    for slots in (False, True):
        states = MarkovChain(1, vocab=6).decode(3, 5, slots=slots)
        for before, after in itertools.pairwise(states):
            rows = before.tokens[0][after.parents[0]]
            assert torch.equal(after.tokens[0, :, :-1], rows)
            assert torch.equal(after.picks[0], after.parents[0] * 6 + after.tokens[0, :, -1])


def slow_git_rule(chain: MarkovChain, k: int, steps: int, temperature: float) -> list[dict[str, list]]:
    """GiT's rule, word for word from the specification (5.4), with Python lists."""
    vocab = len(chain.first)
    p = (chain.first / temperature).softmax(-1).tolist()
    tokens = sorted(range(vocab), key=lambda t: -p[t])[:k]
    histories = [[t] for t in tokens]
    scores = [math.log(p[t]) for t in tokens]
    finished = [t == END for t in tokens]
    record = [{"tokens": [list(h) for h in histories], "scores": list(scores), "values": [p[t] for t in tokens]}]
    for _ in range(steps - 1):
        candidates = []
        for beam in range(k):
            log_p = (chain.next[histories[beam][-1]] / temperature).log_softmax(-1).tolist()
            for token in range(vocab):
                # A beam that has said [SEP] may always say it again, before anything else.
                value = 1e10 if finished[beam] and token == END else log_p[token] + scores[beam]
                candidates.append((value, beam, token))
        # Stable: of equal values (1e10) the lower beam comes first.
        chosen = sorted(candidates, key=lambda c: -c[0])[:k]
        histories = [[*histories[beam], token] for _, beam, token in chosen]
        finished = [token == END for _, _, token in chosen]
        # Scores stay in their slots where the slot is finished now, whoever moved in.
        scores = [scores[slot] if finished[slot] else chosen[slot][0] for slot in range(k)]
        record.append(
            {"tokens": [list(h) for h in histories], "scores": list(scores), "values": [c[0] for c in chosen]}
        )
    return record


def test_slot_rule_equals_a_slow_simulation() -> None:
    moved = 0
    for seed in range(40):
        for k in (1, 2, 3):
            chain = MarkovChain(seed, vocab=6)
            plain = slow_git_rule(chain, k, 6, 0.7)
            states = chain.decode(k, 6, temperature=0.7, slots=True)
            for state, expected in zip(states, plain, strict=True):
                if sum(value > 1e9 for value in expected["values"]) > 1:
                    break  # two finished beams tie: which comes first is up to topk, in the original too
                assert state.tokens[0].tolist() == expected["tokens"]
                assert state.scores[0].tolist() == pytest.approx(expected["scores"], abs=1e-4)
                assert state.candidates[0].tolist() == pytest.approx(expected["values"], rel=1e-4, abs=1e-4)
                # How often the quirk shows: a finished beam that came from another slot has a foreign score.
                moved += int((state.finished & (state.parents != torch.arange(k))).sum())
    assert moved > 10


def test_a_finished_beam_survives_at_the_top_under_the_slot_rule() -> None:
    """The second slot ends; in the next step its candidate is 1e10 and takes slot 0, with the score of slot 0."""
    state = BeamState(
        tokens=torch.tensor([[[2], [END]]]),
        scores=torch.tensor([[-0.5, -3.0]]),
        finished=torch.tensor([[False, True]]),
        parents=torch.zeros(1, 2, dtype=torch.long),
        candidates=torch.zeros(1, 2),
        picks=torch.zeros(1, 2, dtype=torch.long),
    )
    logits = torch.tensor([[[0.0, 1.0, 2.0], [5.0, 0.0, 0.0]]])
    after = beam_step(state, logits, end_id=END, scores_stay_in_slots=True)
    assert after.tokens[0].tolist() == [[END, END], [2, 2]]
    assert after.parents[0].tolist() == [1, 0]
    assert after.scores[0, 0].item() == pytest.approx(-0.5)
    assert after.scores[0, 1].item() == pytest.approx(-0.5 + float(logits[0, 0].log_softmax(-1)[2]))
    textbook = beam_step(state, logits, end_id=END)
    assert textbook.tokens[0].tolist() == [[2, 2], [2, 1]]


def test_images_of_a_batch_search_apart() -> None:
    chains = [MarkovChain(seed, vocab=6) for seed in (3, 4)]
    state = beam_start(torch.stack([chain.first for chain in chains]), beams=2, end_id=END)
    for _ in range(4):
        logits = torch.stack([chain.next[state.tokens[i, :, -1]] for i, chain in enumerate(chains)])
        state = beam_step(state, logits, end_id=END)
    for index, chain in enumerate(chains):
        alone = chain.decode(2, 5)[-1]
        assert torch.equal(state.tokens[index], alone.tokens[0])
        torch.testing.assert_close(state.scores[index], alone.scores[0])


def test_finish_normalises_by_length_and_never_chooses_an_empty_sentence() -> None:
    state = BeamState(
        tokens=torch.tensor([[[4, END, END], [3, 3, 3], [END, END, END]]]),
        scores=torch.tensor([[-1.0, -1.5, 0.0]]),  # a certain end: 0 over no words is no number
        finished=torch.tensor([[True, False, True]]),
        parents=torch.zeros(1, 3, dtype=torch.long),
        candidates=torch.zeros(1, 3),
        picks=torch.zeros(1, 3, dtype=torch.long),
    )
    best, scores, lengths = beam_finish(state, end_id=END, length_exponent=0.75)
    assert lengths.tolist() == [[1, 3, 0]]
    assert scores[0].tolist() == pytest.approx([-1.0, -1.5 / 3**0.75, -math.inf])
    assert best.tolist() == [1]


# ---------------------------------------------------------------------- nucleus


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.integers(2, 12),
    top_p=st.floats(0.05, 1.0),
    temperature=st.floats(0.3, 3.0),
)
def test_nucleus_draws_only_from_the_smallest_set_that_reaches_the_mass(
    seed: int, vocab: int, top_p: float, temperature: float
) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 2
    probs = (logits / temperature).softmax(-1)
    order = probs.argsort(descending=True).tolist()
    allowed, mass = set(), 0.0
    for token in order:
        allowed.add(token)
        mass += float(probs[token])
        if mass >= top_p + 1e-6:
            break
    nucleus = Nucleus(top_p=top_p, temperature=temperature)
    drawn = sample_nucleus(logits.expand(400, -1), nucleus, torch.Generator().manual_seed(seed))
    assert set(drawn.tolist()) <= allowed
    assert drawn.shape == (400,)


def test_nucleus_frequencies_are_the_renormalised_probabilities() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    generator, nucleus = torch.Generator().manual_seed(0), Nucleus(top_p=0.75)
    # One row at a time: the rows of a call share their random number.
    drawn = torch.cat([sample_nucleus(probs.log()[None], nucleus, generator) for _ in range(20_000)])
    shares = drawn.bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.015, rtol=0)


def test_nucleus_repeats_with_its_seed() -> None:
    logits = torch.randn(50, 30)
    nucleus = Nucleus(top_p=0.95, seed=5)
    draws = [sample_nucleus(logits, nucleus, torch.Generator().manual_seed(nucleus.seed)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], sample_nucleus(logits, nucleus, torch.Generator().manual_seed(6)))


# ---------------------------------------------------------------------- what a loss needs of other processes


def test_mean_over_ranks_is_the_number_itself_alone() -> None:
    assert float(distributed.mean_over_ranks(3.5, torch.zeros(1))) == 3.5


def test_mean_over_ranks_divides_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes with 1, 2, 3 and 6; the caller's own tensor is left alone."""
    monkeypatch.setattr(distributed.dist, "is_available", lambda: True)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda total: total.add_(2 + 3 + 6))
    mine = torch.tensor(1)
    assert float(distributed.mean_over_ranks(mine, torch.zeros(1))) == 3.0
    assert int(mine) == 1
