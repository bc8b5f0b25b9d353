"""ViTDet: a two-stage detector on a plain backbone.

Shape legend: B images, H W map of the backbone, C channels. Source: Exploring Plain Vision Transformer Backbones for
Object Detection, ECCV 2022; facts in docs/vitdet.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import DataError
from saccade.layers.boxes import paste_masks
from saccade.layers.matching import Choose, choose_randomly
from saccade.layers.pyramid import Pyramid
from saccade.layers.roi import Detections, Frame, RoIHeads, Truths, frames_of
from saccade.layers.rpn import RPN
from saccade.layers.vit import PlainViT
from saccade.layers.vitae import ViTAE, ViTAEConfig
from saccade.models.classes import KnownClasses
from saccade.models.vitdet.config import ViTDetConfig
from saccade.results import Instances, Prediction, encode_masks
from saccade.samples import Batch, ClassList, Preprocess
from saccade.tasks import Task, require_task

_MASKS_AT_ONCE = 16


@dataclass
class _View:
    """A batch at one size, mirrored or not: its pyramid, its frames, and the way of boxes there and back."""

    levels: list[Tensor]
    frames: list[Frame]
    factor: float
    mirrored: bool

    def to_input(self, boxes: Tensor, frame: Frame) -> Tensor:
        """Boxes ``[..., 4]`` of the view in the frame of the network input."""
        return self._mirror(boxes / self.factor, frame)

    def from_input(self, boxes: Tensor, frame: Frame) -> Tensor:
        """Boxes of the network input in the view."""
        return self._mirror(boxes, frame) * self.factor

    def _mirror(self, boxes: Tensor, frame: Frame) -> Tensor:
        if not self.mirrored:
            return boxes
        x0, y0, x1, y1 = boxes.unbind(-1)
        return torch.stack([frame.input_hw[1] - x1, y0, frame.input_hw[1] - x0, y1], dim=-1)


class ViTDet(nn.Module):
    """The detector.

    Args:
        config: Sizes, rules and classes.
    """

    system = "vitdet"

    def __init__(self, config: ViTDetConfig) -> None:
        super().__init__()
        self.config = config
        if isinstance(config.backbone, ViTAEConfig):
            self.backbone: PlainViT | ViTAE = ViTAE(config.backbone)
        else:
            self.backbone = PlainViT(config.backbone)
        self.pyramid = Pyramid(config.pyramid, config.vit.width)
        self.rpn = RPN(config.rpn)
        self.roi = RoIHeads(config.roi)
        # The maps of a plain backbone are channels-last; with weights to match, no convolution turns them round.
        self.to(memory_format=torch.channels_last)

    # ------------------------------------------------------------------ the contract of every model

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Detection, and instance segmentation where there are mask heads."""
        return (Task.DETECTION,) if self.config.roi.mask == "none" else (Task.DETECTION, Task.INSTANCE)

    @property
    def classes(self) -> ClassList:
        """The classes that the heads know, numbered where they have no names."""
        return self._known.listed

    @property
    def _known(self) -> KnownClasses:
        config = self.config
        return KnownClasses(config.classes, config.category_ids, config.roi.num_classes)

    def preprocess(self, task: Task) -> Preprocess:
        """How images are brought to the network input: the longer side to ``input_size``, zero padding.

        With test-time augmentation it is the greatest of the sizes that are predicted at; the others are made from it.
        """
        require_task(self.tasks, task)
        size = max((self.config.input_size, *self.config.test_sizes))
        return Preprocess(size_hw=(size, size), keep_ratio=True, interpolation=self.config.resize, pad_multiple=size)

    def loss(self, batch: Batch, *, choose: Choose = choose_randomly) -> dict[str, Tensor]:
        """Training losses; their plain sum is what is minimised.

        Args:
            batch: Network inputs with targets.
            choose: How to draw anchors and regions.

        Returns:
            Named scalars, e.g. ``instance_segmentation_loss_cls``.
        """
        require_task(self.tasks, batch.task)
        truths = [self._truths(batch, index) for index in range(len(batch))]
        frames = frames_of(batch)
        levels = self.features(batch.images)
        found = self.rpn(levels)
        scores, boxes = self.rpn.loss(found, [truth.boxes_xyxy for truth in truths], choose=choose)
        proposals = self.rpn.proposals(found, [frame.input_hw for frame in frames])
        heads = self.roi.loss(levels, [one.boxes_xyxy for one in proposals], truths, frames, choose=choose)
        losses = {"loss_rpn_cls": scores, "loss_rpn_box": boxes, **heads}
        return {f"{batch.task}_{name}": value for name, value in losses.items()}

    def predict(self, batch: Batch) -> list[Prediction]:
        """Answers in the frame of the original images, one per image."""
        require_task(self.tasks, batch.task)
        with torch.inference_mode():
            frames = frames_of(batch)
            found = self.detect(batch.images, frames, masks=batch.task is Task.INSTANCE)
            wanted = self._known.wanted(batch.classes)
            return [self._result(one, frame, batch.task, wanted) for one, frame in zip(found, frames, strict=True)]

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of every block in the backward pass (saves memory, costs a third more time)."""
        self.backbone.activation_checkpointing = enabled

    # ------------------------------------------------------------------ the network

    def features(self, images_B3HW: Tensor) -> list[Tensor]:
        """The pyramid, strides 4 to 64, each ``[B, channels, ., .]``."""
        depth = self.config.vit.depth
        after: Sequence[int] = [depth - 1]
        if self.config.pyramid.kind == "fpn_stages":
            after = [depth * part // 4 - 1 for part in (1, 2, 3, 4)]
        maps = self.backbone.maps(images_B3HW, after)
        return self.pyramid([x_BHWC.permute(0, 3, 1, 2) for x_BHWC in maps])

    def detect(self, images_B3HW: Tensor, frames: Sequence[Frame], *, masks: bool) -> list[Detections]:
        """Detections of network inputs.

        Args:
            images_B3HW: Normalised and padded.
            frames: Frames of the images.
            masks: Whether masks are wanted.
        """
        soft = None if self.config.test_soft_nms == "none" else self.config.test_soft_nms
        views = list(self._views(images_B3HW, frames))
        scored = []
        for view in views:
            proposals = self.rpn.proposals(self.rpn(view.levels), [frame.input_hw for frame in view.frames])
            scores, boxes = self.roi.score_boxes(view.levels, [one.boxes_xyxy for one in proposals], view.frames)
            back = [view.to_input(box, frame) for box, frame in zip(boxes, frames, strict=True)]
            scored.append(list(zip(scores, back, strict=True)))
        found = []
        for parts, frame in zip(zip(*scored, strict=True), frames, strict=True):
            scores_PK, boxes_P = (torch.cat(part) for part in zip(*parts, strict=True))
            found.append(self.roi.select(scores_PK, boxes_P, frame, soft=soft))
        if masks and self.roi.mask_heads:
            self._add_masks(views, found, frames)
        return found

    def _views(self, images_B3HW: Tensor, frames: Sequence[Frame]) -> Iterator[_View]:
        """The network inputs as they are, or at every size and mirrored where test-time augmentation asks for it."""
        base = images_B3HW.shape[-1]
        for size in self.config.test_sizes or (base,):
            scaled, factor = images_B3HW, size / base
            if size != base:
                side = round(images_B3HW.shape[-2] * factor)
                scaled = F.interpolate(images_B3HW, size=(side, size), mode="bilinear", antialias=True)
            sizes = [tuple(max(1, round(side * factor)) for side in frame.input_hw) for frame in frames]
            own = [
                Frame((h, w), frame.original_hw, (frame.scale_xy[0] * factor, frame.scale_xy[1] * factor))
                for frame, (h, w) in zip(frames, sizes, strict=True)
            ]
            for mirrored in (False, True) if self.config.test_flip else (False,):
                images = scaled
                if mirrored:
                    images = scaled.clone()
                    for image, frame in zip(images, own, strict=True):
                        width = frame.input_hw[1]  # the padding stays where it is
                        image[..., :width] = image[..., :width].flip(-1)
                yield _View(self.features(images), own, factor, mirrored)

    def _add_masks(self, views: Sequence[_View], found: Sequence[Detections], frames: Sequence[Frame]) -> None:
        """Masks of the final boxes, averaged over the views."""
        total: list[Tensor] = []
        for view in views:
            seen = [
                dataclasses.replace(one, boxes_xyxy=view.from_input(one.boxes_xyxy, frame))
                for one, frame in zip(found, frames, strict=True)
            ]
            self.roi.add_masks(view.levels, seen)
            masks = [one.masks.flip(-1) if view.mirrored else one.masks for one in seen if one.masks is not None]
            total = [a + b for a, b in zip(total, masks, strict=True)] if total else masks
        for one, masks_Nss in zip(found, total, strict=True):
            one.masks = masks_Nss / len(views)

    def _truths(self, batch: Batch, index: int) -> Truths:
        target = batch.targets[index]
        where = batch.origins[index].path or batch.origins[index].image_id
        if target.boxes is None or target.class_ids is None:
            raise DataError("a training sample has no boxes", where=where)
        wants_masks = bool(self.roi.mask_heads)
        if wants_masks and target.masks is None:
            raise DataError(
                "a training sample has no masks",
                where=where,
                why="the model has mask heads",
                fix="train on instance masks, or set model.roi.mask=none",
            )
        keep = torch.ones(len(target.class_ids), dtype=torch.bool, device=target.class_ids.device)
        if target.is_crowd is not None:
            keep &= ~target.is_crowd
        masks = target.masks.as_subclass(Tensor)[keep] if wants_masks and target.masks is not None else None
        class_ids = self._known.own_ids(batch, target.class_ids[keep])
        return Truths(target.boxes.as_subclass(Tensor)[keep].float(), class_ids, masks)

    def _result(
        self, found: Detections, frame: Frame, task: Task, wanted: tuple[ClassList, Tensor | None]
    ) -> Instances:
        classes, places = wanted
        class_ids = found.class_ids
        if places is not None:
            class_ids = places.to(class_ids.device)[class_ids]
            keep = (class_ids >= 0).nonzero()[:, 0]
            found, class_ids = found.rows(keep), class_ids[keep]
        masks = None
        if task is Task.INSTANCE and found.masks is not None:
            # A few at a time: a hundred masks of a large picture would not fit.
            parts = zip(found.masks.split(_MASKS_AT_ONCE), found.original_xyxy.split(_MASKS_AT_ONCE), strict=True)
            masks = [rle for part, boxes in parts for rle in encode_masks(paste_masks(part, boxes, frame.original_hw))]
        return Instances(
            boxes_xyxy=found.original_xyxy.cpu(),
            scores=found.scores.cpu(),
            class_ids=class_ids.cpu(),
            classes=classes,
            size_hw=frame.original_hw,
            masks=masks,
        )
