"""The smallest ViSFT with all heads, and batches for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torchvision import tv_tensors

from saccade.layers.detr import DETRConfig
from saccade.layers.mask2former import MaskedDecoderConfig, PixelDecoderConfig
from saccade.layers.show_attend_tell import SpeakerConfig
from saccade.models.visft.caption import CaptionHeadConfig
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.detection import DetectionHeadConfig
from saccade.models.visft.presets import eva
from saccade.models.visft.segmentation import SegmentationHeadConfig
from saccade.samples import Batch, ClassList, Origin, Target
from saccade.tasks import Task
from saccade.tokens.words import WordMap

CLASSES = ("ball", "box", "cup")
SIZE = 56


def tiny_words() -> WordMap:
    return WordMap.count([["a", "red", "ball", "and", "blue", "box"]], least=1)


def tiny_config(**changes: Any) -> ViSFTConfig:
    classes: dict[str, Any] = {"num_classes": 3, "classes": CLASSES, "category_ids": (1, 2, 5)}
    config = ViSFTConfig(
        vit=eva(width=16, depth=3, heads=2, mlp_width=24, image_size=SIZE),
        detection=DetectionHeadConfig(
            detr=DETRConfig(
                encoder_width=16, decoder_width=16, heads=2, mlp_width=24, encoder_layers=1, decoder_layers=2
            ),
            queries=6,
            **classes,
        ),
        instance=SegmentationHeadConfig(
            pixels=PixelDecoderConfig(width=16, mask_width=8, heads=2, mlp_width=24, layers=1, groups=4),
            decoder=MaskedDecoderConfig(heads=2, mlp_width=24, layers=2, queries=6),
            points=64,
            pad_multiple=14,
            **classes,
        ),
        caption=CaptionHeadConfig(
            speaker=SpeakerConfig(attention_width=12, embed_width=10, state_width=14, vocabulary=len(tiny_words())),
            cells=4,
            most_words=8,
            beams=2,
        ),
        detection_size=SIZE,
        detection_short_side=0,
        instance_size=SIZE,
        instance_short_side=0,
        caption_size=SIZE,
    )
    return dataclasses.replace(config, **changes)


def batch(task: Task, *, counts: tuple[int, ...] = (2, 1), seed: int = 0) -> Batch:
    """Pictures of noise with so many rectangles in each, and a caption."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 25
        boxes = torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 18], dim=1).floor()
        masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        targets.append(
            Target(
                boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(SIZE, SIZE)),
                class_ids=torch.randint(0, 3, (count,), generator=generator),
                masks=tv_tensors.Mask(masks),
                is_crowd=torch.zeros(count, dtype=torch.bool),
                captions=("a red ball and a blue box",),
            )
        )
    return Batch(
        images=torch.randn(len(counts), 3, SIZE, SIZE, generator=generator),
        task=task,
        origins=[Origin(dataset="t", image_id=i, path=None, size_hw=(100, 90)) for i in range(len(counts))],
        input_sizes_hw=[(SIZE, SIZE * 9 // 10)] * len(counts),
        targets=targets,
        classes=None if task is Task.CAPTION else ClassList(names=CLASSES, category_ids=(1, 2, 5)),
    )


MAP_CLASSES = ("background", "disc", "box")


def map_config(**changes: Any) -> ViSFTConfig:
    """The smallest ViSFT for label maps; all of it is trained."""
    instance = tiny_config().instance
    assert instance is not None
    head = dataclasses.replace(instance, classes=MAP_CLASSES, category_ids=(), stride=7)
    config = ViSFTConfig(
        vit=eva(width=32, depth=1, heads=2, mlp_width=48, image_size=SIZE, patch_size=7),
        detection=None,
        instance=None,
        caption=None,
        semantic=head,
        semantic_size=SIZE,
        trained=("backbone", "semantic"),
    )
    return dataclasses.replace(config, **changes)


def map_batch(*, original_hw: tuple[int, int] = (SIZE, SIZE)) -> Batch:
    """A disc, and a disc with a box, in colours of their own."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    maps = torch.stack([((x - 20 - 14 * i) ** 2 + (y - 20) ** 2 <= 13**2).long() for i in range(2)])
    maps[1, 37:53, 4:26] = 2
    images = torch.stack([maps == class_id for class_id in range(3)], dim=1) * 2.0 - 1
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return Batch(
        images=images + 0.1 * noise,
        task=Task.SEMANTIC,
        origins=[Origin(dataset="t", image_id=i, path=None, size_hw=original_hw) for i in range(2)],
        input_sizes_hw=[(SIZE, SIZE)] * 2,
        targets=[Target(semantic=tv_tensors.Mask(one)) for one in maps],
        classes=ClassList.from_names(MAP_CLASSES),
    )
