"""Configuration of ViSFT: a plain backbone, heads on its last map, and which of them are trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from saccade.errors import ConfigError
from saccade.layers.vit import ViTConfig
from saccade.models.visft.caption import CaptionHeadConfig
from saccade.models.visft.detection import DetectionHeadConfig
from saccade.models.visft.segmentation import SegmentationHeadConfig

Head: TypeAlias = Literal["detection", "instance", "caption", "semantic"]
Part: TypeAlias = Literal["backbone", "detection", "instance", "caption", "semantic"]
HEADS: tuple[Head, ...] = ("detection", "instance", "caption", "semantic")
PUBLISHED_HEADS: tuple[Head, ...] = ("detection", "instance", "caption")


@dataclass(kw_only=True)
class ViSFTConfig:
    """Heads on one map of a plain ViT.

    Attributes:
        vit: The backbone.
        detection: The detection head; None = none.
        instance: The segmentation head; None = none.
        caption: The caption head; None = none.
        semantic: The head for label maps, which the authors do not have; None = none. Its classes are all that a pixel
            can be, the background too; they are the names of the whole model.
        trained: What is trained; all else keeps its values. Low-rank updates (``lora`` of a training run) freeze all of
            it that a file has filled, and are trained instead.
        frozen_dropout: Dropout acts in frozen heads, too, as in the authors' second stage.
        detection_size: Greatest side of the network input of detection in pixels.
        detection_short_side: The shorter side becomes as long as this where the longer still fits; 0 = as large as
            fits.
        instance_size: Greatest side of instance segmentation. Its training may have another size of its own, as the
            published one has (:class:`saccade.data.large_scale_jitter.LargeScaleJitterAugment`).
        instance_short_side: As ``detection_short_side``.
        caption_size: Side of the square input of captioning; pictures are resized to it whatever their form.
        semantic_size: The same of label maps.
    """

    vit: ViTConfig
    detection: DetectionHeadConfig | None = field(default_factory=DetectionHeadConfig)
    instance: SegmentationHeadConfig | None = field(default_factory=SegmentationHeadConfig)
    caption: CaptionHeadConfig | None = field(default_factory=CaptionHeadConfig)
    semantic: SegmentationHeadConfig | None = None
    trained: tuple[Part, ...] = HEADS
    frozen_dropout: bool = False
    detection_size: int = 672
    detection_short_side: int = 800
    instance_size: int = 1333
    instance_short_side: int = 800
    caption_size: int = 256
    semantic_size: int = 518

    def __post_init__(self) -> None:
        if not self.vit.final_norm:
            raise ConfigError("the heads read a map behind a norm", where="vit.final_norm", fix="set it to true")
        for name, head in (("instance", self.instance), ("semantic", self.semantic)):
            if head is not None and head.stride != self.vit.patch_size:
                raise ConfigError(
                    f"a map of patches of {self.vit.patch_size} pixels for a head of stride {head.stride}",
                    where=f"{name}.stride",
                    fix=f"set it to {self.vit.patch_size}",
                )
        if self.semantic is not None:
            self._check_semantic(self.semantic)
        for name in ("detection_size", "instance_size", "caption_size", "semantic_size"):
            if getattr(self, name) < self.vit.patch_size:
                raise ConfigError(f"{getattr(self, name)} pixels hold no patch", where=name)
        for name in ("detection_short_side", "instance_short_side"):
            if (side := getattr(self, name)) != 0 and side < self.vit.patch_size:
                raise ConfigError(f"{side} pixels hold no patch", where=name, fix="0 leaves it to the longer side")

    def _check_semantic(self, head: SegmentationHeadConfig) -> None:
        if head.layout != "ours":
            raise ConfigError(
                'the official layout learns its last class as "no object", and a pixel is always of some class',
                where="semantic.layout",
                fix="set it to ours",
            )
        if head.num_classes < 2 or len(set(head.classes)) < len(head.classes):
            raise ConfigError(
                "label maps tell at least two classes of different names apart",
                where="semantic.classes",
                fix="name the background, too: background,lesion",
            )
        if self.semantic_size % self.vit.patch_size:
            raise ConfigError(
                f"{self.semantic_size} pixels are no whole number of patches of {self.vit.patch_size}",
                where="semantic_size",
                fix=f"choose a multiple of {self.vit.patch_size}",
            )
        for name, other in (("detection", self.detection), ("instance", self.instance)):
            if other is not None and other.classes and other.classes != head.classes:
                raise ConfigError(
                    "the names of a model's classes are those of all its heads",
                    where=f"semantic.classes, {name}.classes",
                    fix="give the heads the same names, or make two models",
                )

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that there are."""
        return tuple(name for name in HEADS if getattr(self, name) is not None)

    def only(self, heads: Collection[Head]) -> ViSFTConfig:
        """The same with no other heads than these."""
        without: dict[str, Any] = {name: None for name in HEADS if name not in heads}
        return dataclasses.replace(self, **without)

    def named(self, classes: tuple[str, ...]) -> ViSFTConfig:
        """The same with these names for the classes of every head that has as many."""
        asked = {"detection": self.detection, "instance": self.instance, "semantic": self.semantic}
        heads: dict[str, Any] = {
            name: dataclasses.replace(head, classes=classes)
            for name, head in asked.items()
            if head is not None and head.num_classes == len(classes)
        }
        return dataclasses.replace(self, **heads)
