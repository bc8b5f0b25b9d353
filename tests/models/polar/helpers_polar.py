"""Bright discs on a dark ground, networks small enough for tests, and a segmenter that is always right about discs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from saccade.layers.hourglass import HourglassConfig
from saccade.layers.mask2former import MaskedDecoderConfig, PixelDecoderConfig
from saccade.layers.unet import UNetConfig
from saccade.layers.vit import ViTConfig
from saccade.models.polar.config import CentersConfig, SegmenterConfig, ViTPixelsConfig
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.presets import eva
from saccade.models.visft.segmentation import SegmentationHeadConfig
from saccade.results import Prediction, SemanticMap
from saccade.samples import Batch, ClassList, Origin, Preprocess, Sample, Target
from saccade.tasks import Task

CLASSES = ClassList.from_names(("background", "lesion"))
Disc = tuple[float, float, float]
"""x, y, radius."""

TINY_UNET = SegmenterConfig(network=UNetConfig(features=4, levels=2), input_hw=(32, 48))
TINY_VIT = SegmenterConfig(
    network=ViTPixelsConfig(
        vit=ViTConfig(
            width=16, depth=2, heads=2, mlp_width=16, patch_size=8, image_size=48, window_size=2, global_blocks=(1,),
            drop_path=0.0,
        )
    ),
    input_hw=(32, 48),
)  # fmt: skip
TINY_VISFT = ViSFTConfig(
    vit=eva(width=32, depth=1, heads=2, mlp_width=48, image_size=48, patch_size=6),
    detection=None,
    instance=None,
    caption=None,
    semantic=SegmentationHeadConfig(
        pixels=PixelDecoderConfig(width=16, mask_width=8, heads=2, mlp_width=24, layers=1, groups=4),
        decoder=MaskedDecoderConfig(heads=2, mlp_width=24, layers=2, queries=6),
        num_classes=2,
        classes=("background", "lesion"),
        points=64,
        stride=6,
    ),
    semantic_size=48,
    trained=("backbone", "semantic"),
)
TINY_CENTERS = CentersConfig(network=HourglassConfig(stacks=2, width=8, depth=2), input_size=32, sigma=3.0)


def draw(size_hw: tuple[int, int], discs: Sequence[Disc]) -> Tensor:
    """The mask of discs, ``[H, W]`` bool."""
    y, x = torch.meshgrid(*(torch.arange(side) for side in size_hw), indexing="ij")
    mask = torch.zeros(size_hw, dtype=torch.bool)
    for cx, cy, radius in discs:
        mask |= (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
    return mask


def make_batch(
    discs: Sequence[Sequence[Disc]],
    size_hw: tuple[int, int] = (32, 48),
    *,
    original_hw: tuple[int, int] | None = None,
    task: Task = Task.SEMANTIC,
) -> Batch:
    """One picture per list of discs, at the size of the network input."""
    masks = torch.stack([draw(size_hw, one) for one in discs])
    generator = torch.Generator().manual_seed(len(discs))
    noise = 0.1 * torch.randn(len(discs), 3, *size_hw, generator=generator)
    return Batch(
        images=masks[:, None].float() - 0.5 + noise,
        task=task,
        origins=[
            Origin(dataset="discs", image_id=n, path=None, size_hw=original_hw or size_hw) for n in range(len(discs))
        ],
        input_sizes_hw=[size_hw] * len(discs),
        targets=[Target(semantic=tv_tensors.Mask(mask.long())) for mask in masks],
        classes=CLASSES,
    )


def make_sample(discs: Sequence[Disc], size_hw: tuple[int, int], task: Task = Task.SEMANTIC) -> Sample:
    """A picture with its truth, in the frame of the original picture."""
    mask = draw(size_hw, discs)
    image = (mask * 255).to(torch.uint8).expand(3, -1, -1).contiguous()
    return Sample(
        image=tv_tensors.Image(image),
        task=task,
        origin=Origin(dataset="discs", image_id=0, path=None, size_hw=size_hw),
        target=Target(semantic=tv_tensors.Mask(mask.long())),
        classes=CLASSES,
    )


class Bright(nn.Module):
    """A segmenter whose answer is what is bright; it counts what it is shown, and has one weight to be trained.

    Args:
        size_hw: Its network input.
    """

    system = "bright"
    tasks = (Task.SEMANTIC,)

    def __init__(self, size_hw: tuple[int, int] = (32, 48)) -> None:
        super().__init__()
        self.size_hw = size_hw
        self.gain = nn.Parameter(torch.tensor(20.0))
        self.seen: list[Batch] = []

    def preprocess(self, task: Task) -> Preprocess:
        del task
        return Preprocess(size_hw=self.size_hw, mean=(127.5,) * 3, std=(255.0,) * 3)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(batch)
        truth = torch.stack([target.semantic.as_subclass(Tensor) for target in batch.targets]).float()
        return {"loss": (self.class_scores(batch)[:, 1] - truth).square().mean()}

    def class_scores(self, batch: Batch) -> Tensor:
        self.seen.append(batch)
        lesion = (batch.images.mean(dim=1) * self.gain).sigmoid()
        return torch.stack([1 - lesion, lesion], dim=1)

    def predict(self, batch: Batch) -> list[Prediction]:
        maps = self.class_scores(batch)
        sizes = [origin.size_hw for origin in batch.origins]
        resized = [
            nn.functional.interpolate(one[None], size=size, mode="bilinear")[0]
            for one, size in zip(maps, sizes, strict=True)
        ]
        return [SemanticMap(labels=one.argmax(0), classes=batch.classes) for one in resized]

    def set_activation_checkpointing(self, enabled: bool) -> None:
        del enabled


def overlap(found: Prediction, truth: Tensor) -> float:
    """IoU of what was found with a mask."""
    assert isinstance(found, SemanticMap)
    said = np.asarray(found.labels) == 1
    wanted = truth.numpy()
    return float((said & wanted).sum() / max((said | wanted).sum(), 1))
