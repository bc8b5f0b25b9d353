"""Named detectors: the published ones of both families, and small ones of ours.

``vitdet-{b,l,h}`` and ``vitdet-cascade-{b,l,h}`` are detectron2's; ``vitae-repo-vit-b``, ``vitae-b`` and ``vitae-s``
are the ViTAE repository's. The two families differ in many small rules (docs/vitdet.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor

from saccade.layers.pyramid import PyramidConfig
from saccade.layers.roi import RoIConfig, StageConfig
from saccade.layers.rpn import RPNConfig
from saccade.layers.vit import ViTConfig
from saccade.layers.vitae import ViTAEConfig
from saccade.models.vitdet.config import ViTDetConfig
from saccade.models.vitdet.convert import family_of

_SIZES: dict[str, dict[str, Any]] = {
    "b": {"width": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11), "drop_path": 0.1},
    "l": {"width": 1024, "depth": 24, "heads": 16, "global_blocks": (5, 11, 17, 23), "drop_path": 0.4},
    "h": {"width": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31), "drop_path": 0.5},
}


def vit(size: str, **changes: Any) -> ViTConfig:
    """The plain backbone of a size at 1024 px."""
    known = _SIZES[size]
    config = ViTConfig(mlp_width=4 * known["width"], image_size=1024, drop_path_attention=True, **known)
    return dataclasses.replace(config, **changes)


def cascade(*, stds_last: tuple[float, float, float, float], weights: tuple[float, ...]) -> tuple[StageConfig, ...]:
    """Three stages of rising overlap."""
    stds = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), stds_last)
    return tuple(
        StageConfig(iou=iou, stds=std, weight=weight)
        for iou, std, weight in zip((0.5, 0.6, 0.7), stds, weights, strict=True)
    )


def detectron2_rpn(**changes: Any) -> RPNConfig:
    """The proposal network with detectron2's rules."""
    config = RPNConfig(
        norm_eps=0.0, low_quality="keep", low_quality_floor=0.0, clamp_shrink=False, loss_per_sampled=False
    )
    return dataclasses.replace(config, **changes)


def detectron2_roi(*, stages: int = 1, **changes: Any) -> RoIConfig:
    """Heads with detectron2's rules; three stages make a cascade."""
    config = RoIConfig(
        norm_eps=1e-6,
        low_quality="off",
        truths_first=False,
        clamp_shrink=False,
        original_frame=False,
        resample=False,
        average="probabilities",
    )
    if stages == 3:
        third = 1 / 30, 1 / 30, 1 / 15, 1 / 15
        config.stages = cascade(stds_last=third, weights=(1.0, 1.0, 1.0))
        config.class_agnostic = config.scale_gradient = True
    return dataclasses.replace(config, **changes)


def vitae_repo_cascade_roi(**changes: Any) -> RoIConfig:
    """The ViTAE repository's cascade heads (mmdet's base config)."""
    config = RoIConfig(
        stages=cascade(stds_last=(0.033, 0.033, 0.067, 0.067), weights=(1.0, 0.5, 0.25)),
        class_agnostic=True,
        box_loss_beta=1.0,
        mask="per_stage",
        low_quality="off",
    )
    return dataclasses.replace(config, **changes)


def detectron2(size: str, *, stages: int = 1, lvis: bool = False) -> ViTDetConfig:
    """A released detector of detectron2; its classes have no names yet."""
    roi = detectron2_roi(stages=stages, num_classes=1203 if lvis else 80)
    if lvis:
        roi = dataclasses.replace(roi, sigmoid=True, min_score=0.02, max_detections=300, federated_classes=50)
    backbone = vit(size, position_size=14)
    if lvis and size == "h":
        backbone.drop_path = 0.4
    return ViTDetConfig(backbone=backbone, rpn=detectron2_rpn(), roi=roi, resize="pillow")


def vitae_repo(form: Literal["vit-b", "vitae-b", "vitae-s"], *, roi: RoIConfig | None = None) -> ViTDetConfig:
    """A released detector of the ViTAE repository; its classes have no names yet."""
    backbone: ViTConfig | ViTAEConfig = ViTAEConfig()
    if form != "vitae-s":
        backbone = vit("b", final_norm=True, parallel_conv="two" if form == "vitae-b" else "none")
    return ViTDetConfig(
        backbone=backbone,
        pyramid=PyramidConfig(norm_eps=1e-5, shrink=False),
        roi=roi or RoIConfig(),
    )


def preset_of(state: Mapping[str, Tensor]) -> str | None:
    """Name of the released detector whose form an official state dict has, whatever its classes; None = none has."""
    family = family_of(state)
    width = next((len(t) for key, t in state.items() if key.endswith("patch_embed.proj.bias")), 0)
    cells = next((len(t) for key, t in state.items() if key.endswith(".RC.attn.proj.bias")), 0)
    found = (
        family,
        width,
        bool(cells),
        "two" if width and any(".PCM." in key for key in state) else "none",
        any(".box_head.1." in key or ".bbox_head.1." in key for key in state),
        any(key.endswith("fed_loss_cls_weights") for key in state),
    )
    for name, make in PRESETS.items():
        config = make()
        vitae = isinstance(config.backbone, ViTAEConfig)
        form = (
            "vitae_repo" if config.rpn.norm_eps else "detectron2",
            0 if vitae else config.vit.width,
            vitae,
            "none" if vitae else config.vit.parallel_conv,
            len(config.roi.stages) > 1,
            bool(config.roi.federated_classes),
        )
        if form == found:
            return name
    return None


def with_masks(config: ViTDetConfig, masks: bool) -> ViTDetConfig:
    """The detector, or its Faster R-CNN form without mask heads."""
    return config if masks else dataclasses.replace(config, roi=dataclasses.replace(config.roi, mask="none"))


def nano() -> ViTDetConfig:
    """A detector of our own for 224 px: a ViT of GiT-nano's width with detectron2's pyramid, rules and heads."""
    return ViTDetConfig(
        backbone=ViTConfig(
            width=192,
            depth=8,
            heads=3,
            mlp_width=672,
            image_size=224,
            window_size=7,
            global_blocks=(1, 3, 5, 7),
            drop_path=0.0,
            drop_path_attention=True,
        ),
        pyramid=PyramidConfig(channels=64),
        rpn=detectron2_rpn(channels=64, candidates=(500, 300), proposals=(200, 100), scale=6.0),
        roi=detectron2_roi(channels=64, conv_channels=64, hidden=200, batch=32),
        input_size=224,
    )


PRESETS: dict[str, Callable[[], ViTDetConfig]] = {
    **{f"vitdet-{size}": partial(detectron2, size) for size in _SIZES},
    **{f"vitdet-cascade-{size}": partial(detectron2, size, stages=3) for size in _SIZES},
    **{f"vitdet-lvis-{size}": partial(detectron2, size, lvis=True) for size in _SIZES},
    **{f"vitdet-lvis-cascade-{size}": partial(detectron2, size, stages=3, lvis=True) for size in _SIZES},
    "vitae-repo-vit-b": partial(vitae_repo, "vit-b"),
    "vitae-repo-vit-b-cascade": lambda: vitae_repo("vit-b", roi=vitae_repo_cascade_roi()),
    "vitae-b": partial(vitae_repo, "vitae-b"),
    "vitae-s": partial(vitae_repo, "vitae-s"),
    "vitdet-nano": nano,
}
