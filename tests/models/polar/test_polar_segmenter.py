"""The wrapper: where centres come from, what the segmenter is shown, what comes back; and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers_polar import CLASSES, TINY_CENTERS, TINY_UNET, TINY_VIT, Bright, draw, make_batch, make_sample, overlap
from torch import Tensor
from torchvision import tv_tensors

from saccade.errors import ConfigError, DataError, UsageError
from saccade.layers.polar import Interpolation, to_polar
from saccade.models.polar.config import PolarConfig, SegmenterConfig
from saccade.models.polar.model import PolarSegmenter
from saccade.models.systems import build, set_finder
from saccade.samples import Batch, ClassList
from saccade.tasks import Task

DISC = (20.0, 14.0, 7.0)


def polar(finder: torch.nn.Module | None = None, size_hw: tuple[int, int] = (32, 48), **changes: object):
    model = PolarSegmenter(PolarConfig(**changes), Bright(size_hw), finder)
    return model.eval()


# --- prediction


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("size_hw", [(32, 48), (48, 32), (40, 40)])
def test_what_is_seen_unrolled_comes_back(size_hw: tuple[int, int], interpolation: Interpolation) -> None:
    model = polar(size_hw=size_hw, interpolation=interpolation)
    batch = make_batch([[DISC], [(12.0, 20.0, 5.0)]], size_hw)
    found = model.predict(batch, centers_xy=[torch.tensor([[20.0, 14.0]]), torch.tensor([[12.0, 20.0]])])
    assert overlap(found[0], draw(size_hw, [DISC])) > 0.85
    assert overlap(found[1], draw(size_hw, [(12.0, 20.0, 5.0)])) > 0.8
    (seen,) = model.segmenter.seen
    assert seen.images.shape == (2, 3, size_hw[1], size_hw[0])  # unrolled, rows are radii
    assert seen.images[0, :, -5:].mean() > 0.3 > 0 > seen.images[0, :, :5].mean()


def test_the_answer_is_in_the_frame_of_the_original_picture() -> None:
    model = polar()
    batch = make_batch([[DISC]], original_hw=(64, 144))
    (found,) = model.predict(batch, centers_xy=[torch.tensor([[61.0, 28.5]])])  # 3 and 2 times as large
    y, x = torch.meshgrid(torch.arange(64), torch.arange(144), indexing="ij")
    assert overlap(found, ((x - 61) / 3) ** 2 + ((y - 28.5) / 2) ** 2 <= 49) > 0.85


def test_several_objects_by_a_centre_each() -> None:
    discs = [(10.0, 10.0, 5.0), (36.0, 22.0, 6.0)]
    batch = make_batch([discs, [DISC], []])
    centers = [torch.tensor([disc[:2] for disc in discs]), torch.tensor([DISC[:2]]), torch.zeros(0, 2)]
    model = polar()
    together = model.predict(batch, centers_xy=centers)
    for found, wanted in zip(together, (discs, [DISC], []), strict=True):
        assert overlap(found, draw((32, 48), wanted)) > 0.85 or not wanted
    assert not together[2].labels.any()
    # Four views, three at a time: no more than there are pictures.
    assert [len(seen) for seen in model.segmenter.seen] == [3, 1]
    for number in range(3):
        alone = polar().predict(_row(batch, number), centers_xy=[centers[number]])
        assert torch.equal(alone[0].labels, together[number].labels)


def test_beyond_the_greatest_radius_there_is_background() -> None:
    model = polar()
    with torch.no_grad():
        model.segmenter.gain.fill_(-20.0)  # says that everything dark is the object
    batch = make_batch([[(0.0, 0.0, 3.0)]])
    (found,) = model.predict(batch, centers_xy=[torch.tensor([[0.0, 0.0]])])
    assert found.labels[28, 44] == 0 and found.labels[10, 14] == 1


@pytest.mark.parametrize("center", [(-1.0, 3.0), (48.0, 3.0), (3.0, 32.0), (float("nan"), 3.0)])
def test_a_centre_outside_the_picture_is_refused(center: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="outside"):
        polar().predict(make_batch([[DISC]]), centers_xy=[torch.tensor([center])])


def test_without_a_centre_and_a_finder_the_reason_is_told() -> None:
    with pytest.raises(UsageError, match="not told where the object is"):
        polar().predict(make_batch([[DISC]]))
    with pytest.raises(UsageError, match="does not offer"):
        polar().predict(dataclasses.replace(make_batch([[DISC]]), task=Task.DETECTION))
    with pytest.raises(DataError, match="no classes"):
        polar().predict(dataclasses.replace(make_batch([[DISC]]), classes=None), centers_xy=[torch.zeros(1, 2)])


def test_tiny_pictures() -> None:
    batch = make_batch([[DISC], [DISC]], original_hw=(1, 1))
    batch.origins[1] = dataclasses.replace(batch.origins[1], size_hw=(2, 3))
    found = polar().predict(batch, centers_xy=[torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])])
    assert [tuple(one.labels.shape) for one in found] == [(1, 1), (2, 3)]


# --- centres


def test_true_centers_of_pictures_without_an_object() -> None:
    (found,) = polar().true_centers([make_sample([], (20, 30))])
    assert found.shape == (0, 2)
    with pytest.raises(DataError, match="no label map"):
        sample = make_sample([], (20, 30))
        sample.target.semantic = None
        polar().true_centers([sample])


def test_a_finder_is_put_in_from_outside() -> None:
    model = build(PolarConfig(segmenter=TINY_UNET))
    set_finder(model, build(TINY_CENTERS))
    assert not any(parameter.requires_grad for parameter in model.finder.parameters())
    assert model.train().finder.training is False
    with pytest.raises(UsageError, match="unrolled around them"):
        set_finder(build(TINY_UNET), build(TINY_CENTERS))


# --- training


def test_the_segmenter_learns_from_unrolled_pictures_and_maps() -> None:
    model = polar(jitter_probability=0.0)
    batch = make_batch([[DISC], []])
    model.loss(batch)
    shown = model.segmenter.seen[0]
    center = torch.tensor([[20.0, 14.0], [24.0, 16.0]])  # of mass; of the picture, where there is no object
    assert torch.equal(shown.images, to_polar(batch.images, center))
    maps = torch.stack([target.semantic.as_subclass(Tensor) for target in shown.targets])
    masks = torch.stack([target.semantic.as_subclass(Tensor) for target in batch.targets])
    assert torch.equal(maps, to_polar(masks[:, None], center, mode="nearest")[:, 0])
    assert maps[0].any() and not maps[1].any()


def test_training_shifts_the_centre_by_no_more_than_it_may() -> None:
    model = polar(jitter=0.25, jitter_probability=0.5)
    torch.manual_seed(0)
    centers = torch.tensor([[20.0, 14.0]]).expand(400, 2)
    moved = model._shifted(centers, make_batch([[DISC]])) - centers
    hit = (moved != 0).any(dim=1)
    assert 140 < hit.sum() < 260
    assert 7 < moved.abs().max() <= 8
    corner = model._shifted(torch.zeros(100, 2), make_batch([[DISC]]))
    assert (corner >= 0).all()


def test_one_object_is_learned_at_a_time_where_each_has_a_centre() -> None:
    discs = [(10.0, 10.0, 5.0), (36.0, 22.0, 6.0)]
    model = polar(objects="each", jitter_probability=0.0)
    torch.manual_seed(0)
    areas = set()
    for _ in range(12):
        model.segmenter.seen.clear()
        model.loss(make_batch([discs]))
        labels = model.segmenter.seen[0].targets[0].semantic.as_subclass(Tensor)
        assert labels[-6:].float().mean() > 0.9 and labels[:12].sum() == 0  # around the centre, and nowhere else
        areas.add(int(labels.sum()))
    assert len(areas) == 2


def test_specks_are_no_objects_where_each_has_a_centre() -> None:
    """One pixel of 32 x 48 is a share of 0.00065."""
    discs = [(20.0, 14.0, 7.0), (40.0, 28.0, 0.0)]
    (found,) = polar(objects="each").true_centers([make_sample(discs, (32, 48))])
    assert found.tolist() == [[20, 14]]
    (found,) = polar(objects="one").true_centers([make_sample([discs[1]], (32, 48))])
    assert found.tolist() == [[40, 28]]
    (found,) = polar(objects="each", least_region=0.0).true_centers([make_sample(discs, (32, 48))])
    assert sorted(found.tolist()) == [[20, 14], [40, 28]]
    model = polar(objects="each", jitter_probability=0.0)
    for number in range(8):
        torch.manual_seed(number)
        model.segmenter.seen.clear()
        batch = make_batch([discs])
        model.loss(batch)
        (shown,) = model.segmenter.seen[0].targets
        alone = make_batch([discs[:1]]).targets[0].semantic.as_subclass(Tensor)
        wanted = to_polar(alone[None, None], torch.tensor([[20.0, 14.0]]), mode="nearest")[0, 0]
        assert torch.equal(shown.semantic.as_subclass(Tensor), wanted)
    model.segmenter.seen.clear()
    batch = make_batch([[(26.0, 16.0, 0.0)]])
    model.loss(batch)  # a speck alone: around the middle, and still learned
    assert torch.equal(model.segmenter.seen[0].images, to_polar(batch.images, torch.tensor([[24.0, 16.0]])))
    assert model.segmenter.seen[0].targets[0].semantic.as_subclass(Tensor).any()


def test_ignored_pixels_stay_ignored_and_the_outside_is_background() -> None:
    classes = ClassList.from_names(("lesion", "background"))  # the background is not the first here
    batch = dataclasses.replace(make_batch([[DISC]]), classes=classes)
    labels = 1 - batch.targets[0].semantic.as_subclass(Tensor)
    labels[0, :] = 255
    batch.targets[0].semantic = tv_tensors.Mask(labels)
    model = polar(jitter_probability=0.0)
    model.loss(batch)
    shown = model.segmenter.seen[0].targets[0].semantic.as_subclass(Tensor)
    assert set(shown.unique().tolist()) == {0, 1, 255}
    outside = to_polar(torch.ones(1, 1, 32, 48), torch.tensor([[20.0, 14.0]]), mode="nearest")[0, 0] == 0
    assert outside.any() and (shown[outside] == 1).all()


def test_a_sample_without_a_map_is_refused() -> None:
    batch = make_batch([[DISC]])
    batch.targets[0].semantic = None
    with pytest.raises(DataError, match="no label map"):
        polar().loss(batch)


# --- configuration


def test_padding_cannot_be_unrolled() -> None:
    class Padded(Bright):
        def preprocess(self, task: Task):
            return dataclasses.replace(super().preprocess(task), pad_multiple=5)

    with pytest.raises(ConfigError, match="padding"):
        PolarSegmenter(PolarConfig(), Padded())


@pytest.mark.parametrize(
    "changes", [{"jitter": -0.1}, {"jitter": 2.0}, {"least_region": 1.5}, {"jitter_probability": 1.5}]
)
def test_impossible_shares_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="share"):
        PolarConfig(**changes)


@pytest.mark.parametrize("config", [TINY_UNET, TINY_VIT], ids=["unet", "vit"])
def test_every_segmenter_of_ours_can_be_wrapped(config: SegmenterConfig) -> None:
    torch.manual_seed(0)
    model = build(PolarConfig(segmenter=config))
    batch = make_batch([[DISC], [(30.0, 18.0, 8.0)]])
    model.train()
    (loss,) = model.loss(batch).values()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    found = model.predict(batch, centers_xy=[torch.tensor([[20.0, 14.0]]), torch.tensor([[30.0, 18.0]])])
    assert all(one.classes == CLASSES and one.labels.shape == (32, 48) for one in found)


def _row(batch: Batch, number: int) -> Batch:
    return dataclasses.replace(
        batch,
        images=batch.images[number : number + 1],
        origins=batch.origins[number : number + 1],
        targets=batch.targets[number : number + 1],
        input_sizes_hw=batch.input_sizes_hw[:1],
    )
