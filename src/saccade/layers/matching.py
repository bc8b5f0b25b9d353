"""Which box learns which ground truth: matching by overlap or one to one, and sampling of positives and negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saccade.layers.boxes import box_iou

LowQuality: TypeAlias = Literal["reassign", "keep", "off"]
"""What becomes of the boxes that overlap a ground truth best, but not well: ``reassign`` them to it, the last ground
truth winning (mmdet), ``keep`` the ground truth that they overlap best and make them positive (detectron2), or leave
them."""

Choose: TypeAlias = Callable[[Tensor, int], Tensor]
"""Picks so many of the candidate indices."""

_ELEMENTS = 2**25  # of one block of the overlap table


def choose_randomly(candidates: Tensor, number: int) -> Tensor:
    """Uniform, without replacement."""
    return candidates[torch.randperm(len(candidates), device=candidates.device)[:number]]


def match_boxes(
    boxes_N4: Tensor,
    truths_G4: Tensor,
    *,
    positive: float,
    negative: float,
    low_quality: LowQuality = "off",
    low_quality_floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Matches boxes to ground truths by overlap.

    Args:
        boxes_N4: Anchors or proposals.
        truths_G4: Ground truths.
        positive: Overlap from which a box is positive.
        negative: Overlap below which it is negative; between the two it is ignored.
        low_quality: See :data:`LowQuality`.
        low_quality_floor: A ground truth whose best overlap is below it gets no such box.

    Returns:
        ``[N]`` index of the ground truth (meaningful for positives) and ``[N]`` label: 1, 0, or -1 for ignored.
    """
    n = len(boxes_N4)
    index = torch.zeros(n, dtype=torch.long, device=boxes_N4.device)
    if not len(truths_G4):
        return index, torch.zeros_like(index)
    # A picture of 1,000 objects would need a table of gigabytes: it is looked at block by block.
    step = max(1, _ELEMENTS // len(truths_G4))
    blocks = range(0, n, step)
    best = boxes_N4.new_zeros(n)
    best_of_truth = boxes_N4.new_full((len(truths_G4),), -1.0)
    for begin in blocks:
        overlap = box_iou(truths_G4, boxes_N4[begin : begin + step])
        best[begin : begin + step], index[begin : begin + step] = overlap.max(dim=0)
        best_of_truth = torch.maximum(best_of_truth, overlap.max(dim=1).values)
    label = torch.full_like(index, -1)
    label[best < negative] = 0
    label[best >= positive] = 1
    if low_quality == "off":
        return index, label
    served = best_of_truth >= low_quality_floor
    order = torch.arange(1, len(truths_G4) + 1, device=index.device)[:, None]
    for begin in blocks:
        overlap = box_iou(truths_G4, boxes_N4[begin : begin + step])
        hits = (overlap == best_of_truth[:, None]) & served[:, None]
        last = (hits * order).amax(dim=0)
        found = last > 0
        label[begin : begin + step][found] = 1
        if low_quality == "reassign":
            index[begin : begin + step][found] = last[found] - 1
    return index, label


def sample_labels(
    label_N: Tensor, number: int, positive_share: float, choose: Choose = choose_randomly
) -> tuple[Tensor, Tensor]:
    """Draws so many boxes, at most a share of them positive; negatives fill up.

    Args:
        label_N: 1 positive, 0 negative, -1 ignored.
        number: Boxes in all.
        positive_share: Greatest share of positives.
        choose: How to pick.

    Returns:
        Indices of the positives and of the negatives, each ascending.
    """
    positives, negatives = (label_N == 1).nonzero()[:, 0], (label_N == 0).nonzero()[:, 0]
    wanted = min(len(positives), int(number * positive_share))
    if len(positives) > wanted:
        positives = choose(positives, wanted)
    if len(negatives) > number - wanted:
        negatives = choose(negatives, number - wanted)
    return positives.sort().values, negatives.sort().values


def assign(costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """One-to-one assignments of least cost (Hungarian method); all tables cross over to the CPU at once.

    Args:
        costs: ``[Q, G]`` each, without gradient.

    Returns:
        For every table the rows that are chosen, ascending, and the column of each, on the device of the tables;
        ``min(Q, G)`` of them.
    """
    if not costs:
        return []
    # A cost that is not finite would be refused here; the loss says better what is wrong.
    joined = torch.cat([cost.float().flatten() for cost in costs]).nan_to_num().cpu()
    parts = joined.split([cost.numel() for cost in costs])
    pairs = [linear_sum_assignment(part.view(cost.shape).numpy()) for part, cost in zip(parts, costs, strict=True)]
    device = costs[0].device
    return [(torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)) for rows, columns in pairs]
