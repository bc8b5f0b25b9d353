"""The predictor, with a tiny GiT of random weights: requests, answers, damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_checkpoint import tiny_checkpoint
from PIL import Image

import saccade
from saccade.data.scenes import SEMANTIC_CLASSES, THING_CLASSES
from saccade.errors import ImageError, UsageError
from saccade.models.git.config import GIT_TASKS
from saccade.predictor import Answer, Predictor, load
from saccade.results import Caption, Grounding, Instances, SemanticMap
from saccade.samples import ClassList
from saccade.saving import CocoCollector, save
from saccade.tasks import Task

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
RESULTS = {
    Task.DETECTION: Instances,
    Task.INSTANCE: Instances,
    Task.SEMANTIC: SemanticMap,
    Task.CAPTION: Caption,
    Task.GROUNDING: Grounding,
}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    torch.set_num_threads(1)
    return saccade.load(tiny_checkpoint(tmp_path_factory.mktemp("model") / "all"), device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for number, size in enumerate([(90, 60), (64, 64), (30, 100), (90, 60)]):
        noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{number:06d}.png")
    return images


def words(prediction: object) -> str:
    return json.dumps(prediction.to_dict())  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", GIT_TASKS)
def test_each_task_answers_in_the_frame_of_the_picture(predictor: Predictor, task: Task) -> None:
    phrases = "the red ball" if task is Task.GROUNDING else None
    score = 0.0 if RESULTS[task] is Instances else None
    prediction = predictor.predict(PIXELS, task=task, phrases=phrases, score=score)
    assert isinstance(prediction, RESULTS[task])
    if isinstance(prediction, Instances):
        assert len(prediction) == 20 and prediction.size_hw == (60, 90)
        assert (prediction.masks is not None) == (task is Task.INSTANCE)
        assert set(prediction.category_ids) <= {3 * k for k in range(1, len(THING_CLASSES) + 1)}
        assert (prediction.boxes_xyxy[:, 0::2] <= 90).all() and (prediction.boxes_xyxy[:, 1::2] <= 60).all()
    if isinstance(prediction, SemanticMap):
        assert prediction.size_hw == (60, 90) and prediction.classes.names == SEMANTIC_CLASSES
    assert prediction.draw(PIXELS).width == 90


def test_every_kind_of_input_gives_the_same_answer(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    kinds = [PIXELS, path, str(path), path.read_bytes(), Image.fromarray(PIXELS), tensor]
    answers = {words(predictor.predict(kind, task="detection", score=0)) for kind in kinds}
    assert len(answers) == 1
    listed = predictor.predict(kinds, task="detection", score=0, batch_size=4)
    assert isinstance(listed, list) and {words(answer.prediction) for answer in listed} == answers
    assert [answer.origin.path for answer in listed] == [None, str(path), str(path), None, None, None]


@pytest.mark.parametrize("task", [Task.INSTANCE, Task.GROUNDING])
def test_batches_do_not_change_answers(predictor: Predictor, folder: Path, task: Task) -> None:
    phrases = ["the red ball", "the small blue metal cube on the left", "ball"] if task is Task.GROUNDING else None
    runs = [
        predictor.predict(folder, task=task, phrases=phrases, score=None if phrases else 0.0, batch_size=size)
        for size in (1, 3)
    ]
    for one, other in zip(*runs, strict=True):
        assert one.stem == other.stem and one.origin == other.origin
        if isinstance(one.prediction, Grounding):
            assert one.prediction.phrase == other.prediction.phrase
            torch.testing.assert_close(one.prediction.box_xyxy, other.prediction.box_xyxy)
        else:
            torch.testing.assert_close(one.prediction.scores, other.prediction.scores)


def test_phrases_of_a_picture_come_together_in_order(predictor: Predictor, folder: Path) -> None:
    phrases = ["the red ball", "a cube", "the green cube that is behind the ball"]
    answers = predictor.predict(folder, phrases=phrases)  # the task follows from the phrases
    assert [answer.prediction.phrase for answer in answers] == phrases * 4
    assert [answer.stem for answer in answers[:4]] == ["000000_0", "000000_1", "000000_2", "000001_0"]
    one = predictor.predict(PIXELS, phrases=["ball"])
    assert isinstance(one, Grounding) and one.phrase == "ball"
    several = predictor.predict(PIXELS, phrases=["ball", "cube"])
    assert isinstance(several, list) and isinstance(several[0], Answer)


def test_classes_are_the_askers_and_keep_known_category_ids(predictor: Predictor) -> None:
    own = predictor.predict(PIXELS, task="detection", classes="zebra, fire truck", score=0)
    assert own.classes == ClassList(names=("zebra", "fire truck"), category_ids=(0, 1))
    some = [THING_CLASSES[4], THING_CLASSES[1]]
    known = predictor.predict(PIXELS, task="detection", classes=some, score=0)
    assert known.classes == ClassList(names=tuple(some), category_ids=(15, 6))
    given = ClassList(names=("a", "b"), category_ids=(7, 5))
    assert predictor.predict(PIXELS, task="semantic", classes=given).classes == given


def test_score_leaves_out_the_weak(predictor: Predictor) -> None:
    everything = predictor.predict(PIXELS, task="detection", score=0)
    least = float(everything.scores.median())
    kept = predictor.predict(PIXELS, task="detection", score=least)
    assert 0 < len(kept) < len(everything) and float(kept.scores.min()) >= least


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"task": "detektion"}, r"unknown task(.|\n)*did you mean 'detection'"),
        ({"task": "caption", "classes": ["cat"]}, "takes no class names"),
        ({"task": "detection", "phrases": "the cat"}, "takes no phrases"),
        ({"task": "caption", "score": 0.5}, "no scores to filter"),
        ({"task": "detection", "score": 1.5}, "between 0 and 1"),
        ({"task": "grounding"}, "needs phrases"),
        ({"phrases": [" . "]}, "needs phrases"),
        ({"phrases": "ball " * 40}, "more than the 32 pieces"),
        ({"task": "detection", "classes": "cat,,dog"}, "non-empty"),
        ({"task": "detection", "batch_size": 0}, "at least 1"),
    ],
)
def test_requests_that_do_not_fit(predictor: Predictor, request_: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predictor.stream(PIXELS, **request_)  # before anything is computed


def test_without_a_task_objects_are_looked_for(predictor: Predictor) -> None:
    assert predictor.stream(PIXELS).task is Task.DETECTION
    assert predictor.stream(PIXELS, phrases="the ball").task is Task.GROUNDING


def test_a_model_with_one_task_needs_no_task(tmp_path: Path) -> None:
    single = load(tiny_checkpoint(tmp_path / "one", tasks=(Task.CAPTION,)), device="cpu")
    assert isinstance(single.predict(PIXELS), Caption)
    with pytest.raises(UsageError, match=r"does not offer the task 'detection'"):
        single.predict(PIXELS, task="detection")


def test_a_folder_run_goes_on_past_damaged_files(predictor: Predictor, folder: Path) -> None:
    good = (folder / "000000.png").read_bytes()
    (folder / "000001.png").write_bytes(good[: len(good) // 2])
    (folder / "000002.png").write_bytes(b"")
    (folder / "words.jpg").write_text("not a picture")
    (folder / "words.txt").write_text("not a picture")
    stream = predictor.stream(folder, task="detection", score=0, batch_size=2)
    assert stream.total == 5 and stream.report.done == 0
    answers = list(stream)
    assert [answer.stem for answer in answers] == ["000000", "000001", "000002", "000003", "words"]
    assert [answer.error is None for answer in answers] == [True, False, False, True, False]
    assert stream.report.done == 2
    assert {Path(name).name for name in stream.report.failed} == {"000001.png", "000002.png", "words.jpg"}
    assert all(name in str(error) for name, error in stream.report.failed.items())
    assert [Path(name).name for name in stream.report.passed_over] == ["words.txt"]
    assert all(answer.seconds > 0 for answer in answers if answer.prediction)
    with pytest.raises(ImageError, match=r"000001\.png"):
        predictor.predict(folder, task="detection")
    with pytest.raises(ImageError, match=r"nowhere\.jpg"):
        predictor.predict(folder / "nowhere.jpg", task="detection")
    with pytest.raises(ImageError):
        answers[1].draw()


def test_a_stream_may_be_left_early(predictor: Predictor, folder: Path) -> None:
    stream = predictor.stream(folder, task="caption")
    assert next(iter(stream)).prediction is not None
    stream.answers.close()  # type: ignore[attr-defined]
    assert stream.report.done == 1


def test_answers_save_themselves_as_a_coco_run(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    collector = CocoCollector()
    for answer in predictor.stream(folder, task="instance", score=0):
        save(
            answer.prediction,
            answer.image,
            answer.stem,
            tmp_path / "out",
            {"coco", "png", "npy", "overlay"},
            origin=answer.origin,
            collector=collector,
        )
    results, dataset = collector.write(tmp_path / "out")
    described = json.loads(dataset.read_text())
    assert [(image["id"], image["file_name"]) for image in described["images"]] == [
        (number, f"{number:06d}.png") for number in range(4)
    ]
    assert len(json.loads(results.read_text())) == 80
    assert Image.open(tmp_path / "out" / "000002_overlay.png").size == (30, 100)


def test_loading_names_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="git-bass"):
        saccade.load("git-bass")
    with pytest.raises(UsageError, match="unknown device"):
        saccade.load(tmp_path, device="toaster")
