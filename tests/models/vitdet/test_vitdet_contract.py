"""Every form of the detector keeps the contract of a model: losses, gradients, predictions, saving."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers_vitdet import CLASSES, FORMS, SIZE, batch, config
from torch import Tensor

from saccade.configs import from_dict, to_dict
from saccade.errors import ConfigError, DataError, UsageError
from saccade.layers.roi import federated_classes
from saccade.models.vitdet.config import ViTDetConfig
from saccade.models.vitdet.model import ViTDet, frames_of
from saccade.models.vitdet.presets import PRESETS
from saccade.results import Instances
from saccade.samples import Batch, ClassList, Target
from saccade.tasks import Task


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model(form: str = "vitae_repo", seed: int = 0, **changes: object) -> ViTDet:
    torch.manual_seed(seed)
    return ViTDet(dataclasses.replace(FORMS[form], **changes))


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("form", list(FORMS))
def test_the_loss_is_finite_and_its_gradient_reaches_every_parameter(form: str) -> None:
    net = model(form).train()
    losses = net.loss(batch(task=net.tasks[-1]))
    assert all(torch.isfinite(value) for value in losses.values()), losses
    total(losses).backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert not idle
    silent = {name for name, p in net.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) == 0}
    # The coarsest maps may get nothing from a few boxes, and a propagation that starts as the identity passes nothing.
    assert not {name for name in silent if not name.startswith("pyramid.") and ".residual." not in name}, silent


@pytest.mark.parametrize("form", ["vitae_repo", "detectron2 cascade", "vitae_s"])
def test_the_loss_falls(form: str) -> None:
    net = model(form).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    values = []
    for step in range(25):
        torch.manual_seed(step)
        loss = total(net.loss(batch()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert sum(values[-5:]) < 0.8 * sum(values[:5]), values


@pytest.mark.parametrize("form", list(FORMS))
def test_predictions_lie_in_the_original_picture(form: str) -> None:
    net = model(form).eval()
    task = net.tasks[-1]
    for answer in net.predict(batch(task=task)):
        assert isinstance(answer, Instances)
        assert answer.size_hw == (100, 90)
        assert len(answer) <= 10
        assert bool((answer.boxes_xyxy >= 0).all())
        assert bool((answer.boxes_xyxy[:, 2] <= 90.01).all() and (answer.boxes_xyxy[:, 3] <= 100.01).all())
        assert bool((answer.scores[:-1] >= answer.scores[1:]).all())
        assert bool((answer.class_ids < 3).all())
        assert (answer.masks is not None and len(answer.masks) == len(answer)) == (task is Task.INSTANCE)


@pytest.mark.parametrize("form", ["vitae_repo", "detectron2", "vitae_s"])
def test_a_batch_equals_its_images_one_by_one(form: str) -> None:
    net = model(form).eval()
    together = batch()
    both = net.predict(together)
    for index, one in enumerate(both):
        alone = net.predict(
            dataclasses.replace(
                together,
                images=together.images[index : index + 1],
                origins=together.origins[index : index + 1],
                input_sizes_hw=together.input_sizes_hw[index : index + 1],
                targets=[],
            )
        )[0]
        assert isinstance(one, Instances) and isinstance(alone, Instances)
        torch.testing.assert_close(one.boxes_xyxy, alone.boxes_xyxy, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one.scores, alone.scores, rtol=1e-4, atol=1e-5)
        assert one.class_ids.tolist() == alone.class_ids.tolist()


def test_activation_checkpointing_changes_nothing() -> None:
    grads = []
    for enabled in (False, True):
        net = model().train()
        net.set_activation_checkpointing(enabled)
        torch.manual_seed(1)
        total(net.loss(batch())).backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_any_number_of_objects_trains(count: int) -> None:
    losses = model().train().loss(batch(counts=(count, 2)))
    assert all(torch.isfinite(value) for value in losses.values())


def test_no_object_in_the_whole_batch_trains_the_background() -> None:
    net = model().train()
    losses = net.loss(batch(counts=(0, 0)))
    total(losses).backward()
    assert float(losses["instance_segmentation_loss_box"].detach()) == 0.0
    assert all(p.grad is not None for p in net.parameters())


def test_crowds_are_no_targets() -> None:
    plain, marked = batch(counts=(3,)), batch(counts=(3,))
    marked.targets[0].is_crowd = torch.tensor([False, True, False])
    kept = torch.tensor([0, 2])
    first = plain.targets[0]
    assert first.boxes is not None and first.class_ids is not None and first.masks is not None
    plain.targets[0] = Target(boxes=first.boxes[kept], class_ids=first.class_ids[kept], masks=first.masks[kept])
    losses = []
    for data in (plain, marked):
        torch.manual_seed(0)
        losses.append(total(model().train().loss(data)))
    assert torch.equal(losses[0], losses[1])


@pytest.mark.parametrize("size_hw", [(64, 48), (32, 96), (32, 32)])
def test_inputs_of_any_multiple_of_16_are_read(size_hw: tuple[int, int]) -> None:
    assert len(model("detectron2").eval().predict(batch(size_hw=size_hw))) == 2


def test_a_picture_that_is_no_multiple_of_16_is_refused() -> None:
    for form in ("vitae_repo", "vitae_s"):
        with pytest.raises(UsageError, match=r"multiple|patches"):
            model(form).eval().predict(batch(size_hw=(60, 64)))


def test_missing_truths_are_named() -> None:
    data = batch()
    data.targets[1].masks = None
    with pytest.raises(DataError, match="no masks"):
        model().loss(data)
    data.targets[1].boxes = None
    with pytest.raises(DataError, match="no boxes"):
        model().loss(data)


def test_a_model_without_mask_heads_offers_boxes_only() -> None:
    net = model("vitae_repo faster")
    assert net.tasks == (Task.DETECTION,)
    with pytest.raises(UsageError, match="does not offer"):
        net.predict(batch())


def test_contradictions_of_the_config_are_named() -> None:
    with pytest.raises(ConfigError, match="class names"):
        config(classes=("a",))
    with pytest.raises(ConfigError, match="channels"):
        config(rpn=dataclasses.replace(FORMS["vitae_repo"].rpn, channels=4))
    with pytest.raises(ConfigError, match="multiple of 16"):
        config(input_size=100)
    with pytest.raises(ConfigError, match="multiple of 16"):
        config(input_size=16)


@pytest.mark.parametrize("form", list(FORMS))
def test_the_config_survives_plain_data(form: str) -> None:
    assert from_dict(ViTDetConfig, to_dict(FORMS[form])) == FORMS[form]


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_have_the_published_form(name: str) -> None:
    preset = PRESETS[name]()
    assert preset.roi.num_classes == (1203 if "lvis" in name else 80)
    assert (len(preset.roi.stages) == 3) == ("cascade" in name)
    assert preset.roi.sigmoid == ("lvis" in name)
    with torch.device("meta"):
        ViTDet(preset)


def test_soft_nms_keeps_more() -> None:
    hard = model(test_soft_nms="none").eval().predict(batch())
    soft = model(test_soft_nms="linear").eval().predict(batch())
    for one, other in zip(hard, soft, strict=True):
        assert isinstance(one, Instances) and isinstance(other, Instances)
        assert len(other) >= len(one)


def test_the_federated_loss_looks_at_present_and_drawn_classes_only() -> None:
    classes = torch.tensor([1, 5, 5])
    weights = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    torch.manual_seed(0)
    for _ in range(20):
        chosen = federated_classes(classes, 5, 4, weights).tolist()
        assert sorted(chosen) == [1, 2, 3, 5]
    assert federated_classes(classes, 5, 2, weights).tolist() == [1, 5]


def test_heads_read_the_maps_of_another_backbone() -> None:
    """The same pyramid and heads, with equal weights, on a plain ViT and on ViTAE: parts of one house."""
    plain, vitae = model("vitae_repo"), model("vitae_s")
    own = {k: v for k, v in plain.state_dict().items() if not k.startswith("backbone.")}
    assert set(own) == {k for k in vitae.state_dict() if not k.startswith("backbone.")}
    vitae.load_state_dict(own, strict=False)
    assert len(vitae.eval().predict(batch())) == 2


def test_preprocessing_keeps_the_aspect_ratio() -> None:
    declared = model("detectron2").preprocess(Task.DETECTION)
    assert declared.keep_ratio and declared.size_hw == (SIZE, SIZE) and declared.interpolation == "pillow"
    assert model().preprocess(Task.INSTANCE).interpolation == "bilinear"
    assert model().classes.names == CLASSES
    assert isinstance(batch(), Batch)


def test_answers_follow_the_class_list_that_is_asked_for() -> None:
    net = model().eval()
    plain = net.predict(batch())
    asked = dataclasses.replace(batch(), classes=ClassList(names=("cup", "ball"), category_ids=(7, 9)))
    for one, other in zip(plain, net.predict(asked), strict=True):
        assert isinstance(one, Instances) and isinstance(other, Instances)
        kept = [(n, s) for n, s in zip(one.class_names, one.scores.tolist(), strict=True) if n != "box"]
        assert kept == list(zip(other.class_names, other.scores.tolist(), strict=True))
        assert set(other.category_ids) <= {7, 9}
    with pytest.raises(UsageError, match="does not know the class 'bal'"):
        net.predict(dataclasses.replace(batch(), classes=ClassList.from_names(["bal"])))


def test_targets_are_read_by_the_names_of_their_classes() -> None:
    data = batch()
    shuffled = batch()
    shuffled.classes = ClassList.from_names(["cup", "box", "ball"])
    for target in shuffled.targets:
        assert target.class_ids is not None
        target.class_ids = 2 - target.class_ids
    losses = []
    for one in (data, shuffled):
        torch.manual_seed(0)
        losses.append(total(model().train().loss(one)))
    assert torch.equal(losses[0], losses[1])
    shuffled.classes = ClassList.from_names(["cup", "box", "hat"])
    with pytest.raises(DataError, match="class 'hat'"):
        model().train().loss(shuffled)


def test_unnamed_classes_take_the_ids_of_the_data() -> None:
    net = model(classes=()).eval()
    answer = net.predict(batch())[0]
    assert isinstance(answer, Instances) and answer.classes.names == CLASSES
    with pytest.raises(UsageError, match="3 classes without names, and 1"):
        net.predict(dataclasses.replace(batch(), classes=ClassList.from_names(["a"])))


def test_a_mirrored_view_finds_the_mirrored_picture() -> None:
    """What flip augmentation sees in a picture is what the plain model sees in the mirrored one, brought back."""
    net = model().eval()
    data = batch(counts=(1,))
    width = data.input_sizes_hw[0][1]
    mirrored = dataclasses.replace(data, images=data.images.clone())
    mirrored.images[..., :width] = data.images[..., :width].flip(-1)
    plain = net.predict(mirrored)[0]
    net.config.test_flip = True
    views = list(net._views(data.images, frames_of(data)))
    assert [view.mirrored for view in views] == [False, True]
    torch.testing.assert_close(views[1].levels[0], net.features(mirrored.images)[0])
    assert isinstance(plain, Instances)
    box = torch.tensor([[3.0, 4.0, 20.0, 30.0]])
    frame = frames_of(data)[0]
    torch.testing.assert_close(views[1].to_input(views[1].from_input(box, frame), frame), box)
    assert views[1].to_input(box, frame).tolist() == [[width - 20.0, 4.0, width - 3.0, 30.0]]


def test_test_time_augmentation_merges_all_views() -> None:
    net = model("detectron2", test_sizes=(48, 64), test_flip=True).eval()
    assert net.preprocess(Task.INSTANCE).size_hw == (64, 64)
    views = list(net._views(batch().images, frames_of(batch())))
    assert [(view.factor, view.mirrored) for view in views] == [(0.75, False), (0.75, True), (1.0, False), (1.0, True)]
    for answer in net.predict(batch()):
        assert isinstance(answer, Instances) and 0 < len(answer) <= 10
        assert bool((answer.boxes_xyxy[:, 2] <= 90.01).all())
    # One view of the input's own size is the plain prediction.
    alone = model("detectron2", test_sizes=(64,)).eval().predict(batch())
    for one, other in zip(alone, model("detectron2").eval().predict(batch()), strict=True):
        assert isinstance(one, Instances) and isinstance(other, Instances)
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy) and torch.equal(one.scores, other.scores)
