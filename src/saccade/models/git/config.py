"""Configuration of GiT: the backbone, and one small config per task interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from saccade.errors import ConfigError
from saccade.layers.vit import ViTConfig
from saccade.tasks import Task

GIT_TASKS: tuple[Task, ...] = (Task.DETECTION, Task.INSTANCE, Task.SEMANTIC, Task.CAPTION, Task.GROUNDING)
"""The tasks that GiT speaks; each has a config of its name."""


@dataclass(kw_only=True)
class DetectionConfig:
    """Boxes as five tokens per grid point (class, cx, cy, w, h); instances add a mass centre and rays.

    Attributes:
        input_size: Side of the square network input in pixels.
        grid_per_window: Grid points per window (rows, columns).
        train_points_per_window: Grid points kept per window in training.
        num_bins: The coordinate bins are 0..num_bins.
        max_detections: (point, class) pairs returned.
        num_rays: Rays of the contour; 0 = boxes only.
    """

    input_size: int = 1120
    grid_per_window: tuple[int, int] = (5, 5)
    train_points_per_window: int = 10
    num_bins: int = 2240
    max_detections: int = 100
    num_rays: int = 0

    def grid_shape(self, vit: ViTConfig) -> tuple[int, int]:
        """Grid points per window (rows, columns)."""
        return self.grid_per_window

    @property
    def length(self) -> int:
        """Tokens of a response: class, box, and with rays the mass centre and the rays."""
        return 5 + (2 + self.num_rays if self.num_rays else 0)


@dataclass(kw_only=True)
class SemanticConfig:
    """Every patch says a block of labels at a quarter of the patch size, row by row.

    Attributes:
        input_size: Side of the square network input in pixels.
        train_points_per_window: Patches kept per window in training.
        block: Labels per patch side.
    """

    input_size: int = 672
    train_points_per_window: int = 32
    block: int = 4

    def grid_shape(self, vit: ViTConfig) -> tuple[int, int]:
        """Grid points per window (rows, columns): every patch is one."""
        return vit.window_size, vit.window_size


@dataclass(kw_only=True)
class CaptionConfig:
    """One response per image, decoded by beam search.

    Attributes:
        input_size: Side of the square network input in pixels.
        max_length: Tokens of a caption, the task token included.
        beams: Beams.
    """

    input_size: int = 224
    max_length: int = 20
    beams: int = 2


@dataclass(kw_only=True)
class GroundingConfig:
    """One box per phrase; the phrase runs through the layers beside the image.

    Attributes:
        input_size: Side of the square network input in pixels.
        num_bins: The coordinate bins are 0..num_bins.
        max_text_length: Pieces of the phrase, [CLS] and [SEP] included.
    """

    input_size: int = 224
    num_bins: int = 448
    max_text_length: int = 128


TaskConfig: TypeAlias = DetectionConfig | SemanticConfig | CaptionConfig | GroundingConfig


@dataclass(kw_only=True)
class GiTConfig:
    """The whole model. A task set to None is not offered.

    Attributes:
        vit: The plain ViT.
        vocab_size: Rows of the word table ([DEC] and [ENC] included).
        max_positions: Rows of the position tables of text and of concepts.
        concept_heads: Heads of the concept attention.
        text_dropout: Dropout after the text embedding, in training.
    """

    vit: ViTConfig = field(default_factory=ViTConfig)
    vocab_size: int = 30524
    max_positions: int = 512
    concept_heads: int = 8
    text_dropout: float = 0.1
    detection: DetectionConfig | None = field(default_factory=DetectionConfig)
    instance_segmentation: DetectionConfig | None = field(default_factory=lambda: DetectionConfig(num_rays=24))
    semantic_segmentation: SemanticConfig | None = field(default_factory=SemanticConfig)
    caption: CaptionConfig | None = field(default_factory=CaptionConfig)
    grounding: GroundingConfig | None = field(default_factory=GroundingConfig)

    def __post_init__(self) -> None:
        if self.vit.width % self.concept_heads:
            raise ConfigError(
                f"width {self.vit.width} is not a multiple of concept_heads {self.concept_heads}",
                where="model.concept_heads",
            )
        semantic = self.semantic_segmentation
        if semantic is not None and self.vit.patch_size % semantic.block:
            raise ConfigError(
                f"a patch of {self.vit.patch_size} pixels cannot be cut into {semantic.block} labels a side",
                where="model.semantic_segmentation.block",
                fix="choose a divisor of vit.patch_size",
            )
        side = self.vit.patch_size * self.vit.window_size
        for name in ("detection", "instance_segmentation", "semantic_segmentation", "caption", "grounding"):
            task = getattr(self, name)
            if task is not None and task.input_size % side:
                raise ConfigError(
                    f"input_size {task.input_size} is not a multiple of {side}",
                    where=f"model.{name}.input_size",
                    why="images are cut into windows of window_size patches",
                )
            if name in ("caption", "grounding") and task is not None and task.input_size != side:
                raise ConfigError(
                    f"input_size {task.input_size} is not one window",
                    where=f"model.{name}.input_size",
                    why="the single response of this task reads exactly one window",
                    fix=f"set it to {side}",
                )
