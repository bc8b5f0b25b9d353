"""Truths and pictures that are not as they should be: the right result, or one error that says what is wrong."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_ait import CLASSES, FORMS, MAPS, OBJECTS, SIZE, Fixed, batch, config, model, total
from PIL import Image
from rich.console import Console
from torch import Tensor
from torchvision import tv_tensors

from saccade.data.augment import ScaleJitterAugment
from saccade.data.check import check_dataset
from saccade.data.depth_augment import DepthAugment
from saccade.data.sources import SourceSpec, open_source
from saccade.errors import CheckpointError, ConfigError, DataError
from saccade.hub.checkpoint import CONFIG, load_folder, save_model
from saccade.models.ait.model import AiT
from saccade.models.ait.vqvae import MapVQVAE, MapVQVAEConfig
from saccade.predictor import Predictor
from saccade.results import DepthMap, Instances
from saccade.samples import Batch, Origin, Sample, Target
from saccade.tasks import Task
from saccade.training.config import SourceConfig, TrainConfig
from saccade.training.evaluation import evaluate
from saccade.training.trainer import Trainer

DEPTH_FORMS = [form for form, own in FORMS.items() if own.depth is not None]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def learner(form: str) -> AiT | MapVQVAE:
    if form == "vqvae":
        torch.manual_seed(0)
        return MapVQVAE(MapVQVAEConfig(task=Task.DEPTH, vqvae=MAPS))
    return model(form)


def with_depth(change: float) -> Batch:
    """A batch in which every fifth pixel says the same, and its twin in which they are unknown."""
    given = batch(Task.DEPTH)
    for target in given.targets:
        assert target.depth_m is not None
        target.depth_m.view(-1)[::5] = change
    return given


# ---------------------------------------------------------------------- depth


@pytest.mark.parametrize("form", [*DEPTH_FORMS, "vqvae"])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf"), -3.0])
def test_what_is_no_depth_is_unknown(form: str, odd: float) -> None:
    losses = [total(learner(form).loss(with_depth(value))) for value in (odd, 0.0)]
    assert bool(losses[0].isfinite()) and torch.equal(*losses)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -3.0])
def test_a_vqvae_is_scored_on_what_is_known(odd: float) -> None:
    """What comes back of a map does not depend on how its holes are written."""
    net, size_hw = learner("vqvae").eval(), (SIZE, SIZE)
    assert isinstance(net, MapVQVAE)
    samples = [
        Sample(
            image=tv_tensors.Image(torch.zeros(3, *size_hw, dtype=torch.uint8)),
            task=Task.DEPTH,
            origin=Origin(dataset="t", image_id=0, path=None, size_hw=size_hw),
            target=Target(depth_m=with_depth(value).targets[0].depth_m),
        )
        for value in (odd, 0.0)
    ]
    one, other = net.reconstruct(samples)
    assert bool(one.depth_m.isfinite().all()) and torch.equal(one.depth_m, other.depth_m)


@pytest.mark.parametrize("form", [*DEPTH_FORMS, "vqvae"])
def test_a_batch_without_any_depth_teaches_nothing_wrong(form: str) -> None:
    given = batch(Task.DEPTH)
    for target in given.targets:
        assert target.depth_m is not None
        target.depth_m.zero_()
    net = learner(form).train()
    losses = net.loss(given)
    total(losses).backward()
    assert all(bool(value.isfinite()) for value in losses.values())
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
    drawn = [value for name, value in losses.items() if name.endswith(("drawn", "reconstruction"))]
    assert all(float(value.detach()) == 0 for value in drawn)


@pytest.mark.parametrize("form", [*DEPTH_FORMS, "vqvae"])
def test_depth_of_another_size_than_the_picture_is_named(form: str) -> None:
    given = batch(Task.DEPTH)
    given.targets[1].depth_m = torch.ones(SIZE, SIZE // 2)
    with pytest.raises(DataError, match=rf"another size(.|\n)*where: 1\n(.|\n)*\({SIZE}, {SIZE // 2}\)"):
        learner(form).loss(given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_depth_of_any_type_is_metres(dtype: torch.dtype) -> None:
    whole = batch(Task.DEPTH)
    for target in whole.targets:
        assert target.depth_m is not None
        target.depth_m = target.depth_m.round()
    other = dataclasses.replace(
        whole, targets=[dataclasses.replace(t, depth_m=t.depth_m.to(dtype)) for t in whole.targets]
    )  # type: ignore[union-attr]
    assert torch.equal(total(model("depth").loss(whole)), total(model("depth").loss(other)))


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        (np.full((40, 50), np.nan, np.float32), "unknown_depth"),
        (np.full((40, 50), np.inf, np.float32), "unknown_depth"),
        (np.zeros((40, 50), np.float32), "unknown_depth"),
        (np.ones((40, 30), np.float32), "depth_size_mismatch"),
        (np.ones((40, 50), bool), "depth_number_type"),
        (np.ones((40, 50, 3), np.float32), "depth_number_type"),
    ],
)
def test_a_folder_with_odd_maps(tmp_path: Path, stored: np.ndarray, kind: str) -> None:
    """The check names it; training reads it as unknown, or stops with one error that names the file."""
    for number in range(4):
        for name in ("images", "depth"):
            (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 40 * number, np.uint8)).save(tmp_path / f"images/{number}.png")
        np.save(
            tmp_path / f"depth/{number}.npy", stored if number == 2 else np.full((40, 50), 1.5 + number, np.float32)
        )
    spec = SourceSpec(task=Task.DEPTH, reader="depth_folder", root=str(tmp_path), split="all")
    (finding,) = check_dataset(spec).findings
    assert (finding.kind, finding.count) == (kind, 1) and "2" in finding.examples[0]
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    source = SourceConfig(**fields, batch_size=4, augment=DepthAugment())
    made = TrainConfig(
        name="x", model=MapVQVAEConfig(task=Task.DEPTH, vqvae=MAPS), train=(source,), val=(), steps=1, workers=0,
        out=str(tmp_path / "runs"), device="cpu", threads=1, resume="never",
    )  # fmt: skip
    trainer = Trainer(made, console=Console(file=io.StringIO()))
    if kind == "unknown_depth":
        assert trainer.fit().step == 1
        result = evaluate(model("depth").eval(), open_source(spec), protocol="crop=none")
        assert result.images == 4
        assert any("1 of 4 images have no pixel" in note for note in result.stamp["notes"])
        assert np.isfinite(result.metrics["d1"])
    else:
        with pytest.raises(DataError, match=r"2\.npy"):
            trainer.fit()


# ---------------------------------------------------------------------- pictures


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 40), (200, 9), (33, 31)])
def test_depth_of_pictures_of_any_shape_is_finite(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    folder = save_model(model("depth"), tmp_path / "depth", classes={}, provenance={})
    pixels = np.random.default_rng(0).integers(0, 255, (*size_hw, 3), np.uint8)
    answer = Predictor(load_folder(folder)).predict(pixels)
    assert isinstance(answer, DepthMap)
    assert tuple(answer.depth_m.shape) == size_hw and bool(answer.depth_m.isfinite().all())
    assert float(answer.depth_m.min()) > 0


@pytest.mark.parametrize("ratio", [2, 2.5, 7])
def test_a_panorama_has_no_pixel_between_its_windows(ratio: float) -> None:
    net = model("depth").eval()
    for size_hw in ((SIZE, round(ratio * SIZE)), (round(ratio * SIZE), SIZE)):
        image = batch(Task.DEPTH, counts=(0,), size_hw=size_hw).images
        with torch.no_grad():
            depth = net.depth_of(image)
        assert depth.shape == (1, *size_hw) and bool(depth.isfinite().all())


# ---------------------------------------------------------------------- objects


def write_coco(root: Path, counts: list[int]) -> Path:
    images, annotations = [], []
    for number, count in enumerate(counts):
        Image.fromarray(np.full((SIZE, SIZE, 3), 30 * number, np.uint8)).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE})
        for index in range(count):
            x = 2 * index
            polygon = [[x, 4, x + 9, 4, x + 9, 14, x, 14]]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 3, "bbox": [x, 4, 9, 10], "area": 90}
                | {"iscrowd": 0, "segmentation": polygon}
            )
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": id_, "name": name} for id_, name in zip((3, 5, 8), CLASSES, strict=True)]
    (root / "all.json").write_text(json.dumps(content))
    return root


def test_pictures_without_objects_and_with_more_than_are_said_are_scored(tmp_path: Path) -> None:
    root = write_coco(tmp_path, [0, OBJECTS + 3, 1])
    source = open_source(
        SourceSpec(task=Task.INSTANCE, reader="coco", root=str(root), annotations="all.json", images=".")
    )
    result = evaluate(model("instance").eval(), source, batch_size=2)
    assert result.images == 3 and 0 <= result.metrics["mask_AP"] <= 1
    net = model("instance").eval()
    for index in range(3):
        answer = Predictor(load_folder(save_model(net, tmp_path / "m", classes={}, provenance={}))).predict(
            str(root / f"{index}.png"), score=0.0
        )
        assert isinstance(answer, Instances) and len(answer) == OBJECTS


def test_too_many_objects_stop_a_training_with_the_file_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    root = write_coco(tmp_path / "data", [1, OBJECTS + 1])
    source = SourceConfig(
        task=Task.DETECTION, reader="coco", root=str(root), annotations="all.json", images=".", batch_size=2,
        augment=ScaleJitterAugment(flip=0.0, scales=(1.0, 1.0), rules="ait"),
    )  # fmt: skip
    made = TrainConfig(
        name="x", model=FORMS["detection"], train=(source,), steps=1, workers=0, out=str(tmp_path / "runs"),
        device="cpu", threads=1,
    )  # fmt: skip
    with pytest.raises(
        DataError, match=rf"{OBJECTS + 1} objects do not fit(.|\n)*1\.png(.|\n)*raise the model's objects"
    ):
        Trainer(made, console=Console(file=io.StringIO())).fit()


def test_training_on_pictures_without_any_object(tmp_path: Path) -> None:
    net = model("instance").train()
    given = batch(Task.INSTANCE, counts=(0, 0))
    value = total(net.loss(given, draws=Fixed()))
    assert bool(value.isfinite())


# ---------------------------------------------------------------------- codebooks


def test_a_codebook_has_as_many_codes_as_the_vocabulary_has_rows() -> None:
    form = FORMS["joint"]
    with pytest.raises(ConfigError, match=r"5 codes, and 6 rows(.|\n)*where: mask_codes"):
        dataclasses.replace(form, mask_codes=6)
    with pytest.raises(ConfigError, match=r"7 codes, and 5 rows(.|\n)*where: depth_codes"):
        dataclasses.replace(form, depth_codes=5)
    # A model without masks keeps rows for them.
    assert config(depth=form.depth, mask_codes=9).vocabulary


def test_a_checkpoint_with_a_codebook_of_another_size_is_one_clear_error(tmp_path: Path) -> None:
    folder = save_model(model("depth"), tmp_path / "depth", classes={}, provenance={})
    card = json.loads((folder / CONFIG).read_text())
    card["model"]["depth"]["depth"]["codebook"]["codes"] = 9
    (folder / CONFIG).write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"contradicts itself(.|\n)*9 codes, and 7 rows"):
        load_folder(folder)
    card["model"]["depth_codes"] = 9
    (folder / CONFIG).write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"codebook\.entries \(found \(7, 4\), expected \(9, 4\)\)"):
        load_folder(folder)


def test_nothing_of_a_tensor_is_changed_in_place() -> None:
    given = with_depth(float("nan"))
    before = [t.depth_m.clone() for t in given.targets if isinstance(t.depth_m, Tensor)]
    model("depth").loss(given)
    after = [t.depth_m for t in given.targets if isinstance(t.depth_m, Tensor)]
    assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(before, after, strict=True))
