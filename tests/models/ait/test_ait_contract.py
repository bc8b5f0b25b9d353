"""Every form of AiT keeps the contract of a model: losses, gradients, predictions, batches, sequences."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from helpers_ait import (
    BOXES,
    CLASSES,
    DEPTH,
    FORMS,
    INSTANCE,
    OBJECTS,
    SIZE,
    Fixed,
    batch,
    config,
    model,
    one_of,
    tasks_of,
    total,
)
from torch import Tensor, nn
from torchvision import tv_tensors

from saccade.errors import ConfigError, DataError, UsageError
from saccade.layers.lora import LoRAConfig, add_lora, merge, updates_of
from saccade.layers.vit import ViTConfig
from saccade.models.ait.config import TASK_ROWS, AiTConfig
from saccade.models.ait.model import AiT
from saccade.models.ait.presets import PRESETS
from saccade.models.ait.sequences import IGNORED, Draws, sequence_targets
from saccade.models.ait.transformer import Transformer, TransformerConfig
from saccade.results import DepthMap, Instances, Prediction, decode_masks
from saccade.samples import Batch, ClassList, Target
from saccade.tasks import Task

EVERY = [(form, task) for form in FORMS for task in tasks_of(form)]
OBJECT_FORMS = [(form, task) for form, task in EVERY if task is not Task.DEPTH]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("form", list(FORMS))
def test_the_loss_is_finite_and_its_gradient_reaches_every_trainable_parameter(form: str) -> None:
    net = model(form).train()
    for task in net.tasks:
        losses = net.loss(batch(task))
        assert all(bool(value.isfinite()) and value.ndim == 0 for value in losses.values()), losses
        assert all(name.startswith(f"{task}_loss_") for name in losses)
        total(losses).backward()
    silent = []
    for name, parameter in net.named_parameters():
        if "vqvae" in name:
            assert not parameter.requires_grad and parameter.grad is None, name
        elif parameter.grad is None or not bool(parameter.grad.isfinite().all()) or not bool(parameter.grad.any()):
            silent.append(name)
    assert not silent


@pytest.mark.parametrize(("form", "task"), EVERY)
def test_the_loss_falls(form: str, task: Task) -> None:
    net = model(form).train()
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=5e-3)
    data, values = batch(task), []
    for _ in range(15):
        loss = total(net.loss(data, draws=Fixed()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert sum(values[-3:]) < 0.8 * sum(values[:3]), values


@pytest.mark.parametrize(("form", "task"), EVERY)
def test_the_vqvae_stands_still(form: str, task: Task) -> None:
    net = model(form).train()
    frozen = {name: tensor.clone() for name, tensor in net.state_dict().items() if "vqvae" in name}
    assert all(not m.training for name, m in net.named_modules() if "vqvae" in name)
    total(net.loss(batch(task))).backward()
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in frozen.items())


@pytest.mark.parametrize("form", ["instance", "depth"])
def test_activation_checkpointing_changes_nothing(form: str) -> None:
    grads = []
    for enabled in (False, True):
        net = model(form).train()
        net.set_activation_checkpointing(enabled)
        total(net.loss(batch(net.tasks[0]), draws=Fixed())).backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(("form", "task"), EVERY)
def test_the_loss_of_a_batch_is_that_of_its_images(form: str, task: Task) -> None:
    """Sums over targets add up: the loss is their mean over all images, whatever the images hold."""
    net = model(form).train()
    whole = batch(task, counts=(2, 0, 4))

    def sums(data: Batch) -> dict[str, Tensor]:
        return {name: value * net.count_targets(data) for name, value in net.loss(data, draws=Fixed()).items()}

    together = sums(whole)
    parts = [sums(one_of(whole, index)) for index in range(len(whole))]
    for name, value in together.items():
        if name != "depth_loss_drawn":  # one mean over the pixels of the whole batch, as in the original
            torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("form", "task"), EVERY)
def test_targets_are_counted_without_a_look_at_the_pictures(form: str, task: Task) -> None:
    net, data = model(form), batch(task, counts=(2, 0, 4))
    if task is Task.DEPTH:
        assert net.count_targets(data) == 3 * 16
        return
    data.targets[2].is_crowd[1] = True
    tokens, real, _ = net.object_sequences(data, Fixed())
    assert net.count_targets(data) == int((sequence_targets(tokens, real) != IGNORED).sum())


@pytest.mark.parametrize(("form", "task"), OBJECT_FORMS)
def test_no_objects_train_noise(form: str, task: Task) -> None:
    net = model(form).train()
    losses = net.loss(batch(task, counts=(0, 0)))
    total(losses).backward()
    assert float(losses[f"{task}_loss_cls"].detach()) > 0
    assert all(float(value.detach()) == 0 for name, value in losses.items() if not name.endswith("_cls"))
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize(("form", "task"), OBJECT_FORMS)
def test_too_many_objects_are_an_error_that_says_where(form: str, task: Task) -> None:
    net = model(form).train()
    assert bool(total(net.loss(batch(task, counts=(OBJECTS,)))).isfinite())
    with pytest.raises(DataError, match=rf"{OBJECTS + 1} objects do not fit into a sequence of {OBJECTS}(.|\n)*1"):
        net.loss(batch(task, counts=(1, OBJECTS + 1)))


@pytest.mark.parametrize(("form", "task"), OBJECT_FORMS)
def test_crowds_are_no_targets(form: str, task: Task) -> None:
    plain, marked = batch(task, counts=(3,)), batch(task, counts=(3,))
    marked.targets[0].is_crowd = torch.tensor([False, True, False])
    kept = torch.tensor([0, 2])
    first = plain.targets[0]
    assert first.boxes is not None and first.class_ids is not None and first.masks is not None
    plain.targets[0] = Target(boxes=first.boxes[kept], class_ids=first.class_ids[kept], masks=first.masks[kept])
    net = model(form).train()
    losses = [total(net.loss(data, draws=Fixed())) for data in (plain, marked)]
    assert torch.equal(*losses)


def test_missing_truths_are_named() -> None:
    for form, task, missing, message in (
        ("instance", Task.INSTANCE, "masks", "no masks"),
        ("detection", Task.DETECTION, "boxes", "no boxes"),
        ("detection", Task.DETECTION, "class_ids", "no boxes"),
        ("depth", Task.DEPTH, "depth_m", "no depth"),
    ):
        for index in (0, 1):
            data = batch(task)
            setattr(data.targets[index], missing, None)
            with pytest.raises(DataError, match=rf"{message}(.|\n)*{index}"):
                model(form).loss(data)


def test_a_task_that_the_model_does_not_have_is_refused() -> None:
    for work in (lambda net, data: net.loss(data), lambda net, data: net.predict(data)):
        with pytest.raises(UsageError, match=r"does not offer the task 'depth'(.|\n)*instance_segmentation"):
            work(model("instance"), batch(Task.DEPTH))


# ---------------------------------------------------------------------- what is learned


@pytest.mark.parametrize(("form", "task"), OBJECT_FORMS)
def test_sequences_say_the_real_objects_and_that_the_rest_is_noise(form: str, task: Task) -> None:
    net, data = model(form), batch(task, counts=(2, 0))
    own = net.config
    torch.manual_seed(0)
    tokens, real, masks = net.object_sequences(data, Draws())
    targets = sequence_targets(tokens, real)
    assert real.sum(1).tolist() == [2, 0]
    assert (targets[~real][:, 4] == own.noise_token).all() and (targets[~real][:, [0, 1, 2, 3]] == IGNORED).all()
    assert (targets[~real][:, 5:] == IGNORED).all()
    boxes, classes = data.targets[0].boxes, data.targets[0].class_ids
    assert boxes is not None and classes is not None
    said = sorted(targets[0, :2, :5].tolist())
    wanted = (boxes.as_subclass(Tensor) / SIZE * own.bins).round().long()
    assert said == sorted(torch.cat([wanted, classes[:, None] + own.class_tokens.start], dim=1).tolist())
    if task is Task.INSTANCE:
        assert own.instance is not None and own.instance.masks is not None and net.mask_vqvae is not None
        size = own.instance.masks.size
        assert masks.shape == (2, size, size)
        codes = net.mask_vqvae.encode(masks) + own.mask_tokens.start
        assert torch.equal(tokens[0, :2, 5:], codes)
        assert bool(((tokens[..., 5:] >= own.mask_tokens.start) & (tokens[..., 5:] < own.mask_tokens.stop)).all())
    else:
        assert not len(masks)


def test_the_loss_of_drawn_masks_looks_at_so_many_objects_of_every_image() -> None:
    """Of the first ones of each image, whatever else the batch holds."""
    data = batch(Task.INSTANCE, counts=(3, 3))
    losses = []
    for limit in (1, 3):
        net = model("instance", auxiliary_objects=limit).train()
        _, real, masks = net.object_sequences(data, Fixed())
        found = net.loss(data, draws=Fixed())["instance_segmentation_loss_drawn"]
        parts = [net.loss(one_of(data, i), draws=Fixed())["instance_segmentation_loss_drawn"] for i in (0, 1)]
        torch.testing.assert_close(found, torch.stack(parts).mean(), rtol=1e-4, atol=1e-5)
        losses.append(found)
        assert len(masks) == int(real.sum()) == 6
    assert not torch.allclose(*losses)


def test_a_weight_scales_a_task_and_its_parts() -> None:
    for form, task in (("instance", Task.INSTANCE), ("depth", Task.DEPTH)):
        plain = model(form).loss(batch(task), draws=Fixed())
        half = model(form, weight=0.5).loss(batch(task), draws=Fixed())
        for name, value in plain.items():
            torch.testing.assert_close(half[name], 0.5 * value)
        more = model(form, auxiliary=10.0).loss(batch(task), draws=Fixed())
        drawn = f"{task}_loss_drawn"
        torch.testing.assert_close(more[drawn], plain[drawn] * (2.0 if task is Task.INSTANCE else 10.0))
        assert drawn not in model(form, auxiliary=0.0).loss(batch(task), draws=Fixed())
    heavy = model("instance", mask_weight=0.4).loss(batch(Task.INSTANCE), draws=Fixed())
    plain = model("instance").loss(batch(Task.INSTANCE), draws=Fixed())
    for name, value in plain.items():
        torch.testing.assert_close(heavy[name], value * (2.0 if name.endswith(("mask", "drawn")) else 1.0))


# ---------------------------------------------------------------------- decoding


@pytest.mark.parametrize("top_p", [0.0, 0.6])
@pytest.mark.parametrize("form", ["detection", "instance, hard"])
def test_cached_decoding_is_teacher_forcing_on_its_own_tokens(form: str, top_p: float) -> None:
    net = model(form, top_p=top_p).eval()
    (task,) = net.tasks
    own = net.config
    with torch.no_grad():
        memory = net.encode(batch(task).images)
        said = net.say_objects(memory, task)
        tokens = said.tokens_BOt.clone()
        tokens[..., 4] += own.class_tokens.start
        if task is Task.INSTANCE:
            tokens[..., 5:] += own.mask_tokens.start
        rows = torch.full((len(memory),), TASK_ROWS[task])
        inputs = net.transformer.embed(rows, tokens.flatten(1)[:, :-1])
        logits = net.transformer.decode(memory, inputs).unflatten(1, (OBJECTS, -1))
    coordinates = logits[..., :4, own.coordinate_tokens]
    classes = logits[..., 4, own.class_tokens]
    if top_p == 0:
        assert torch.equal(coordinates.argmax(-1), said.tokens_BOt[..., :4])
        assert torch.equal(classes.argmax(-1), said.tokens_BOt[..., 4])
    else:
        assert not torch.equal(coordinates.argmax(-1), said.tokens_BOt[..., :4])
    # The noise class competes for the score, though it is never said.
    noise = logits[..., 4, own.noise_token, None]
    scores = torch.cat([classes, noise], dim=-1).softmax(-1).gather(-1, said.tokens_BOt[..., 4, None])[..., 0]
    torch.testing.assert_close(said.scores_BO, scores, rtol=1e-4, atol=1e-5)
    if task is Task.INSTANCE:
        assert said.mask_logits_BOmK is not None
        torch.testing.assert_close(said.mask_logits_BOmK, logits[..., 5:, own.mask_tokens], rtol=1e-4, atol=1e-4)
    for place, limit in ((slice(0, 4), own.bins + 1), (slice(4, 5), 3), (slice(5, None), own.mask_codes)):
        part = said.tokens_BOt[..., place]
        assert bool(((part >= 0) & (part < limit)).all())


@pytest.mark.parametrize("form", ["instance", "depth"])
def test_soft_tokens_feed_mixtures_back(form: str) -> None:
    """Word for word: what follows a code reads the mixture of all codes, whatever was picked."""
    net = model(form).eval()
    own, (task,) = net.config, net.tasks
    with torch.no_grad():
        memory = net.encode(batch(task).images)
        table = net.transformer.token_embed
        if task is Task.DEPTH:
            codes, logits = net.say_depth(memory)
            mixed = logits.softmax(-1) @ table[own.depth_tokens]
            assert torch.equal(codes, logits.argmax(-1))
        else:
            said = net.say_objects(memory, task)
            assert said.mask_logits_BOmK is not None
            plain = said.tokens_BOt.clone()
            plain[..., 4] += own.class_tokens.start
            mixed = table[plain]
            mixed[..., 5:, :] = said.mask_logits_BOmK.softmax(-1) @ table[own.mask_tokens]
            mixed, logits = mixed.flatten(1, 2), said.mask_logits_BOmK
        row = TASK_ROWS[task]
        start = net.transformer.task_embed[row].expand(len(memory), 1, -1)
        inputs = torch.cat([start, mixed[:, :-1]], dim=1)
        inputs = inputs + net.transformer.position_embed[row, : inputs.shape[1]]
        again = net.transformer.decode(memory, inputs)
    if task is Task.DEPTH:
        torch.testing.assert_close(again[..., own.depth_tokens], logits, rtol=1e-4, atol=1e-4)
    else:
        again = again.unflatten(1, (OBJECTS, -1))[..., 5:, own.mask_tokens]
        torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)


def test_hard_depth_is_teacher_forcing_on_its_own_tokens() -> None:
    net = model("depth, hard").eval()
    with torch.no_grad():
        memory = net.encode(batch(Task.DEPTH).images)
        codes, logits = net.say_depth(memory)
        rows = torch.full((len(memory),), TASK_ROWS[Task.DEPTH])
        inputs = net.transformer.embed(rows, codes[:, :-1] + net.config.depth_tokens.start)
        forced = net.transformer.decode(memory, inputs)[..., net.config.depth_tokens]
    torch.testing.assert_close(forced, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(forced.argmax(-1), codes)


def test_parallel_decoding_in_one_pass_is_decoding_step_by_step() -> None:
    net = model("depth, parallel").eval()
    transformer = net.transformer
    with torch.no_grad():
        memory = net.encode(batch(Task.DEPTH).images)
        codes, logits = net.say_depth(memory)
        row, every = TASK_ROWS[Task.DEPTH], []
        assert transformer.parallel_embed is not None
        decoding = transformer.start(memory, 16)
        for step in range(16):
            x = transformer.task_embed[row] if step == 0 else transformer.parallel_embed[0]
            state = decoding.step(x.expand(len(memory), 1, -1) + transformer.position_embed[row, step])
            every.append(transformer.logits(state, net.config.depth_tokens))
        # Training reads the same, whatever the tokens are.
        inputs = transformer.embed(torch.full((2,), row), torch.randint(20, (2, 15)))
        trained = transformer.decode(memory, inputs)[..., net.config.depth_tokens]
    torch.testing.assert_close(torch.cat(every, dim=1), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits.argmax(-1), codes)


def loud_transformer(length: int) -> Transformer:
    """Weights that all matter, in double precision."""
    torch.manual_seed(1)
    config = TransformerConfig(width=16, heads=2, mlp_width=32, encoder_blocks=1, decoder_blocks=3, length=length)
    net = Transformer(config, 8, 30).double().eval()
    for parameter in net.parameters():
        parameter.data = torch.randn_like(parameter) * (0.5 if parameter.ndim > 1 else 1.0)
    return net


@pytest.mark.parametrize("sequences", [1, 3])
def test_steps_with_joined_projections_and_a_cache_are_one_causal_pass(sequences: int) -> None:
    net = loud_transformer(length=9)
    memory, inputs = torch.randn(sequences, 5, 16).double(), torch.randn(sequences, 9, 16).double()
    with torch.no_grad():
        wanted = net.states(memory, inputs)
        for length in (9, 12):  # room for more tokens than are said
            decoding = net.start(memory, length)
            said = [decoding.step(inputs[:, step : step + 1]) for step in range(9)]
            torch.testing.assert_close(torch.cat(said, dim=1), wanted, rtol=1e-9, atol=1e-9)
    # The three projections matter each.
    for projection in ("query", "key", "value"):
        changed = copy.deepcopy(net)
        changed.decoder[1].attn.get_submodule(projection).bias.data += torch.randn(16).double()
        changed.decoder[1].attn.get_submodule(projection).weight.data *= 1.5
        with torch.no_grad():
            assert not torch.allclose(changed.states(memory, inputs), wanted)
            decoding = changed.start(memory, 9)
            said = [decoding.step(inputs[:, step : step + 1]) for step in range(9)]
            torch.testing.assert_close(torch.cat(said, dim=1), changed.states(memory, inputs), rtol=1e-9, atol=1e-9)


def test_a_decoding_reads_the_weights_as_they_stand() -> None:
    net = loud_transformer(length=3)
    memory, x = torch.randn(1, 5, 16).double(), torch.randn(1, 1, 16).double()
    with torch.no_grad():
        before = net.start(memory, 3).step(x)
        net.decoder[0].attn.value.weight.mul_(1.5)
        torch.testing.assert_close(net.start(memory, 3).step(x), net.states(memory, x), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(net.start(memory, 3).step(x), before)


def test_steps_read_weights_with_their_low_rank_updates() -> None:
    net = loud_transformer(length=4)
    memory, inputs = torch.randn(2, 5, 16).double(), torch.randn(2, 4, 16).double()

    def said() -> Tensor:
        decoding = net.start(memory, 4)
        return torch.cat([decoding.step(inputs[:, step : step + 1]) for step in range(4)], dim=1)

    with torch.no_grad():
        plain = said()
        add_lora(net, LoRAConfig(rank=2, targets=("decoder.*.attn.*", "decoder.*.cross.*", "decoder.*.fc?")))
        torch.testing.assert_close(said(), plain, rtol=1e-9, atol=1e-9)
        for _, update in updates_of(net).values():
            nn.init.normal_(update.B, std=0.3)
        assert not torch.allclose(said(), plain)
        torch.testing.assert_close(said(), net.states(memory, inputs), rtol=1e-9, atol=1e-9)
        merge(net)
        torch.testing.assert_close(said(), net.states(memory, inputs), rtol=1e-9, atol=1e-9)


def test_the_decoder_looks_back_only() -> None:
    for form in ("detection", "depth, parallel"):
        net = model(form).eval()
        memory = net.encode(batch(net.tasks[0]).images)
        inputs = torch.randn(2, 6, 16)
        changed = inputs.clone()
        changed[:, 4:] = torch.randn(2, 2, 16)
        first, second = net.transformer.decode(memory, inputs), net.transformer.decode(memory, changed)
        torch.testing.assert_close(first[:, :4], second[:, :4])
        assert not torch.allclose(first[:, 4:], second[:, 4:])


# ---------------------------------------------------------------------- prediction


def assert_same(one: Prediction, other: Prediction) -> None:
    if isinstance(one, DepthMap):
        assert isinstance(other, DepthMap)
        torch.testing.assert_close(one.depth_m, other.depth_m, rtol=1e-3, atol=1e-3)
        return
    assert isinstance(one, Instances) and isinstance(other, Instances)
    torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy)
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-4)
    assert one.class_ids.tolist() == other.class_ids.tolist()
    assert (one.masks is None) == (other.masks is None)
    if one.masks is not None and other.masks is not None:
        a, b = (torch.as_tensor(decode_masks(p.masks, p.size_hw)) for p in (one, other))
        assert float((a != b).float().mean()) < 1e-2


@pytest.mark.parametrize("top_p", [0.0, 0.7])
@pytest.mark.parametrize(("form", "task"), EVERY)
def test_a_batch_equals_its_images_one_by_one(form: str, task: Task, top_p: float) -> None:
    net = model(form, top_p=top_p).eval()
    whole = batch(task, counts=(2, 1, 0))
    together = net.predict(whole)
    for index, one in enumerate(together):
        assert_same(one, net.predict(one_of(whole, index))[0])
    # And a prediction repeats.
    for one, again in zip(together, net.predict(whole), strict=True):
        assert_same(one, again)


@pytest.mark.parametrize(("form", "task"), OBJECT_FORMS)
def test_a_nucleus_with_another_seed_says_something_else(form: str, task: Task) -> None:
    said = []
    for seed in (0, 1):
        net = model(form, top_p=0.9, seed=seed).eval()
        with torch.no_grad():
            said.append(net.say_objects(net.encode(batch(task).images), task).tokens_BOt)
    assert not torch.equal(*said)


@pytest.mark.parametrize(("form", "task"), OBJECT_FORMS)
def test_objects_come_by_score_in_the_frame_of_the_original(form: str, task: Task) -> None:
    net = model(form).eval()
    data = batch(task)
    data.origins = [dataclasses.replace(origin, size_hw=(64, 42)) for origin in data.origins]  # input: 32x28
    with torch.no_grad():
        said = net.say_objects(net.encode(data.images), task)
    for index, found in enumerate(net.predict(data)):
        assert isinstance(found, Instances)
        assert len(found) == OBJECTS and found.size_hw == (64, 42)
        assert bool((found.scores[:-1] >= found.scores[1:]).all())
        order = said.scores_BO[index].argsort(descending=True, stable=True)
        pixels = said.tokens_BOt[index, order, :4] * SIZE / net.config.bins
        torch.testing.assert_close(found.boxes_xyxy, pixels / torch.tensor([28 / 42, 32 / 64]).repeat(2))
        assert found.category_ids == [(3, 5, 8)[k] for k in said.tokens_BOt[index, order, 4].tolist()]
        assert (found.masks is not None and len(found.masks) == OBJECTS) == (task is Task.INSTANCE)


def test_answers_follow_the_class_list_that_is_asked_for() -> None:
    net = model("instance", top_p=0.0, seed=1).eval()
    plain = net.predict(batch(Task.INSTANCE))
    asked = dataclasses.replace(batch(Task.INSTANCE), classes=ClassList(names=("cup", "ball"), category_ids=(7, 9)))
    for one, other in zip(plain, net.predict(asked), strict=True):
        assert isinstance(one, Instances) and isinstance(other, Instances)
        kept = [(n, s) for n, s in zip(one.class_names, one.scores.tolist(), strict=True) if n != "box"]
        assert kept == list(zip(other.class_names, other.scores.tolist(), strict=True))
        assert set(other.category_ids) <= {7, 9} and other.masks is not None and len(other.masks) == len(other)


def test_targets_are_read_by_the_names_of_their_classes() -> None:
    data, shuffled = batch(Task.DETECTION), batch(Task.DETECTION)
    shuffled.classes = ClassList.from_names(["cup", "box", "ball"])
    for target in shuffled.targets:
        assert target.class_ids is not None
        target.class_ids = 2 - target.class_ids
    losses = [total(model("detection").loss(one, draws=Fixed())) for one in (data, shuffled)]
    assert torch.equal(*losses)
    shuffled.classes = ClassList.from_names(["cup", "box", "hat"])
    with pytest.raises(DataError, match="class 'hat'"):
        model("detection").loss(shuffled)


# ---------------------------------------------------------------------- depth of pictures of any shape


@pytest.mark.parametrize("size_hw", [(SIZE, SIZE), (SIZE, 45), (45, SIZE), (SIZE, 62)])
@pytest.mark.parametrize("windows", [2, 3, 4])
def test_windows_cover_every_pixel_and_are_averaged(size_hw: tuple[int, int], windows: int) -> None:
    net = model("depth", windows=windows, flip=False).eval()
    image = batch(Task.DEPTH, counts=(0,), size_hw=size_hw).images
    with torch.no_grad():
        depth = net.depth_of(image)
        assert depth.shape == (1, *size_hw) and bool(depth.isfinite().all())
        spare = max(size_hw) - SIZE
        if spare % (windows - 1):
            return  # the windows cannot stand equally far apart
        total_m, seen = torch.zeros(1, *size_hw), torch.zeros(size_hw)
        for start in range(0, spare + 1, spare // (windows - 1) or 1):
            rows = slice(start, start + SIZE) if size_hw[0] > SIZE else slice(None)
            columns = slice(start, start + SIZE) if size_hw[1] > SIZE else slice(None)
            total_m[:, rows, columns] += net.depth_of_windows(image[:, :, rows, columns])
            seen[rows, columns] += 1
    torch.testing.assert_close(depth, (total_m / seen).clamp(min=1e-3), rtol=1e-4, atol=1e-4)


def test_depth_is_averaged_with_that_of_the_mirrored_picture() -> None:
    image = batch(Task.DEPTH, counts=(0, 0)).images
    plain, both = model("depth", flip=False).eval(), model("depth").eval()
    with torch.no_grad():
        mean = (plain.depth_of_windows(image) + plain.depth_of_windows(image.flip(3)).flip(2)) / 2
        torch.testing.assert_close(both.depth_of(image), mean.clamp(min=1e-3), rtol=1e-4, atol=1e-4)
        # What the mirrored picture is given is the mirrored answer.
        torch.testing.assert_close(both.depth_of(image.flip(3)).flip(2), both.depth_of(image), rtol=1e-4, atol=1e-4)
        # Nothing is nearer than a millimetre, whatever the map says.
        both.depth_vqvae.decoder[-1].bias.data.fill_(-9.0)
        assert float(both.depth_of(image).min()) == pytest.approx(1e-3)


def test_a_picture_that_the_windows_do_not_fit_is_refused() -> None:
    net = model("depth").eval()
    with pytest.raises(UsageError, match="one window does not cover"):
        model("depth", windows=1).eval().depth_of(torch.zeros(1, 3, SIZE, 40))
    for size_hw in ((24, 40), (40, 48)):
        with pytest.raises(UsageError, match="shorter side"):
            net.depth_of(torch.zeros(1, 3, *size_hw))


def test_depth_is_brought_to_the_original_size() -> None:
    net = model("depth").eval()
    data = batch(Task.DEPTH, counts=(0, 0), size_hw=(SIZE, 48))
    data.origins = [dataclasses.replace(data.origins[0], size_hw=(64, 96)), data.origins[1]]
    found = net.predict(data)
    assert [tuple(one.depth_m.shape) for one in found if isinstance(one, DepthMap)] == [(64, 96), (SIZE, 48)]
    assert net.preprocess(Task.DEPTH).cover and net.preprocess(Task.DEPTH).size_hw == (SIZE, SIZE)


def test_padded_windows_leave_the_depth_in_its_place() -> None:
    """The joint model pads windows to the size of its other task."""
    net = model("joint").eval()
    image = batch(Task.DEPTH, counts=(0,)).images
    padded = torch.zeros(1, 3, 40, 40)
    padded[:, :, :SIZE, :SIZE] = image
    with torch.no_grad():
        assert torch.equal(net.encode(image, pad_to=40), net.encode(padded))
        assert net.depth_of(image).shape == (1, SIZE, SIZE)


# ---------------------------------------------------------------------- configurations


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_vocabulary_of_a_preset_is_that_of_the_paper(name: str) -> None:
    own = PRESETS[name]()
    assert (own.coordinate_tokens, own.class_tokens) == (slice(0, 2001), slice(2001, 2081))
    assert (own.noise_token, own.mask_tokens, own.depth_tokens) == (2082, slice(2083, 2211), slice(2211, 2339))
    assert own.vocabulary == (2467 if own.instance is not None else 2339)
    assert own.lengths == {
        **({Task.DETECTION: 500} if own.detection else {}),
        **({Task.INSTANCE: 2100} if own.instance else {}),
        **({Task.DEPTH: 225} if own.depth else {}),
    }


def test_configurations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 class names for 3 classes"):
        config(classes=CLASSES[:2])
    with pytest.raises(ConfigError, match="needs a VQ-VAE of masks"):
        config(instance=BOXES)
    with pytest.raises(ConfigError, match="90 tokens of instance_segmentation are more than the 40 positions"):
        config(instance=dataclasses.replace(INSTANCE, objects=10))
    with pytest.raises(ConfigError, match="width 18 must be a multiple"):
        dataclasses.replace(FORMS["depth"].transformer, width=18)
    with pytest.raises(ConfigError, match=r"windows of 32 pixels cannot be padded to 31\n  where: depth\.pad_to"):
        dataclasses.replace(DEPTH, pad_to=31)
    with pytest.raises(ConfigError, match=r"boxes alone\n  where: detection\.masks"):
        config(detection=INSTANCE)


@pytest.mark.parametrize(
    ("changes", "side", "task"),
    [
        ({"detection": dataclasses.replace(BOXES, input_size=49)}, 49, Task.DETECTION),
        ({"instance": dataclasses.replace(INSTANCE, input_size=64)}, 64, Task.INSTANCE),
        ({"depth": dataclasses.replace(DEPTH, pad_to=56)}, 56, Task.DEPTH),
        ({"depth": DEPTH, "transformer": dataclasses.replace(FORMS["depth"].transformer, grid=3)}, 32, Task.DEPTH),
        ({"depth": DEPTH, "backbone": ViTConfig(width=16, depth=1, heads=2, patch_size=4)}, 32, Task.DEPTH),
    ],
)
def test_a_map_has_as_many_places_as_there_are_positions(changes: dict[str, Any], side: int, task: Task) -> None:
    with pytest.raises(ConfigError, match=rf"^{side} pixels of {task} are (.|\n)*where: transformer\.grid"):
        config(**changes)
    config(detection=dataclasses.replace(BOXES, input_size=48))  # six places of eight pixels: all of them


def test_a_model_offers_what_it_was_configured_for() -> None:
    assert model("joint").tasks == (Task.INSTANCE, Task.DEPTH)
    assert model("detection").classes == ClassList(names=CLASSES, category_ids=(3, 5, 8))
    unnamed = AiT(config(classes=(), category_ids=(), depth=DEPTH))
    assert unnamed.classes.names == ("class 0", "class 1", "class 2")
    declared = model("instance").preprocess(Task.INSTANCE)
    assert declared.keep_ratio and declared.size_hw == (SIZE, SIZE) and declared.pad_multiple == SIZE
    assert model("instance").mask_vqvae is not None and model("instance").depth_vqvae is None
    assert isinstance(FORMS["joint"], AiTConfig)


def test_masks_are_drawn_of_mixtures_or_of_codes() -> None:
    soft, hard = model("instance").eval(), model("instance, hard").eval()
    assert hard.mask_vqvae is not None
    hard.load_state_dict(soft.state_dict())
    tokens, logits = torch.randint(0, 5, (3, 9)), torch.randn(3, 4, 5)
    with torch.no_grad():
        assert torch.equal(hard.draw_masks(tokens, logits), hard.mask_vqvae.decode(tokens[:, 5:]))
        certain = 200.0 * torch.nn.functional.one_hot(tokens[:, 5:], 5).float()
        torch.testing.assert_close(soft.draw_masks(tokens, certain), hard.draw_masks(tokens, logits))
        assert not torch.allclose(soft.draw_masks(tokens, logits), hard.draw_masks(tokens, logits))


def test_masks_of_objects_are_cut_out_of_their_boxes() -> None:
    """A mask that fills its box is all ones, one that fills its left half is so."""
    net = model("instance")
    data = batch(Task.INSTANCE, counts=(1,))
    box = torch.tensor([[8.0, 4.0, 24.0, 20.0]])
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[0, 4:20, 8:16] = True
    data.targets[0].boxes = tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(SIZE, SIZE))
    data.targets[0].masks = tv_tensors.Mask(mask)
    _, _, inside = net.object_sequences(data, Fixed())
    assert torch.equal(inside[0], torch.cat([torch.ones(16, 8), torch.zeros(16, 8)], dim=1))
