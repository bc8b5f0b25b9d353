"""Configuration of AiT: the backbone, the transformer, and one small config per task."""

from __future__ import annotations

from dataclasses import dataclass, field

from saccade.errors import ConfigError
from saccade.layers.swin import SwinV2Config
from saccade.layers.vit import ViTConfig
from saccade.models.ait.transformer import TransformerConfig
from saccade.tasks import Task
from saccade.tokens.codebook import CodebookConfig, VQVAEConfig

TASK_ROWS: dict[Task, int] = {Task.DETECTION: 0, Task.INSTANCE: 1, Task.DEPTH: 2}
"""Row of each task in the tables of task and position embeddings."""


def mask_vqvae() -> VQVAEConfig:
    """The published VQ-VAE of masks: 64x64 pixels in 4x4 codes."""
    return VQVAEConfig(size=64, downsample=16, codebook=CodebookConfig())


def depth_vqvae() -> VQVAEConfig:
    """The published VQ-VAE of depth: 480x480 pixels in 15x15 codes."""
    return VQVAEConfig(size=480, downsample=32, signed=False, reconstruction="valid_squared", codebook=CodebookConfig())


@dataclass(kw_only=True)
class ObjectsConfig:
    """Objects as tokens: box corners, class, and with ``masks`` the codes of a mask.

    Attributes:
        input_size: Side of the padded network input in pixels; coordinates are counted in it.
        objects: Objects per image that are said; training fills up with noise objects.
        top_p: Nucleus of the choice of tokens; 0 takes the most likely one.
        seed: Seeds that choice in every call, so that a prediction repeats.
        masks: The VQ-VAE of masks; None = boxes only.
        soft_tokens: The token fed back for a mask code is the mixture of all codes that the model believes in.
        soft_masks: Masks are drawn from such mixtures.
        sharpness: Multiplies the logits of a mixture before a mask is drawn.
        mask_weight: Of mask codes in the cross-entropy.
        auxiliary: Weight of the loss of drawn masks (Dice and squared error); 0 = none.
        auxiliary_objects: Greatest number of objects of an image that this loss looks at.
        weight: Of the task's loss.
    """

    input_size: int = 640
    objects: int = 100
    top_p: float = 0.3
    seed: int = 0
    masks: VQVAEConfig | None = None
    soft_tokens: bool = True
    soft_masks: bool = True
    sharpness: float = 1.0
    mask_weight: float = 0.2
    auxiliary: float = 5.0
    auxiliary_objects: int = 100
    weight: float = 1.0

    @property
    def tokens_per_object(self) -> int:
        """Four corners, a class, and the mask codes."""
        return 5 + (self.masks.tokens if self.masks else 0)

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.objects * self.tokens_per_object


@dataclass(kw_only=True)
class DepthConfig:
    """Metric depth as the codes of a square map.

    Attributes:
        depth: The VQ-VAE of depth; its size is that of the windows that are looked at.
        top_p: Nucleus of the choice of tokens; 0 takes the most likely one.
        seed: Seeds that choice.
        soft_tokens: The token fed back is the mixture of all codes that the model believes in.
        soft_maps: The map is drawn from such mixtures.
        sharpness: Multiplies the logits of a mixture before the map is drawn.
        auxiliary: Weight of the scale-invariant log loss of the drawn map; 0 = none.
        weight: Of the task's loss.
        windows: Windows side by side that cover a wide picture, averaged where they overlap; more where they must be.
        flip: Predict the mirrored windows, too, and average.
        normalised: Pictures have ImageNet's mean and deviation, as for the other tasks; otherwise 0..1, as published.
        pad_to: Side that the windows are padded to with zeros before the backbone; 0 = as they are.
    """

    depth: VQVAEConfig = field(default_factory=depth_vqvae)
    top_p: float = 0.0
    seed: int = 0
    soft_tokens: bool = True
    soft_maps: bool = True
    sharpness: float = 0.8
    auxiliary: float = 1.0
    weight: float = 1.0
    windows: int = 2
    flip: bool = True
    normalised: bool = False
    pad_to: int = 0

    def __post_init__(self) -> None:
        if self.pad_to and self.pad_to < self.depth.size:
            raise ConfigError(
                f"windows of {self.depth.size} pixels cannot be padded to {self.pad_to}",
                where="depth.pad_to",
                fix=f"set 0 (as they are), or at least {self.depth.size}",
            )


@dataclass(kw_only=True)
class AiTConfig:
    """AiT.

    Attributes:
        classes: Names of the classes; empty = numbered.
        category_ids: Their ids in the data set.
        num_classes: How many there are.
        bins: Coordinates are 0..bins.
        mask_codes: Rows of the vocabulary for mask codes (kept in models without masks, too).
        depth_codes: Rows for depth codes.
        spare_rows: Rows that nothing uses (the joint and the instance models have them).
        backbone: A SwinV2, as published, or a plain ViT.
        transformer: The encoder and the decoder.
        detection: Boxes, or None.
        instance: Boxes and masks, or None.
        depth: Depth, or None.
    """

    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    num_classes: int = 80
    bins: int = 2000
    mask_codes: int = 128
    depth_codes: int = 128
    spare_rows: int = 0
    backbone: SwinV2Config | ViTConfig = field(default_factory=SwinV2Config)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    detection: ObjectsConfig | None = None
    instance: ObjectsConfig | None = None
    depth: DepthConfig | None = None

    def __post_init__(self) -> None:
        if self.classes and len(self.classes) != self.num_classes:
            raise ConfigError(f"{len(self.classes)} class names for {self.num_classes} classes", where="classes")
        if self.instance is not None and self.instance.masks is None:
            raise ConfigError("instance segmentation needs a VQ-VAE of masks", where="instance.masks")
        if self.detection is not None and self.detection.masks is not None:
            raise ConfigError(
                "detection says boxes alone", where="detection.masks", fix="configure instance for boxes and masks"
            )
        masks, depth = self.instance and self.instance.masks, self.depth and self.depth.depth
        for name, rows, vqvae in (("mask_codes", self.mask_codes, masks), ("depth_codes", self.depth_codes, depth)):
            if vqvae and vqvae.codebook.codes != rows:
                raise ConfigError(
                    f"a codebook of {vqvae.codebook.codes} codes, and {rows} rows of the vocabulary for them",
                    where=name,
                )
        for task, length in self.lengths.items():
            if length > self.transformer.length:
                raise ConfigError(
                    f"{length} tokens of {task} are more than the {self.transformer.length} positions",
                    where="transformer.length",
                )
        for task, side in self._sides.items():
            if -(-side // self.stride) > self.transformer.grid:
                raise ConfigError(
                    f"{side} pixels of {task} are {-(-side // self.stride)} places along an axis, and there are "
                    f"positions for {self.transformer.grid}",
                    where="transformer.grid",
                    why=f"a place of the backbone's map is {self.stride} pixels",
                )

    @property
    def map_width(self) -> int:
        """Channels of the map that the transformer reads."""
        if isinstance(self.backbone, ViTConfig):
            return self.backbone.width
        return self.backbone.width_of(len(self.backbone.depths) - 1)

    @property
    def stride(self) -> int:
        """Pixels per place of that map."""
        return self.backbone.patch_size if isinstance(self.backbone, ViTConfig) else self.backbone.stride

    @property
    def _sides(self) -> dict[Task, int]:
        """Side of the network input of every task, in pixels."""
        found = {}
        if self.detection is not None:
            found[Task.DETECTION] = self.detection.input_size
        if self.instance is not None:
            found[Task.INSTANCE] = self.instance.input_size
        if self.depth is not None:
            found[Task.DEPTH] = self.depth.pad_to or self.depth.depth.size
        return found

    @property
    def lengths(self) -> dict[Task, int]:
        """Tokens of a sequence of every task that the model has."""
        found = {}
        if self.detection is not None:
            found[Task.DETECTION] = self.detection.length
        if self.instance is not None:
            found[Task.INSTANCE] = self.instance.length
        if self.depth is not None:
            found[Task.DEPTH] = self.depth.depth.tokens
        return found

    # ------------------------------------------------------------------ the vocabulary, in order

    @property
    def coordinate_tokens(self) -> slice:
        """Corners of boxes."""
        return slice(0, self.bins + 1)

    @property
    def class_tokens(self) -> slice:
        """Classes."""
        return slice(self.bins + 1, self.bins + 1 + self.num_classes)

    @property
    def noise_token(self) -> int:
        """The class of what is no object; one reserved row stands before it."""
        return self.class_tokens.stop + 1

    @property
    def mask_tokens(self) -> slice:
        """Mask codes."""
        return slice(self.noise_token + 1, self.noise_token + 1 + self.mask_codes)

    @property
    def depth_tokens(self) -> slice:
        """Depth codes."""
        return slice(self.mask_tokens.stop, self.mask_tokens.stop + self.depth_codes)

    @property
    def vocabulary(self) -> int:
        """Rows of the vocabulary."""
        return self.depth_tokens.stop + self.spare_rows
