"""The pixel decoder and the masked decoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saccade.errors import ConfigError
from saccade.layers.mask2former import (
    MaskedDecoder,
    MaskedDecoderConfig,
    PixelDecoder,
    PixelDecoderConfig,
    blocked_cells,
)

PIXELS = PixelDecoderConfig(width=16, mask_width=12, heads=2, points=2, mlp_width=24, layers=2, groups=4)
DECODER = MaskedDecoderConfig(heads=2, mlp_width=24, layers=2, queries=5)


def make_decoder() -> MaskedDecoder:
    return MaskedDecoder(DECODER, width=16, mask_width=12, logits=4)


def test_any_map_becomes_masks_and_every_weight_learns() -> None:
    torch.manual_seed(0)
    pixels, decoder = PixelDecoder(PIXELS, 10), make_decoder()
    for layer in pixels.layers:  # these start at 0, and what stands before them learns from the second step on
        nn.init.normal_(layer.attn.offsets.weight)
        nn.init.normal_(layer.attn.weights.weight)
    memory, masks = pixels(torch.randn(2, 5, 7, 10))
    assert memory.shape == (2, 5, 7, 16) and masks.shape == (2, 5, 7, 12)
    logits, found = decoder(memory, masks)
    assert logits.shape == (3, 2, 5, 4) and found.shape == (3, 2, 5, 5, 7)
    (logits.square().sum() + found.square().sum()).backward()
    for name, parameter in [*pixels.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_batch_is_its_images() -> None:
    torch.manual_seed(0)
    pixels, decoder = PixelDecoder(PIXELS, 10).eval(), make_decoder().eval()
    with torch.no_grad():
        for layer in (*pixels.layers.children(), *decoder.layers.children()):
            for norm in (module for module in layer.modules() if isinstance(module, nn.LayerNorm)):
                norm.weight.normal_()
        maps = torch.randn(3, 4, 6, 10)
        logits, masks = decoder(*pixels(maps))
        for index in range(3):
            alone = decoder(*pixels(maps[index : index + 1]))
            torch.testing.assert_close(logits[:, index], alone[0][:, 0])
            torch.testing.assert_close(masks[:, index], alone[1][:, 0])


def test_queries_look_inside_their_masks_only() -> None:
    torch.manual_seed(0)
    decoder = make_decoder().eval()
    layer = decoder.layers[0]
    state, queries = torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    keys, values = torch.randn(1, 20, 16), torch.randn(1, 20, 16)
    logits = torch.randn(1, 5, 20)
    logits[0, 0] = -1  # nothing is free: this query looks everywhere
    logits[0, 1:, :3] = -1
    blocked = blocked_cells(logits)
    assert not blocked[0, 0].any() and blocked[0, 1:, :3].all()
    before = layer(state, queries, keys, values, blocked)
    values[:, :3] += 10.0
    after = layer(state, queries, keys, values, blocked)
    changed = (before - after).abs().amax(-1)[0]
    assert changed[0] > 1e-3
    # The other queries hear of it through the first one alone.
    alone = layer.cross(state, keys, values, attn_mask=blocked[0], need_weights=False)[0]
    values[:, :3] -= 10.0
    same = layer.cross(state, keys, values, attn_mask=blocked[0], need_weights=False)[0]
    torch.testing.assert_close(alone[:, 1:], same[:, 1:])


def test_the_mask_has_no_gradient() -> None:
    logits = torch.randn(1, 2, 3, requires_grad=True)
    assert not blocked_cells(logits).requires_grad


def test_the_start_is_the_published_one() -> None:
    torch.manual_seed(0)
    pixels, decoder = PixelDecoder(PIXELS, 40), make_decoder()
    convs = [module for module in pixels.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 4
    for conv in convs:
        fan_in = conv.weight[0].numel()
        fan_out = conv.out_channels
        # Xavier for the projection of the input, uniform in sqrt(3 / fan in) for the others.
        bound = (6 / (fan_in + fan_out)) ** 0.5 if conv is pixels.input_proj[0] else (3 / fan_in) ** 0.5
        assert 0.9 * bound < conv.weight.abs().max() <= bound
        assert conv.bias is None or not conv.bias.any()
    for layer in decoder.layers:
        bound = (6 / (16 + 24)) ** 0.5
        assert 0.9 * bound < layer.mlp.layers[0].weight.abs().max() <= bound
    assert 0.5 < decoder.query_feat.weight.std() < 1.5


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple"):
        PixelDecoderConfig(width=30)
    with pytest.raises(ConfigError, match="multiple"):
        MaskedDecoder(MaskedDecoderConfig(heads=3), width=16, mask_width=8, logits=2)
