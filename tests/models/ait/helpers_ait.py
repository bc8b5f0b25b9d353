"""A small AiT of each form, and batches for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from saccade.layers.swin import SwinV2Config
from saccade.models.ait.config import AiTConfig, DepthConfig, ObjectsConfig
from saccade.models.ait.model import AiT
from saccade.models.ait.sequences import Draws
from saccade.models.ait.transformer import TransformerConfig
from saccade.samples import Batch, ClassList, Origin, Target
from saccade.tasks import Task
from saccade.tokens.codebook import CodebookConfig, VQVAEConfig

SIZE, OBJECTS = 32, 4
CLASSES = ("ball", "box", "cup")
BACKBONE = SwinV2Config(
    width=8,
    depths=(2, 1),
    heads=(1, 2),
    windows=(5, 3),
    pretrained_windows=(3, 3),
    shifted=(True, True),
    drop_path=0.0,
    out_stages=(1,),
)
TRANSFORMER = TransformerConfig(
    width=16, heads=2, mlp_width=24, encoder_blocks=1, decoder_blocks=2, grid=6, length=40, dropout=0.0, drop_path=0.0
)
MASKS = VQVAEConfig(size=16, downsample=8, base_width=2, residual_blocks=1, codebook=CodebookConfig(codes=5, width=4))
MAPS = VQVAEConfig(
    size=SIZE,
    downsample=8,
    base_width=2,
    residual_blocks=1,
    signed=False,
    reconstruction="valid_squared",
    codebook=CodebookConfig(codes=7, width=4),
)
BOXES = ObjectsConfig(input_size=SIZE, objects=OBJECTS, top_p=0.0)
INSTANCE = dataclasses.replace(BOXES, masks=MASKS)
DEPTH = DepthConfig(depth=MAPS)


def config(**changes: Any) -> AiTConfig:
    """A vocabulary of 12 bins and 3 classes; the tasks are in the changes."""
    base = AiTConfig(
        classes=CLASSES,
        category_ids=(3, 5, 8),
        num_classes=3,
        bins=12,
        mask_codes=5,
        depth_codes=7,
        backbone=BACKBONE,
        transformer=TRANSFORMER,
    )
    return dataclasses.replace(base, **changes)


FORMS: dict[str, AiTConfig] = {
    "detection": config(detection=BOXES),
    "instance": config(instance=INSTANCE, spare_rows=3),
    "instance, hard": config(
        instance=dataclasses.replace(INSTANCE, soft_tokens=False, soft_masks=False, auxiliary=0.0), spare_rows=3
    ),
    "depth": config(depth=DEPTH),
    "depth, hard": config(depth=dataclasses.replace(DEPTH, soft_tokens=False, soft_maps=False, auxiliary=0.0)),
    "depth, parallel": config(
        depth=dataclasses.replace(DEPTH, soft_tokens=False), transformer=dataclasses.replace(TRANSFORMER, parallel=True)
    ),
    "joint": config(instance=INSTANCE, depth=dataclasses.replace(DEPTH, weight=0.2, pad_to=40), spare_rows=3),
}


def model(form: str, seed: int = 0, **changes: Any) -> AiT:
    """Weights far from one another, so that what is most likely is so by a margin."""
    torch.manual_seed(seed)
    net = AiT(FORMS[form])
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1 and "vqvae" not in name:
            parameter.data.normal_(std=0.3)
        elif "vqvae" in name:
            parameter.data.normal_(std=0.4)
    if net.depth_vqvae is not None:  # metres, not what is clipped from below
        net.depth_vqvae.decoder[-1].bias.data.fill_(4.0)
    for name in ("detection", "instance", "depth"):
        part = getattr(net.config, name)
        if part is not None:
            own = {key: value for key, value in changes.items() if hasattr(part, key)}
            # The forms are shared by all tests: theirs stay as they are.
            net.config = dataclasses.replace(net.config, **{name: dataclasses.replace(part, **own)})
    return net


def tasks_of(form: str) -> tuple[Task, ...]:
    return tuple(FORMS[form].lengths)


def batch(
    task: Task,
    *,
    counts: tuple[int, ...] = (2, 3),
    size_hw: tuple[int, int] = (SIZE, SIZE),
    input_hw: tuple[int, int] | None = None,
    seed: int = 0,
) -> Batch:
    """Pictures of noise; with rectangles, or with a depth map that has holes."""
    generator = torch.Generator().manual_seed(seed)
    inside = input_hw or (size_hw if task is Task.DEPTH else (size_hw[0], size_hw[1] * 7 // 8))
    targets = []
    for count in counts:
        if task is Task.DEPTH:
            depth = 1 + 6 * torch.rand(*size_hw, generator=generator)
            targets.append(Target(depth_m=depth * (torch.rand(*size_hw, generator=generator) > 0.2)))
            continue
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([inside[1], inside[0]]) * 0.5
        side = 4 + torch.rand(count, 2, generator=generator) * torch.tensor([inside[1], inside[0]]) * 0.35
        boxes = torch.cat([corner, corner + side], dim=1)
        masks = torch.zeros(count, *size_hw, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0 : y1 - 1, x0:x1] = True
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
        origins=[Origin(dataset="t", image_id=i, path=None, size_hw=inside) for i in range(len(counts))],
        input_sizes_hw=[inside] * len(counts),
        targets=targets,
        classes=None if task is Task.DEPTH else ClassList(names=CLASSES, category_ids=(3, 5, 8)),
    )


def one_of(whole: Batch, index: int) -> Batch:
    """A batch of one of its images."""
    part = slice(index, index + 1)
    return dataclasses.replace(
        whole,
        images=whole.images[part],
        origins=whole.origins[part],
        input_sizes_hw=whole.input_sizes_hw[part],
        targets=whole.targets[part],
    )


class Fixed(Draws):
    """Draws that do not depend on what else is drawn."""

    def integer(self, high: int) -> int:
        return high // 2

    def permutation(self, count: int) -> Tensor:
        return torch.arange(count).flip(0)

    def uniform(self, *shape: int) -> Tensor:
        return torch.full(shape, 0.4)

    def normal(self, *shape: int) -> Tensor:
        return torch.full(shape, 0.7)

    def classes(self, count: int, *shape: int) -> Tensor:
        return torch.full(shape, count - 1)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
