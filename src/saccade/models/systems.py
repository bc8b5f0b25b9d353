"""The systems side by side: which configuration belongs to which, and how a model is built from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeAlias, cast

from torch import nn

from saccade.errors import ConfigError, UsageError
from saccade.layers.vit import ViTConfig
from saccade.layers.vitae import ViTAEConfig
from saccade.models.ait.config import AiTConfig
from saccade.models.ait.model import AiT
from saccade.models.ait.vqvae import MapVQVAE, MapVQVAEConfig
from saccade.models.git.config import GiTConfig
from saccade.models.git.model import GiT
from saccade.models.gsva.collate import Conversing
from saccade.models.gsva.config import GSVAConfig
from saccade.models.gsva.inputs import Answering
from saccade.models.gsva.model import GSVA
from saccade.models.polar.centers import CenterPredictor
from saccade.models.polar.config import (
    CentersConfig,
    LibraryConfig,
    PixelConfig,
    PolarConfig,
    SegmenterConfig,
    ViTPixelsConfig,
)
from saccade.models.polar.model import PolarSegmenter
from saccade.models.polar.segmenter import Segmenter
from saccade.models.visft.clip import CLIPPair, CLIPPairConfig
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.model import HEAD_OF, ViSFT
from saccade.models.vitdet.config import SoftNMS, ViTDetConfig
from saccade.models.vitdet.model import ViTDet
from saccade.samples import ClassList
from saccade.tasks import Task
from saccade.tokens.clip_pieces import CLIPPieces
from saccade.tokens.pieces import PieceVocabulary
from saccade.tokens.vocabulary import TextVocabulary
from saccade.tokens.words import WordMap

Model: TypeAlias = (
    GiT | ViTDet | AiT | MapVQVAE | GSVA | ViSFT | CLIPPair | Segmenter | CenterPredictor | PolarSegmenter
)
ModelConfig: TypeAlias = (
    GiTConfig
    | ViTDetConfig
    | AiTConfig
    | MapVQVAEConfig
    | GSVAConfig
    | ViSFTConfig
    | CLIPPairConfig
    | SegmenterConfig
    | CentersConfig
    | PolarConfig
)
Vocabulary: TypeAlias = TextVocabulary | PieceVocabulary | WordMap | CLIPPieces
"""What makes ids of words, in the systems that read or write them: GiT's WordPiece, GSVA's SentencePiece, the whole
words of ViSFT's caption head, and CLIP's byte pairs."""

CONFIGS: dict[str, type[ModelConfig]] = {
    GiT.system: GiTConfig,
    ViTDet.system: ViTDetConfig,
    AiT.system: AiTConfig,
    MapVQVAE.system: MapVQVAEConfig,
    GSVA.system: GSVAConfig,
    ViSFT.system: ViSFTConfig,
    CLIPPair.system: CLIPPairConfig,
    Segmenter.system: SegmenterConfig,
    CenterPredictor.system: CentersConfig,
    PolarSegmenter.system: PolarConfig,
}
"""Name of a system to the class of its configuration."""


_LIBRARY_WIDTH = 512  # of the common encoders' last stage


def system_of(config: ModelConfig) -> str:
    """Name of the system that a configuration belongs to."""
    return next(name for name, kind in CONFIGS.items() if isinstance(config, kind))


def build(config: ModelConfig, vocabulary: Vocabulary | None = None) -> Model:
    """Builds a model with fresh weights.

    Args:
        config: Of any system.
        vocabulary: The text vocabulary, for systems that read or write text.

    Raises:
        ConfigError: The system needs a vocabulary, and none is given, or one of another kind.
    """
    if isinstance(config, ViTDetConfig):
        return ViTDet(config)
    if isinstance(config, AiTConfig):
        return AiT(config)
    if isinstance(config, MapVQVAEConfig):
        return MapVQVAE(config)
    if isinstance(config, GSVAConfig):
        if not isinstance(vocabulary, PieceVocabulary | None):
            raise ConfigError("GSVA reads pieces of a SentencePiece model", where="vocabulary")
        return GSVA(config, vocabulary)
    if isinstance(config, ViSFTConfig):
        if not isinstance(vocabulary, WordMap | None):
            raise ConfigError("ViSFT's caption head says whole words of a map", where="vocabulary")
        return ViSFT(config, vocabulary)
    if isinstance(config, CLIPPairConfig):
        if not isinstance(vocabulary, CLIPPieces | TextVocabulary | None):
            raise ConfigError("a pair of towers reads CLIP's byte pairs, or word pieces", where="vocabulary")
        return CLIPPair(config, vocabulary)
    if isinstance(config, SegmenterConfig):
        return Segmenter(config)
    if isinstance(config, CentersConfig):
        return CenterPredictor(config)
    if isinstance(config, PolarConfig):

        def part(of: ModelConfig) -> Model:
            return build(of, vocabulary if reading_config(of) else None)

        return PolarSegmenter(config, part(config.segmenter), None if config.finder is None else part(config.finder))
    if not isinstance(vocabulary, TextVocabulary):
        raise ConfigError("the model needs a text vocabulary", where="vocabulary")
    return GiT(config, vocabulary)


def backbone_of(model: Model) -> nn.Module:
    """The part of a model that looks at the input."""
    if isinstance(model, MapVQVAE):
        return model.vqvae.encoder
    if isinstance(model, Segmenter | CenterPredictor):
        return model.network
    if isinstance(model, PolarSegmenter):
        return backbone_of(cast(Model, model.segmenter))
    return model.sam.image_encoder if isinstance(model, GSVA) else model.backbone


def offers(config: ModelConfig, task: Task) -> bool:
    """Whether a model of this configuration offers a task."""
    if isinstance(config, ViTDetConfig):
        return task is Task.DETECTION or (task is Task.INSTANCE and config.roi.mask != "none")
    if isinstance(config, AiTConfig):
        return task in config.lengths
    if isinstance(config, MapVQVAEConfig):
        return task is config.task
    if isinstance(config, GSVAConfig):
        return task is Task.REFERRING
    if isinstance(config, ViSFTConfig):
        return HEAD_OF.get(task) in config.heads
    if isinstance(config, CLIPPairConfig):
        return task is Task.CAPTION
    if isinstance(config, SegmenterConfig | PolarConfig):
        return task is Task.SEMANTIC
    if isinstance(config, CentersConfig):
        return task is Task.CENTER
    return getattr(config, task.value, None) is not None


def width_of(config: ModelConfig) -> int:
    """Channels of the backbone where they are most."""
    if isinstance(config, AiTConfig):
        return config.map_width
    if isinstance(config, MapVQVAEConfig):
        return config.vqvae.base_width * config.vqvae.downsample // 2
    if isinstance(config, GSVAConfig):
        return config.sam.vit.width
    if isinstance(config, PolarConfig):
        return width_of(config.segmenter)
    if isinstance(config, CentersConfig):
        return config.network.width
    if isinstance(config, SegmenterConfig):
        network = config.network
        if isinstance(network, ViTPixelsConfig):
            return network.vit.width
        return _LIBRARY_WIDTH if isinstance(network, LibraryConfig) else network.features * 2**network.levels
    return config.vit.width


def with_vit(config: GiTConfig | ViTDetConfig, vit: ViTConfig) -> ModelConfig:
    """The same model with other blocks."""
    if isinstance(config, GiTConfig):
        return dataclasses.replace(config, vit=vit)
    backbone = config.backbone
    changed = dataclasses.replace(backbone, blocks=vit) if isinstance(backbone, ViTAEConfig) else vit
    return dataclasses.replace(config, backbone=changed)


def plain_vit_of(config: ModelConfig) -> ViTConfig | None:
    """The plain ViT that a model looks with, by whose names other models can start from it; None = it has none."""
    if isinstance(config, PolarConfig):
        return plain_vit_of(config.segmenter)
    if isinstance(config, SegmenterConfig):
        return config.network.vit if isinstance(config.network, ViTPixelsConfig) else None
    if isinstance(config, ViTDetConfig):
        return config.backbone if isinstance(config.backbone, ViTConfig) else None
    return config.vit if isinstance(config, GiTConfig | ViSFTConfig | CLIPPairConfig) else None


def input_size(config: ModelConfig, task: Task) -> int:
    """Side of the network input of a task in pixels, the longer one where it is no square."""
    if isinstance(config, ViTDetConfig | CentersConfig):
        return config.input_size
    if isinstance(config, SegmenterConfig):
        return max(config.input_hw)
    if isinstance(config, PolarConfig):
        return input_size(config.segmenter, task)
    if isinstance(config, MapVQVAEConfig):
        return config.vqvae.size
    if isinstance(config, GSVAConfig):
        return config.sam.vit.image_size
    if isinstance(config, ViSFTConfig):
        return int(getattr(config, f"{HEAD_OF[task]}_size"))
    if isinstance(config, CLIPPairConfig):
        return config.vit.image_size
    if isinstance(config, AiTConfig):
        if task is Task.DEPTH and config.depth is not None:
            return config.depth.depth.size
        objects = config.detection if task is Task.DETECTION else config.instance
        assert objects is not None
        return objects.input_size
    return int(getattr(config, task.value).input_size)


@dataclass(kw_only=True, frozen=True)
class DetectorOptions:
    """How a detector predicts, where that is not as its checkpoint says.

    Attributes:
        soft_nms: Soft-NMS of that kind instead of the hard one.
        sizes: Sides of the network input to predict at (test-time augmentation).
        flip: Predict the mirrored picture, too.
    """

    soft_nms: SoftNMS = "none"
    sizes: tuple[int, ...] = ()
    flip: bool = False


def set_detector_options(model: Model, options: DetectorOptions) -> None:
    """Changes how a detector predicts.

    Raises:
        UsageError: Another kind of model.
        ConfigError: A size that the model cannot read.
    """
    if options == DetectorOptions():
        return
    if not isinstance(model, ViTDet):
        raise UsageError(
            f"soft-NMS and test-time augmentation are for detectors, not for {model.system}",
            fix="leave out --soft-nms, --test-sizes and --test-flip",
        )
    model.config = dataclasses.replace(
        model.config, test_soft_nms=options.soft_nms, test_sizes=options.sizes, test_flip=options.flip
    )


def extra_of(model: Model, *, answer: Answering = "given", reevaluate: bool = False) -> Conversing | None:
    """What loaders make for a model besides pictures (:class:`saccade.data.pipeline.Extra`); None = nothing.

    Args:
        model: The model.
        answer: Of one that converses: how it answers where it is not trained.
        reevaluate: Of the same: see :class:`saccade.models.gsva.inputs.ConversationBatch`.

    Raises:
        ConfigError: The model converses, and has no vocabulary.
    """
    if not isinstance(model, GSVA):
        return None
    if model.vocabulary is None:
        raise ConfigError(
            "the model has no vocabulary",
            where="tokenizer.model",
            why="its weights were converted without one",
            fix="copy the tokenizer.model of its language model into the checkpoint folder",
        )
    config = model.config
    return Conversing(
        vocabulary=model.vocabulary,
        clip_size=config.clip.image_size,
        image_tokens=config.clip.tokens,
        style=config.conversation,
        max_length=config.max_length,
        positions=config.language.positions,
        answer=answer,
        reevaluate=reevaluate,
        one_seg=config.one_seg,
    )


def fixed_classes(model: Model) -> ClassList | None:
    """The named classes that the heads of a model know; None where names are free text, or are given later."""
    if isinstance(model, PolarSegmenter):
        return fixed_classes(cast(Model, model.segmenter))
    if isinstance(model, ViSFT):
        return model.classes
    if isinstance(model, ViTDet | AiT | Segmenter | CenterPredictor) and model.config.classes:
        return model.classes
    return None


def reader_of(model: Model | nn.Module) -> GiT | GSVA | ViSFT | CLIPPair | None:
    """The part of a model that reads or writes words, and has a vocabulary; None where there is none."""
    if isinstance(model, PolarSegmenter):
        return reader_of(model.segmenter) or (None if model.finder is None else reader_of(model.finder))
    if isinstance(model, ViSFT):
        return None if model.caption is None else model
    return model if isinstance(model, GiT | GSVA | CLIPPair) else None


def reading_config(config: ModelConfig) -> GiTConfig | GSVAConfig | ViSFTConfig | CLIPPairConfig | None:
    """The configuration of :func:`reader_of`."""
    if isinstance(config, PolarConfig):
        return reading_config(config.segmenter) or (None if config.finder is None else reading_config(config.finder))
    if isinstance(config, ViSFTConfig):
        return None if config.caption is None else config
    return config if isinstance(config, GiTConfig | GSVAConfig | CLIPPairConfig) else None


def finder_config(config: ModelConfig, *, where: str) -> PixelConfig | CentersConfig:
    """The configuration of a finder, as what it has to be.

    Args:
        config: Of the model that is to find centres.
        where: What named it, for the error.

    Raises:
        UsageError: It is no centre predictor, and segments no plain pictures.
    """
    # A polar model segments, but only around a centre: it cannot be the one that finds it.
    finds = offers(config, Task.CENTER) or offers(config, Task.SEMANTIC)
    if not finds or not isinstance(config, SegmenterConfig | CentersConfig | GiTConfig | ViSFTConfig):
        raise UsageError(
            f"a {system_of(config)} model finds no centres",
            where=where,
            fix="name a centre predictor, or a model that segments pictures as they are",
        )
    return config


def set_finder(model: Model, finder: Model) -> None:
    """Gives a polar segmenter what finds centres, in the place of its own.

    Raises:
        UsageError: Another kind of model, or a finder that finds no centres.
    """
    if not isinstance(model, PolarSegmenter):
        raise UsageError(
            f"centres are for models that see pictures unrolled around them, not for {model.system}",
            fix="leave out --centers and --center",
        )
    finder_config(finder.config, where="--centers")
    model.finder = finder.requires_grad_(False).eval()
