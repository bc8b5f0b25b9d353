"""Configuration of the plain-backbone detectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from saccade.errors import ConfigError
from saccade.layers.pyramid import PyramidConfig
from saccade.layers.roi import RoIConfig
from saccade.layers.rpn import RPNConfig
from saccade.layers.vit import ViTConfig
from saccade.layers.vitae import ViTAEConfig

SoftNMS: TypeAlias = Literal["none", "linear", "gaussian"]


@dataclass(kw_only=True)
class ViTDetConfig:
    """A Faster, Mask or Cascade R-CNN on a plain backbone.

    Attributes:
        classes: Names of the classes, in order; empty = unnamed: ids are those of the data set, whatever it calls them.
        category_ids: The data set's own ids of the classes; empty = 0, 1, 2, ...
        backbone: A plain ViT, or a ViTAE with reduction cells.
        pyramid: The feature pyramid.
        rpn: The proposal network.
        roi: Box and mask heads.
        resize: How pictures are resized: ``bilinear`` as OpenCV does (the ViTAE repository), ``pillow`` (detectron2).
        input_size: Side of the square network input in pixels; the longer side of a picture is brought to it.
        test_soft_nms: Soft-NMS of that kind in prediction.
        test_sizes: Sides of the network input that test-time augmentation predicts at, merged by suppression and, for
            masks, by their mean; empty = ``input_size`` alone.
        test_flip: Predict the mirrored picture, too, and merge.
    """

    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    backbone: ViTConfig | ViTAEConfig = field(default_factory=ViTConfig)
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    resize: Literal["bilinear", "pillow"] = "bilinear"
    input_size: int = 1024
    test_soft_nms: SoftNMS = "none"
    test_sizes: tuple[int, ...] = ()
    test_flip: bool = False

    def __post_init__(self) -> None:
        if self.classes and len(self.classes) != self.roi.num_classes:
            raise ConfigError(
                f"{len(self.classes)} class names for heads of {self.roi.num_classes} classes",
                where="model.roi.num_classes",
                fix="give as many names as the heads have classes",
            )
        if self.category_ids and len(self.category_ids) != len(self.classes):
            raise ConfigError(
                f"{len(self.category_ids)} category ids for {len(self.classes)} classes", where="model.category_ids"
            )
        channels = {self.pyramid.channels, self.rpn.channels, self.roi.channels}
        if len(channels) > 1:
            raise ConfigError(
                f"pyramid, rpn and roi heads have different channels: {sorted(channels)}",
                where="model.pyramid.channels",
                fix="set the three to one value",
            )
        patch = self.vit.patch_size
        for size in (self.input_size, *self.test_sizes):
            if size % patch or size < 2 * patch:
                raise ConfigError(
                    f"input size {size} is not a multiple of {patch} from {2 * patch} on", where="model.input_size"
                )

    @property
    def vit(self) -> ViTConfig:
        """The blocks of the backbone."""
        return self.backbone.blocks if isinstance(self.backbone, ViTAEConfig) else self.backbone
