"""A GiT small enough for tests, with the bundled vocabulary, and batches for each of its tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torchvision import tv_tensors

from saccade.layers.vit import ViTConfig
from saccade.models.git.config import CaptionConfig, DetectionConfig, GiTConfig, GroundingConfig, SemanticConfig
from saccade.models.git.model import GiT
from saccade.results import Caption, Instances, Prediction, SemanticMap
from saccade.samples import Batch, ClassList, Origin, Target
from saccade.tasks import Task
from saccade.tokens.vocabulary import TextVocabulary

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared"
VOCABULARY = TextVocabulary(ROOT / "src/saccade/assets/git-nano/vocab.txt")
CLASSES = ClassList.from_names(["person", "traffic light", "big red ball"])  # one piece, and several
PHRASES = ["the red ball", "the blue box", "the green ring"]  # of equal length in pieces

VIT = ViTConfig(
    width=32,
    depth=4,
    heads=2,
    mlp_width=48,
    patch_size=8,
    image_size=64,
    window_size=4,
    global_blocks=(1,),
    drop_path=0.0,
)


def tiny_config(*, vit: ViTConfig = VIT, **changes: object) -> GiTConfig:
    """Five tasks: 64 px (2x2 windows) for the dense ones, 32 px (one window) for caption and grounding."""
    boxes = DetectionConfig(
        input_size=64, grid_per_window=(3, 3), train_points_per_window=4, num_bins=32, max_detections=12
    )
    return GiTConfig(
        **{
            "vit": vit,
            "vocab_size": len(VOCABULARY),
            "max_positions": 48,
            "concept_heads": 4,
            "text_dropout": 0.0,
            "detection": boxes,
            "instance_segmentation": dataclasses.replace(boxes, num_rays=8),
            "semantic_segmentation": SemanticConfig(input_size=64, train_points_per_window=6, block=2),
            "caption": CaptionConfig(input_size=32, max_length=8),
            "grounding": GroundingConfig(input_size=32, num_bins=32, max_text_length=16),
        }
        | changes
    )


def tiny_git(*, seed: int = 0, gain: float = 2.5, **changes: object) -> GiT:
    """A model whose random weights are large enough for its answers to differ from place to place.

    Args:
        seed: Seeds the weights.
        gain: Factor on all matrices and tables.
        changes: Fields of the config.
    """
    torch.manual_seed(seed)
    model = GiT(tiny_config(**changes), VOCABULARY).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("rel_pos_h", "rel_pos_w")):
                parameter.normal_(std=0.3)
            elif parameter.ndim > 1:
                parameter.mul_(gain)
    return model


def make_batch(
    task: Task, size: int = 2, *, seed: int = 0, image_hw: tuple[int, int] | None = None, targets: bool = True
) -> Batch:
    """Noise images with truths of every kind; original images are 1.5 times as wide and as high as the input."""
    generator = torch.Generator().manual_seed(seed)
    h, w = image_hw or ((32, 32) if task in (Task.CAPTION, Task.GROUNDING) else (64, 64))
    images = torch.randn(size, 3, h, w, generator=generator)
    prompted = task in (Task.DETECTION, Task.INSTANCE, Task.SEMANTIC)
    return Batch(
        images=images,
        task=task,
        origins=[Origin(dataset="tests", image_id=i, path=None, size_hw=(h * 3 // 2, w * 3 // 2)) for i in range(size)],
        input_sizes_hw=[(h, w)] * size,
        targets=[make_target(task, i, (h, w), generator) for i in range(size)] if targets else [],
        classes=CLASSES if prompted else None,
        phrases=[PHRASES[i % len(PHRASES)] for i in range(size)] if task is Task.GROUNDING else None,
    )


def make_target(task: Task, index: int, size_hw: tuple[int, int], generator: torch.Generator) -> Target:
    h, w = size_hw
    count = 1 if task is Task.GROUNDING else 2 + index
    corners = torch.rand(count, 2, generator=generator) * 0.6
    sizes = 0.2 + torch.rand(count, 2, generator=generator) * 0.2
    boxes = torch.cat([corners, corners + sizes], dim=1) * torch.tensor([w, h, w, h])
    masks = torch.zeros(count, h, w, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    semantic = torch.randint(len(CLASSES), (h // 8, w // 8), generator=generator)
    semantic = semantic.repeat_interleave(8, 0).repeat_interleave(8, 1)
    semantic[: h // 4, : w // 4] = 255
    return Target(
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size_hw),
        class_ids=torch.randint(len(CLASSES), (count,), generator=generator),
        masks=tv_tensors.Mask(masks),
        is_crowd=torch.zeros(count, dtype=torch.bool),
        semantic=tv_tensors.Mask(semantic),
        captions=("A big red ball on the grass.", "another one")[index % 2 :],
    )


def pick(batch: Batch, index: int) -> Batch:
    """One image of a batch as a batch."""
    return dataclasses.replace(
        batch,
        images=batch.images[index : index + 1],
        origins=batch.origins[index : index + 1],
        input_sizes_hw=batch.input_sizes_hw[index : index + 1],
        targets=batch.targets[index : index + 1],
        phrases=None if batch.phrases is None else batch.phrases[index : index + 1],
    )


def compare(ours: Prediction, other: Prediction, *, tolerance: float = 1e-4) -> None:
    """Equal in every token; floats within the tolerance."""
    assert type(ours) is type(other)
    if isinstance(ours, Instances):
        torch.testing.assert_close(ours.scores, other.scores, rtol=tolerance, atol=tolerance)
        assert torch.equal(ours.class_ids, other.class_ids)
        torch.testing.assert_close(ours.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=1e-3)
        assert ours.masks == other.masks
    elif isinstance(ours, SemanticMap):
        assert float((ours.labels != other.labels).double().mean()) < 1e-3
    elif isinstance(ours, Caption):
        assert ours.text == other.text
        assert ours.score == pytest.approx(other.score, abs=tolerance)
    else:
        torch.testing.assert_close(ours.box_xyxy, other.box_xyxy, rtol=0, atol=1e-3)
        assert ours.score == pytest.approx(other.score, abs=tolerance)
