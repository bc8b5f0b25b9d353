"""ViSFT keeps the contract of a model: losses, frozen parts, predictions, saving; and holds no square of tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers_visft import CLASSES, SIZE, batch, tiny_config, tiny_words
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import tv_tensors

from saccade.configs import from_dict, to_dict
from saccade.data.transforms import collate, preprocess
from saccade.errors import ConfigError, UsageError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.layers.lora import LoRAConfig, add_lora
from saccade.models.systems import backbone_of, build, fixed_classes, input_size, offers, system_of
from saccade.models.visft.caption import CaptionHeadConfig
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.initialise import initialise_published
from saccade.models.visft.model import ViSFT
from saccade.models.visft.presets import PRESETS, eva, nano, nano_pair, nano_vit
from saccade.results import Caption, Instances
from saccade.samples import Origin, Preprocess, Sample, Target
from saccade.tasks import Task

TASKS = (Task.DETECTION, Task.INSTANCE, Task.CAPTION)
HEADS = {Task.DETECTION: "detection", Task.INSTANCE: "instance", Task.CAPTION: "caption"}


def model(seed: int = 0, **changes: object) -> ViSFT:
    torch.manual_seed(seed)
    return ViSFT(tiny_config(**changes), tiny_words())


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("task", TASKS)
def test_the_first_stage_trains_one_head_and_nothing_else(task: Task) -> None:
    net = model().train()
    losses = net.loss(batch(task))
    assert all(name.startswith(f"{task}_loss") and bool(value.isfinite()) for name, value in losses.items())
    total(losses).backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None}
    assert reached and all(name.startswith(f"{HEADS[task]}.") for name in reached)
    assert not net.features(batch(task).images).requires_grad
    assert not net.backbone.training and net.get_submodule(HEADS[task]).training


@pytest.mark.parametrize("task", TASKS)
def test_the_second_stage_trains_updates_alone_through_still_heads(task: Task) -> None:
    net = model()
    add_lora(net, LoRAConfig(rank=2, alpha=1.0))
    net.train()
    assert not any(net.get_submodule(head).training for head in HEADS.values()) and net.backbone.training
    losses = net.loss(batch(task))
    total(losses).backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in net.named_parameters() if ".lora." in name}
    assert not any(parameter.grad is not None for parameter in net.backbone.patch_embed.parameters())


def test_dropout_of_frozen_heads_acts_only_where_it_is_asked_for() -> None:
    def losses(**changes: object) -> list[float]:
        net = model(**changes)
        add_lora(net, LoRAConfig(rank=2))
        net.train()
        return [float(total(net.loss(batch(Task.CAPTION))).detach()) for _ in range(2)]

    still, noisy = losses(), losses(frozen_dropout=True)
    assert still[0] == still[1] and noisy[0] != noisy[1]


def test_everything_can_be_trained() -> None:
    net = model(trained=("backbone", "detection", "instance", "caption")).train()
    for task in TASKS:
        total(net.loss(batch(task))).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_falls(task: Task) -> None:
    net = model().train()
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=3e-3)
    values = []
    for step in range(30):
        torch.manual_seed(step)
        loss = total(net.loss(batch(task)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert sum(values[-5:]) < 0.9 * sum(values[:5]), values


def test_predictions_speak_of_the_original_picture() -> None:
    net = model().eval()
    for task in TASKS:
        for answer in net.predict(batch(task)):
            if task is Task.CAPTION:
                assert isinstance(answer, Caption)
                continue
            assert isinstance(answer, Instances)
            assert answer.size_hw == (100, 90) and answer.classes.names == CLASSES
            assert (answer.masks is not None) == (task is Task.INSTANCE)


def test_heads_are_optional() -> None:
    net = model(detection=None, caption=None)
    assert net.tasks == (Task.INSTANCE,) and set(net.parts) == {"backbone", "instance"}
    with pytest.raises(UsageError, match="does not offer the task 'caption'"):
        net.predict(batch(Task.CAPTION))
    assert not offers(net.config, Task.DETECTION) and offers(net.config, Task.INSTANCE)


def test_it_is_one_of_the_systems() -> None:
    net = build(tiny_config(), tiny_words())
    assert isinstance(net, ViSFT) and system_of(net.config) == "visft" and backbone_of(net) is net.backbone
    assert [input_size(net.config, task) for task in TASKS] == [SIZE] * 3
    listed = fixed_classes(net)
    assert listed is not None and listed.names == CLASSES and listed.category_ids == (1, 2, 5)
    assert from_dict(ViSFTConfig, to_dict(net.config)) == net.config


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    net = model().eval()
    classes = {task: net.classes for task in TASKS if task is not Task.CAPTION}
    loaded = load_folder(save_model(net, tmp_path / "m", classes=classes, provenance={})).model
    assert isinstance(loaded, ViSFT) and loaded.vocabulary == net.vocabulary
    for task in TASKS:
        one, other = net.predict(batch(task)), loaded.predict(batch(task))
        assert [answer.to_dict() for answer in one] == [answer.to_dict() for answer in other]


def test_activation_checkpointing_changes_nothing() -> None:
    grads = []
    for enabled in (False, True):
        net = model()
        add_lora(net, LoRAConfig(rank=2))
        for name, parameter in net.named_parameters():
            if name.endswith("lora.B"):
                torch.nn.init.normal_(parameter)
        net.set_activation_checkpointing(enabled)
        torch.manual_seed(1)
        total(net.train().loss(batch(Task.DETECTION))).backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) == 6 and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


# ---------------------------------------------------------------------- sizes


def test_the_published_sizes() -> None:
    for name, elements, tensors in (("eva-g", 1_011_144_704, 525), ("eva-e", 4_348_719_104, 837)):
        with torch.device("meta"):
            net = ViSFT(dataclasses.replace(PRESETS[name](), detection=None, instance=None, caption=None))
        state = net.backbone.state_dict()
        first = net.config.vit.width  # the position of the class token, which is not kept
        assert sum(value.numel() for value in state.values()) + first == elements
        assert len(state) == tensors
    assert nano_vit().grid_size == 14 and nano_pair(500).vit.class_token


def test_published_predictions_have_the_published_network_input() -> None:
    """specs/visft.md 7.2 and 7.3; sizes of the pictures as torchvision's functions of the original give them."""
    with torch.device("meta"):
        net = ViSFT(dataclasses.replace(PRESETS["eva-g"](), vit=eva(width=16, depth=1, heads=2, mlp_width=8)))
    assert net.preprocess(Task.DETECTION) == Preprocess(
        size_hw=(672, 672), keep_ratio=True, short_side=800, interpolation="pillow"
    )
    assert net.preprocess(Task.INSTANCE) == Preprocess(
        size_hw=(1333, 1333),
        keep_ratio=True,
        short_side=800,
        short_rounding="down",
        interpolation="pillow",
        pad_multiple=32,
        pad_value=128,
    )
    for size_hw, task, resized, padded in (
        ((480, 640), Task.DETECTION, (504, 672), (504, 672)),
        ((480, 640), Task.INSTANCE, (800, 1066), (800, 1088)),
        ((640, 360), Task.INSTANCE, (1331, 749), (1344, 768)),
    ):
        declared = net.preprocess(task)
        picture = Image.new("RGB", (size_hw[1], size_hw[0]))
        sample = Sample(
            image=tv_tensors.Image(picture),
            task=task,
            origin=Origin(dataset="t", image_id=0, path=None, size_hw=size_hw),
            target=Target(),
        )
        done = preprocess(sample, declared)
        assert done.size_hw == resized
        images = collate([done], declared).images
        assert images.shape[-2:] == padded
        if padded != resized:
            grey = (128 - torch.tensor(declared.mean)) / torch.tensor(declared.std)
            assert torch.equal(images[0, :, -1, -1], grey)
    small = nano(words=CaptionHeadConfig(), classes=3)
    assert (small.detection_short_side, small.instance_short_side) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"detection_short_side": 8},
        {"vit": eva(width=16, depth=1, heads=2, mlp_width=8, final_norm=False)},
        {"caption_size": 8},
    ],
)
def test_what_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        tiny_config(**change)


def test_the_published_start() -> None:
    torch.manual_seed(0)
    backbone = ViSFT(tiny_config(vit=eva(width=64, depth=3, heads=2, mlp_width=128, image_size=SIZE))).backbone
    initialise_published(backbone)
    for number, block in enumerate(backbone, start=1):
        assert float(block.mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.1)
        assert float(block.mlp.fc1.weight.abs().max()) < 0.2
        assert float(block.mlp.fc2.weight.std()) == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.1)
        assert float(block.attn.proj.weight.std()) == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.1)
        assert not block.mlp.fc1.bias.any() and not block.attn.q_bias.any()


# ---------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """The greatest number of elements that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return made


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_no_tensor_of_tokens_by_tokens_is_ever_made(norm: str, gradients: bool) -> None:
    """73 x 73 patches of EVA-g's head width, as at 1022 px; with updates, forwards and backwards."""
    vit = eva(width=176, depth=1, heads=2, mlp_width=200, norm=norm)
    net = ViSFT(tiny_config(vit=vit, detection=None, instance=None, caption=None))
    add_lora(net, LoRAConfig(rank=2))
    images = torch.randn(1, 3, 1024, 1030)
    with Largest() as seen, torch.set_grad_enabled(gradients):
        out = net.features(images)
        if gradients:
            out.sum().backward()
    tokens = out.shape[1] * out.shape[2]
    assert tokens == 73 * 73
    # The widest tensors are the image and the hidden channels of the MLP; one head's square of tokens is 8 times that.
    assert seen.elements < tokens * tokens / 4
