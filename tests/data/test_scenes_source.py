"""The reader of scenes fills what each task needs, and its splits stay apart."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from saccade.data.scenes import SEMANTIC_CLASSES, THING_CLASSES, draw_scene
from saccade.data.sources.scenes import ScenesSource
from saccade.errors import UsageError
from saccade.samples import Sample
from saccade.tasks import TASKS, Task

SCENE_TASKS = tuple(Task)


def first(task: Task, **options: object) -> Sample:
    return ScenesSource(task=task, split="val", size=96, **options)[3]  # type: ignore[arg-type]


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_a_sample_of_each_task(task: Task) -> None:
    sample, scene = first(task), draw_scene((0, 1, 3), (96, 96))
    assert sample.task is task
    assert isinstance(sample.image, tv_tensors.Image)
    assert sample.image.dtype == torch.uint8
    assert torch.equal(sample.image.permute(1, 2, 0), torch.from_numpy(scene.image))
    assert sample.origin.image_id == 3
    assert sample.origin.size_hw == sample.size_hw == (96, 96)
    for name in TASKS[task].target:
        assert getattr(sample.target, name) not in (None, ()), name
    assert (sample.phrase is not None) == (task is Task.GROUNDING)
    assert (sample.classes is not None) == (TASKS[task].prompt == "classes")


def test_targets_agree_with_the_scene() -> None:
    scene = draw_scene((0, 1, 3), (96, 96))
    target = first(Task.INSTANCE).target
    assert isinstance(target.boxes, tv_tensors.BoundingBoxes)
    assert target.boxes.canvas_size == (96, 96)
    assert np.array_equal(target.boxes.numpy(), scene.boxes_xyxy)
    assert target.masks is not None
    assert target.masks.dtype == torch.bool
    assert np.array_equal(target.masks.numpy(), scene.masks)
    assert target.class_ids is not None
    assert target.class_ids.tolist() == scene.class_ids.tolist()
    assert target.areas is not None
    assert target.areas.dtype == torch.float64
    assert target.is_crowd is not None
    assert not target.is_crowd.any()
    assert first(Task.DETECTION).target.masks is None
    semantic = first(Task.SEMANTIC).target.semantic
    assert semantic is not None
    assert semantic.dtype == torch.int64
    assert np.array_equal(semantic.numpy(), scene.semantic)
    assert first(Task.CAPTION).target.captions == scene.captions


def test_grounding_asks_for_exactly_one_object() -> None:
    source = ScenesSource(task=Task.GROUNDING, split="val", size=64)
    for index in range(30):
        sample, scene = source[index], draw_scene((0, 1, index), (64, 64))
        (target,) = scene.phrases[0].targets
        assert sample.phrase == scene.phrases[0].text
        assert sample.target.boxes is not None
        assert sample.target.boxes.tolist() == [scene.boxes_xyxy[target].tolist()]


def test_class_lists_carry_their_own_category_ids() -> None:
    detection, semantic = first(Task.DETECTION).classes, first(Task.SEMANTIC).classes
    assert detection is not None
    assert detection.names == THING_CLASSES
    assert detection.category_ids == tuple(range(1, len(THING_CLASSES) + 1))
    assert semantic is not None
    assert semantic.names == SEMANTIC_CLASSES


def test_lengths_limits_and_offsets() -> None:
    assert len(ScenesSource(task=Task.CAPTION)) == 10**9
    assert len(ScenesSource(task=Task.CAPTION, split="val")) == 10_000
    assert len(ScenesSource(task=Task.CAPTION, split="test", offset=9_990)) == 10
    some = ScenesSource(task=Task.CAPTION, split="test", size=64, offset=5, limit=2)
    assert len(some) == 2
    assert torch.equal(some[1].image, ScenesSource(task=Task.CAPTION, split="test", size=64)[6].image)
    assert some[1].origin.image_id == 6
    for index in (2, -1):
        with pytest.raises(IndexError):
            some[index]


def test_splits_and_seeds_share_no_scene() -> None:
    sources = [ScenesSource(task=Task.CAPTION, split=split, size=64) for split in ("train", "val", "test")]
    sources.append(ScenesSource(task=Task.CAPTION, split="train", size=64, seed=1))
    pictures = {source[k].image.numpy().tobytes() for source in sources for k in range(5)}
    assert len(pictures) == 20


def test_a_source_travels_to_a_loader_worker() -> None:
    source = ScenesSource(task=Task.DETECTION, size=64, seed=4)
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(source[9].image, again[9].image)


def test_a_style_is_another_look_of_the_same_scenes() -> None:
    plain, night = first(Task.DETECTION), first(Task.DETECTION, style="night")
    assert night.origin.dataset != plain.origin.dataset
    assert plain.target.boxes is not None
    assert torch.equal(plain.target.boxes, night.target.boxes)  # type: ignore[arg-type]
    assert night.image.float().mean() < 0.6 * plain.image.float().mean()


@pytest.mark.parametrize(
    "options",
    [
        {"split": "vall"},
        {"size": 32},
        {"limit": -1},
        {"offset": -1},
        {"seed": -1},
        {"split": "val", "offset": 10_000},
        {"style": "plane"},
    ],
)
def test_wrong_choices_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ScenesSource(task=Task.DETECTION, **options)  # type: ignore[arg-type]
