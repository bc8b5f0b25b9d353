"""Configuration of pixel segmenters, centre predictors, and the polar wrapper around a segmenter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from saccade.errors import ConfigError
from saccade.labels import Objects
from saccade.layers.hourglass import HourglassConfig
from saccade.layers.polar import Interpolation
from saccade.layers.unet import UNetConfig
from saccade.layers.vit import ViTConfig
from saccade.models.git.config import GiTConfig
from saccade.models.visft.config import ViSFTConfig

_LIBRARY_STRIDE = 32


@dataclass(kw_only=True, frozen=True)
class ViTPixelsConfig:
    """A plain ViT with a light head: one linear map of its last features, resized to the picture.

    Attributes:
        vit: The backbone.
    """

    vit: ViTConfig = field(default_factory=ViTConfig)


@dataclass(kw_only=True, frozen=True)
class LibraryConfig:
    """A network of segmentation_models_pytorch (extra ``medical``), from fresh weights.

    Attributes:
        architecture: ``unetplusplus`` or ``deeplabv3plus``, the two that the paper tries besides the U-Net.
        encoder: Name of the encoder, as the library calls it.
    """

    architecture: Literal["unetplusplus", "deeplabv3plus"] = "unetplusplus"
    encoder: str = "resnet34"


@dataclass(kw_only=True)
class SegmenterConfig:
    """A network that scores every pixel.

    Attributes:
        network: The network.
        classes: Names of the classes in order. Two are told apart by one logit, that of the one that is not called
            ``background`` (else of the second); more have a logit each.
        category_ids: The data set's own ids of the classes; empty = 0, 1, 2, ...
        input_hw: Height and width of the network input; pictures are squeezed to it.
        channels: 3, or 1 for pictures that are grey (the first channel is read).
        mean: Pixel mean, 0..255, per channel of RGB.
        std: What pixels are divided by after that.
    """

    network: UNetConfig | ViTPixelsConfig | LibraryConfig = field(default_factory=UNetConfig)
    classes: tuple[str, ...] = ("background", "lesion")
    category_ids: tuple[int, ...] = ()
    input_hw: tuple[int, int] = (384, 512)
    channels: Literal[1, 3] = 3
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ConfigError(
                "a segmenter tells at least two classes of different names apart",
                where="model.classes",
                fix="name the background, too: background,lesion",
            )
        if self.category_ids and len(self.category_ids) != len(self.classes):
            raise ConfigError(
                f"{len(self.category_ids)} category ids for {len(self.classes)} classes", where="model.category_ids"
            )
        if min(self.input_hw) < 1:
            raise ConfigError(f"an input of {self.input_hw} pixels has no pixel", where="model.input_hw")
        step = 1
        if isinstance(self.network, ViTPixelsConfig):
            step = self.network.vit.patch_size
            if self.channels != 3:
                raise ConfigError("a plain ViT reads three channels", where="model.channels")
        elif isinstance(self.network, LibraryConfig):
            step = _LIBRARY_STRIDE
        if any(side % step for side in self.input_hw):
            raise ConfigError(
                f"an input of {self.input_hw} pixels is no whole number of the network's steps of {step}",
                where="model.input_hw",
                fix=f"choose multiples of {step}",
            )


@dataclass(kw_only=True)
class CentersConfig:
    """A predictor of the centres of objects: stacked hourglasses that draw a heatmap.

    Attributes:
        network: The network.
        classes: Names of the classes of the data; an object is what is not the one called ``background`` (else not the
            first).
        input_size: Side of the square network input in pixels.
        sigma: Standard deviation of a centre's Gaussian in the training target, in pixels of the input.
        objects: What has a centre.
        least_region: Least area of an object as a share of the picture's (for ``objects="each"``): specks are none.
        least_peak: Least height of a further peak, as a share of the highest one (for ``objects="each"``).
        mean: Pixel mean, 0..255, per channel of RGB.
        std: What pixels are divided by after that.
    """

    network: HourglassConfig = field(default_factory=HourglassConfig)
    classes: tuple[str, ...] = ("background", "lesion")
    input_size: int = 256
    sigma: float = 8.0
    objects: Objects = "one"
    least_region: float = 0.001
    least_peak: float = 0.5
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)

    def __post_init__(self) -> None:
        step = self.network.stride * 2**self.network.depth
        if self.input_size < step or self.input_size % step:
            raise ConfigError(
                f"an input of {self.input_size} pixels cannot be halved {self.network.depth} times at the stride of "
                f"{self.network.stride}",
                where="model.input_size",
                fix=f"choose a multiple of {step}",
            )
        if self.network.heatmaps != 1:
            raise ConfigError("centres are drawn on one heatmap", where="model.network.heatmaps", fix="set it to 1")
        if self.sigma <= 0:
            raise ConfigError(f"sigma must be above 0, got {self.sigma}", where="model.sigma")
        if not 0 <= self.least_region <= 1:
            raise ConfigError(f"least_region is a share, got {self.least_region}", where="model.least_region")
        if not 0 < self.least_peak <= 1:
            raise ConfigError(f"least_peak is a share, got {self.least_peak}", where="model.least_peak")


PixelConfig: TypeAlias = SegmenterConfig | GiTConfig | ViSFTConfig
"""Of the models that label every pixel."""


@dataclass(kw_only=True)
class PolarConfig:
    """A segmenter that sees every picture unrolled around the centre of an object.

    Attributes:
        segmenter: What looks at the unrolled pictures.
        finder: What finds the centre in a picture without a truth: a centre predictor, or a segmenter, the centre of
            whose mask is taken (the first, Cartesian pass). It does not learn. None = the centre is always given.
        objects: What has a centre.
        least_region: Least area of an object as a share of the picture's (for ``objects="each"``): specks are none.
        jitter: Greatest shift of a training centre along both axes, as a share of the height of the input.
        jitter_probability: Probability of the shift.
        interpolation: How pictures are unrolled and answers rolled up; the paper takes ``nearest``.
    """

    segmenter: PixelConfig = field(default_factory=SegmenterConfig)
    finder: PixelConfig | CentersConfig | None = None
    objects: Objects = "one"
    least_region: float = 0.001
    jitter: float = 0.05
    jitter_probability: float = 0.3
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        for name in ("least_region", "jitter", "jitter_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share, got {getattr(self, name)}", where=f"model.{name}")
        for name in ("segmenter", "finder"):
            part = getattr(self, name)
            without_git = isinstance(part, GiTConfig) and part.semantic_segmentation is None
            if without_git or (isinstance(part, ViSFTConfig) and part.semantic is None):
                raise ConfigError(
                    f"this {'GiT' if without_git else 'ViSFT'} does not label pixels",
                    where=f"model.{name}",
                    fix="give one that offers semantic_segmentation",
                )
