"""The caption head: searches against plain statements of them, learning, maps of words."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from saccade.errors import CheckpointError, ConfigError, DataError, UsageError
from saccade.layers.show_attend_tell import Speaker, SpeakerConfig
from saccade.models.visft.caption import CaptionHead, CaptionHeadConfig
from saccade.samples import Batch, Origin, Target
from saccade.tasks import Task
from saccade.tokens.words import WordMap

WORDS = WordMap.count([["a", "red", "blue", "ball", "box", "on", "the"]], least=1)
SPEAKER = SpeakerConfig(attention_width=12, embed_width=8, state_width=16, vocabulary=len(WORDS), dropout=0.1)
CONFIG = CaptionHeadConfig(speaker=SPEAKER, cells=3, most_words=7)
WIDTH = 10


def make_head(config: CaptionHeadConfig = CONFIG, words: WordMap | None = WORDS) -> CaptionHead:
    torch.manual_seed(0)
    return CaptionHead(config, WIDTH, words).eval()


def make_batch(captions: list[str]) -> Batch:
    return Batch(
        images=torch.zeros(len(captions), 3, 56, 56),
        task=Task.CAPTION,
        origins=[Origin(dataset="d", image_id=i, path=None, size_hw=(56, 56)) for i in range(len(captions))],
        input_sizes_hw=[(56, 56)] * len(captions),
        targets=[Target(captions=(caption,)) for caption in captions],
    )


def search(
    speaker: Speaker, cells_NC: Tensor, *, beams: int, start: int, end: int, most: int
) -> tuple[list[int], float]:
    """Beam search over lists, a sentence at a time."""
    seen, state = speaker.look(cells_NC[None])
    going, done = [(0.0, [start], state)], []
    for _ in range(most + 1):
        options = []
        for total, said, before in going:
            after, _ = speaker.step(seen, before, torch.tensor([said[-1]]))
            logs = speaker.logits(after.hidden).log_softmax(-1)[0]
            options += [(total + float(log), [*said, word], after) for word, log in enumerate(logs)]
        options.sort(key=lambda option: -option[0])
        best = options[: beams - len(done)]
        done += [option for option in best if option[1][-1] == end]
        going = [option for option in best if option[1][-1] != end]
        if not going:
            break
    total, said, _ = max(done or going, key=lambda option: option[0])
    return [word for word in said[1:] if word != end][:most], total


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_searches_are_those_of_single_sentences(beams: int, bias: float) -> None:
    head = make_head(dataclasses.replace(CONFIG, beams=beams))
    with torch.inference_mode():
        head.speaker.logits.weight.mul_(30)
        head.speaker.logits.bias[WORDS.end_id] += bias
        map_BHWC = torch.randn(5, 4, 4, WIDTH)
        said, scores = head.speak(map_BHWC, start=WORDS.start_id, end=WORDS.end_id)
        for cells_NC, row, score in zip(head(map_BHWC), said, scores, strict=True):
            kwargs = {"beams": beams, "start": WORDS.start_id, "end": WORDS.end_id, "most": 7}
            words, total = search(head.speaker, cells_NC, **kwargs)
            assert row == words
            assert float(score) == pytest.approx(total, abs=1e-4)


def test_it_learns_to_say_what_it_sees() -> None:
    head = make_head().train()
    captions = ["a red ball", "the blue box on the ball", "box", "a box on a box"]
    map_BHWC = torch.randn(4, 4, 4, WIDTH)
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        losses = head.loss(map_BHWC, make_batch(captions))
        (losses["loss_ce"] + losses["loss_coverage"]).backward()
        optimiser.step()
    head.eval()
    for beams in (1, 3):
        head.config = dataclasses.replace(head.config, beams=beams)
        with torch.inference_mode():
            found = head.predict(map_BHWC, make_batch(captions))
        assert [one.text for one in found] == captions
        assert all(-1.0 < one.score <= 0.0 for one in found)


def test_the_loss_does_not_depend_on_the_order_of_the_batch() -> None:
    head = make_head()
    captions = ["a red ball", "the blue box on the ball", "box", "a box on a box"]
    map_BHWC = torch.randn(4, 4, 4, WIDTH)
    order = [2, 0, 3, 1]
    first = head.loss(map_BHWC, make_batch(captions))
    second = head.loss(map_BHWC[order], make_batch([captions[k] for k in order]))
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_bad_input_is_refused() -> None:
    map_BHWC = torch.randn(1, 4, 4, WIDTH)
    with pytest.raises(CheckpointError, match="11 words"):
        make_head(dataclasses.replace(CONFIG, speaker=dataclasses.replace(SPEAKER, vocabulary=20)))
    with pytest.raises(UsageError, match="no map of words"):
        make_head(words=None).predict(map_BHWC, make_batch(["a"]))
    batch = make_batch(["a"])
    batch.targets[0].captions = ()
    with pytest.raises(DataError, match="no caption"):
        make_head().loss(map_BHWC, batch)
    with pytest.raises(ConfigError, match="0 beams"):
        CaptionHeadConfig(beams=0)
