"""What a run starts from: fresh weights, a whole model (``weights``), or a pre-trained backbone (``init_from``)."""

from __future__ import annotations

from pathlib import Path

from saccade.errors import ConfigError
from saccade.hub.checkpoint import VOCABULARY
from saccade.hub.resolve import ASSETS, fetch_file, load_model, resolve
from saccade.hub.starts import load_backbone, load_text_embedding
from saccade.hub.zoo import ZOO
from saccade.mapping import MappingReport
from saccade.models.git.initialise import initialise_local
from saccade.models.git.model import GiT
from saccade.tokens.vocabulary import TextVocabulary
from saccade.training.config import TrainConfig


def build_model(config: TrainConfig) -> tuple[GiT, list[MappingReport]]:
    """Builds the model of a run on the CPU and fills it with its starting weights.

    Fresh weights depend on torch's random generator: the caller seeds it.

    Args:
        config: ``model``, ``vocabulary``, ``weights``, ``init_from`` and ``text_init`` are read.

    Returns:
        The model, and one report per file that was read for it.

    Raises:
        CheckpointError: A file is missing or damaged, or does not fit the model.
        ConfigError: ``weights`` names a model of another shape, or no bundled vocabulary fits the model.
    """
    if config.weights:
        return _whole_model(config), []
    model = config.model.build(vocabulary_of(config))
    if config.initialise == "local":
        initialise_local(model)
    reports: list[MappingReport] = []
    if config.init_from:
        reports.append(load_backbone(model, _file(config.init_from)))
    if config.text_init:
        reports.append(load_text_embedding(model, _file(config.text_init)))
    return model, reports


def _whole_model(config: TrainConfig) -> GiT:
    """``weights``: every tensor must find its place in the configured model."""
    loaded = load_model(config.weights).model
    model = config.model.build(vocabulary_of(config))
    found = {key: tuple(value.shape) for key, value in loaded.state_dict().items()}
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    odd = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    if odd:
        raise ConfigError(
            "the configured model is not the one that weights names",
            where=config.weights,
            why=f"{len(odd)} tensors differ in name or shape, e.g. {', '.join(odd[:3])}",
            fix="use that model's own configuration (recipe=finetune does), or start its backbone only, with init_from",
        )
    model.load_state_dict(loaded.state_dict())
    return model


def vocabulary_of(config: TrainConfig) -> TextVocabulary:
    """The vocabulary of a run: the file it names, that of ``weights``, or the bundled one that fits the model.

    Raises:
        ConfigError: None is named, and no bundled one fits.
        CheckpointError: The file is missing or no WordPiece vocabulary.
    """
    if config.vocabulary:
        return TextVocabulary(config.vocabulary)
    if config.weights:
        return TextVocabulary(resolve(config.weights) / VOCABULARY)
    for path in sorted(ASSETS.rglob(VOCABULARY)):
        bundled = TextVocabulary(path)
        if len(bundled) == config.model.vocab_size:
            return bundled
    raise ConfigError(
        f"no bundled vocabulary has {config.model.vocab_size} pieces",
        where="vocabulary",
        fix="pass vocabulary=PATH/vocab.txt (for the published sizes of GiT: that of bert-base-uncased)",
    )


def _file(name: str) -> Path:
    """A path, or the name of a zoo entry, which is fetched at first use."""
    return fetch_file(ZOO[name]) if name in ZOO and not Path(name).exists() else Path(name)
