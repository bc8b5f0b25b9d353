"""Which readers a recipe needs, and what becomes of sources whose reader does not exist yet."""

from __future__ import annotations

import dataclasses

from saccade.data.sources import READERS
from saccade.errors import ConfigError
from saccade.training.config import SourceConfig, TrainConfig

LATER_READERS: dict[str, str] = {
    "ccs": "CC3M, CC12M and SBU with BLIP's filtered captions",
    "visual_genome": "Visual Genome captions",
    "flickr30k": "Flickr30k phrases with boxes",
}
"""Readers that published recipes name and that come later, to the data they will read."""


def missing_readers(config: TrainConfig) -> dict[str, int]:
    """Names of readers that do not exist, to the number of sources that ask for them."""
    missing: dict[str, int] = {}
    for source in (*config.train, *config.val):
        if source.reader not in READERS:
            missing[source.reader] = missing.get(source.reader, 0) + 1
    return missing


def require_readers(config: TrainConfig) -> None:
    """Refuses a run of which some data cannot be read, in one error that names all of it.

    Raises:
        ConfigError: A source names a reader that does not exist.
    """
    missing = missing_readers(config)
    if not missing:
        return
    lines = [f"{name} ({LATER_READERS.get(name, 'unknown')})" for name in missing]
    weight = sum(source.weight for source in config.train)
    lost = sum(source.weight for source in config.train if source.reader in missing)
    share = f"; they are {lost / weight:.0%} of the mixture" if weight else ""
    raise ConfigError(
        f"{len(missing)} readers of recipe '{config.name}' are not there yet",
        where=", ".join(lines),
        why=f"{sum(missing.values())} sources need them{share}",
        fix="train without these sources: drop_missing=true (the weights of the others then share the mixture)",
    )


def without_missing(config: TrainConfig) -> TrainConfig:
    """The recipe without the sources whose reader does not exist; the weights of the others keep their ratios.

    Raises:
        ConfigError: Nothing would be left to train or evaluate.
    """

    def kept(sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        return tuple(source for source in sources if source.reader in READERS)

    reduced = dataclasses.replace(config, train=kept(config.train), val=kept(config.val))
    if (config.train and not reduced.train) or (not config.train and not reduced.val):
        raise ConfigError(
            f"no source of recipe '{config.name}' can be read yet", where=", ".join(missing_readers(config))
        )
    return reduced
