"""The region proposal network over a feature pyramid, with the rules of mmdet and of detectron2.

Shape legend: B images, L levels, A anchors of all levels, H W map of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from saccade.layers.boxes import clip_boxes, decode_deltas, encode_deltas, has_extent
from saccade.layers.convolution import NormedConv
from saccade.layers.matching import Choose, LowQuality, choose_randomly, match_boxes, sample_labels

_STDS = (1.0, 1.0, 1.0, 1.0)


@dataclass(kw_only=True)
class RPNConfig:
    """The proposal network.

    Attributes:
        channels: Of the maps it reads.
        strides: Of the maps, in pixels.
        scale: Side of the anchors over the stride.
        ratios: Heights over widths of the anchors.
        convs: 3x3 convolutions before the two outputs.
        norm_eps: Epsilon of their channel norms; 0 = convolutions with bias and without norm (detectron2).
        candidates: Boxes per level that enter suppression, in training and in prediction.
        proposals: Boxes that come out, over all levels, in training and in prediction.
        nms_iou: Overlap above which the lower of two boxes of a level goes.
        positive_iou: Overlap from which an anchor is positive.
        negative_iou: Overlap below which it is negative.
        low_quality: What the best anchors of a ground truth become that no anchor overlaps well.
        low_quality_floor: The least overlap for that.
        batch: Anchors per image that are learned.
        positive_share: Greatest share of positives among them.
        clamp_shrink: See :func:`saccade.layers.boxes.decode_deltas`.
        loss_per_sampled: Divide the losses by the anchors that were drawn (mmdet), not by ``batch`` per image.
    """

    channels: int = 256
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    scale: float = 8.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    convs: int = 2
    norm_eps: float = 1e-5
    candidates: tuple[int, int] = (2000, 1000)
    proposals: tuple[int, int] = (1000, 1000)
    nms_iou: float = 0.7
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    low_quality: LowQuality = "reassign"
    low_quality_floor: float = 0.3
    batch: int = 256
    positive_share: float = 0.5
    clamp_shrink: bool = True
    loss_per_sampled: bool = True


@dataclass
class Proposals:
    """Boxes of one image that may hold an object, the best first.

    Attributes:
        boxes_xyxy: ``[N, 4]`` in the network input.
        logits: ``[N]`` objectness before the sigmoid.
    """

    boxes_xyxy: Tensor
    logits: Tensor


@dataclass
class AnchorTargets:
    """What the anchors of one image learn (kept for tests).

    Attributes:
        index: ``[A]`` matched ground truth.
        label: ``[A]`` 1 positive, 0 negative, -1 ignored, before sampling.
        positives: Drawn positives, ascending.
        negatives: Drawn negatives, ascending.
    """

    index: Tensor
    label: Tensor
    positives: Tensor
    negatives: Tensor


@dataclass
class RPNOutput:
    """The network's answer to one batch.

    Attributes:
        logits: Per level ``[B, H * W * ratios]``, position-major.
        deltas: Per level ``[B, H * W * ratios, 4]``.
        anchors: Per level ``[H * W * ratios, 4]``.
        targets: Filled by :meth:`RPN.loss`.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]
    targets: list[AnchorTargets] = field(default_factory=list)


class RPN(nn.Module):
    """Scores anchors at every position of every level and moves them onto objects.

    Args:
        config: Sizes and rules.
    """

    def __init__(self, config: RPNConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.convs = nn.ModuleList(
            NormedConv(c, c, 3, eps=config.norm_eps) if config.norm_eps else nn.Conv2d(c, c, 3, padding=1)
            for _ in range(config.convs)
        )
        self.objectness = nn.Conv2d(c, len(config.ratios), 1)
        self.deltas = nn.Conv2d(c, 4 * len(config.ratios), 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Tensor]) -> RPNOutput:
        """Reads the pyramid, each level ``[B, C, H, W]``."""
        out = RPNOutput([], [], [])
        for x_BCHW, stride in zip(levels, self.config.strides, strict=True):
            size_hw = (x_BCHW.shape[2], x_BCHW.shape[3])
            for conv in self.convs:
                x_BCHW = F.relu(conv(x_BCHW))
            out.logits.append(self.objectness(x_BCHW).permute(0, 2, 3, 1).flatten(1))
            deltas = self.deltas(x_BCHW).permute(0, 2, 3, 1)
            out.deltas.append(deltas.reshape(len(deltas), -1, 4))
            out.anchors.append(anchors(size_hw, stride, self.config.scale, self.config.ratios, x_BCHW.device))
        return out

    def proposals(self, out: RPNOutput, sizes_hw: Sequence[tuple[int, int]]) -> list[Proposals]:
        """The best boxes of every image, clipped to it.

        Args:
            out: The network's answer.
            sizes_hw: Size of each image inside the padded input.
        """
        config = self.config
        candidates, most = (pair[0 if self.training else 1] for pair in (config.candidates, config.proposals))
        found: list[Proposals] = []
        with torch.no_grad():
            for image, size_hw in enumerate(sizes_hw):
                boxes, logits, level_of = [], [], []
                for level, (scores, deltas, anchor) in enumerate(zip(out.logits, out.deltas, out.anchors, strict=True)):
                    best, rows = scores[image].float().topk(min(candidates, scores.shape[1]))
                    moved = decode_deltas(
                        anchor[rows], deltas[image, rows].float(), _STDS, clamp_shrink=config.clamp_shrink
                    )
                    moved = clip_boxes(moved, size_hw)
                    whole = has_extent(moved) & best.isfinite()
                    boxes.append(moved[whole])
                    logits.append(best[whole])
                    level_of.append(torch.full((len(logits[-1]),), level, device=scores.device))
                box, logit, ids = torch.cat(boxes), torch.cat(logits), torch.cat(level_of)
                keep = batched_nms(box, logit, ids, config.nms_iou)[:most]
                found.append(Proposals(box[keep], logit[keep]))
        return found

    def loss(
        self, out: RPNOutput, truths: Sequence[Tensor], *, choose: Choose = choose_randomly
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box losses.

        Args:
            out: The network's answer; receives the targets.
            truths: Ground-truth boxes ``[G, 4]`` per image.
            choose: How to draw anchors.

        Returns:
            Binary cross-entropy and L1, each over its divisor.
        """
        config = self.config
        anchor = torch.cat(out.anchors)
        logits, deltas = torch.cat(out.logits, dim=1), torch.cat(out.deltas, dim=1)
        score_loss, box_loss, drawn = logits.sum() * 0.0, deltas.sum() * 0.0, 0
        for image, boxes in enumerate(truths):
            index, label = match_boxes(
                anchor,
                boxes,
                positive=config.positive_iou,
                negative=config.negative_iou,
                low_quality=config.low_quality,
                low_quality_floor=config.low_quality_floor,
            )
            positives, negatives = sample_labels(label, config.batch, config.positive_share, choose)
            out.targets.append(AnchorTargets(index, label, positives, negatives))
            picked = torch.cat([positives, negatives])
            wanted = torch.cat([torch.ones_like(positives), torch.zeros_like(negatives)])
            score_loss = score_loss + F.binary_cross_entropy_with_logits(
                logits[image, picked].float(), wanted.float(), reduction="sum"
            )
            if len(positives):
                goal = encode_deltas(anchor[positives], boxes[index[positives]], _STDS)
                box_loss = box_loss + (deltas[image, positives].float() - goal).abs().sum()
            drawn += max(len(positives), 1) + max(len(negatives), 1)
        divisor = drawn if config.loss_per_sampled else config.batch * len(truths)
        return score_loss / divisor, box_loss / divisor


def anchors(
    size_hw: tuple[int, int], stride: int, scale: float, ratios: Sequence[float], device: torch.device
) -> Tensor:
    """Anchors of a map, centred on ``(x * stride, y * stride)``: ``[H * W * ratios, 4]``, order y, x, ratio."""
    sides = [(scale * stride / math.sqrt(ratio), scale * stride * math.sqrt(ratio)) for ratio in ratios]
    shapes = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides], device=device)
    y, x = (torch.arange(size, device=device, dtype=torch.float32) * stride for size in size_hw)
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)
    return (centres[:, :, None] + shapes).flatten(0, 2)
