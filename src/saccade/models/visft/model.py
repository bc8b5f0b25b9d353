"""ViSFT: detection, masks, captions and label maps from one map of a plain backbone.

Shape legend: B images, H W map of the backbone, C channels. Source: Supervised Fine-tuning in turn Improves Visual
Foundation Models, arXiv 2401.10222; facts in docs/visft.md.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from saccade.layers.vit import PlainViT
from saccade.models.classes import KnownClasses
from saccade.models.visft.caption import CaptionHead
from saccade.models.visft.config import Head, Part, ViSFTConfig
from saccade.models.visft.detection import DetectionHead
from saccade.models.visft.segmentation import SegmentationHead
from saccade.models.visft.semantic import SemanticHead
from saccade.results import Prediction
from saccade.samples import Batch, ClassList, Preprocess
from saccade.tasks import Task, require_task
from saccade.tokens.words import WordMap

HEAD_OF: dict[Task, Head] = {
    Task.DETECTION: "detection",
    Task.INSTANCE: "instance",
    Task.CAPTION: "caption",
    Task.SEMANTIC: "semantic",
}
"""The head that a task is for."""

_GREY = 128  # of the padding of instance segmentation, in training and after it


class ViSFT(nn.Module):
    """A backbone with heads.

    In the first stage the heads are trained on a frozen backbone, in the second low-rank updates of the backbone
    (:mod:`saccade.layers.lora`) through frozen heads. Parts of which nothing is trained are in evaluation mode.

    Args:
        config: Sizes, heads, and what is trained.
        vocabulary: The words of the caption head; None = it can neither learn nor speak.
    """

    system = "visft"

    def __init__(self, config: ViSFTConfig, vocabulary: WordMap | None = None) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.backbone = PlainViT(config.vit)
        width = config.vit.width
        self.detection = None if config.detection is None else DetectionHead(config.detection, width)
        self.instance = None if config.instance is None else SegmentationHead(config.instance, width)
        self.caption = None if config.caption is None else CaptionHead(config.caption, width, vocabulary)
        self.semantic = None if config.semantic is None else SemanticHead(config.semantic, width)
        for name, part in self.parts.items():
            part.requires_grad_(name in config.trained)

    # ------------------------------------------------------------------ the contract of every model

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Those that there are heads for."""
        return tuple(task for task, name in HEAD_OF.items() if name in self.config.heads)

    @property
    def classes(self) -> ClassList | None:
        """The named classes of the heads that have some; None where none has."""
        heads = (self.config.detection, self.config.instance, self.config.semantic)
        named = (head for head in heads if head is not None and head.classes)
        head = next(named, None)
        return None if head is None else KnownClasses(head.classes, head.category_ids, head.num_classes).listed

    def preprocess(self, task: Task) -> Preprocess:
        """The network input: the shorter side to one size where the longer fits into another, or a square."""
        require_task(self.tasks, task)
        config = self.config
        if task is Task.CAPTION:
            return Preprocess(size_hw=(config.caption_size,) * 2, interpolation="pillow")
        if task is Task.SEMANTIC:
            return Preprocess(size_hw=(config.semantic_size,) * 2, interpolation="pillow")
        if task is Task.DETECTION:
            return Preprocess(
                size_hw=(config.detection_size,) * 2,
                keep_ratio=True,
                short_side=config.detection_short_side,
                interpolation="pillow",
            )
        assert config.instance is not None
        return Preprocess(
            size_hw=(config.instance_size,) * 2,
            keep_ratio=True,
            short_side=config.instance_short_side,
            short_rounding="down",
            interpolation="pillow",
            pad_multiple=config.instance.pad_multiple,
            pad_value=_GREY,
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Training losses of the task of the batch; their plain sum is what is minimised.

        Args:
            batch: Network inputs with targets.

        Returns:
            Named scalars, e.g. ``detection_loss_ce``.
        """
        require_task(self.tasks, batch.task)
        losses: dict[str, Tensor] = self._head(batch.task).loss(self.features(batch.images), batch)
        return {f"{batch.task}_{name}": value for name, value in losses.items()}

    def predict(self, batch: Batch) -> list[Prediction]:
        """Answers in the frame of the original images, one per image."""
        require_task(self.tasks, batch.task)
        with torch.inference_mode():
            return [*self._head(batch.task).predict(self.features(batch.images), batch)]

    def class_scores(self, batch: Batch) -> Tensor:
        """Scores 0..1 of the classes of every pixel of the network input, ``[B, K, H, W]`` (semantic segmentation).

        Raises:
            UsageError: There is no head for label maps, or not all of its classes are asked for.
        """
        require_task(self.tasks, Task.SEMANTIC)
        assert self.semantic is not None
        return self.semantic.class_scores(self.features(batch.images), batch)

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of every block in the backward pass (saves memory, costs a third more time)."""
        self.backbone.activation_checkpointing = enabled

    def train(self, mode: bool = True) -> Self:
        """As usual, but what is frozen predicts as ever: its dropout would only add noise to the gradients."""
        super().train(mode)
        if not self.config.frozen_dropout:
            for part in self.parts.values():
                if not _learns(part):
                    part.eval()
        return self

    # ------------------------------------------------------------------ the network

    @property
    def parts(self) -> dict[Part, nn.Module]:
        """The backbone and the heads that there are."""
        heads: dict[Part, nn.Module] = {name: self.get_submodule(name) for name in self.config.heads}
        return {"backbone": self.backbone, **heads}

    def features(self, images_B3HW: Tensor) -> Tensor:
        """The map ``[B, H, W, C]``, without gradients where nothing of the backbone is trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(self.backbone)):
            return self.backbone(images_B3HW)

    def _head(self, task: Task) -> DetectionHead | SegmentationHead | CaptionHead | SemanticHead:
        head = self.get_submodule(HEAD_OF[task])
        assert isinstance(head, DetectionHead | SegmentationHead | CaptionHead | SemanticHead)
        return head


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
