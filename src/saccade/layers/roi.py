"""Heads that look at regions of a feature pyramid: pooling, box heads (one or a cascade), mask heads.

They read any list of maps, whatever backbone made them. The rules of mmdet and of detectron2 are both here, each
difference one field of :class:`RoIConfig`.

Shape legend: R regions of all images, K classes (K itself is the background), C channels, s side of pooled features.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from saccade.layers.boxes import area, best_per_class, clip_boxes, decode_deltas, encode_deltas, has_extent
from saccade.layers.convolution import NormedConv
from saccade.layers.matching import Choose, LowQuality, choose_randomly, match_boxes, sample_labels
from saccade.samples import Batch

_CANONICAL_SIDE = 224.0  # a region of this side belongs to the level of stride 16


@dataclass(kw_only=True)
class StageConfig:
    """One box head of a cascade.

    Attributes:
        iou: Overlap from which a region is positive.
        stds: Standard deviations that divide the deltas.
        weight: Of the losses of the stage.
    """

    iou: float = 0.5
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    weight: float = 1.0


@dataclass(kw_only=True)
class RoIConfig:
    """Box and mask heads.

    Attributes:
        num_classes: Classes K, the background not counted.
        channels: Of the maps.
        conv_channels: Of the convolutions of both heads.
        hidden: Of the fully connected layer of the box head.
        strides: Of the maps that are looked at (the coarsest proposal level is not).
        norm_eps: Epsilon of the channel norms.
        stages: One stage, or several: a cascade.
        class_agnostic: One box per region, not one per class.
        box_loss_beta: Where the box loss turns from quadratic to linear; 0 = L1.
        sigmoid: Every class is a yes-or-no question (LVIS), not one choice among all.
        mask: Whether there are mask heads: ``none``, ``one``, or ``per_stage``.
        low_quality: See :data:`saccade.layers.matching.LowQuality`.
        resample: Draw regions anew in every stage of the cascade (mmdet).
        average: What the stages of a cascade average: ``logits`` (mmdet) or ``probabilities`` (detectron2).
        scale_gradient: Divide the gradient of a cascade's box heads into the maps by the stages (detectron2).
        truths_first: Ground truths stand before the proposals (mmdet), not behind them, and are matched to themselves.
        batch: Regions per image that are learned.
        positive_share: Greatest share of positives among them.
        clamp_shrink: See :func:`saccade.layers.boxes.decode_deltas`.
        original_frame: Suppress detections in the frame of the original picture (mmdet).
        min_score: Detections with lower scores are left out.
        nms_iou: Overlap above which the lower of two detections of a class goes.
        max_detections: Per image.
        federated_classes: Classes per step that the federated loss looks at; 0 = all (LVIS uses 50).
    """

    num_classes: int = 80
    channels: int = 256
    conv_channels: int = 256
    hidden: int = 1024
    strides: tuple[int, ...] = (4, 8, 16, 32)
    norm_eps: float = 1e-5
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    class_agnostic: bool = False
    box_loss_beta: float = 0.0
    sigmoid: bool = False
    mask: Literal["none", "one", "per_stage"] = "one"
    low_quality: LowQuality = "reassign"
    resample: bool = True
    average: Literal["logits", "probabilities"] = "logits"
    scale_gradient: bool = False
    truths_first: bool = True
    batch: int = 512
    positive_share: float = 0.25
    clamp_shrink: bool = True
    original_frame: bool = True
    min_score: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    federated_classes: int = 0


@dataclass
class Regions:
    """Regions of one image and what they learn.

    Attributes:
        boxes_xyxy: ``[R, 4]`` in the network input.
        label: ``[R]`` 1 positive, 0 negative.
        index: ``[R]`` ground truth of the positives.
        is_truth: ``[R]`` the region is itself a ground truth.
        candidates: Matched index and label of all candidates before sampling (kept for tests).
    """

    boxes_xyxy: Tensor
    label: Tensor
    index: Tensor
    is_truth: Tensor
    candidates: tuple[Tensor, Tensor] | None = None


@dataclass
class Detections:
    """What was found in one image, the best first.

    Attributes:
        boxes_xyxy: ``[N, 4]`` in the network input.
        original_xyxy: ``[N, 4]`` in the original picture.
        scores: ``[N]``.
        class_ids: ``[N]`` in 0..K-1.
        masks: ``[N, s, s]`` probabilities over the boxes, or None.
    """

    boxes_xyxy: Tensor
    original_xyxy: Tensor
    scores: Tensor
    class_ids: Tensor
    masks: Tensor | None = None

    def rows(self, index: Tensor) -> Detections:
        """The detections at these positions."""
        masks = None if self.masks is None else self.masks[index]
        return Detections(
            self.boxes_xyxy[index], self.original_xyxy[index], self.scores[index], self.class_ids[index], masks
        )


@dataclass
class Frame:
    """The frame of one image.

    Attributes:
        input_hw: Size of the image inside the padded input.
        original_hw: Size of the original picture.
        scale_xy: Input over original, per axis.
    """

    input_hw: tuple[int, int]
    original_hw: tuple[int, int]
    scale_xy: tuple[float, float]


def frames_of(batch: Batch) -> list[Frame]:
    """The frame of every image of a batch."""
    frames = []
    for (height, width), origin in zip(batch.input_sizes_hw, batch.origins, strict=True):
        original = origin.size_hw
        frames.append(Frame((height, width), original, (width / original[1], height / original[0])))
    return frames


@dataclass
class Truths:
    """Ground truths of one image in the network input: boxes ``[G, 4]``, class ids ``[G]``, masks ``[G, H, W]``."""

    boxes_xyxy: Tensor
    class_ids: Tensor
    masks: Tensor | None = None


@dataclass
class Trace:
    """Intermediate tensors of a pass, by name (for tests); filled where one is given."""

    values: dict[str, Any] = field(default_factory=dict)


def level_of(boxes_R4: Tensor, levels: int) -> Tensor:
    """Pyramid level of each region, 0 = stride 4 (FPN, equation 1)."""
    side = area(boxes_R4).clamp(min=0).sqrt()
    finest = _CANONICAL_SIDE / 4
    return (side / finest + 1e-6).log2().floor().clamp(0, levels - 1).long()


def pool_regions(maps: Sequence[Tensor], strides: Sequence[int], regions_R5: Tensor, side: int) -> Tensor:
    """RoIAlign of every region on its level: ``[R, C, side, side]``.

    Args:
        maps: Levels ``[B, C, H, W]``.
        strides: Of the levels.
        regions_R5: Image number and box.
        side: Bins per axis.
    """
    out = maps[0].new_zeros(len(regions_R5), maps[0].shape[1], side, side)
    levels = level_of(regions_R5[:, 1:], len(strides))
    for level, (x_BCHW, stride) in enumerate(zip(maps, strides, strict=False)):
        rows = (levels == level).nonzero()[:, 0]
        if len(rows) or torch.is_grad_enabled():
            pooled = roi_align(x_BCHW, regions_R5[rows].to(x_BCHW.dtype), side, 1 / stride, 0, aligned=True)
            out = out.index_put((rows,), pooled)
    return out


def with_image(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of several images to ``[R, 5]`` with the image number first."""
    numbers = [box.new_full((len(box), 1), image) for image, box in enumerate(boxes)]
    return torch.cat([torch.cat([number, box], dim=1) for number, box in zip(numbers, boxes, strict=True)])


class BoxHead(nn.Module):
    """Four convolutions and a fully connected layer; class logits and box deltas."""

    def __init__(self, config: RoIConfig) -> None:
        super().__init__()
        self.num_classes = config.num_classes
        self.class_agnostic = config.class_agnostic
        sizes = [config.channels] + [config.conv_channels] * 4
        self.convs = nn.ModuleList(NormedConv(a, b, 3, eps=config.norm_eps) for a, b in itertools.pairwise(sizes))
        self.fc = nn.Linear(config.conv_channels * 49, config.hidden)
        self.cls = nn.Linear(config.hidden, config.num_classes + 1)
        self.box = nn.Linear(config.hidden, 4 if config.class_agnostic else 4 * config.num_classes)
        _init_convs(self.convs)
        nn.init.xavier_normal_(self.fc.weight)
        nn.init.normal_(self.cls.weight, std=0.01)
        nn.init.normal_(self.box.weight, std=0.001)
        for layer in (self.fc, self.cls, self.box):
            nn.init.zeros_(layer.bias)

    def forward(self, x_RCss: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[R, K + 1]`` and deltas ``[R, 4]`` or ``[R, K, 4]``."""
        for conv in self.convs:
            x_RCss = F.relu(conv(x_RCss))
        hidden = F.relu(self.fc(x_RCss.flatten(1)))
        deltas = self.box(hidden)
        return self.cls(hidden), deltas if self.class_agnostic else deltas.unflatten(1, (self.num_classes, 4))


class MaskHead(nn.Module):
    """Four convolutions, a doubling, and one map of logits per class."""

    def __init__(self, config: RoIConfig) -> None:
        super().__init__()
        c = config.conv_channels
        sizes = [config.channels] + [c] * 4
        self.convs = nn.ModuleList(NormedConv(a, b, 3, eps=config.norm_eps) for a, b in itertools.pairwise(sizes))
        self.up = nn.ConvTranspose2d(c, c, 2, stride=2)
        self.logits = nn.Conv2d(c, config.num_classes, 1)
        _init_convs(self.convs)
        for layer in (self.up, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x_RCss: Tensor) -> Tensor:
        """Logits ``[R, K, 2 * s, 2 * s]``."""
        for conv in self.convs:
            x_RCss = F.relu(conv(x_RCss))
        return self.logits(F.relu(self.up(x_RCss)))

    def of_classes(self, x_RCss: Tensor, class_ids_R: Tensor) -> Tensor:
        """Logits of one class per region, ``[R, 2 * s, 2 * s]``."""
        return self(x_RCss)[torch.arange(len(x_RCss), device=x_RCss.device), class_ids_R]


def _init_convs(convs: nn.ModuleList) -> None:
    for conv in convs:
        assert isinstance(conv, NormedConv)
        nn.init.kaiming_normal_(conv.conv.weight, mode="fan_out", nonlinearity="relu")


class RoIHeads(nn.Module):
    """Box heads and mask heads over regions.

    Args:
        config: Sizes and rules.
    """

    class_weights: Tensor | None

    def __init__(self, config: RoIConfig) -> None:
        super().__init__()
        self.config = config
        self.box_heads = nn.ModuleList(BoxHead(config) for _ in config.stages)
        count = {"none": 0, "one": 1, "per_stage": len(config.stages)}[config.mask]
        self.mask_heads = nn.ModuleList(MaskHead(config) for _ in range(count))
        weights = torch.ones(config.num_classes) if config.federated_classes else None
        self.register_buffer("class_weights", weights)

    # ------------------------------------------------------------------ training

    def loss(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        truths: Sequence[Truths],
        frames: Sequence[Frame],
        *,
        choose: Choose = choose_randomly,
        trace: Trace | None = None,
    ) -> dict[str, Tensor]:
        """Losses of every head.

        Args:
            maps: Pyramid levels.
            proposals: Boxes ``[P, 4]`` per image.
            truths: Ground truths per image.
            frames: Frames of the images.
            choose: How to draw regions.
            trace: Receives the regions of every stage.

        Returns:
            ``loss_cls``, ``loss_box`` and ``loss_mask``, with the stage behind the name in a cascade.
        """
        config = self.config
        boxes = list(proposals)
        losses: dict[str, Tensor] = {}
        regions: list[Regions] = []
        for number, stage in enumerate(config.stages):
            if number == 0 or config.resample:
                regions = [self._draw(box, truth, stage, choose) for box, truth in zip(boxes, truths, strict=True)]
            else:
                regions = [self._rematch(box, truth, stage) for box, truth in zip(boxes, truths, strict=True)]
            if trace is not None:
                trace.values[f"regions_{number}"] = regions
            name = f"_{number}" if len(config.stages) > 1 else ""
            pooled = self._pool(maps, [one.boxes_xyxy for one in regions], 7)
            if config.scale_gradient and len(config.stages) > 1:
                pooled = _scale_gradient(pooled, 1 / len(config.stages))
            logits, deltas = self.box_heads[number](pooled)
            cls, box = self._box_losses(logits.float(), deltas.float(), regions, truths, stage)
            losses[f"loss_cls{name}"] = cls * stage.weight
            losses[f"loss_box{name}"] = box * stage.weight
            if config.mask == "per_stage" or (config.mask == "one" and number == 0):
                mask = self._mask_loss(self.mask_heads[number], maps, regions, truths)
                losses[f"loss_mask{name if config.mask == 'per_stage' else ''}"] = mask * stage.weight
            if number + 1 < len(config.stages):
                boxes = self._refined(logits, deltas, regions, truths, stage, frames)
        return losses

    def _draw(self, boxes: Tensor, truth: Truths, stage: StageConfig, choose: Choose) -> Regions:
        """Matches proposals and draws some; ground truths are proposals, too."""
        config = self.config
        own = torch.arange(len(truth.boxes_xyxy), device=boxes.device)
        if config.truths_first:
            # mmdet matches the proposals alone; a ground truth is its own match, whatever else overlaps it.
            index, label = self._match(boxes, truth, stage)
            boxes = torch.cat([truth.boxes_xyxy, boxes])
            index, label = torch.cat([own, index]), torch.cat([torch.ones_like(own), label])
            is_truth = torch.arange(len(boxes), device=boxes.device) < len(own)
        else:
            boxes = torch.cat([boxes, truth.boxes_xyxy])
            index, label = self._match(boxes, truth, stage)
            is_truth = torch.arange(len(boxes), device=boxes.device) >= len(boxes) - len(own)
        picked = torch.cat(sample_labels(label, config.batch, config.positive_share, choose))
        return Regions(boxes[picked], label[picked], index[picked], is_truth[picked], (index, label))

    def _rematch(self, boxes: Tensor, truth: Truths, stage: StageConfig) -> Regions:
        """All regions of the stage before, matched anew (detectron2)."""
        index, label = self._match(boxes, truth, stage)
        return Regions(boxes, label, index, torch.zeros_like(label, dtype=torch.bool), (index, label))

    def _match(self, boxes: Tensor, truth: Truths, stage: StageConfig) -> tuple[Tensor, Tensor]:
        return match_boxes(
            boxes,
            truth.boxes_xyxy,
            positive=stage.iou,
            negative=stage.iou,
            low_quality=self.config.low_quality,
            low_quality_floor=stage.iou,
        )

    def _class_targets(self, regions: Sequence[Regions], truths: Sequence[Truths]) -> Tensor:
        wanted = []
        for one, truth in zip(regions, truths, strict=True):
            classes = torch.full_like(one.index, self.config.num_classes)
            positive = one.label == 1
            classes[positive] = truth.class_ids[one.index[positive]]
            wanted.append(classes)
        return torch.cat(wanted)

    def _box_losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        regions: Sequence[Regions],
        truths: Sequence[Truths],
        stage: StageConfig,
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        classes = self._class_targets(regions, truths)
        count = max(len(classes), 1)
        if config.sigmoid:
            cls = self._sigmoid_loss(logits, classes)
        else:
            cls = F.cross_entropy(logits, classes, reduction="sum") / count
        positive = (classes < config.num_classes).nonzero()[:, 0]
        if not len(positive):
            return cls, deltas.sum() * 0.0
        goals = [
            encode_deltas(one.boxes_xyxy[one.label == 1], truth.boxes_xyxy[one.index[one.label == 1]], stage.stds)
            for one, truth in zip(regions, truths, strict=True)
        ]
        said = deltas[positive] if config.class_agnostic else deltas[positive, classes[positive]]
        box = F.smooth_l1_loss(said, torch.cat(goals), reduction="sum", beta=config.box_loss_beta)
        return cls, box / count

    def _sigmoid_loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Binary cross-entropy over the classes, summed, over the regions; federated where that is asked for."""
        k = self.config.num_classes
        wanted = F.one_hot(classes, k + 1)[:, :k].to(logits.dtype)
        each = F.binary_cross_entropy_with_logits(logits[:, :k], wanted, reduction="none")
        if self.class_weights is not None:
            chosen = federated_classes(classes, k, self.config.federated_classes, self.class_weights)
            each = each * torch.zeros(k + 1, device=each.device).index_fill(0, chosen, 1.0)[:k]
        return each.sum() / max(len(classes), 1)

    def _mask_loss(
        self, head: nn.Module, maps: Sequence[Tensor], regions: Sequence[Regions], truths: Sequence[Truths]
    ) -> Tensor:
        boxes = [one.boxes_xyxy[one.label == 1] for one in regions]
        index = [one.index[one.label == 1] for one in regions]
        classes = torch.cat([truth.class_ids[own] for truth, own in zip(truths, index, strict=True)])
        pooled = self._pool(maps, boxes, 14)
        if not len(classes):
            return pooled.sum() * 0.0 + sum(p.sum() for p in head.parameters()) * 0.0
        assert isinstance(head, MaskHead)
        logits = head.of_classes(pooled, classes).float()
        wanted = [
            mask_targets(truth.masks, box, own, logits.shape[-1])
            for truth, box, own in zip(truths, boxes, index, strict=True)
            if truth.masks is not None
        ]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(wanted).to(logits.dtype))

    def _refined(
        self,
        logits: Tensor,
        deltas: Tensor,
        regions: Sequence[Regions],
        truths: Sequence[Truths],
        stage: StageConfig,
        frames: Sequence[Frame],
    ) -> list[Tensor]:
        """Boxes that the next stage of the cascade looks at."""
        with torch.no_grad():
            classes = self._class_targets(regions, truths)
            best = logits[:, :-1].argmax(1)
            picked = torch.where(classes < logits.shape[1] - 1, classes, best)
            moved = self._moved([one.boxes_xyxy for one in regions], deltas, picked, stage)
            out = []
            for one, boxes, frame in zip(regions, moved, frames, strict=True):
                boxes = clip_boxes(boxes, frame.input_hw)
                # mmdet takes away the ground truths that were proposals, detectron2 boxes without extent.
                out.append(boxes[~one.is_truth] if self.config.resample else boxes[has_extent(boxes)])
            return out

    def _moved(
        self, boxes: Sequence[Tensor], deltas: Tensor, class_ids: Tensor, stage: StageConfig
    ) -> Sequence[Tensor]:
        """Boxes of every image, moved by the deltas of the given classes."""
        own = deltas
        if not self.config.class_agnostic:
            own = deltas[torch.arange(len(deltas), device=deltas.device), class_ids]
        moved = decode_deltas(torch.cat(list(boxes)), own.float(), stage.stds, clamp_shrink=self.config.clamp_shrink)
        return moved.split([len(box) for box in boxes])

    def _pool(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
        return pool_regions(maps[: len(self.config.strides)], self.config.strides, with_image(boxes), side)

    # ------------------------------------------------------------------ prediction

    def score_boxes(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        frames: Sequence[Frame],
        *,
        trace: Trace | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Scores ``[P, K]`` and boxes ``[P, 4]`` or ``[P, K, 4]`` (clipped, network input) of every image."""
        config = self.config
        boxes, said = list(proposals), []
        deltas = boxes[0]
        for number, stage in enumerate(config.stages):
            logits, deltas = self.box_heads[number](self._pool(maps, boxes, 7))
            logits, deltas = logits.float(), deltas.float()
            if trace is not None:
                trace.values |= {f"rois_{number}": boxes, f"logits_{number}": logits, f"deltas_{number}": deltas}
            said.append(logits if config.average == "logits" else self._probabilities(logits))
            if number + 1 < len(config.stages):
                moved = self._moved(boxes, deltas, logits[:, :-1].argmax(1), stage)
                boxes = [clip_boxes(box, frame.input_hw) for box, frame in zip(moved, frames, strict=True)]
        mean = torch.stack(said).mean(0)
        scores = self._probabilities(mean) if config.average == "logits" else mean
        moved_all = decode_deltas(torch.cat(boxes), deltas, config.stages[-1].stds, clamp_shrink=config.clamp_shrink)
        sizes = [len(box) for box in boxes]
        clipped = [clip_boxes(box, frame.input_hw) for box, frame in zip(moved_all.split(sizes), frames, strict=True)]
        return list(scores.split(sizes)), clipped

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits[:, :-1].sigmoid() if self.config.sigmoid else logits.softmax(-1)[:, :-1]

    def select(
        self,
        scores_PK: Tensor,
        boxes: Tensor,
        frame: Frame,
        *,
        soft: Literal["linear", "gaussian"] | None = None,
    ) -> Detections:
        """The final detections of one image from scored boxes of the network input."""
        config = self.config
        finite = boxes.flatten(1).isfinite().all(1) & scores_PK.isfinite().all(1)
        boxes, scores_PK = boxes[finite], scores_PK[finite]
        scale = boxes.new_tensor([*frame.scale_xy, *frame.scale_xy])
        if config.original_frame:
            boxes = boxes / scale
        kept, scores, class_ids, _ = best_per_class(
            boxes,
            scores_PK,
            min_score=config.min_score,
            iou=config.nms_iou,
            most=config.max_detections,
            soft=soft,
        )
        original = kept if config.original_frame else clip_boxes(kept / scale, frame.original_hw)
        inner = kept * scale if config.original_frame else kept
        return Detections(inner, original, scores, class_ids)

    def add_masks(self, maps: Sequence[Tensor], found: Sequence[Detections]) -> None:
        """Fills in the masks, averaged over the mask heads of a cascade."""
        classes = torch.cat([one.class_ids for one in found])
        pooled = self._pool(maps, [one.boxes_xyxy for one in found], 14)
        total: Tensor | None = None
        for head in self.mask_heads:
            assert isinstance(head, MaskHead)
            chances = head.of_classes(pooled, classes).float().sigmoid()
            total = chances if total is None else total + chances
        assert total is not None
        mean = total / len(self.mask_heads)
        for one, masks in zip(found, mean.split([len(one.scores) for one in found]), strict=True):
            one.masks = masks


def mask_targets(masks_GHW: Tensor, boxes_R4: Tensor, index_R: Tensor, side: int) -> Tensor:
    """Masks of the matched ground truths inside the regions, ``[R, side, side]`` 0 or 1."""
    boxes = clip_boxes(boxes_R4, (masks_GHW.shape[1], masks_GHW.shape[2]))
    regions = torch.cat([index_R[:, None].to(boxes.dtype), boxes], dim=1)
    inside = roi_align(masks_GHW[:, None].to(boxes.dtype), regions, side, 1.0, 0, aligned=True)[:, 0]
    return (inside >= 0.5).to(boxes.dtype)


def federated_classes(classes_R: Tensor, num_classes: int, number: int, weights_K: Tensor) -> Tensor:
    """Classes that a step of LVIS looks at: those present, filled up by a draw of others (Federated loss).

    Args:
        classes_R: Targets, ``num_classes`` = background (it counts as one of them).
        num_classes: Classes K.
        number: So many at least.
        weights_K: Chances of the draw are proportional to these.
    """
    present = classes_R.unique()
    if len(present) >= number:
        return present
    chances = weights_K.new_ones(num_classes + 1)
    chances[:num_classes] = weights_K.float()
    chances[num_classes] = 0.0
    chances[present] = 0.0
    left = int((chances > 0).sum())
    if not left:
        return present
    return torch.cat([present, torch.multinomial(chances, min(number - len(present), left), replacement=False)])


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same values; their gradient times a factor."""
    scaled: Tensor = _Scaled.apply(x, factor)
    return scaled
