"""The Q-Former and the speaker: what is learned, what stays frozen, and how it speaks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import OPTConfig, OPTForCausalLM

from saccade.errors import CheckpointError, ConfigError, DataError
from saccade.models.visft.qformer import QFormer, QFormerConfig
from saccade.models.visft.speaker import Manner, QFormerSpeaker, load_language

WIDTH = 12
SIZES = QFormerConfig(queries=4, width=16, layers=3, heads=2, mlp_width=32, dropout=0.0)


class Letters:
    """A tokenizer of letters: 0 starts, 1 pads, 2 is the line break."""

    bos_token_id: int | None = 0
    pad_token_id: int | None = 1
    letters = "\n abcdefghijklmnopqrstuvwxyz:"

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [2 + self.letters.index(letter) for letter in text]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(self.letters[index - 2] for index in ids if index >= 2)


def tiny_language(seed: int = 0) -> OPTForCausalLM:
    torch.manual_seed(seed)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=2 + len(Letters.letters),
            hidden_size=32,
            word_embed_proj_dim=32,
            num_hidden_layers=2,
            ffn_dim=64,
            num_attention_heads=2,
            max_position_embeddings=64,
            dropout=0.1,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
    ).eval()


def new_speaker() -> QFormerSpeaker:
    language = tiny_language()
    torch.manual_seed(1)
    return QFormerSpeaker(SIZES, WIDTH, language, Letters())


def test_queries_read_the_image_and_its_order_does_not_matter() -> None:
    torch.manual_seed(0)
    qformer = QFormer(SIZES, WIDTH).eval()
    for parameter in qformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image = torch.randn(2, 9, WIDTH)
    out = qformer(image)
    assert out.shape == (2, 4, 16)
    torch.testing.assert_close(qformer(image.flip(1)), out, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(qformer(torch.randn(2, 9, WIDTH)), out, atol=1e-2)
    assert [layer.cross is not None for layer in qformer] == [True, False, True]
    with pytest.raises(ConfigError):
        QFormerConfig(layers=0)


def test_prompts_are_read_and_not_learned() -> None:
    speaker = new_speaker()
    image = torch.randn(2, 5, WIDTH)
    loss = speaker.loss(image, ["what:", ""], ["cat", "a dog"])
    total, count = torch.zeros(()), 0
    for row, (prompt, text) in enumerate([("what:", " cat\n"), ("", "a dog\n")]):
        ids = [0, *speaker._ids(prompt), *speaker._ids(text)]
        words = speaker.language.get_input_embeddings()(torch.tensor([ids]))
        logits = speaker.language(inputs_embeds=torch.cat([speaker.prefix(image)[row : row + 1], words], 1)).logits[0]
        learned = len(text)
        total = total + F.cross_entropy(logits[-learned - 1 : -1], torch.tensor(ids[-learned:]), reduction="sum")
        count += learned
    torch.testing.assert_close(loss, total / count, rtol=1e-5, atol=1e-5)


def test_only_the_q_former_learns_and_it_learns_to_name_images() -> None:
    speaker = new_speaker().train()
    assert not speaker.language.training and speaker.qformer.training
    before = {key: value.clone() for key, value in speaker.language.state_dict().items()}
    trained = [parameter for parameter in speaker.parameters() if parameter.requires_grad]
    parts = (speaker.qformer, speaker.project)
    assert len(trained) == sum(len(list(part.parameters())) for part in parts)
    # A frozen language model that knows nothing says what its input says: open its words to make the test possible.
    speaker.language.requires_grad_(True)
    optimizer = torch.optim.AdamW(speaker.parameters(), lr=5e-3)
    image = torch.randn(3, 5, WIDTH)
    texts = ["cat", "dog", "a red ball"]
    for _ in range(60):
        loss = speaker.loss(image, ["what:"] * 3, texts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in trained)
    assert speaker.eval().speak(image, ["what:"] * 3, Manner(beams=3, most=12)) == texts
    # Prompts of different length share a batch, and an answer does not depend on its company.
    assert speaker.speak(image[:1], ["what:"], Manner(beams=3, most=12)) == ["cat"]
    assert speaker.speak(image[:2], ["what:", "what what:"], Manner(beams=3, most=12))[0] == "cat"
    (longer,) = speaker.speak(image[:1], ["what:"], Manner(beams=1, most=12, least=8))
    assert longer.startswith("cat") and longer != "cat"
    assert before.keys() == speaker.language.state_dict().keys()


def test_the_search_keeps_to_its_bounds() -> None:
    speaker = new_speaker().eval()
    image = torch.randn(2, 5, WIDTH)
    lengths = [len(text) for text in speaker.speak(image, ["a", "b c"], Manner(beams=2, most=3))]
    assert max(lengths) <= 3


def test_what_cannot_be_learned_or_read_is_refused(tmp_path: Path) -> None:
    speaker = new_speaker()
    with pytest.raises(DataError, match="without words"):
        speaker.loss(torch.randn(1, 5, WIDTH), [""], ["  "])
    with pytest.raises(CheckpointError, match="language model"):
        load_language(tmp_path)
    letters = Letters()
    letters.bos_token_id = None
    with pytest.raises(CheckpointError, match="tokenizer"):
        QFormerSpeaker(SIZES, WIDTH, tiny_language(), letters)
