"""The systems side by side: which configuration belongs to which, and how a model is built from it."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from saccade.errors import ConfigError
from saccade.layers.vit import ViTConfig
from saccade.layers.vitae import ViTAEConfig
from saccade.models.git.config import GiTConfig
from saccade.models.git.model import GiT
from saccade.models.vitdet.config import ViTDetConfig
from saccade.models.vitdet.model import ViTDet
from saccade.samples import ClassList
from saccade.tasks import Task
from saccade.tokens.vocabulary import TextVocabulary

Model: TypeAlias = GiT | ViTDet
ModelConfig: TypeAlias = GiTConfig | ViTDetConfig

CONFIGS: dict[str, type[GiTConfig] | type[ViTDetConfig]] = {GiT.system: GiTConfig, ViTDet.system: ViTDetConfig}
"""Name of a system to the class of its configuration."""


def system_of(config: ModelConfig) -> str:
    """Name of the system that a configuration belongs to."""
    return next(name for name, kind in CONFIGS.items() if isinstance(config, kind))


def build(config: ModelConfig, vocabulary: TextVocabulary | None = None) -> Model:
    """Builds a model with fresh weights.

    Args:
        config: Of any system.
        vocabulary: The text vocabulary, for systems that read or write text.

    Raises:
        ConfigError: The system needs a vocabulary, and none is given.
    """
    if isinstance(config, ViTDetConfig):
        return ViTDet(config)
    if vocabulary is None:
        raise ConfigError("the model needs a text vocabulary", where="vocabulary")
    return GiT(config, vocabulary)


def offers(config: ModelConfig, task: Task) -> bool:
    """Whether a model of this configuration offers a task."""
    if isinstance(config, ViTDetConfig):
        return task is Task.DETECTION or (task is Task.INSTANCE and config.roi.mask != "none")
    return getattr(config, task.value, None) is not None


def with_vit(config: ModelConfig, vit: ViTConfig) -> ModelConfig:
    """The same model with other blocks."""
    if isinstance(config, GiTConfig):
        return dataclasses.replace(config, vit=vit)
    backbone = config.backbone
    changed = dataclasses.replace(backbone, blocks=vit) if isinstance(backbone, ViTAEConfig) else vit
    return dataclasses.replace(config, backbone=changed)


def input_size(config: ModelConfig, task: Task) -> int:
    """Side of the square network input of a task in pixels."""
    if isinstance(config, ViTDetConfig):
        return config.input_size
    return int(getattr(config, task.value).input_size)


def fixed_classes(model: Model) -> ClassList | None:
    """The named classes that the heads of a model know; None where names are free text, or are given later."""
    return model.classes if isinstance(model, ViTDet) and model.config.classes else None
