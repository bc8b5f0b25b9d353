"""What every task of GiT owes to what is built on it: losses, gradients, predictions, batches, precision, graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from helpers_git import CLASSES, VIT, VOCABULARY, compare, make_batch, pick, tiny_config, tiny_git

from saccade.errors import ConfigError, DataError, UsageError
from saccade.layers.vit import PlainViT
from saccade.models.git.config import GIT_TASKS, CaptionConfig, GiTConfig, SemanticConfig
from saccade.models.git.model import GiT
from saccade.models.git.presets import PRESETS
from saccade.results import Caption, Grounding, Instances, SemanticMap
from saccade.samples import Target
from saccade.tasks import TASKS, Task

ALL = GIT_TASKS
each_task = pytest.mark.parametrize("task", ALL, ids=str)


# ---------------------------------------------------------------------- losses


@each_task
def test_loss_is_finite_and_falls(task: Task) -> None:
    model = tiny_git(gain=1.0).train()
    batch = make_batch(task)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for _ in range(9):
        torch.manual_seed(1)  # the same grid points every step
        losses = model.loss(batch)
        assert all(name.startswith(f"{task}_loss_") and value.ndim == 0 for name, value in losses.items())
        total = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(float(total.detach()))
    assert all(map(torch.isfinite, map(torch.tensor, totals)))
    assert totals[-1] < 0.8 * totals[0], totals


def test_backward_reaches_every_trainable_parameter() -> None:
    """Over the five tasks together: no single one uses everything (grounding alone has text, dense tasks features)."""
    model = tiny_git(vit=dataclasses.replace(VIT, drop_path=0.1), text_dropout=0.1).train()
    reached = {name: 0.0 for name, _ in model.named_parameters()}
    for task in ALL:
        model.zero_grad()
        torch.stack(list(model.loss(make_batch(task)).values())).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert bool(parameter.grad.isfinite().all()), (task, name)
                reached[name] += float(parameter.grad.abs().sum())
    # Nobody reads the image map after the last block (responses read its keys and values), in the original neither.
    idle = {f"backbone.blocks.{VIT.depth - 1}.attn.rel_pos_{axis}" for axis in "hw"}
    assert {name for name, total in reached.items() if total == 0.0} == idle


def test_gradients_flow_through_the_task_vocabulary() -> None:
    """The classifier is made of word rows and of the concept attention: detection alone must train both."""
    model = tiny_git().train()
    torch.stack(list(model.loss(make_batch(Task.DETECTION)).values())).sum().backward()
    for parameter in (model.concept_attention.in_proj_weight, model.concept_positions.weight):
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0
    ball = VOCABULARY.encode(["ball"], max_length=20)[0][0, 1]
    assert float(model.text_embed.words.weight.grad[ball].abs().sum()) > 0


@each_task
def test_activation_checkpointing_changes_no_gradient(task: Task) -> None:
    found = []
    for enabled in (False, True):
        model = tiny_git(vit=dataclasses.replace(VIT, drop_path=0.4), gain=2.0).train()
        model.set_activation_checkpointing(enabled)
        torch.manual_seed(5)
        total = torch.stack(list(model.loss(make_batch(task)).values())).sum()
        total.backward()
        found.append((total.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert torch.equal(found[0][0], found[1][0])
    assert set(found[0][1]) == set(found[1][1])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_images_without_objects_train_as_background() -> None:
    batch = make_batch(Task.INSTANCE)
    for target in batch.targets:
        assert target.boxes is not None and target.masks is not None and target.class_ids is not None
        target.boxes, target.class_ids = target.boxes[:0], target.class_ids[:0]
        target.masks, target.is_crowd = target.masks[:0], None
    losses = tiny_git().loss(batch)
    assert float(losses["instance_segmentation_loss_cls"].detach()) > 0
    assert float(losses["instance_segmentation_loss_reg"].detach()) == 0
    assert float(losses["instance_segmentation_loss_poly"].detach()) == 0


def test_an_unlabelled_map_gives_a_finite_loss() -> None:
    batch = make_batch(Task.SEMANTIC)
    for target in batch.targets:
        assert target.semantic is not None
        target.semantic[:] = 255
    assert float(tiny_git().loss(batch)["semantic_segmentation_loss_cls"].detach()) == 0.0


@pytest.mark.parametrize(
    ("task", "empty", "message"),
    [
        (Task.DETECTION, "boxes", "no boxes"),
        (Task.DETECTION, "class_ids", "no class ids"),
        (Task.INSTANCE, "masks", "no masks"),
        (Task.SEMANTIC, "semantic", "no label map"),
        (Task.CAPTION, "captions", "no caption"),
        (Task.GROUNDING, "boxes", "exactly one box"),
    ],
    ids=str,
)
def test_a_target_that_lacks_its_truth_is_an_error(task: Task, empty: str, message: str) -> None:
    batch = make_batch(task)
    setattr(batch.targets[1], empty, getattr(Target(), empty))
    with pytest.raises(DataError, match=message):
        tiny_git().loss(batch)


@each_task
def test_a_missing_prompt_is_an_error(task: Task) -> None:
    kind = TASKS[task].prompt
    if kind == "none":
        pytest.skip("the task has no prompt")
    batch = dataclasses.replace(make_batch(task), classes=None, phrases=None)
    model = tiny_git()
    for call in (model.loss, model.predict):
        with pytest.raises(UsageError, match="class names" if kind == "classes" else "phrase"):
            call(batch)


# ---------------------------------------------------------------------- predictions

RESULTS: dict[Task, type] = {
    Task.DETECTION: Instances,
    Task.INSTANCE: Instances,
    Task.SEMANTIC: SemanticMap,
    Task.CAPTION: Caption,
    Task.GROUNDING: Grounding,
}


@each_task
def test_predictions_are_in_the_frame_of_the_original_image(task: Task) -> None:
    batch = make_batch(task, 3, targets=False)
    answers = tiny_git().predict(batch)
    assert len(answers) == 3
    for answer, origin in zip(answers, batch.origins, strict=True):
        assert type(answer) is RESULTS[task]
        h, w = origin.size_hw
        if isinstance(answer, Instances):
            assert (len(answer.scores), answer.size_hw, answer.classes) == (12, (h, w), CLASSES)
            assert bool((answer.scores.diff() <= 0).all())
            boxes = answer.boxes_xyxy
            assert bool((boxes >= 0).all())
            assert bool((boxes <= torch.tensor([w, h, w, h])).all())
            # Boxes fill the original frame, not only that of the network input.
            assert float(boxes.max()) > 64
            assert (answer.masks is not None) == (task is Task.INSTANCE)
        elif isinstance(answer, SemanticMap):
            assert tuple(answer.labels.shape) == (h, w)
            assert int(answer.labels.max()) < len(CLASSES)
        elif isinstance(answer, Grounding):
            assert 0 < answer.score <= 1
            assert bool((answer.box_xyxy <= torch.tensor([w, h, w, h])).all())


@each_task
def test_a_batch_equals_its_images_one_by_one(task: Task) -> None:
    """Grounding with phrases of equal length: positions of the response start at the padded length of the batch, in the
    original too, so an answer depends a little on the longest phrase beside it."""
    model = tiny_git()
    batch = make_batch(task, 3, targets=False)
    together = model.predict(batch)
    assert len({str(answer.to_dict()) for answer in together}) > 1  # else the comparison would be empty
    for index, answer in enumerate(together):
        compare(model.predict(pick(batch, index))[0], answer)


def test_the_longest_phrase_of_a_batch_moves_the_others_a_little() -> None:
    """The quirk above, so that nobody thinks it away: same phrase, other neighbour, other probability."""
    model = tiny_git()
    batch = make_batch(Task.GROUNDING, 2, targets=False)
    batch.phrases = ["the red ball", "the red ball"]
    alone = model.predict(batch)[0]
    batch.phrases = ["the red ball", "the big red ball on the left of the box"]
    beside = model.predict(batch)[0]
    assert isinstance(alone, Grounding) and isinstance(beside, Grounding)
    assert alone.score != beside.score


@each_task
def test_bf16_autocast_runs_and_is_near(task: Task) -> None:
    """Losses within a few per cent; predictions have the right shape (tokens may differ: the model is random)."""
    model = tiny_git(gain=1.5)
    batch = make_batch(task)
    torch.manual_seed(0)
    exact = {name: float(value) for name, value in model.loss(batch).items()}
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        near = model.loss(batch)
        answers = model.predict(batch)
    for name, value in near.items():
        assert value.dtype is torch.float32
        assert float(value) == pytest.approx(exact[name], rel=0.03, abs=0.02)
    assert len(answers) == 2


@each_task
def test_double_precision_runs(task: Task) -> None:
    """Nothing inside assumes float32."""
    model = tiny_git().double()
    batch = make_batch(task, 1)
    batch.images = batch.images.double()
    assert len(model.predict(batch)) == 1


def test_predictions_need_no_gradients_and_leave_none() -> None:
    model = tiny_git()
    model.predict(make_batch(Task.DETECTION))
    assert all(parameter.grad is None for parameter in model.parameters())
    answer = model.predict(make_batch(Task.DETECTION))[0]
    assert isinstance(answer, Instances)
    assert not answer.boxes_xyxy.requires_grad


# ---------------------------------------------------------------------- the vocabulary that is kept


def change_by_optimiser(model: GiT, **options: bool) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, **options)
    torch.stack(list(model.loss(make_batch(Task.DETECTION)).values())).sum().backward()
    optimiser.step()
    model.zero_grad()


def change_by_fused_optimiser(model: GiT) -> None:
    """The form that training on a GPU uses; it does not raise the version of what it changes."""
    change_by_optimiser(model, fused=True)


def change_by_loading(model: GiT) -> None:
    model.load_state_dict(tiny_git(seed=9).state_dict())


def change_by_assigned_loading(model: GiT) -> None:
    model.load_state_dict(tiny_git(seed=9).state_dict(), assign=True)


def change_in_place(model: GiT) -> None:
    with torch.no_grad():
        model.concept_attention.out_proj.weight.mul_(2)


@each_task
def test_training_after_predicting_in_one_process(task: Task) -> None:
    """What prediction keeps for the next call (ids, grids, indices) must not be tensors that autograd refuses."""
    # Sizes of their own, so that no other test has filled the caches that outlive a model.
    vit = dataclasses.replace(VIT, patch_size=4, image_size=48, window_size=6)
    side, whole = 48, task in (Task.CAPTION, Task.GROUNDING)
    model = tiny_git(
        vit=vit, **{t.value: dataclasses.replace(getattr(tiny_config(), t.value), input_size=24) for t in ALL}
    )
    image_hw = (24, 24) if whole else (side, side)
    model.predict(make_batch(task, image_hw=image_hw))
    torch.stack(list(model.loss(make_batch(task, image_hw=image_hw)).values())).sum().backward()


@pytest.mark.parametrize(
    "change",
    [change_by_optimiser, change_by_fused_optimiser, change_by_loading, change_by_assigned_loading, change_in_place],
)
def test_cached_vocabulary_follows_the_weights(change: Callable[[GiT], None]) -> None:
    model = tiny_git()
    with torch.inference_mode():
        before = model.vocabulary_matrix(Task.DETECTION, CLASSES.names).clone()
        assert model.vocabulary_matrix(Task.DETECTION, CLASSES.names) is model.vocabulary_matrix(
            Task.DETECTION, CLASSES.names
        )
    change(model)
    fresh = GiT(model.config, VOCABULARY)
    fresh.load_state_dict(model.state_dict())
    with torch.inference_mode():
        after = model.vocabulary_matrix(Task.DETECTION, CLASSES.names)
        assert torch.equal(after, fresh.vocabulary_matrix(Task.DETECTION, CLASSES.names))
    assert not torch.equal(after, before)


def test_cached_vocabulary_is_apart_for_tasks_and_class_lists() -> None:
    model = tiny_git()
    with torch.inference_mode():
        boxes = model.vocabulary_matrix(Task.DETECTION, CLASSES.names)
        labels = model.vocabulary_matrix(Task.SEMANTIC, CLASSES.names)
        other = model.vocabulary_matrix(Task.DETECTION, CLASSES.names[::-1])
    assert boxes.shape == (33 + 3 + 1, 32)
    assert labels.shape == (3 + 3, 32)
    torch.testing.assert_close(other[33:36], boxes[33:36].flip(0), rtol=1e-5, atol=1e-6)


def test_an_answer_does_not_depend_on_the_precision_of_the_one_before() -> None:
    model = tiny_git()
    batch = make_batch(Task.DETECTION, targets=False)
    fresh = model.predict(batch)[0]
    model = tiny_git()
    with torch.autocast("cpu", torch.bfloat16):
        model.predict(batch)
    again = model.predict(batch)[0]
    assert isinstance(fresh, Instances) and isinstance(again, Instances)
    assert torch.equal(fresh.scores, again.scores)


def test_concepts_of_one_piece_are_word_rows_and_of_several_an_attention() -> None:
    """Against multi-head attention spelt out: query the first piece, [CLS], [SEP] and padding hidden (specs 4)."""
    model = tiny_git()
    with torch.no_grad():
        found = model.concepts(["ball", "big red ball", "traffic light"])
        table, positions = model.text_embed.words.weight, model.concept_positions.weight
        ids = {w: int(VOCABULARY.encode([w], max_length=20)[0][0, 1]) for w in ("ball", "big", "red", "traffic")}
        assert torch.equal(found[0], table[ids["ball"]])
        pieces = torch.tensor([ids["big"], ids["red"], ids["ball"]])
        value = table[pieces]
        key = value + positions[1:4]  # [CLS] stands at place 0
        attention = model.concept_attention
        wq, wk, wv = attention.in_proj_weight.chunk(3)
        bq, bk, bv = attention.in_proj_bias.chunk(3)
        heads, d = attention.num_heads, 32 // attention.num_heads
        q = (key[:1] @ wq.T + bq).view(1, heads, d).transpose(0, 1)
        k = (key @ wk.T + bk).view(3, heads, d).transpose(0, 1)
        v = (value @ wv.T + bv).view(3, heads, d).transpose(0, 1)
        joined = ((q @ k.mT / d**0.5).softmax(-1) @ v).transpose(0, 1).reshape(32)
        torch.testing.assert_close(found[1], attention.out_proj(joined), rtol=1e-4, atol=1e-5)
        # Padding to the longest name of a call changes nothing.
        torch.testing.assert_close(model.concepts(["traffic light"])[0], found[2], rtol=1e-5, atol=1e-6)


def test_background_is_minus_the_mean_of_the_classes() -> None:
    model = tiny_git()
    with torch.no_grad():
        rows = model.concepts(CLASSES.names)
        boxes = model.vocabulary_matrix(Task.DETECTION, CLASSES.names)
        labels = model.vocabulary_matrix(Task.SEMANTIC, CLASSES.names)
    torch.testing.assert_close(boxes[-1], -rows.mean(0))
    torch.testing.assert_close(labels[3:], -rows.mean(0).expand(3, -1))
    torch.testing.assert_close(boxes[33:36], rows)


# ---------------------------------------------------------------------- graphs


def test_backbone_compiles_into_one_graph() -> None:
    backbone = tiny_git().backbone
    images = torch.randn(2, 3, 64, 64)
    torch._dynamo.reset()
    compiled = torch.compile(PlainViT.forward, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(backbone, images), backbone(images), rtol=1e-5, atol=1e-6)


def test_image_encoder_exports() -> None:
    backbone = tiny_git().backbone.eval()
    program = torch.export.export(backbone, (torch.randn(1, 3, 64, 64),))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), backbone(images), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- presets and config


def scaled_down(config: GiTConfig) -> GiTConfig:
    """The preset with its depth, its global blocks and its interfaces, but thin and on a small image."""
    vit = dataclasses.replace(config.vit, width=16, heads=2, mlp_width=16, patch_size=4, window_size=4, image_size=32)
    changes: dict[str, object] = {}
    for task in ALL:
        interface = getattr(config, task.value)
        if interface is not None:
            whole = task in (Task.CAPTION, Task.GROUNDING)
            small: dict[str, object] = {"input_size": 16 if whole else 32}
            if hasattr(interface, "num_bins"):
                small["num_bins"] = 32
            if hasattr(interface, "max_length"):
                small["max_length"] = 6
            changes[task.value] = dataclasses.replace(interface, **small)
    return dataclasses.replace(
        config, vit=vit, vocab_size=len(VOCABULARY), max_positions=64, concept_heads=2, **changes
    )


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_trains_and_predicts_scaled_down(name: str) -> None:
    torch.manual_seed(0)
    model = GiT(scaled_down(PRESETS[name]()), VOCABULARY)
    offered = tuple(task for task in ALL if getattr(PRESETS[name](), task.value) is not None)
    assert model.tasks == offered
    for task in offered:
        size = model.task_config(task).input_size
        batch = make_batch(task, 1, image_hw=(size, size))
        total = torch.stack(list(model.train().loss(batch).values())).sum()
        total.backward()
        assert bool(total.isfinite())
        assert len(model.eval().predict(batch)) == 1


def test_a_task_set_to_none_is_not_offered() -> None:
    model = tiny_git(caption=None)
    assert Task.CAPTION not in model.tasks
    for call in (model.loss, model.predict):
        with pytest.raises(UsageError, match="does not offer the task 'caption'"):
            call(make_batch(Task.CAPTION))
    with pytest.raises(UsageError, match="choose one of: detection"):
        model.preprocess(Task.CAPTION)


@each_task
def test_preprocess_declares_the_official_input(task: Task) -> None:
    declared = tiny_git().preprocess(task)
    whole = task in (Task.CAPTION, Task.GROUNDING)
    assert declared.size_hw == ((32, 32) if whole else (64, 64))
    assert declared.interpolation == ("bicubic" if whole else "bilinear")
    assert declared.resize_as_float is (task is Task.INSTANCE)
    assert declared.pad_multiple == 32


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"semantic_segmentation": SemanticConfig(input_size=80, block=2)}, "model.semantic_segmentation.input_size"),
        ({"caption": CaptionConfig(input_size=64)}, "model.caption.input_size"),
        ({"semantic_segmentation": SemanticConfig(input_size=64, block=3)}, "model.semantic_segmentation.block"),
        ({"concept_heads": 5}, "model.concept_heads"),
    ],
    ids=["no whole windows", "more than one window", "labels that no patch can hold", "heads that do not divide"],
)
def test_config_errors_name_the_field(changes: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(**changes)
    assert caught.value.where == where
    assert caught.value.exit_code == 2


def test_a_vocabulary_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError, match="1024 pieces but the model has 30524 word rows"):
        GiT(tiny_config(vocab_size=30524), VOCABULARY)


def test_an_input_of_the_wrong_size_is_refused() -> None:
    model = tiny_git()
    with pytest.raises(UsageError, match="whole number"):
        model.predict(make_batch(Task.DETECTION, 1, image_hw=(64, 72), targets=False))
    with pytest.raises(UsageError, match="exactly one window"):
        model.predict(make_batch(Task.CAPTION, 1, image_hw=(64, 64), targets=False))


@pytest.mark.parametrize("task", [Task.DETECTION, Task.INSTANCE, Task.SEMANTIC], ids=str)
def test_inputs_that_are_not_square_are_read_and_learned(task: Task) -> None:
    """The official inference takes them (a fixture has the numbers); its training mixed rows and columns."""
    model = tiny_git()
    batch = make_batch(task, 1, image_hw=(64, 96))
    answer = model.predict(batch)[0]
    if isinstance(answer, Instances):
        assert float(answer.boxes_xyxy[:, 2].max()) > 96
    else:
        assert isinstance(answer, SemanticMap)
        assert tuple(answer.labels.shape) == (96, 144)
    assert all(bool(value.isfinite()) for value in model.loss(batch).values())
