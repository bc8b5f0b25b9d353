"""Grid points: where they stand, which window each lies in, and how responses are laid out for attention.

Inside the model responses are ordered window by window ("window-major"), so that the points of a window are neighbours
in memory; everything that leaves the model is in row-major order of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from saccade.errors import UsageError


@dataclass(frozen=True)
class PointGrid:
    """The regular grid of reference points over one image.

    Attributes:
        shape: Rows and columns of the whole grid.
        windows: Windows of the image.
        points_xy: ``[Q, 2]`` normalised positions, row-major.
        window_major: ``[Q]`` row-major ids in window-major order; inside a window row-major again.
        row_major: ``[Q]`` the inverse permutation.
        neighbours: ``[Q, 4]`` flat patch indices around each point (row-major), for bilinear sampling.
        weights: ``[Q, 4]`` their weights (0 outside the map).
    """

    shape: tuple[int, int]
    windows: int
    points_xy: Tensor
    window_major: Tensor
    row_major: Tensor
    neighbours: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def per_window(self) -> int:
        """Points per window."""
        return len(self) // self.windows

    def sample(self, x_BHWC: Tensor) -> Tensor:
        """Bilinear features of the map at the points, ``[B, Q, C]`` row-major (zeros outside, align_corners False)."""
        x_BNC = x_BHWC.flatten(1, 2)
        picked = x_BNC[:, self.neighbours.flatten()].unflatten(1, self.neighbours.shape)
        return (picked * self.weights[..., None].to(picked.dtype)).sum(dim=2)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # kept tensors made during an evaluation must serve the next training step too
def point_grid(
    patches_hw: tuple[int, int], window_size: int, per_window_hw: tuple[int, int], device: torch.device
) -> PointGrid:
    """Builds (once per shape) the grid of ``per_window_hw`` points in every window of ``window_size`` patches.

    Raises:
        UsageError: The patch map is not a whole number of windows.
    """
    (height, width), (rows, cols) = patches_hw, per_window_hw
    if height % window_size or width % window_size:
        raise UsageError(
            f"an input of {height}x{width} patches is not a whole number of {window_size}x{window_size} windows",
            where="GiT",
            fix="choose an input size that is a multiple of patch_size * window_size",
        )
    windows_hw = (height // window_size, width // window_size)
    grid_h, grid_w = rows * windows_hw[0], cols * windows_hw[1]
    y, x = torch.meshgrid(
        (torch.arange(grid_h, dtype=torch.float32) + 0.5) / grid_h,
        (torch.arange(grid_w, dtype=torch.float32) + 0.5) / grid_w,
        indexing="ij",
    )
    points_xy = torch.stack([x, y], dim=-1).flatten(0, 1)
    ids = torch.arange(grid_h * grid_w).view(windows_hw[0], rows, windows_hw[1], cols)
    window_major = ids.permute(0, 2, 1, 3).flatten()
    px, py = points_xy[:, 0] * width - 0.5, points_xy[:, 1] * height - 0.5
    x0, y0 = px.floor(), py.floor()
    neighbours, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            xi, yi = x0 + dx, y0 + dy
            inside = (xi >= 0) & (xi < width) & (yi >= 0) & (yi < height)
            weights.append((1 - (px - xi).abs()) * (1 - (py - yi).abs()) * inside)
            neighbours.append((yi.clamp(0, height - 1) * width + xi.clamp(0, width - 1)).long())
    return PointGrid(
        shape=(grid_h, grid_w),
        windows=windows_hw[0] * windows_hw[1],
        points_xy=points_xy.to(device),
        window_major=window_major.to(device),
        row_major=window_major.argsort().to(device),
        neighbours=torch.stack(neighbours, dim=-1).to(device),
        weights=torch.stack(weights, dim=-1).to(device),
    )


class ResponseLayout:
    """How P responses share the observation keys of W windows.

    Attention over the observation is one matrix product per window, so responses of a window stand side by side, padded
    to the fullest window; with every window equally full there is nothing to move.

    Args:
        window_of: ``[P]`` window of every response, ascending.
        windows: Number of windows W (all images of the batch).
    """

    def __init__(self, window_of: Tensor, windows: int) -> None:
        self.window_of = window_of
        self.windows = windows
        counts = torch.bincount(window_of, minlength=windows)
        self.width = int(counts.max()) if len(window_of) else 0
        self.full = len(window_of) == self.width * windows
        if not self.full:
            first = counts.cumsum(0) - counts
            slot = torch.arange(len(window_of), device=window_of.device) - first[window_of]
            self._place = window_of * self.width + slot
            self._source = torch.zeros(windows * self.width, dtype=torch.long, device=window_of.device)
            self._source[self._place] = torch.arange(len(window_of), device=window_of.device)

    @classmethod
    def even(cls, windows: int, per_window: int, device: torch.device) -> ResponseLayout:
        """Every window holds the same number of responses."""
        return cls(torch.arange(windows, device=device).repeat_interleave(per_window), windows)

    def spread(self, x_P: Tensor) -> Tensor:
        """``[P, ...]`` to ``[W, width, ...]``; padded places repeat the first response and are never read back."""
        placed = x_P if self.full else x_P[self._source]
        return placed.unflatten(0, (self.windows, self.width))

    def collect(self, x_Ww: Tensor) -> Tensor:
        """``[W, width, ...]`` to ``[P, ...]``."""
        flat = x_Ww.flatten(0, 1)
        return flat if self.full else flat[self._place]
