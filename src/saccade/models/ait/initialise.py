"""A start for AiT models that are trained without any pre-training.

The published solvers start from SimMIM, on 24,000 rooms or 117,000 photographs. From plain random weights a small
solver learns the grammar of the codes first, which token follows which, and says the same map whatever it sees: what a
token reads of the memory is an average of all of it. :func:`initialise_local` writes into the fresh weights where
things are; neither the architecture nor what is trained changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError
from saccade.layers.local_start import start_local
from saccade.layers.swin import PatchMerging, SwinBlock, SwinV2
from saccade.layers.vit import PlainViT
from saccade.models.ait.config import TASK_ROWS, ObjectsConfig
from saccade.models.ait.transformer import DecoderBlock, TransformerConfig, sine_positions, sine_waves
from saccade.tasks import Task

if TYPE_CHECKING:
    from saccade.models.ait.model import AiT

_LOOK = 3.0  # gain of the places in queries and in keys to the memory
_SAME, _CORNER = 2.0, 4.0  # gains of names and of what kind of corner, in the search for an object's corners
_TOLD = 0.25  # how much of a state becomes the place that the corners tell


@torch.no_grad()
def initialise_local(model: AiT) -> None:
    """Rewrites fresh weights in place; draws from torch's CPU generator.

    * The blocks of a SwinV2 begin as nothing (their norms have the weight 0, as in its own paper), patches and merges
      as rotations, so that the last map is a picture in fewer, richer pixels. A plain ViT starts local.
    * Coordinates get sinusoidal rows: neighbouring bins are alike, so that they are learned as quantities.
    * The place of a depth code in the sequence is known as its place in the map. The memory says its places where the
      sines tell neighbours apart, and nothing else there; half of every head compares just that. So every code looks
      first at its own cell or at one beside it.
    * The codes of an object look first at the middle of its box.

    Raises:
        ConfigError: Objects, and fewer than 3 heads.
    """
    if isinstance(model.backbone, PlainViT):
        start_local(model.backbone)
    else:
        _start_swin(model.backbone)
    net = model.transformer
    width = net.config.width
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    net.token_embed.normal_(std=width**-0.5)
    _order_coordinates(net.token_embed[model.config.coordinate_tokens])
    head_dim = width // net.config.heads
    channels = _Channels.of(net.config)
    places = channels.places
    net.memory_norm.weight[places] = 0
    net.memory_mlp.fc2.weight[places] = 0
    for block in cast("list[DecoderBlock]", net.decoder):
        query = block.cross.query.weight
        for first in range(0, width, head_dim):
            query[first : first + len(places)] = 0
            query[first + torch.arange(len(places)), places] = _LOOK
        block.cross.key.weight.copy_(query)
    for task, objects in ((Task.DETECTION, model.config.detection), (Task.INSTANCE, model.config.instance)):
        if objects is not None:
            _start_objects(model, task, objects, channels)
    if model.config.depth is not None:
        grid = model.config.depth.depth.grid
        cells = sine_positions(grid, grid, width).flatten(0, 1)
        if model.config.detection is not None or model.config.instance is not None:
            cells[:, channels.objects] = 0
        net.position_embed[TASK_ROWS[Task.DEPTH], : len(cells)] = cells


@dataclass(frozen=True)
class _Channels:
    """Channels of the decoder's states that mean something from the beginning.

    Attributes:
        rows: The place in the map that a state looks at: the fastest waves of its row ...
        columns: ... and of its column, as the memory says its own places.
        said: The coordinate that a token says, by the same waves. (Slow waves of the map, which say nothing.)
        name: Which object a token belongs to.
        x: Whether it is told a left or right corner ...
        y: ... or an upper or lower one.
    """

    rows: Tensor
    columns: Tensor
    said: Tensor
    name: Tensor
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, config: TransformerConfig) -> Self:
        half, waves = config.width // 2, config.width // config.heads // 4
        rows = torch.arange(waves)
        slow = torch.arange(half - 3 * waves - 2, half)
        x, y, name, said = slow.split([1, 1, 2 * waves, waves])
        return cls(rows, half + rows, said, name, x, y)

    @property
    def places(self) -> Tensor:
        """Of rows and columns."""
        return torch.cat([self.rows, self.columns])

    @property
    def objects(self) -> Tensor:
        """What only sequences of objects have."""
        return torch.cat([self.said, self.name, self.x, self.y])


def _start_objects(model: AiT, task: Task, objects: ObjectsConfig, channels: _Channels) -> None:
    """Class and mask codes look first at the middle of their box; a coordinate that is said is a place of the map.

    Tokens know by which name their object goes. The first head of the first block finds the tokens of the same name
    that say x, the second those that say y, and what they say becomes the place that the state looks at.
    """
    net = model.transformer
    width, head_dim = net.config.width, net.config.width // net.config.heads
    if net.config.heads < 3:
        raise ConfigError(
            f"the local start of objects needs at least 3 heads, not {net.config.heads}", where="transformer.heads"
        )
    own = torch.cat([channels.places, channels.objects])
    std = width**-0.5
    names = F.normalize(torch.randn(objects.objects, len(channels.name)), dim=1) * std * len(channels.name) ** 0.5
    slots = torch.randn(objects.tokens_per_object, width) * std
    slots[:, own] = 0
    # The decoder reads at every place the token before: x and y of two corners at the places 1 to 4.
    slots[1:5:2, channels.x] = slots[2:5:2, channels.y] = 2 * std
    slots[2:5:2, channels.x] = slots[1:5:2, channels.y] = -2 * std
    embed = slots.expand(objects.objects, -1, -1).clone()
    embed[:, :, channels.name] = names[:, None]
    net.position_embed[TASK_ROWS[task], : objects.length] = embed.flatten(0, 1)

    net.token_embed[:, own] = 0
    coordinates = net.token_embed[model.config.coordinate_tokens]
    cells = torch.linspace(0, 1, len(coordinates)) * net.config.grid - 0.5
    waves = sine_waves(cells, width // 2)[:, : len(channels.said)]
    coordinates[:, channels.said] = waves * (2 / width) ** 0.5

    attn = cast("DecoderBlock", net.decoder[0]).attn
    for head, (marker, place) in enumerate(((channels.x, channels.columns), (channels.y, channels.rows))):
        dims = head * head_dim + torch.arange(head_dim)
        for part in (attn.query, attn.key, attn.value):
            part.weight[dims] = 0
        alike, told = dims[: len(channels.name)], dims[: len(place)]
        attn.query.weight[alike, channels.name] = attn.key.weight[alike, channels.name] = _SAME
        attn.query.bias[dims[-1]] = attn.key.weight[dims[-1], marker] = _CORNER
        attn.value.weight[told, channels.said] = 1
        attn.proj.weight[place] = 0
        attn.proj.weight[place, told] = _TOLD


def _start_swin(backbone: SwinV2) -> None:
    nn.init.orthogonal_(backbone.patch_embed.weight)
    assert backbone.patch_embed.bias is not None
    nn.init.zeros_(backbone.patch_embed.bias)
    for module in backbone.modules():
        if isinstance(module, SwinBlock):
            nn.init.zeros_(module.norm1.weight)
            nn.init.zeros_(module.norm2.weight)
        elif isinstance(module, PatchMerging):
            nn.init.orthogonal_(module.reduction.weight)


def _order_coordinates(rows_KC: Tensor) -> None:
    """Overwrites the rows by waves from two ranges down to four bins, of the same length as before."""
    count, width = rows_KC.shape
    half = width // 2
    waves = math.pi * (count / 4) ** (torch.arange(half) / (half - 1)) / count
    angle = torch.arange(count)[:, None] * waves
    rows_KC[:, : 2 * half] = torch.cat([angle.sin(), angle.cos()], dim=1) * (2 / width) ** 0.5
