"""The start without pre-training."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError
from saccade.layers.vit import ViTConfig
from saccade.models.ait.config import TASK_ROWS
from saccade.models.ait.initialise import initialise_local
from saccade.models.ait.model import AiT
from saccade.models.ait.presets import nano, nano_plain
from saccade.models.ait.transformer import DecoderBlock
from saccade.tasks import Task


def near_cells(model: AiT) -> float:
    """Share of the depth codes that look first at their own cell of the memory of some picture, or at one beside it."""
    model.eval()
    with torch.no_grad():
        memory = model.encode(torch.randn(4, 3, 128, 128))
        block = cast(DecoderBlock, model.transformer.decoder[0])
        count = memory.shape[1]
        side = int(count**0.5)
        places = model.transformer.position_embed[TASK_ROWS[Task.DEPTH], :count]
        keys, _ = block.memory(memory)
        first = (block.cross.queries(block.norm2(places)[None]) @ keys.mT).argmax(-1)
    own = torch.arange(count)
    apart = torch.maximum((first // side - own // side).abs(), (first % side - own % side).abs())
    return float((apart <= 1).float().mean())


def test_every_code_looks_at_its_own_cell() -> None:
    torch.manual_seed(0)
    model = AiT(nano(128, parallel=True))
    plain = near_cells(model)
    initialise_local(model)
    assert plain < 0.4 and near_cells(model) > 0.95


def test_coordinates_are_quantities() -> None:
    torch.manual_seed(0)
    model = AiT(nano(64))
    initialise_local(model)
    rows = model.transformer.token_embed[model.config.coordinate_tokens]
    alike = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(rows, dim=1).mT
    near, far = alike.diagonal(1).mean(), alike.diagonal(len(rows) // 2).mean()
    assert near > 0.8 and far < 0.6
    others = model.transformer.token_embed[model.config.mask_tokens]
    assert 0.7 < float((rows.norm(dim=1).mean() / others.norm(dim=1).mean()).detach()) < 1.4


def test_the_codes_of_an_object_look_at_its_box() -> None:
    config = dataclasses.replace(nano(128), depth=None)
    boxes = torch.tensor([[8.0, 80.0, 40.0, 120.0], [72.0, 24.0, 104.0, 72.0], [48.0, 40.0, 80.0, 96.0]])

    def inside(model: AiT) -> Tensor:
        """Share of the attention of every object's codes that falls into its box."""
        net = model.eval().transformer
        block = cast(DecoderBlock, net.decoder[0])
        objects = config.instance
        assert objects is not None
        corners = (boxes / objects.input_size * config.bins).round().long()
        said = torch.zeros(1, objects.objects, objects.tokens_per_object, dtype=torch.long)
        said[0, : len(boxes), :4] = corners
        said[..., 4] = config.class_tokens.start
        said[..., 5:] = config.mask_tokens.start
        with torch.no_grad():
            memory = model.encode(torch.zeros(1, 3, 128, 128))
            x = net.embed(torch.tensor([TASK_ROWS[Task.INSTANCE]]), said.flatten(1)[:, :-1])
            normed = block.norm1(x)
            x = x + block.attn.attend(block.attn.queries(normed), *block.attn.keys_values(normed), causal=True)
            keys, _ = block.memory(memory)
            shares = (block.cross.queries(block.norm2(x)) @ keys.mT / keys.shape[-1] ** 0.5).softmax(-1)[0].mean(0)
        side = int(memory.shape[1] ** 0.5)
        cell = torch.arange(side**2)
        middle = torch.stack([cell % side, cell // side], dim=-1) * 16 + 8
        within = ((middle >= boxes[:, None, :2]) & (middle <= boxes[:, None, 2:])).all(-1).float()
        codes = shares.unflatten(0, (objects.objects, -1))[: len(boxes), 4:]
        return torch.einsum("otn,on->ot", codes, within).mean(1)

    torch.manual_seed(0)
    model = AiT(config)
    plain = inside(model)
    initialise_local(model)
    assert (inside(model) > 2 * plain).all()


def test_objects_need_three_heads() -> None:
    config = dataclasses.replace(nano(64), depth=None)
    narrow = dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, heads=2))
    with pytest.raises(ConfigError, match="at least 3 heads, not 2"):
        initialise_local(AiT(narrow))


def test_a_plain_vit_starts_local_too() -> None:
    torch.manual_seed(0)
    vit = ViTConfig(width=96, depth=2, heads=3, mlp_width=96, image_size=128)
    model = AiT(dataclasses.replace(nano_plain(), backbone=vit, depth=nano(128).depth))
    before = model.backbone.state_dict()["pos_embed"].clone()
    initialise_local(model)
    assert not torch.equal(model.backbone.state_dict()["pos_embed"], before)
    assert near_cells(model) > 0.95
