"""Which grid point answers for which object, and which points are trained on."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saccade.models.git.grid import PointGrid
from saccade.tokens.boxes import xyxy_to_cxcywh

_POINT_COST = 5.0


def point_costs(points_xy: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Cost ``[Q, G]`` of letting a point answer for a box: weighted L1 distance to its centre, in image sizes.

    Args:
        points_xy: ``[Q, 2]`` pixels.
        boxes_xyxy: ``[G, 4]`` pixels.
        size_hw: Image size in pixels.
    """
    h, w = size_hw
    scale = boxes_xyxy.new_tensor([w, h])
    centres = xyxy_to_cxcywh(boxes_xyxy)[:, :2]
    return torch.cdist(points_xy / scale, centres / scale, p=1) * _POINT_COST


def assign_points(grid: PointGrid, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """One-to-one Hungarian assignment of boxes to grid points, independent of any prediction (specs 5.1).

    Returns:
        Points ``[M]`` (row-major, ascending) and the box each answers for ``[M]``; M = min(Q, G).
    """
    device = boxes_xyxy.device
    if len(boxes_xyxy) == 0:
        empty = torch.zeros(0, dtype=torch.long, device=device)
        return empty, empty
    h, w = size_hw
    points = grid.points_xy * grid.points_xy.new_tensor([w, h])
    cost = point_costs(points.to(device), boxes_xyxy, size_hw)
    rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)


def choose_points(positive: Tensor, grid: PointGrid, per_window: int) -> Tensor:
    """Draws the grid points that a training step keeps: of every window the positives first, then random others.

    Args:
        positive: ``[B, Q]`` bool, row-major.
        grid: The grid.
        per_window: Points kept per window; of more positives than that a random part is kept.

    Returns:
        ``[B, windows * per_window]`` row-major ids, window by window. Drawn from torch's CPU generator.
    """
    by_window = positive[:, grid.window_major].unflatten(1, (grid.windows, grid.per_window))
    rank = torch.rand(by_window.shape).to(positive.device) - by_window.float()
    order = rank.argsort(dim=-1)[..., : min(per_window, grid.per_window)]
    first = torch.arange(grid.windows, device=positive.device)[:, None] * grid.per_window
    return grid.window_major[(order + first).flatten(1)]
