"""What a run starts from: the words of a caption head."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers_training import tiny_run
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parents[1] / "models/visft"))
from helpers_visft import tiny_config, tiny_words

from saccade.errors import ConfigError
from saccade.hub.checkpoint import save_model
from saccade.models.visft.model import ViSFT
from saccade.tokens.words import FILE, WordMap
from saccade.training.config import TrainConfig
from saccade.training.start import build_model, vocabulary_of


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A checkpoint with a caption head."""
    return save_model(ViSFT(tiny_config(), tiny_words()), tmp_path / "head", classes={}, provenance={})


def other_words(folder: Path) -> WordMap:
    """As many words as the head's, two of which have changed places."""
    ids = tiny_words().ids
    words = WordMap(ids | {"red": ids["ball"], "ball": ids["red"]})
    folder.mkdir()
    words.save(folder)
    return words


def run_of(tmp_path: Path, **changes: object) -> TrainConfig:
    return tiny_run(tmp_path, **{"model": tiny_config(), "vocabulary": "", **changes})


@pytest.mark.parametrize("field", ["caption_init", "weights"])
def test_words_of_other_ids_are_refused(field: str, head: Path, tmp_path: Path) -> None:
    other_words(tmp_path / "other")
    config = run_of(tmp_path, **{field: str(head), "vocabulary": str(tmp_path / "other")})
    with pytest.raises(ConfigError, match="another map of words") as caught:
        build_model(config)
    assert "2 words" in str(caught.value) and "'ball' 3 -> 2" in str(caught.value) and str(head) in str(caught.value)
    with pytest.raises(ConfigError, match="another map of words"):
        build_model(run_of(tmp_path, caption_init=str(head / "model.safetensors"), vocabulary=config.vocabulary))


def test_a_head_brings_its_own_words(head: Path, tmp_path: Path) -> None:
    for config in (run_of(tmp_path, caption_init=str(head)), run_of(tmp_path, weights=str(head))):
        model, _ = build_model(config)
        assert model.vocabulary == tiny_words()
    # Named or not, the same words are the same.
    build_model(run_of(tmp_path, caption_init=str(head), vocabulary=str(head / FILE)))


def test_a_released_head_wants_its_words_named(tmp_path: Path) -> None:
    state = {key: value.detach().contiguous() for key, value in ViSFT(tiny_config(), tiny_words()).state_dict().items()}
    file = tmp_path / "caption_heads.safetensors"
    save_file(state, file)
    with pytest.raises(ConfigError, match="nothing tells the words") as caught:
        vocabulary_of(run_of(tmp_path, caption_init=str(file)))
    assert "vocabulary=" in str(caught.value) and "words=" in str(caught.value) and str(file) in str(caught.value)
    # It says nothing of its words: any map of as many is believed.
    words = other_words(tmp_path / "other")
    model, _ = build_model(run_of(tmp_path, caption_init=str(file), vocabulary=str(tmp_path / "other")))
    assert model.vocabulary == words
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items() if key.startswith("caption."))
