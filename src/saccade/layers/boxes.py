"""Boxes of two-stage detectors: overlap, deltas, suppression, and pasting masks into pictures.

Boxes are ``x1, y1, x2, y2`` in pixels, without any "+ 1". N boxes, G ground truths, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

MAX_LOG_SCALE = math.log(1000 / 16)
"""Greatest log of the factor by which a delta may change a side."""

_OUTSIDE = 4.0  # beyond the edge of any sampled map (they span -1 to 1)


def box_iou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """Intersection over union ``[N, M]``; boxes without area have 0."""
    corner = torch.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    shared = (torch.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:]) - corner).clamp(min=0).prod(-1)
    return shared / (area(a_N4)[:, None] + area(b_M4)[None] - shared).clamp(min=1e-6)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Overlap less the share of the smallest box around both that neither covers (Rezatofighi et al., 2019).

    Args:
        a: ``[..., 4]`` in any unit.
        b: Of a shape that broadcasts with it.

    Returns:
        ``[...]`` in -1..1; two boxes without area have 0.
    """
    tiny = torch.finfo(a.dtype).tiny
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    around = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = area(a) + area(b) - shared
    return shared / union.clamp(min=tiny) - (around - union) / around.clamp(min=tiny)


def area(boxes: Tensor) -> Tensor:
    """Areas ``[...]`` of boxes ``[..., 4]``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def encode_deltas(boxes_N4: Tensor, targets_N4: Tensor, stds: Sequence[float]) -> Tensor:
    """What moves boxes onto targets: ``(dx, dy, dw, dh)`` over the standard deviations, ``[N, 4]``."""
    size, wanted = boxes_N4[:, 2:] - boxes_N4[:, :2], targets_N4[:, 2:] - targets_N4[:, :2]
    centre, goal = boxes_N4[:, :2] + size / 2, targets_N4[:, :2] + wanted / 2
    deltas = torch.cat([(goal - centre) / size, (wanted / size).log()], dim=1)
    return deltas / deltas.new_tensor(stds)


def decode_deltas(boxes_N4: Tensor, deltas: Tensor, stds: Sequence[float], *, clamp_shrink: bool) -> Tensor:
    """Moves boxes by deltas.

    Args:
        boxes_N4: The boxes.
        deltas: ``[N, 4]``, or ``[N, K, 4]`` for one per class.
        stds: Standard deviations that the deltas were divided by.
        clamp_shrink: Bound log scales from below, too (mmdet), not only from above (detectron2).

    Returns:
        Boxes of the shape of ``deltas``, not clipped.
    """
    boxes = boxes_N4 if deltas.ndim == 2 else boxes_N4[:, None]
    size = boxes[..., 2:] - boxes[..., :2]
    deltas = deltas * deltas.new_tensor(stds)
    centre = boxes[..., :2] + size / 2 + deltas[..., :2] * size
    scale = deltas[..., 2:].clamp(min=-MAX_LOG_SCALE if clamp_shrink else None, max=MAX_LOG_SCALE)
    half = size * scale.exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def clip_boxes(boxes: Tensor, size_hw: tuple[float, float]) -> Tensor:
    """Clips boxes ``[..., 4]`` to a picture of that height and width."""
    height, width = size_hw
    return torch.stack(
        [
            boxes[..., 0].clamp(0, width),
            boxes[..., 1].clamp(0, height),
            boxes[..., 2].clamp(0, width),
            boxes[..., 3].clamp(0, height),
        ],
        dim=-1,
    )


def has_extent(boxes_N4: Tensor) -> Tensor:
    """``[N]`` bool: width and height are positive."""
    return (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(dim=1)


def soft_nms(
    boxes_N4: Tensor,
    scores_N: Tensor,
    ids_N: Tensor,
    *,
    method: Literal["linear", "gaussian"] = "linear",
    iou: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Lowers the scores of boxes that overlap a better one of the same id (Bodla et al., 2017).

    Args:
        boxes_N4: Boxes.
        scores_N: Scores.
        ids_N: Boxes of different ids do not meet.
        method: ``linear``: score * (1 - IoU) above the threshold; ``gaussian``: score * exp(-IoU**2 / sigma).
        iou: Threshold of the linear form.
        sigma: Width of the Gaussian form.
        min_score: Boxes that fall below it are left out.
        most: Stop after so many boxes; None = go on to the last.

    Returns:
        Indices of the boxes kept, in the order of their lowered scores, and those scores.
    """
    scores, left = scores_N.clone(), torch.ones_like(scores_N, dtype=torch.bool)
    kept: list[int] = []
    lowered: list[Tensor] = []
    while (most is None or len(kept) < most) and bool(left.any()):
        best = int(scores.masked_fill(~left, -torch.inf).argmax())
        if scores[best] < min_score:
            break
        kept.append(best)
        lowered.append(scores[best].clone())
        left[best] = False
        overlap = box_iou(boxes_N4[best : best + 1], boxes_N4)[0] * (ids_N == ids_N[best])
        factor = torch.where(overlap >= iou, 1 - overlap, 1.0) if method == "linear" else (-(overlap**2) / sigma).exp()
        scores = torch.where(left, scores * factor, scores)
        left &= scores >= min_score
    index = torch.tensor(kept, dtype=torch.long, device=boxes_N4.device)
    return index, torch.stack(lowered) if lowered else scores[:0]


def best_per_class(
    boxes: Tensor,
    scores_NK: Tensor,
    *,
    min_score: float,
    iou: float,
    most: int,
    soft: Literal["linear", "gaussian"] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Final detections: per class, what is above a score and not suppressed by a better box.

    Args:
        boxes: ``[N, 4]`` shared by all classes, or ``[N, K, 4]``.
        scores_NK: Scores per class.
        min_score: Lower ones are left out (the bound itself too).
        iou: Overlap above which the lower box goes.
        most: Boxes kept over all classes.
        soft: Soft-NMS of that kind in place of the hard one.

    Returns:
        Boxes ``[n, 4]``, scores ``[n]``, class ids ``[n]`` and rows ``[n]``, the best first.
    """
    rows, class_ids = (scores_NK > min_score).nonzero(as_tuple=True)
    scores = scores_NK[rows, class_ids]
    chosen = boxes[rows] if boxes.ndim == 2 else boxes[rows, class_ids]
    if soft is None:
        keep = batched_nms(chosen.float(), scores.float(), class_ids, iou)[:most]
        scores = scores[keep]
    else:
        keep, scores = soft_nms(chosen, scores, class_ids, method=soft, iou=iou, min_score=min_score, most=most)
    return chosen[keep], scores, class_ids[keep], rows[keep]


def paste_masks(
    masks_Nhw: Tensor, boxes_N4: Tensor, size_hw: tuple[int, int], *, threshold: float = 0.5, anywhere: bool = False
) -> Tensor:
    """Puts masks of boxes into whole pictures.

    Each is sampled bilinearly at pixel centres; only pixels in and around its box are looked at.

    Args:
        masks_Nhw: Probabilities over the box, e.g. 28x28.
        boxes_N4: Boxes in the picture.
        size_hw: Height and width of the picture.
        threshold: A pixel belongs to the mask from this probability on.
        anywhere: Look at every pixel, as mmdet does on a GPU: a box with exchanged corners then shows its
            mask mirrored, one without width the middle of its mask across the picture.

    Returns:
        ``[N, H, W]`` bool.
    """
    height, width = size_hw
    out = torch.zeros(len(masks_Nhw), height, width, dtype=torch.bool, device=masks_Nhw.device)
    corners = torch.cat([boxes_N4[:, :2].floor() - 1, boxes_N4[:, 2:].ceil() + 1], dim=1)
    limits = clip_boxes(corners, (height, width)).long().tolist()
    if anywhere:
        limits = [[0, 0, width, height]] * len(limits)
    for mask, box, (left, top, right, bottom), whole in zip(masks_Nhw, boxes_N4, limits, out, strict=True):
        if right <= left or bottom <= top:
            continue
        x = torch.arange(left, right, device=box.device, dtype=torch.float32) + 0.5
        y = torch.arange(top, bottom, device=box.device, dtype=torch.float32) + 0.5
        x = (x - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (y - box[1]) / (box[3] - box[1]) * 2 - 1
        # Pixels beside a box without width read the middle of its mask, as in the original; one on its line nothing.
        x, y = x.nan_to_num(_OUTSIDE, 0.0, 0.0), y.nan_to_num(_OUTSIDE, 0.0, 0.0)
        grid = torch.stack([x[None].expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        sampled = F.grid_sample(mask[None, None].float(), grid[None], align_corners=False)[0, 0]
        whole[top:bottom, left:right] = sampled >= threshold
    return out
