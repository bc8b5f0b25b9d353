"""Segmenters, centre predictor and wrapper keep the contract of a model: losses, gradients, predictions, saving."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers_polar import CLASSES, TINY_CENTERS, TINY_UNET, TINY_VIT, make_batch, make_sample
from torch import Tensor
from torchvision import tv_tensors

from saccade.configs import from_dict, to_dict
from saccade.errors import ConfigError, DataError, MissingExtraError, UsageError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.layers.hourglass import HourglassConfig
from saccade.layers.unet import UNet, UNetConfig
from saccade.models.polar.centers import CenterPredictor
from saccade.models.polar.config import CentersConfig, LibraryConfig, PolarConfig, SegmenterConfig
from saccade.models.polar.model import PolarSegmenter
from saccade.models.polar.presets import PRESETS
from saccade.models.polar.segmenter import Segmenter
from saccade.models.systems import CONFIGS, Model, ModelConfig, build, fixed_classes, offers, system_of
from saccade.results import Centers, Prediction, SemanticMap
from saccade.samples import Batch, ClassList
from saccade.tasks import Task

FORMS: dict[str, ModelConfig] = {
    "unet": TINY_UNET,
    "vit": TINY_VIT,
    "centers": TINY_CENTERS,
    "polar": PolarConfig(segmenter=TINY_UNET, finder=TINY_CENTERS),
    "polar vit": PolarConfig(segmenter=TINY_VIT, finder=TINY_UNET, objects="each", interpolation="nearest"),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model(form: str, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return build(FORMS[form])


def batch(form: str, **changes: object) -> Batch:
    task = Task.CENTER if form == "centers" else Task.SEMANTIC
    size = (32, 32) if form == "centers" else (32, 48)
    return make_batch([[(20.0, 14.0, 7.0)], [(8.0, 20.0, 4.0), (24.0, 9.0, 5.0)]], size, task=task, **changes)


def answers(net: Model, pictures: Batch) -> list[Prediction]:
    """What a model says; the wrapper is told two places in every picture."""
    if not isinstance(net, PolarSegmenter):
        return net.predict(pictures)
    places = [[origin.size_hw[1] / 3, origin.size_hw[0] / 2] for origin in pictures.origins]
    return net.predict(pictures, centers_xy=[torch.tensor([place, [2.0, 3.0]]) for place in places])


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_finite_and_reaches_every_trainable_parameter(form: str) -> None:
    net = model(form).train()
    losses = net.loss(batch(form))
    assert all(name.startswith(str(net.tasks[0])) for name in losses)
    total(losses).backward()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained.values())
    assert not any(name.startswith("finder.") for name in trained)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_falls(form: str) -> None:
    net = model(form).train()
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    values = []
    for step in range(30):
        torch.manual_seed(step)
        loss = total(net.loss(batch(form)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert sum(values[-5:]) < 0.8 * sum(values[:5]), values


@pytest.mark.parametrize("form", FORMS)
def test_answers_lie_in_the_original_picture(form: str) -> None:
    for answer in answers(model(form).eval(), batch(form, original_hw=(50, 41))):
        assert answer.size_hw == (50, 41)
        if isinstance(answer, Centers):
            assert len(answer) == 1
            assert bool((answer.points_xy >= 0).all() and (answer.points_xy <= torch.tensor([40.0, 49.0])).all())
        else:
            assert isinstance(answer, SemanticMap) and answer.classes == CLASSES
            assert set(answer.labels.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_says_the_same(form: str, tmp_path: Path) -> None:
    net = model(form).train()
    net.loss(batch(form))  # the batch norms have seen something
    net.eval()
    classes = {task: listed for task in net.tasks if (listed := fixed_classes(net)) is not None}
    assert list(classes) == list(net.tasks)
    save_model(net, tmp_path / "saved", classes=classes, provenance={})
    loaded = load_folder(tmp_path / "saved").model
    assert loaded.config == net.config and loaded.tasks == net.tasks
    for one, other in zip(answers(net, batch(form)), answers(loaded, batch(form)), strict=True):
        assert one.to_dict() == other.to_dict()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_equals_its_pictures_one_by_one(form: str) -> None:
    net, both = model(form).eval(), batch(form)
    for number, one in enumerate(answers(net, both)):
        (alone,) = answers(
            net,
            dataclasses.replace(
                both,
                images=both.images[number : number + 1],
                origins=both.origins[number : number + 1],
                input_sizes_hw=both.input_sizes_hw[:1],
                targets=[],
            ),
        )
        if isinstance(one, Centers):
            torch.testing.assert_close(one.points_xy, alone.points_xy, rtol=0, atol=1.5)  # a tie may fall otherwise
        else:
            assert (one.labels != alone.labels).float().mean() < 0.01


@pytest.mark.parametrize("form", FORMS)
def test_half_precision(form: str) -> None:
    net = model(form).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bool(total(net.loss(batch(form))).isfinite())
        assert len(answers(net.eval(), batch(form))) == 2


@pytest.mark.parametrize("form", FORMS)
def test_configurations_are_plain_data(form: str) -> None:
    config = FORMS[form]
    assert from_dict(CONFIGS[system_of(config)], to_dict(config)) == config
    assert [task for task in Task if offers(config, task)] == list(model(form).tasks)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("unetplusplus", "deeplabv3plus")])
def test_every_preset_builds(name: str) -> None:
    with torch.device("meta"):
        net = build(PRESETS[name]())
    sizes = {"unet": 7.76e6, "unet-polar": 7.76e6, "centers": 3.28e7}
    count = sum(p.numel() for p in net.parameters())
    assert name not in sizes or abs(count / sizes[name] - 1) < 0.1, count


@pytest.mark.parametrize("architecture", ["unetplusplus", "deeplabv3plus"])
def test_networks_of_the_library(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SegmenterConfig(network=LibraryConfig(architecture=architecture, encoder="resnet18"), input_hw=(64, 96))
    with monkeypatch.context() as without:
        without.setitem(__import__("sys").modules, "segmentation_models_pytorch", None)
        with pytest.raises(MissingExtraError, match=r"saccade\[medical\]"):
            build(config)
    pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    net = build(PolarConfig(segmenter=config)).train()
    pictures = make_batch([[(40.0, 30.0, 12.0)], [(60.0, 20.0, 9.0)]], (64, 96))
    total(net.loss(pictures)).backward()
    (one, _) = net.eval().predict(pictures, centers_xy=[torch.tensor([[40.0, 30.0]])] * 2)
    assert one.labels.shape == (64, 96)


# --- the segmenter


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 5), (17, 32), (33, 47)])
def test_the_unet_reads_any_size(size_hw: tuple[int, int]) -> None:
    net = UNet(UNetConfig(features=2, levels=3), inputs=3, outputs=2).eval()
    assert net(torch.randn(1, 3, *size_hw)).shape == (1, 2, *size_hw)


def test_several_classes_have_a_logit_each() -> None:
    config = dataclasses.replace(TINY_UNET, classes=("background", "disc", "core"))
    torch.manual_seed(0)
    net = Segmenter(config)
    classes = ClassList.from_names(config.classes)
    pictures = dataclasses.replace(make_batch([[(20.0, 14.0, 9.0)]]), classes=classes)
    labels = pictures.targets[0].semantic.as_subclass(Tensor)
    labels[12:17, 18:23] = 2
    pictures.targets[0].semantic = tv_tensors.Mask(labels)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        total(net.loss(pictures)).backward()
        optimiser.step()
    (found,) = net.eval().predict(pictures)
    assert {0, 1} <= set(found.labels.unique().tolist()) <= {0, 1, 2}
    assert (found.labels == labels).float().mean() > 0.8


def test_ignored_pixels_change_no_loss() -> None:
    torch.manual_seed(0)
    net = Segmenter(TINY_UNET)
    losses = []
    for content in (0, 1):
        pictures = make_batch([[(20.0, 14.0, 7.0)]])
        labels = pictures.targets[0].semantic.as_subclass(Tensor)
        labels[20:, :] = content
        labels[20:, :] = 255
        pictures.targets[0].semantic = tv_tensors.Mask(labels)
        losses.append(total(net.eval().loss(pictures)).item())
    assert losses[0] == losses[1]
    whole = make_batch([[(20.0, 14.0, 7.0)]])
    whole.targets[0].semantic = tv_tensors.Mask(torch.full((32, 48), 255))
    assert float(total(net.loss(whole))) == 0  # one over one: nothing is known, nothing is wrong


def test_classes_are_compared_by_name() -> None:
    net = model("unet").eval()
    turned = dataclasses.replace(batch("unet"), classes=ClassList.from_names(("lesion", "background")))
    plain, other = net.predict(batch("unet")), net.predict(turned)
    assert all(torch.equal(one.labels, 1 - two.labels) for one, two in zip(plain, other, strict=True))
    with pytest.raises(UsageError, match="does not know the class 'cat'"):
        net.predict(dataclasses.replace(turned, classes=ClassList.from_names(("cat", "background"))))
    with pytest.raises(DataError, match=r"has a class 'polyp', which the model does not[^$]*\(background,lesion\)"):
        net.loss(dataclasses.replace(batch("unet"), classes=ClassList.from_names(("background", "polyp"))))
    with pytest.raises(UsageError, match="tells all of"):
        net.predict(dataclasses.replace(turned, classes=ClassList.from_names(("lesion",))))
    with pytest.raises(DataError, match="no label map"):
        missing = batch("unet")
        missing.targets[0].semantic = None
        net.loss(missing)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"classes": ("lesion",)}, "two classes"),
        ({"classes": ("a", "a")}, "two classes"),
        ({"category_ids": (1, 2, 3)}, "category ids"),
        ({"input_hw": (0, 5)}, "no pixel"),
        ({"input_hw": (30, 48), "network": TINY_VIT.network}, "steps of 8"),
        ({"channels": 1, "network": TINY_VIT.network}, "three channels"),
        ({"input_hw": (40, 64), "network": LibraryConfig()}, "steps of 32"),
    ],
)
def test_segmenters_that_cannot_be_are_refused(changes: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        SegmenterConfig(**changes)


# --- the centre predictor


def test_the_centre_predictor_learns_where_a_disc_is() -> None:
    torch.manual_seed(1)
    net = CenterPredictor(TINY_CENTERS).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    discs = [[(8.0, 20.0, 4.0)], [(24.0, 9.0, 4.0)], [(20.0, 22.0, 4.0)], [(10.0, 8.0, 4.0)]]
    pictures = make_batch(discs, (32, 32), task=Task.CENTER, original_hw=(64, 96))
    for _ in range(80):
        optimiser.zero_grad()
        total(net.loss(pictures)).backward()
        optimiser.step()
    for found, ((x, y, _),) in zip(net.eval().predict(pictures), discs, strict=True):
        assert isinstance(found, Centers)
        assert (found.points_xy[0] - torch.tensor([3 * x + 1, 2 * y + 0.5])).abs().max() < 12


def test_several_centres() -> None:
    config = dataclasses.replace(TINY_CENTERS, objects="each", sigma=2.0)
    net = CenterPredictor(config)
    pictures = make_batch([[(6.0, 6.0, 3.0), (24.0, 22.0, 4.0)], []], (32, 32), task=Task.CENTER)
    drawn = net.targets(pictures)
    assert drawn.shape == (2, 1, 8, 8) and not drawn[1].any()
    specks = make_batch([[(6.0, 6.0, 3.0), (24.0, 22.0, 0.0)]], (32, 32), task=Task.CENTER)
    strict = CenterPredictor(dataclasses.replace(config, least_region=0.01)).targets(specks)
    assert torch.equal(strict, net.targets(make_batch([[(6.0, 6.0, 3.0)]], (32, 32), task=Task.CENTER)))
    found = net._read(drawn[0, 0], (64, 64))
    assert len(found) == 2
    for wanted in ((12.5, 12.5), (48.5, 44.5)):
        assert (found.points_xy - torch.tensor(wanted)).abs().max(dim=1).values.min() < 6
    flat = net._read(torch.zeros(8, 8), (64, 64))
    assert len(flat) >= 1 and flat.scores.max() == 0
    below = net._read(torch.full((8, 8), -0.1), (64, 64))
    assert len(below) == 1 and float(below.scores[0]) == 0


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"input_size": 250}, "cannot be halved"),
        ({"input_size": 0}, "cannot be halved"),
        ({"network": HourglassConfig(heatmaps=2)}, "one heatmap"),
        ({"sigma": 0.0}, "sigma"),
        ({"least_peak": 0.0}, "least_peak"),
        ({"least_region": 1.5}, "least_region"),
    ],
)
def test_centre_predictors_that_cannot_be_are_refused(changes: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        CentersConfig(**changes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HourglassConfig(width=7),
        lambda: HourglassConfig(stacks=0),
        lambda: HourglassConfig(channels=2),
        lambda: UNetConfig(levels=0),
    ],
)
def test_networks_that_cannot_be_are_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_git_is_wrapped_with_its_vocabulary(tmp_path: Path) -> None:
    from saccade.hub.resolve import load_model

    git = load_model("git-nano").model
    config = PolarConfig(segmenter=git.config, finder=TINY_CENTERS)
    net = build(config, git.vocabulary)
    assert isinstance(net, PolarSegmenter)
    net.segmenter.load_state_dict(git.state_dict())
    save_model(net, tmp_path / "saved", classes={Task.SEMANTIC: CLASSES}, provenance={})
    assert (tmp_path / "saved/vocab.txt").is_file()
    loaded = load_folder(tmp_path / "saved").model
    declared = loaded.preprocess(Task.SEMANTIC)
    pictures = make_batch([[(100.0, 120.0, 50.0)]], declared.size_hw, original_hw=(60, 70))
    (found,) = loaded.predict(pictures, centers_xy=loaded.true_centers([make_sample([(30.0, 30.0, 9.0)], (60, 70))]))
    assert found.labels.shape == (60, 70) and found.classes == CLASSES
    assert bool(total(loaded.train().loss(pictures)).isfinite())
