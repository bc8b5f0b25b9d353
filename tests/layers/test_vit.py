"""The plain ViT: windows, norms, branches, drop path, positions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saccade.errors import ConfigError, UsageError
from saccade.layers.convolution import ConvStack
from saccade.layers.vit import Block, DropPath, PlainViT, ViTConfig, from_windows, resize_position, to_windows

TINY = ViTConfig(
    width=16,
    depth=4,
    heads=2,
    mlp_width=24,
    patch_size=4,
    image_size=32,
    window_size=2,
    global_blocks=(1, 3),
    drop_path=0.0,
)


def tiny(seed: int = 0, **changes: object) -> PlainViT:
    torch.manual_seed(seed)
    vit = PlainViT(dataclasses.replace(TINY, **changes))
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit


# ---------------------------------------------------------------------- windows


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    windows=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_windows_round_trip(batch: int, windows: tuple[int, int], window: tuple[int, int]) -> None:
    size_hw = (windows[0] * window[0], windows[1] * window[1])
    x = torch.randn(batch, *size_hw, 3)
    cut = to_windows(x, window)
    assert cut.shape == (batch * windows[0] * windows[1], window[0] * window[1], 3)
    assert torch.equal(from_windows(cut, window, size_hw), x)
    # Windows are row-major, images outermost, tokens of a window row-major.
    for index in range(len(cut)):
        image, rest = divmod(index, windows[0] * windows[1])
        row, column = divmod(rest, windows[1])
        part = x[image, row * window[0] : (row + 1) * window[0], column * window[1] : (column + 1) * window[1]].reshape(
            -1, 3
        )
        assert torch.equal(cut[index], part)


@pytest.mark.parametrize("size_hw", [(5, 4), (4, 5)])
def test_cutting_a_map_that_is_no_whole_number_of_windows_is_refused(size_hw: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="not a whole number of 2x2 windows"):
        to_windows(torch.zeros(1, *size_hw, 3), 2)


def test_a_block_pads_the_normed_map_and_lets_the_padding_be_attended() -> None:
    """The rule of ViTDet and SAM: padded places are keys with the bias for a value."""
    block = Block(dataclasses.replace(TINY, global_blocks=()), 0).eval()
    torch.nn.init.normal_(block.attn.qkv.bias)
    x = torch.randn(1, 3, 5, 16)
    padded = torch.zeros(1, 4, 6, 16)
    padded[:, :3, :5] = block.norm1(x)
    branch = from_windows(block.attn(to_windows(padded, 2), (2, 2)), 2, (4, 6))[:, :3, :5]
    middle = x + branch
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))


def test_shifted_windows_join_what_plain_windows_part() -> None:
    blocks = list(tiny(shifted_windows=True, global_blocks=()))
    assert [block.shift for block in blocks] == [0, 1, 0, 1]
    x = torch.randn(1, 4, 4, 16)
    changed = x.clone()
    changed[:, 1, 1] = torch.randn(16)
    touched = (blocks[1](x) - blocks[1](changed)).abs().sum(-1)[0] > 1e-6
    assert bool(touched[1:3, 1:3].all())
    touched[1:3, 1:3] = False
    assert not bool(touched.any())


@pytest.mark.parametrize("kind", ["bottleneck", "basic", "naive"])
def test_convolutional_propagation_starts_as_the_identity_and_crosses_windows(kind: str) -> None:
    config = dataclasses.replace(TINY, global_blocks=(), conv_blocks=(1,), conv_kind=kind)
    torch.manual_seed(0)
    vit, plain = PlainViT(config).eval(), PlainViT(dataclasses.replace(config, conv_blocks=())).eval()
    plain.load_state_dict({name: tensor for name, tensor in vit.state_dict().items() if ".residual." not in name})
    image = torch.randn(1, 3, 16, 16)
    assert torch.equal(vit(image), plain(image))
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    changed = image.clone()
    changed[:, :, :4, :4] += 1
    touched = (vit(image) - vit(changed)).abs().sum(-1)[0] > 1e-6
    assert bool(touched[:, 2].any() or touched[2].any())


def test_prediction_folds_batch_norms_and_changes_nothing() -> None:
    torch.manual_seed(0)
    stack = ConvStack(
        nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 3, groups=2), nn.SiLU()
    )
    picture = torch.randn(2, 4, 12, 12)
    norm = stack[1]
    assert isinstance(norm, nn.BatchNorm2d)
    for table in (norm.running_mean, norm.weight, norm.bias):
        nn.init.normal_(table)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    stack.eval()
    plain = stack(picture)
    calls: list[Tensor] = []
    norm.register_forward_hook(lambda _module, _args, out: calls.append(out))
    with torch.no_grad():
        torch.testing.assert_close(stack(picture), plain)
        assert not calls, "the norm was not folded"
        stack.train()
        assert not torch.allclose(stack(picture), plain), "training reads the batch's own statistics"
    assert len(calls) == 1


def test_maps_after_blocks_are_those_of_a_shorter_vit() -> None:
    vit = tiny().eval()
    image = torch.randn(1, 3, 16, 16)
    early, late = vit.maps(image, [1, 3])
    x = vit.embed(image)
    for index, block in enumerate(vit):
        x = block(x)
        if index == 1:
            torch.testing.assert_close(early, x)
    torch.testing.assert_close(late, x)
    normed = tiny(final_norm=True).eval()
    last = normed.maps(image, [3])[0]
    torch.testing.assert_close(last, normed(image))


@pytest.mark.parametrize("size_hw", [(33, 32), (32, 30)])
def test_an_image_that_is_no_whole_number_of_patches_is_refused(size_hw: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="patches"):
        tiny()(torch.zeros(1, 3, *size_hw))


def test_windowed_blocks_keep_windows_apart_and_global_blocks_join_them() -> None:
    for index, apart in ((0, True), (1, False)):
        block = list(tiny())[index]
        x = torch.randn(1, 4, 4, 16)
        changed = x.clone()
        changed[:, 3, 3] = torch.randn(16)
        touched = (block(x) - block(changed)).abs().sum(-1)[0] > 1e-6
        assert bool(touched[2:, 2:].all())
        assert bool(touched[:2].any()) is not apart


def test_images_of_a_batch_do_not_see_each_other() -> None:
    vit = tiny().eval()
    images = torch.randn(3, 3, 24, 16)
    with torch.no_grad():
        together = vit(images)
        for index in range(3):
            torch.testing.assert_close(together[index], vit(images[index : index + 1])[0], rtol=1e-5, atol=1e-5)
    assert together.shape == (3, 6, 4, 16)


# ---------------------------------------------------------------------- blocks


def test_patches_are_read_row_major() -> None:
    vit = tiny(abs_pos=False)
    image = torch.randn(1, 3, 8, 16)
    embedded = vit.embed(image)
    for row in range(2):
        for column in range(4):
            patch = image[0, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
            expected = (vit.patch_embed.weight * patch).sum((1, 2, 3)) + vit.patch_embed.bias
            torch.testing.assert_close(embedded[0, row, column], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("layer_scale", [0.0, 0.5])
def test_block_equals_its_formula(norm: str, layer_scale: float) -> None:
    block = next(iter(tiny(norm=norm, layer_scale=layer_scale, global_blocks=(0,))))
    x = torch.randn(2, 2, 3, 16)
    flat = x.flatten(1, 2)

    def branch(name: str, scale: str, inner: Tensor) -> Tensor:
        layer = block.norm1 if name == "attn" else block.norm2

        def run(value: Tensor) -> Tensor:
            return block.attn(value, (2, 3)) if name == "attn" else block.mlp(value)

        out = run(layer(inner)) if norm == "pre" else layer(run(inner))
        return out * getattr(block, scale) if layer_scale else out

    flat = flat + branch("attn", "gamma1", flat)
    flat = flat + branch("mlp", "gamma2", flat)
    torch.testing.assert_close(block(x), flat.unflatten(1, (2, 3)), rtol=1e-5, atol=1e-5)


def test_mlp_has_the_exact_gelu() -> None:
    mlp = next(iter(tiny())).mlp
    x = torch.randn(5, 16)
    hidden = mlp.fc1(x)
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(mlp(x), mlp.fc2(gelu), rtol=1e-6, atol=1e-6)


def test_zero_layer_scale_parameters_make_a_block_the_identity() -> None:
    block = next(iter(tiny(layer_scale=0.1)))
    torch.nn.init.zeros_(block.gamma1)
    torch.nn.init.zeros_(block.gamma2)
    x = torch.randn(1, 4, 4, 16)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("form", ["full", "qv", "none"])
def test_bias_form_reaches_every_block(form: str) -> None:
    names = {name for name, _ in next(iter(tiny(qkv_bias=form))).attn.named_parameters()}
    assert ("qkv.bias" in names, "q_bias" in names) == (form == "full", form == "qv")


def test_table_sizes_follow_window_and_image() -> None:
    windowed, whole = list(tiny())[:2]
    assert windowed.attn.rel_pos_h.shape == (2 * 2 - 1, 8)
    assert whole.attn.rel_pos_h.shape == (2 * 8 - 1, 8)
    assert not any("rel_pos" in name or "pos_embed" in name for name in tiny(rel_pos=False, abs_pos=False).state_dict())


# ---------------------------------------------------------------------- drop path


def test_drop_path_statistics() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.3).train()
    factors = drop.draw(20_000, torch.zeros(1))
    assert factors is not None
    assert sorted(set(factors.tolist())) == pytest.approx([0.0, 1 / 0.7])
    assert float((factors == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    x = torch.randn(20_000, 2, 3)
    assert torch.equal(drop(x, factors), x * factors[:, None, None])


def test_drop_path_is_off_in_evaluation_and_at_rate_zero() -> None:
    like = torch.zeros(1)
    assert DropPath(0.3).eval().draw(4, like) is None
    assert DropPath(0.0).train().draw(4, like) is None
    x = torch.randn(2, 3)
    assert DropPath(0.3)(x, None) is x


@pytest.mark.parametrize("attention", [False, True])
def test_drop_path_rates_rise_linearly(attention: bool) -> None:
    vit = tiny(drop_path=0.3, drop_path_attention=attention)
    assert [block.drop_path.rate for block in vit] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [block.drop_path_attn.rate for block in vit] == pytest.approx([0.0, 0.1, 0.2, 0.3] if attention else [0] * 4)


def test_drop_path_drops_the_mlp_of_whole_images() -> None:
    block = Block(dataclasses.replace(TINY, drop_path=0.5, depth=2, global_blocks=()), 1).train()
    torch.manual_seed(3)
    x = torch.randn(24, 4, 4, 16)
    out = block(x)
    after_attention = x + block._attend(block.norm1(x))
    branch = block.mlp(block.norm2(after_attention))
    kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(out, after_attention + 2 * branch, strict=True)]
    dropped = [torch.allclose(a, b, atol=1e-5) for a, b in zip(out, after_attention, strict=True)]
    assert all(a != b for a, b in zip(kept, dropped, strict=True))
    assert 4 <= sum(kept) <= 20


# ---------------------------------------------------------------------- positions and wrappers


def test_position_of_its_own_size_is_the_table_itself() -> None:
    table = torch.randn(1, 4, 6, 3)
    assert resize_position(table, (4, 6)) is table


def test_position_is_resized_in_height_width_order() -> None:
    """A table that grows along its rows only: so does the resized one, and its middle is kept."""
    table = torch.arange(8.0)[None, :, None, None].expand(1, 8, 6, 2)
    resized = resize_position(table, (4, 12))
    assert resized.shape == (1, 4, 12, 2)
    assert torch.allclose(resized, resized[:, :, :1, :1].expand_as(resized), atol=1e-5)
    assert bool((resized[0, :, 0, 0].diff() > 0).all())
    assert float(resized.mean()) == pytest.approx(3.5, abs=1e-4)
    assert resize_position(table.bfloat16(), (4, 4)).dtype is torch.bfloat16


def test_another_input_size_uses_resized_positions() -> None:
    vit = tiny(rel_pos=False)
    images = torch.zeros(1, 3, 16, 48)
    added = vit.embed(images) - vit.patch_embed(images).permute(0, 2, 3, 1)
    torch.testing.assert_close(added, resize_position(vit.pos_embed, (4, 12)), rtol=1e-5, atol=1e-5)


def test_activation_checkpointing_gives_equal_gradients() -> None:
    images = torch.randn(2, 3, 32, 32)
    found = []
    for enabled in (False, True):
        vit = tiny(drop_path=0.5).train()
        vit.activation_checkpointing = enabled
        torch.manual_seed(7)
        out = vit(images)
        out.square().mean().backward()
        found.append((out.detach(), {name: p.grad for name, p in vit.named_parameters()}))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        assert gradient is not None
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_activation_checkpointing_recomputes(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = tiny()
    calls = []
    real = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x: calls.append(1) or real(self, x))
    vit.activation_checkpointing = True
    vit(torch.randn(1, 3, 32, 32)).sum().backward()
    assert len(calls) == 2 * len(vit.blocks)
    calls.clear()
    with torch.no_grad():
        vit(torch.randn(1, 3, 32, 32))
    assert len(calls) == len(vit.blocks)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_compiles_into_one_graph(training: bool) -> None:
    vit = tiny(drop_path=0.2).train(training)
    images = torch.randn(2, 3, 32, 32)
    torch._dynamo.reset()
    compiled = torch.compile(vit, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(training):
        torch.manual_seed(0)
        plain = vit(images)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(images), plain, rtol=1e-5, atol=1e-6)


def test_exports() -> None:
    vit = tiny().eval()
    images = torch.randn(1, 3, 32, 32)
    program = torch.export.export(vit, (images,))
    with torch.no_grad():
        other = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(program.module()(other), vit(other), rtol=1e-5, atol=1e-6)


def test_config_errors_name_the_field() -> None:
    with pytest.raises(ConfigError, match=r"vit\.width"):
        ViTConfig(width=100, heads=12)
    with pytest.raises(ConfigError, match=r"vit\.image_size"):
        ViTConfig(image_size=100, patch_size=16)


# ---------------------------------------------------------------------- class token, and pixels that fill no patch

GLOBAL = {"global_blocks": (0, 1, 2, 3), "rel_pos": False, "final_norm": True}


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_class_token_equals_a_plain_transformer_over_all_tokens(norm: str) -> None:
    vit = tiny(class_token=True, norm=norm, qkv_bias="qv", **GLOBAL).eval()
    images = torch.randn(2, 3, 16, 24)
    x = vit.embed(images).flatten(1, 2)
    x = torch.cat([(vit.class_token + vit.class_position).expand(2, 1, 16), x], dim=1)
    for block in vit:
        if norm == "pre":
            x = x + block.attn(block.norm1(x), (1, 25))
            x = x + block.mlp(block.norm2(x))
        else:
            x = x + block.norm1(block.attn(x, (1, 25)))
            x = x + block.norm2(block.mlp(x))
    assert vit.norm is not None
    expected = vit.norm(x)
    torch.testing.assert_close(vit.tokens(images), expected)
    torch.testing.assert_close(vit(images), expected[:, 1:].unflatten(1, (4, 6)))


def test_without_a_class_token_the_same_weights_see_patches_alone() -> None:
    with_token, without = tiny(class_token=True, **GLOBAL), tiny(**GLOBAL)
    missing = with_token.load_state_dict(without.state_dict(), strict=False)
    assert missing.missing_keys == ["class_token", "class_position"]
    images = torch.randn(1, 3, 16, 16)
    assert not torch.allclose(with_token(images), without(images), atol=1e-3)
    with pytest.raises(UsageError, match="no class token"):
        without.tokens(images)


@pytest.mark.parametrize("change", [{"global_blocks": (0, 1)}, {"rel_pos": True}, {"conv_blocks": (1,)}])
def test_a_class_token_needs_blocks_that_see_everything(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="class token"):
        tiny(class_token=True, **{**GLOBAL, **change})


def test_pixels_that_fill_no_patch_are_refused_or_dropped_as_configured() -> None:
    images = torch.randn(1, 3, 19, 17)
    with pytest.raises(UsageError, match="not a whole number of 4x4 patches"):
        tiny()(images)
    dropping = tiny(ragged="drop")
    assert torch.equal(dropping(images), dropping(images[:, :, :16, :16]))
    with pytest.raises(UsageError, match="no whole patch"):
        dropping(images[:, :, :3])
