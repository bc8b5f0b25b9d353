"""A small detector of each form, and batches for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torchvision import tv_tensors

from saccade.layers.pyramid import PyramidConfig
from saccade.layers.roi import RoIConfig
from saccade.layers.rpn import RPNConfig
from saccade.layers.vit import ViTConfig
from saccade.layers.vitae import CellConfig, ViTAEConfig
from saccade.models.vitdet.config import ViTDetConfig
from saccade.models.vitdet.presets import detectron2_roi, detectron2_rpn, vitae_repo_cascade_roi
from saccade.samples import Batch, ClassList, Origin, Target
from saccade.tasks import Task

SIZE = 64
CLASSES = ("ball", "box", "cup")
VIT = ViTConfig(
    width=16,
    depth=4,
    heads=2,
    mlp_width=32,
    image_size=SIZE,
    window_size=3,
    global_blocks=(1, 3),
    drop_path=0.0,
    drop_path_attention=True,
)
RPN = RPNConfig(channels=8, candidates=(60, 40), proposals=(40, 20), batch=32)
ROI = RoIConfig(num_classes=3, channels=8, conv_channels=8, hidden=16, batch=24, min_score=0.05, max_detections=10)


def config(**changes: Any) -> ViTDetConfig:
    """The ViTAE repository's form."""
    base = ViTDetConfig(
        classes=CLASSES,
        backbone=dataclasses.replace(VIT, final_norm=True),
        pyramid=PyramidConfig(channels=8, norm_eps=1e-5, shrink=False),
        rpn=RPN,
        roi=ROI,
        input_size=SIZE,
    )
    return dataclasses.replace(base, **changes)


def _detectron2(**changes: Any) -> ViTDetConfig:
    small = {"num_classes": 3, "channels": 8, "conv_channels": 8, "hidden": 16, "batch": 24, "max_detections": 10}
    return config(
        backbone=dataclasses.replace(VIT, position_size=2),
        pyramid=PyramidConfig(channels=8),
        rpn=detectron2_rpn(channels=8, candidates=(60, 40), proposals=(40, 20), batch=32),
        roi=detectron2_roi(**{**small, **changes}),
        resize="pillow",
    )


_SMALL_ROI = {"num_classes": 3, "channels": 8, "conv_channels": 8, "hidden": 16, "batch": 24, "max_detections": 10}
FORMS: dict[str, ViTDetConfig] = {
    "vitae_repo": config(),
    "vitae_repo cascade": config(roi=vitae_repo_cascade_roi(**_SMALL_ROI)),
    "vitae_repo faster": config(roi=dataclasses.replace(ROI, mask="none")),
    "vitae_b": config(backbone=dataclasses.replace(VIT, final_norm=True, parallel_conv="two")),
    "vitae_s": config(
        backbone=ViTAEConfig(
            cells=(
                CellConfig(kernel=7, stride=4, dilations=(1, 2), embed=4, width=6),
                CellConfig(kernel=3, stride=2, dilations=(1, 2), embed=4, width=8),
                CellConfig(kernel=3, stride=2, dilations=(1, 2), embed=8, width=16, attention=False),
            ),
            blocks=dataclasses.replace(VIT, abs_pos=False, final_norm=True, parallel_conv="three"),
        )
    ),
    "detectron2": _detectron2(),
    "detectron2 cascade": _detectron2(stages=3),
    "detectron2 lvis": _detectron2(sigmoid=True, federated_classes=2),
    "conv propagation": config(backbone=dataclasses.replace(VIT, global_blocks=(), conv_blocks=(1, 3))),
    "shifted windows": config(backbone=dataclasses.replace(VIT, global_blocks=(), shifted_windows=True)),
    "fpn, last map": config(pyramid=PyramidConfig(channels=8, kind="fpn_last")),
    "fpn, stages": config(pyramid=PyramidConfig(channels=8, kind="fpn_stages")),
}


def batch(
    *,
    counts: tuple[int, ...] = (2, 3),
    size_hw: tuple[int, int] = (SIZE, SIZE),
    seed: int = 0,
    task: Task = Task.INSTANCE,
) -> Batch:
    """Pictures of noise with so many rectangles in each."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([size_hw[1], size_hw[0]]) * 0.5
        side = 8 + torch.rand(count, 2, generator=generator) * 20
        boxes = torch.cat([corner, corner + side], dim=1).floor()
        masks = torch.zeros(count, *size_hw, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        targets.append(
            Target(
                boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size_hw),
                class_ids=torch.randint(0, 3, (count,), generator=generator),
                masks=tv_tensors.Mask(masks),
                is_crowd=torch.zeros(count, dtype=torch.bool),
            )
        )
    return Batch(
        images=torch.randn(len(counts), 3, *size_hw, generator=generator),
        task=task,
        origins=[Origin(dataset="t", image_id=i, path=None, size_hw=(100, 90)) for i in range(len(counts))],
        input_sizes_hw=[(size_hw[0], size_hw[1] * 9 // 10)] * len(counts),
        targets=targets,
        classes=ClassList.from_names(CLASSES),
    )
