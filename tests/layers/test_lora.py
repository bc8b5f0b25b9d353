"""Low-rank updates: the plain formula, from outside, there and back."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from saccade.errors import ConfigError, UsageError
from saccade.layers.lora import (
    LoRAConfig,
    add_lora,
    fold,
    lora_of,
    merge,
    set_multiplier,
    unmerge,
    updates_of,
)
from saccade.layers.vit import PlainViT, ViTConfig

VIT = ViTConfig(
    width=12,
    depth=3,
    heads=2,
    mlp_width=20,
    patch_size=4,
    image_size=16,
    global_blocks=(0, 1, 2),
    rel_pos=False,
    qkv_bias="qv",
    drop_path=0.0,
)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """A backbone, and something behind it."""

    def __init__(self, seed: int = 0, **changes: object) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = PlainViT(dataclasses.replace(VIT, **changes))
        self.head = nn.Linear(12, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images).mean((1, 2)))


def updated(seed: int = 0, **changes: object) -> Net:
    """With updates that do something."""
    net = Net(seed)
    add_lora(net, LoRAConfig(**{"rank": 3, "alpha": 1.0, **changes}))
    for _, update in updates_of(net).values():
        nn.init.normal_(update.B, std=0.5)
    return net


def dense(net: Net, multiplier: int = 1, **changes: object) -> Net:
    """A plain model whose weights hold the updates, computed from their definition."""
    plain = Net(**changes)
    state = {key: value.clone() for key, value in net.state_dict().items() if ".lora." not in key}
    for name, (_, update) in updates_of(net).items():
        rank, row = update.config.rank, 0
        for group, (first, last) in enumerate(update.rows):
            up, down = update.B[row : row + last - first], update.A[group * rank : (group + 1) * rank]
            row += last - first
            change = torch.einsum("or,ri->oi", up, down) * update.config.alpha / rank * multiplier
            state[f"{name}.weight"][first:last] += change.detach()
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("bias", ["qv", "full", "none"])
@pytest.mark.parametrize("targets", [("backbone.*.qkv:qv",), ("*.qkv",), ("*.fc?", "*.qkv:k"), ("*.proj",)])
def test_the_update_is_that_of_the_formula(bias: str, targets: tuple[str, ...], gradients: bool) -> None:
    torch.manual_seed(1)
    net = Net(qkv_bias=bias)
    add_lora(net, LoRAConfig(rank=3, alpha=1.0, targets=targets))
    before = net(IMAGES)
    assert torch.equal(before, Net(qkv_bias=bias)(IMAGES))  # B is 0
    for _, update in updates_of(net).values():
        nn.init.normal_(update.B, std=0.5)
    plain = dense(net, qkv_bias=bias)
    with torch.set_grad_enabled(gradients):
        found = net(IMAGES)
    torch.testing.assert_close(found, plain(IMAGES), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3)


def test_gradients_are_those_of_dense_updates() -> None:
    net = updated()
    net(IMAGES).square().sum().backward()
    plain = dense(net)
    plain(IMAGES).square().sum().backward()
    for name, (_, update) in updates_of(net).items():
        whole = dict(plain.named_parameters())[f"{name}.weight"].grad
        assert whole is not None and update.A.grad is not None and update.B.grad is not None
        for group, (first, last) in enumerate(update.rows):
            a = slice(group * 3, group * 3 + 3)
            b = slice(group * 12, group * 12 + 12)
            scale = 1 / 3
            torch.testing.assert_close(
                update.B.grad[b], whole[first:last] @ update.A[a].T * scale, rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                update.A.grad[a], update.B[b].T @ whole[first:last] * scale, rtol=1e-4, atol=1e-5
            )
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {f"backbone.blocks.{i}.attn.qkv.lora.{part}" for i in range(3) for part in "AB"}
    assert {name for name, p in net.named_parameters() if p.grad is not None} == trained


def test_keys_are_left_alone_and_the_model_keeps_its_names() -> None:
    net = updated()
    rows = updates_of(net)["backbone.blocks.0.attn.qkv"][1].rows
    assert rows == ((0, 12), (24, 36))
    assert set(Net().state_dict()) < set(net.state_dict())
    assert lora_of(net) == LoRAConfig(rank=3, alpha=1.0) and lora_of(Net()) is None


def test_merging_is_the_same_and_comes_back_bit_for_bit() -> None:
    net = updated()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    before, name = net(IMAGES), "backbone.blocks.1.attn.qkv.weight"
    for _ in range(3):
        merge(net)
        merge(net)  # twice is once
        torch.testing.assert_close(net(IMAGES), before, rtol=1e-5, atol=1e-5)
        assert not torch.equal(net.state_dict()[name], state[name])
        unmerge(net)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(net(IMAGES), before)


def test_folding_leaves_a_plain_model() -> None:
    net = updated()
    before = net(IMAGES)
    fold(net)
    assert lora_of(net) is None and set(net.state_dict()) == set(Net().state_dict())
    torch.testing.assert_close(net(IMAGES), before, rtol=1e-5, atol=1e-5)
    add_lora(net, LoRAConfig(rank=2))  # a second time is possible, and hooks act once
    torch.testing.assert_close(net(IMAGES), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True])
def test_the_multiplier_counts_twice(merged: bool) -> None:
    net = updated()
    set_multiplier(net, 2)
    expected = dense(net, 2)(IMAGES)
    if merged:
        merge(net)
        with pytest.raises(UsageError, match="merged"):
            set_multiplier(net, 1)
    torch.testing.assert_close(net(IMAGES), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    rank=st.integers(1, 9), letters=st.sampled_from(["q", "k", "v", "qk", "qv", "qkv", "vq"]), seed=st.integers(0, 99)
)
def test_any_rank_and_thirds_merge_to_what_the_forward_pass_gives(rank: int, letters: str, seed: int) -> None:
    net = Net(seed)
    torch.manual_seed(seed)
    add_lora(net, LoRAConfig(rank=rank, targets=(f"*.qkv:{letters}",)))
    for _, update in updates_of(net).values():
        nn.init.normal_(update.B)
    out = net(IMAGES)
    merge(net)
    torch.testing.assert_close(net(IMAGES), out, rtol=1e-4, atol=1e-4)


def test_without_thirds_it_is_what_peft_does() -> None:
    ours, theirs = Net(), Net()
    add_lora(ours, LoRAConfig(rank=4, alpha=6.0, targets=("*.fc1",)))
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, target_modules=r".*\.fc1"), theirs)
    for name, (_, update) in updates_of(ours).items():
        nn.init.normal_(update.B)
        layer = theirs.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(update.A)
        layer.lora_B["default"].weight.data.copy_(update.B)
    torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_copy_is_a_model_of_its_own() -> None:
    net = updated()
    other = copy.deepcopy(net)
    for _, update in updates_of(other).values():
        nn.init.zeros_(update.B)
    assert torch.equal(other(IMAGES), Net()(IMAGES))
    assert not torch.allclose(net(IMAGES), other(IMAGES), atol=1e-3)


def test_bfloat16_runs() -> None:
    net = updated()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(IMAGES)
    out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), net(IMAGES), rtol=0.1, atol=0.1)


def test_further_parameters_can_be_trained_in_full() -> None:
    net = Net()
    add_lora(net, LoRAConfig(rank=2, trained=("head.*",)))
    trained = {name for name, p in net.named_parameters() if p.requires_grad and ".lora." not in name}
    assert trained == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": -1.0}, "alpha"),
        ({"targets": ()}, "no layer"),
        ({"targets": ("*.qkv:x",)}, "chooses nothing"),
        ({"targets": ("*.qkv:",)}, "chooses nothing"),
        ({"targets": ("*.query",)}, "no linear layer is called"),
        ({"targets": ("*.fc1:q",)}, "does not make queries"),
        ({"targets": ("*.qkv:q", "*.qkv:v")}, "fits two patterns"),
        ({"trained": ("heads.*",)}, "no parameter is called"),
    ],
)
def test_what_fits_nothing_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        add_lora(Net(), LoRAConfig(**changes))


def test_a_second_set_of_updates_is_refused() -> None:
    with pytest.raises(UsageError, match="already"):
        add_lora(updated(), LoRAConfig())
