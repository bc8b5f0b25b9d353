"""Losses of masks that look at drawn points instead of every pixel.

Source: PointRend, CVPR 2020, section 3.1, as Mask2Former (CVPR 2022, section 3.3) uses it. Points are relative, 0..1, x
before y; masks of any two sizes meet at them. Bilinear, zeros outside: points within half a cell of the border are
weakened.

Shape legend: L layers, Q queries, G ground truths, N masks, P points, h w map of the logits, H W map of the truths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.layers.deform import bilinear_taps
from saccade.layers.losses import dice_error

Draw: TypeAlias = Callable[[int, int, torch.device], Tensor]
"""So many rows of so many points, ``[rows, points, 2]``."""


def draw_uniformly(rows: int, points: int, device: torch.device) -> Tensor:
    """Uniform over the map."""
    return torch.rand(rows, points, 2, device=device)


def draw_known(known_HW: Tensor) -> Draw:
    """Uniform over the middles of known pixels, where bilinear truths hold nothing of a pixel that is not known.

    Args:
        known_HW: Bool, with at least one such pixel.
    """
    size_hw = torch.tensor(known_HW.shape, device=known_HW.device)
    places_N2 = ((known_HW.nonzero() + 0.5) / size_hw).flip(1)

    def draw(rows: int, points: int, device: torch.device) -> Tensor:
        return places_N2[torch.randint(len(places_N2), (rows, points), device=device)]

    return draw


def mask_costs(masks_LQhw: Tensor, truths_GHW: Tensor, points_LP2: Tensor) -> tuple[Tensor, Tensor]:
    """What it costs to let a query answer for a mask, by layer: mean cross entropy and Dice error at points.

    Args:
        masks_LQhw: Logits.
        truths_GHW: Masks, bool or 0..1.
        points_LP2: Points of each layer, shared by all masks.

    Returns:
        Both ``[L, Q, G]``.
    """
    # Shared points: all masks are read in one go.
    wanted_LGP = F.grid_sample(truths_GHW.float()[None], 2 * points_LP2[None] - 1, align_corners=False)[0].transpose(
        0, 1
    )
    entropies, dices = [], []
    for masks_Qhw, wanted_GP, points_P2 in zip(masks_LQhw.float(), wanted_LGP, points_LP2, strict=True):
        cells, shares = bilinear_taps(points_P2, (masks_Qhw.shape[1], masks_Qhw.shape[2]))
        said_PQ = F.embedding_bag(cells, masks_Qhw.flatten(1).T.contiguous(), mode="sum", per_sample_weights=shares)
        # softplus(-o) t + softplus(o) (1 - t) is softplus(o) - o t: one pass over the logits serves every truth.
        entropy_GQ = F.softplus(said_PQ).sum(0) - wanted_GP @ said_PQ
        chance_PQ = said_PQ.sigmoid()
        whole_GQ = chance_PQ.sum(0) + wanted_GP.sum(1, keepdim=True)
        entropies.append(entropy_GQ.T / len(points_P2))
        dices.append((1 - (2 * wanted_GP @ chance_PQ + 1) / (whole_GQ + 1)).T)
    return torch.stack(entropies), torch.stack(dices)


def uncertain_points(
    masks_Nhw: Tensor, points: int, *, oversample: float, importance: float, draw: Draw = draw_uniformly
) -> Tensor:
    """Points of which most lie where the logits are near 0.

    Args:
        masks_Nhw: Logits.
        points: Points P of each mask.
        oversample: How many times P are drawn to choose from.
        importance: Share of P that is chosen; the others are new.
        draw: Draws points.

    Returns:
        ``[N, P, 2]``.
    """
    with torch.no_grad():
        candidates = draw(len(masks_Nhw), int(oversample * points), masks_Nhw.device)
        chosen = int(importance * points)
        doubt = sample_masks(masks_Nhw, candidates).abs()
        best = doubt.topk(chosen, dim=1, largest=False, sorted=False).indices
        kept = candidates.gather(1, best[..., None].expand(-1, -1, 2))
        return torch.cat([kept, draw(len(masks_Nhw), points - chosen, masks_Nhw.device)], dim=1)


def point_errors(
    masks_Nhw: Tensor, truths_GHW: Tensor, truth_of_N: Tensor, points_NP2: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cross entropy and Dice error of masks at points, each ``[N]``.

    Args:
        masks_Nhw: Logits.
        truths_GHW: Masks, bool or 0..1.
        truth_of_N: The truth of each mask; no two share one.
        points_NP2: Points of each mask.
    """
    with torch.no_grad():
        # In the order of the truths, so that those (the largest tensor here) need no copy.
        order = truth_of_N.argsort()
        truths = truths_GHW if len(order) == len(truths_GHW) else truths_GHW[truth_of_N[order]]
        wanted = torch.empty_like(points_NP2[..., 0])
        wanted[order] = sample_masks(truths, points_NP2[order])
    said = sample_masks(masks_Nhw, points_NP2)
    entropy = F.binary_cross_entropy_with_logits(said, wanted, reduction="none").mean(1)
    return entropy, dice_error(said.sigmoid(), wanted)


def sample_masks(masks_Nhw: Tensor, points_NP2: Tensor) -> Tensor:
    """Values of maps at points of their own, ``[N, P]`` float32."""
    grid = 2 * points_NP2[:, :, None] - 1
    return F.grid_sample(masks_Nhw.float()[:, None], grid, align_corners=False)[:, 0, :, 0]
