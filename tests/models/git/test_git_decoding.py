"""The fast ways of decoding against the plain ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers_git import VIT, compare, make_batch, pick, tiny_config, tiny_git
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.layers.decoding import beam_finish
from saccade.models.git import caption, detection, semantic
from saccade.models.git.config import GIT_TASKS
from saccade.models.git.grid import ResponseLayout
from saccade.models.git.model import GiT, response_attention
from saccade.results import Caption, Instances
from saccade.samples import Batch
from saccade.tasks import Task

# ---------------------------------------------------------------------- attention of responses


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, k_seen: Tensor, v_seen: Tensor, window_of: Tensor, mask: Tensor | None
) -> Tensor:
    """As the original computes it: all responses of a window in one sequence, under a block-diagonal causal mask."""
    responses, heads, new, d = q.shape
    total, pixels = k.shape[2], k_seen.shape[2]
    out = torch.zeros(responses, new, heads * d)
    for window in window_of.unique().tolist():
        rows = (window_of == window).nonzero()[:, 0]
        queries = q[rows].transpose(0, 1).flatten(1, 2)  # [n, w * new, d]
        keys = torch.cat([k_seen[window], k[rows].transpose(0, 1).flatten(1, 2)], dim=1)
        values = torch.cat([v_seen[window], v[rows].transpose(0, 1).flatten(1, 2)], dim=1)
        allowed = torch.zeros(len(rows) * new, pixels + len(rows) * total, dtype=torch.bool)
        allowed[:, :pixels] = True
        for response in range(len(rows)):
            for token in range(new):
                first = pixels + response * total
                allowed[response * new + token, first : first + total - new + token + 1] = True
        logits = queries @ keys.mT / d**0.5
        if mask is not None:
            logits[:, :, :pixels] += mask[window, 0]
        weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
        found = (weights @ values).unflatten(1, (len(rows), new)).permute(1, 2, 0, 3)
        out[rows] = found.flatten(2)
    return out


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any),
    new=st.integers(1, 3),
    before=st.integers(0, 3),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_response_attention_equals_the_full_masked_attention(
    counts: list[int], new: int, before: int, masked: bool, seed: int
) -> None:
    """Windows may hold different numbers of responses (after pruning), and none at all."""
    generator = torch.Generator().manual_seed(seed)
    window_of = torch.tensor([window for window, count in enumerate(counts) for _ in range(count)])

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q = draw(len(window_of), 2, new, 4)
    k, v = draw(len(window_of), 2, before + new, 4), draw(len(window_of), 2, before + new, 4)
    k_seen, v_seen = draw(len(counts), 2, 5, 4), draw(len(counts), 2, 5, 4)
    mask = torch.zeros(len(counts), 1, 1, 5)
    mask[0, ..., 3:] = -torch.inf
    mask = mask if masked else None
    ours = response_attention(q, k, v, k_seen, v_seen, ResponseLayout(window_of, len(counts)), mask)
    plain = full_attention(q, k, v, k_seen, v_seen, window_of, mask)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- one token at a time


@pytest.mark.parametrize("task", GIT_TASKS, ids=str)
def test_incremental_states_equal_teacher_forcing(task: Task) -> None:
    """The same tokens, fed one by one through the cache or all at once as in training, give the same states."""
    model = tiny_git()
    batch = make_batch(task, 2)
    length, first = 4, 0
    patches = batch.images.shape[-1] // 8
    grid = model.grid(task, (patches, patches))
    select = grid.window_major.expand(2, -1)
    rows = model.text_embed.words.weight[torch.randint(1000, (2, len(grid), length - 1))]
    text = None
    if task is Task.GROUNDING:
        text = model.embed_phrases(batch.phrases or [], patches**2, max_length=16)
        first = text.x_BTC.shape[1]
    with torch.no_grad():
        whole = model.training_states(batch, rows, select, text=text, position=first)
        state, seen, cache, layout = model.begin(batch.images, task, length, text=text, position=first)
        states = [state]
        for index in range(length - 1):
            x = model.text_embed(rows[:, :, index].flatten(0, 1), torch.tensor(first + index + 1))
            states.append(model.respond(seen, task, x[:, None], cache, layout)[:, 0])
    torch.testing.assert_close(torch.stack(states, dim=1).unflatten(0, (2, -1)), whole, rtol=1e-3, atol=1e-4)


def test_responses_skip_the_global_blocks_of_dense_tasks_only() -> None:
    model = tiny_git()
    for task, layers in ((Task.DETECTION, 3), (Task.SEMANTIC, 3), (Task.CAPTION, 4)):
        with torch.no_grad():
            _, seen, _, _ = model.begin(make_batch(task).images, task, 1)
        assert len(seen.keys_values) == layers


def test_a_response_reads_its_own_window_only() -> None:
    """Another window's pixels reach it through the global block alone; without one they do not reach it at all."""
    vit = dataclasses.replace(VIT, global_blocks=())
    model = tiny_git(vit=vit)
    batch = make_batch(Task.DETECTION, 1, targets=False)
    changed = dataclasses.replace(batch, images=batch.images.clone())
    changed.images[:, :, 32:, 32:] = 0.5  # the last of 2x2 windows
    with torch.no_grad():
        states = [model.begin(one.images, Task.DETECTION, 1)[0] for one in (batch, changed)]
    same = (states[0] - states[1]).abs().amax(-1) < 1e-6
    assert same.tolist() == [True] * 27 + [False] * 9  # window-major


# ---------------------------------------------------------------------- pruning


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 3),
    image_hw=st.sampled_from([(64, 64), (32, 96), (64, 32)]),
    max_detections=st.sampled_from([1, 5, 20, 200]),
    task=st.sampled_from([Task.DETECTION, Task.INSTANCE]),
)
def test_pruned_decoding_equals_plain_decoding(
    seed: int, size: int, image_hw: tuple[int, int], max_detections: int, task: Task
) -> None:
    model = tiny_git(seed=seed)
    interface = dataclasses.replace(model.task_config(task), max_detections=max_detections)
    setattr(model.config, task.value, interface)
    batch = make_batch(task, size, seed=seed, image_hw=image_hw, targets=False)
    with torch.no_grad():
        pruned, plain = detection.predict(model, batch), detection.predict(model, batch, prune=False)
    for ours, other in zip(pruned, plain, strict=True):
        compare(ours, other)


def test_pruning_decodes_only_points_of_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_git()
    batch = make_batch(Task.DETECTION, 2, targets=False)
    decoded = []
    real = detection.decode_points

    def counted(model: GiT, seen: Any, task: Task, tokens: Tensor, *rest: Any) -> Tensor:
        decoded.append(len(tokens))
        return real(model, seen, task, tokens, *rest)

    monkeypatch.setattr(detection, "decode_points", counted)
    answers = model.predict(batch)
    assert len(decoded) == 1
    assert decoded[0] <= 24 < 72  # two images of 36 points, 12 detections each
    assert all(isinstance(answer, Instances) and len(answer.scores) == 12 for answer in answers)


def test_a_point_may_answer_for_several_classes_with_one_box() -> None:
    model = tiny_git(detection=dataclasses.replace(tiny_config().detection, max_detections=108))
    answer = model.predict(make_batch(Task.DETECTION, 1, targets=False))[0]
    assert isinstance(answer, Instances)
    assert len(answer.scores) == 36 * 3  # every point with every class
    assert sorted(answer.class_ids.tolist()) == [0] * 36 + [1] * 36 + [2] * 36


# ---------------------------------------------------------------------- semantic maps


def test_scores_stand_where_their_patches_stand() -> None:
    """Token (patch row-major, place in the block row-major) against its pixel of the dense map."""
    model = tiny_git()
    with torch.no_grad():
        dense, tokens = semantic.label_scores(model, make_batch(Task.SEMANTIC, 2, targets=False))
    assert dense.shape == (2, 3, 16, 16)
    assert tokens.shape == (2, 64, 4)
    winners = dense.argmax(1)
    for patch in range(64):
        for place in range(4):
            y, x = patch // 8 * 2 + place // 2, patch % 8 * 2 + place % 2
            for image in range(2):
                token = int(tokens[image, patch, place])
                assert token == 3 or token == int(winners[image, y, x])
    # The background column was dropped, not shared out.
    assert float(dense.sum(1).max()) < 1.0


# ---------------------------------------------------------------------- captions


def slow_search(model: GiT, batch: Batch, beams: int) -> list[list[list[int]]]:
    """GiT's beams one image at a time, without a cache: every step runs all tokens of every beam from the start."""
    table = model.text_embed.words.weight
    end = model.vocabulary.sep_id
    sentences = []
    for image in batch.images:
        images = image[None]
        histories: list[list[int]] = [[] for _ in range(1)]
        positions: list[list[int]] = [[]]
        scores, finished = [0.0], [False]
        for step in range(model.task_config(Task.CAPTION).max_length):
            log_probs = []
            for history, places in zip(histories, positions, strict=True):
                state, seen, cache, layout = model.begin(images, Task.CAPTION, 30)
                for token, place in zip(history, places, strict=True):
                    x = model.text_embed(table[token], torch.tensor(place))
                    state = model.respond(seen, Task.CAPTION, x[None, None], cache, layout)[:, 0]
                log_probs.append((state[0] @ table.T / 0.7).log_softmax(-1))
            candidates = []
            for beam, values in enumerate(log_probs):
                total = values + scores[beam]
                if finished[beam]:
                    total[end] = 1e10
                candidates.append(total)
            values, picks = torch.cat(candidates).topk(beams)
            parents, tokens = picks // len(table), picks % len(table)
            histories = [[*histories[p], int(t)] for p, t in zip(parents, tokens, strict=True)]
            # A token is read at its place plus the slot that it was born in.
            positions = [[*positions[p], step + 1 + slot] for slot, p in enumerate(parents)]
            old = scores if step else [0.0] * beams
            finished = [int(t) == end for t in tokens]
            if step == 0:
                scores = values.tolist()
            else:
                scores = [old[slot] if finished[slot] else float(values[slot]) for slot in range(beams)]
            if all(finished):
                break
        sentences.append(histories)
    return sentences


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_beam_search_equals_a_search_without_a_cache(beams: int) -> None:
    model = tiny_git(seed=3)
    batch = make_batch(Task.CAPTION, 2, targets=False)
    with torch.no_grad():
        final = caption.search(model, batch, beams=beams)
        assert final.tokens.tolist() == slow_search(model, batch, beams)


def test_captions_stop_when_every_beam_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of [SEP] is set so that the first image of two says it at once and the second does not."""
    model = tiny_git()
    batch = make_batch(Task.CAPTION, 2, targets=False)
    steps = []
    real = model.respond
    monkeypatch.setattr(model, "respond", lambda *args, **kwargs: steps.append(1) or real(*args, **kwargs))
    with torch.no_grad():
        caption.search(model, batch, beams=1)
        assert len(steps) == 7  # the first word comes with the image
        first, second = model.begin(batch.images, Task.CAPTION, 8)[0]
        model.text_embed.words.weight[model.vocabulary.sep_id] = 50 * (first - second)
        steps.clear()
        final = caption.search(model, batch, beams=1)
        assert (final.tokens[:, 0, 0] == model.vocabulary.sep_id).tolist() == [True, False]
        assert steps  # the second image goes on
        assert set(final.tokens[0, 0].tolist()) == {model.vocabulary.sep_id}
        steps.clear()
        ended = caption.search(model, pick(batch, 0), beams=1)
        assert not steps
        best, scores, lengths = beam_finish(ended, end_id=model.vocabulary.sep_id)
        assert (best.tolist(), lengths.tolist(), scores.tolist()) == ([0], [[0]], [[-torch.inf]])
        for answer, text in zip(caption.predict(model, batch, beams=1), ("", None), strict=True):
            assert isinstance(answer, Caption)
            assert answer.text == text if text is not None else answer.text


def test_encoded_captions_shift_by_one_and_end_with_sep() -> None:
    words = tiny_git().vocabulary
    inputs, wanted = caption.encode_captions(["A big, red ball!", "one two three four five six seven"], words, 8)
    assert words.tokens(inputs[0].tolist()) == ["[DEC]", "a", "big", "red", "ball", "[SEP]", "[PAD]", "[PAD]"]
    assert wanted[0].tolist() == [*inputs[0, 1:6].tolist(), -100, -100]
    assert words.tokens(inputs[1].tolist())[-1] == "[SEP]"  # cut, but it still ends
    assert wanted.shape == (2, 7)
    assert torch.equal(wanted[1], inputs[1, 1:])
