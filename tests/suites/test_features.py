"""Network inputs, the cache of features, probes and their files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from helpers_suites import scene_picture
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from saccade.errors import CheckpointError, DataError, TrainingError
from saccade.suites import features
from saccade.suites.base import SuiteOptions, silent
from saccade.suites.features import extract
from saccade.suites.pictures import CentreCrop, Files, Squash
from saccade.suites.probes import endless, fit_probe, keep_probe, kept_probe, shuffled

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)


@pytest.mark.parametrize("size", [(64, 64), (100, 151), (151, 100), (57, 333), (31, 30), (225, 224)])
def test_the_centre_crop_is_that_of_clip(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(size[1])
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    theirs = v2.Compose([v2.Resize(56, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(56)])
    picture = theirs(Image.fromarray(image.permute(1, 2, 0).numpy()))
    expected = (v2.functional.pil_to_tensor(picture).float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    assert torch.equal(CentreCrop(side=56, mean=MEAN, std=STD)(image), expected)


def test_a_squashed_picture_is_all_of_it(tmp_path: Path) -> None:
    out = Squash(size_hw=(28, 84), mean=MEAN, std=STD)(torch.full((3, 50, 40), 120, dtype=torch.uint8))
    assert out.shape == (3, 28, 84) and float(out[0].abs().max()) == 0.0


def test_parts_and_borders_of_files(tmp_path: Path) -> None:
    image = torch.arange(3 * 20 * 30, dtype=torch.int64).remainder(251).to(torch.uint8).view(3, 20, 30)
    path = tmp_path / "a.png"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    assert torch.equal(Files(paths=[path], border=2)[0], image[:, 2:-2, 2:-2])
    files = Files(paths=[path] * 3, boxes_xyxy=[None, (4.4, 5.6, 10.0, 99.0), (30, 0, 40, 5)])
    assert torch.equal(files[0], image) and torch.equal(files[1], image[:, 6:, 4:10])
    with pytest.raises(DataError, match="nothing is left"):
        files[2]


class Counted:
    """Pictures that count how often they are read."""

    def __init__(self, count: int) -> None:
        self.count, self.reads = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        return torch.full((3, 4, 4), index, dtype=torch.uint8)


def compute(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))[:, None]


def run(pictures: Counted, options: SuiteOptions, **about: str) -> Tensor:
    fit = Squash(size_hw=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)
    return extract(compute, pictures, fit, options=options, device=torch.device("cpu"), about=dict(about))


def test_features_are_kept_and_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD", 3)
    seen: list[tuple[int, int]] = []
    options = SuiteOptions(
        root=tmp_path, cache=tmp_path / "kept", batch_size=2, progress=lambda _, done, total: seen.append((done, total))
    )
    pictures = Counted(8)
    found = run(pictures, options, tower="a")
    assert found[:, 0].tolist() == list(range(8)) and seen == [(3, 8), (6, 8), (8, 8)] and pictures.reads == 8
    (folder,) = (tmp_path / "kept").iterdir()
    assert json.loads((folder / "about.json").read_text())["precision"] == "float32"
    (folder / "00001.safetensors").unlink()  # as if it had been stopped there
    again = Counted(8)
    assert torch.equal(run(again, options, tower="a"), found) and again.reads == 3
    other = Counted(8)
    run(other, options, tower="b")
    assert other.reads == 8, "another tower has features of its own"
    (folder / "00000.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="made anew"):
        run(Counted(8), options, tower="a")


def test_loader_processes_give_the_same(tmp_path: Path) -> None:
    alone = run(Counted(5), SuiteOptions(root=tmp_path, batch_size=2))
    assert torch.equal(alone, run(Counted(5), SuiteOptions(root=tmp_path, batch_size=3, workers=1)))


def losses(probe: nn.Module, wanted: float) -> Iterator[Tensor]:
    while True:
        yield (probe(torch.ones(2, 3)) - wanted).square().mean()


def test_a_probe_learns_is_kept_and_refuses_another_tower(tmp_path: Path) -> None:
    torch.manual_seed(0)
    probe = nn.Linear(3, 1)
    said: list[int] = []
    last = fit_probe(
        probe, losses(probe, 3.0), steps=80, learning_rate=0.1, weight_decay=0.0,
        progress=lambda what, done, total: said.append(done),
    )  # fmt: skip
    assert last < 0.05 and said == list(range(1, 81)) and not probe.training
    path = tmp_path / "probes/one.safetensors"
    about = {"tower": "a", "folder": "/data", "steps": 80}
    keep_probe(path, probe.state_dict(), about, "80 steps on 2 rows")
    fresh = nn.Linear(3, 1)
    assert kept_probe(path, fresh, about) == f"the probe is the one kept in {path}: 80 steps on 2 rows"
    assert torch.equal(fresh.weight, probe.weight)
    assert kept_probe(path, fresh, about | {"folder": None}), "what is not said is not compared"
    assert not kept_probe(tmp_path / "none", fresh, about) and not kept_probe(None, fresh, about)
    with pytest.raises(CheckpointError, match=r"why: +tower: a, now asked for: b; steps: 80, now asked for: 9\n"):
        kept_probe(path, fresh, about | {"tower": "b", "steps": 9})
    with pytest.raises(CheckpointError, match="another form"):
        kept_probe(path, nn.Linear(4, 1), about)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        kept_probe(path, fresh, about)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    probe = nn.Linear(1, 1, bias=False)
    weights: list[float] = []

    def slope() -> Iterator[Tensor]:
        while True:
            weights.append(float(probe.weight.detach()))
            yield 0.5 * probe.weight.sum()  # of a constant gradient AdamW makes steps as long as its rate

    fit_probe(probe, slope(), steps=100, learning_rate=0.1, weight_decay=0.0, progress=silent)
    weights.append(float(probe.weight.detach()))
    rates = [before - after for before, after in pairwise(weights)]
    expected = [0.02 * (step + 1) for step in range(5)]
    expected += [0.05 * (1 + math.cos(math.pi * step / 95)) for step in range(95)]
    assert rates == pytest.approx(expected, abs=1e-5)
    assert rates[-1] < 1e-4


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    probe = nn.Linear(3, 1)
    with pytest.raises(TrainingError, match="step 0"):
        fit_probe(probe, losses(probe, float("nan")), steps=2, learning_rate=0.1, weight_decay=0.0, progress=silent)


def test_every_pass_sees_everything_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    order = shuffled(6, 2, torch.Generator().manual_seed(0))
    first, second = ([next(order) for _ in range(3)] for _ in range(2))
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(6)) and first != second
    assert len(next(shuffled(3, 8, torch.Generator()))) == 3
    batches = endless(lambda i: (scene_picture(i), str(i)), 3, SuiteOptions(root=tmp_path, batch_size=2))
    images, texts = next(batches)
    assert torch.equal(images[1], scene_picture(int(texts[1])))
