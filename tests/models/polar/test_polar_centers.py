"""What finds centres looks at the original pictures, as if it were alone: in evaluation and in prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_polar import TINY_CENTERS, TINY_UNET, Bright, Disc, draw, make_sample, overlap

from saccade.data.transforms import collate, preprocess
from saccade.errors import UsageError
from saccade.hub.checkpoint import CheckpointCard, LoadedModel
from saccade.labels import centroid
from saccade.models.polar.centers import CenterPredictor
from saccade.models.polar.config import PolarConfig
from saccade.models.polar.model import PolarSegmenter
from saccade.models.systems import build
from saccade.predictor import Predictor
from saccade.samples import Batch, Sample
from saccade.tasks import Task
from saccade.training.centers import find_centers
from saccade.training.evaluation import evaluate

CPU = torch.device("cpu")
ORIGINAL = (90, 150)
DISC = (60.0, 40.0, 21.0)


class Pictures:
    """A source of discs, larger than any network's input."""

    name = "discs"

    def __init__(self, discs: Sequence[Sequence[Disc]], task: Task = Task.SEMANTIC) -> None:
        self.discs, self.task, self.skipped = discs, task, {}
        self.classes = make_sample([], (2, 2)).classes

    def __len__(self) -> int:
        return len(self.discs)

    def __getitem__(self, index: int) -> Sample:
        sample = make_sample(self.discs[index], ORIGINAL, self.task)
        noise = np.random.default_rng(index).integers(0, 90, (3, *ORIGINAL))
        image = sample.image // 2 + torch.from_numpy(noise).to(torch.uint8)  # fine grain: sizes are told apart by it
        return dataclasses.replace(
            sample, image=type(sample.image)(image), origin=dataclasses.replace(sample.origin, image_id=index)
        )


def polar(finder: torch.nn.Module | None = None, **changes: object) -> PolarSegmenter:
    return PolarSegmenter(PolarConfig(**changes), Bright(), finder).eval()


def samples(*discs: Sequence[Disc]) -> list[Sample]:
    return [make_sample(one, ORIGINAL) for one in discs]


def alone(finder: torch.nn.Module, source: Pictures, task: Task) -> Batch:
    """What the finder sees in an evaluation of its own."""
    declared = finder.preprocess(task)
    return collate([preprocess(source[index], declared) for index in range(len(source))], declared)


@pytest.mark.parametrize("finder", [Bright((60, 100)), CenterPredictor(TINY_CENTERS)], ids=["segmenter", "predictor"])
def test_an_evaluation_shows_the_finder_what_it_sees_alone(finder: torch.nn.Module) -> None:
    """And not the input of the segmenter, 32 x 48, made larger again."""
    torch.manual_seed(0)
    finder.eval()
    task = Task.CENTER if isinstance(finder, CenterPredictor) else Task.SEMANTIC
    source = Pictures([[DISC], [(100.0, 60.0, 15.0)]])
    wanted = finder.predict(alone(finder, Pictures(source.discs, task), task))
    model = polar(finder)
    places = find_centers(model, [source[0], source[1]], CPU)
    if isinstance(finder, CenterPredictor):
        assert all(torch.equal(one, found.points_xy[:1]) for one, found in zip(places, wanted, strict=True))
    else:
        finder.seen.clear()
        evaluate(model, source, batch_size=2)
        assert torch.equal(finder.seen[0].images, alone(finder, source, task).images)
    own = evaluate(model, source, batch_size=2, protocol="polar").metrics
    batch = alone(model.segmenter, source, Task.SEMANTIC)
    told = model.predict(batch, centers_xy=places)
    truths = [draw(ORIGINAL, discs) for discs in source.discs]
    ious = [overlap(one, truth) for one, truth in zip(told, truths, strict=True)]
    assert own["mean_IoU"] == pytest.approx(sum(ious) / 2)


def test_a_predictor_shows_the_finder_the_picture() -> None:
    source, finder = Pictures([[DISC], [(100.0, 60.0, 15.0)], []]), Bright((60, 100))
    card = CheckpointCard(
        folder=Path(), system="polar", config=PolarConfig(), tasks=(Task.SEMANTIC,), classes={}, preprocessing={}
    )
    loaded = LoadedModel(model=polar(finder), classes={Task.SEMANTIC: source.classes}, card=card)
    pictures = [source[index].image.as_subclass(torch.Tensor) for index in range(3)]
    Predictor(loaded).predict(pictures, batch_size=2)
    shown = torch.cat([batch.images for batch in finder.seen])
    assert torch.equal(shown, alone(finder, source, Task.SEMANTIC).images)


def test_the_first_pass_of_a_segmenter_finds_the_centre() -> None:
    first, none = find_centers(polar(Bright((16, 16))), samples([DISC], []), CPU)
    assert first.shape == (1, 2) and none.shape == (0, 2)  # unrolled around the middle
    assert (first[0] - torch.tensor(DISC[:2])).abs().max() <= 8


def test_a_finder_that_calls_the_object_otherwise_finds_it() -> None:
    torch.manual_seed(0)
    moles = build(dataclasses.replace(TINY_UNET, classes=("mole", "background"))).eval()
    asked = samples([DISC], [(100.0, 60.0, 15.0)])
    declared = moles.preprocess(Task.SEMANTIC)
    shown = [preprocess(dataclasses.replace(one, classes=moles.classes), declared) for one in asked]
    batch = collate(shown, declared)
    with torch.no_grad():
        moles.network.head.bias -= moles.logits(batch.images).median()  # half of the pixels are mole
    found = find_centers(polar(moles), asked, CPU)
    for places, said in zip(found, moles.predict(batch), strict=True):
        assert 0 < int((said.labels == 0).sum()) < said.labels.numel()
        assert torch.equal(places[0], centroid(said.labels == 0))


def test_each_region_has_a_centre_where_that_is_asked() -> None:
    discs = [(30.0, 30.0, 15.0), (108.0, 66.0, 18.0)]
    finder = Bright(ORIGINAL)
    (found,) = find_centers(polar(finder, objects="each"), samples(discs), CPU)
    assert sorted(found.tolist()) == [[30, 30], [108, 66]]
    assert find_centers(polar(finder), samples(discs), CPU)[0].shape == (1, 2)
    (truth,) = polar(objects="each").true_centers(samples(discs))
    assert sorted(truth.tolist()) == [[30, 30], [108, 66]]


def test_without_a_finder_the_reason_is_told() -> None:
    with pytest.raises(UsageError, match="not told where the object is"):
        find_centers(polar(), samples([DISC]), CPU)
