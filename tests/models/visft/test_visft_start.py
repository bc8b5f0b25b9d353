"""The start of a backbone that has seen nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch

from saccade.layers.vit import PlainViT
from saccade.models.visft.initialise import initialise_local, initialise_published
from saccade.models.visft.presets import nano_vit


@torch.no_grad()
def misplaced(start: Callable[[PlainViT], None]) -> float:
    """Root mean square error, in sides of the map, of a linear guess where a cell stands, on pictures of noise."""
    torch.manual_seed(0)
    backbone = PlainViT(nano_vit()).eval()
    start(backbone)
    maps = backbone(torch.randn(24, 3, 112, 112))
    side = maps.shape[1]
    cells = torch.cat([maps, torch.ones_like(maps[..., :1])], dim=-1)
    axis = torch.arange(side) / side
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).expand(len(maps), -1, -1, -1)
    guess = torch.linalg.lstsq(cells[:16].flatten(0, 2), places[:16].flatten(0, 2)).solution
    return float((cells[16:] @ guess - places[16:]).square().mean().sqrt())


def test_positions_last_to_the_end_of_the_backbone() -> None:
    chance = 12**-0.5
    assert misplaced(initialise_published) > 0.9 * chance
    assert misplaced(initialise_local) < 0.5 * chance
