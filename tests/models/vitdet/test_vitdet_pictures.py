"""Pictures as users have them, through the predictor and the training transforms, with a small detector."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_vitdet import CLASSES, FORMS, config
from PIL import Image
from torchvision import tv_tensors

import saccade
from saccade.data.augment import ScaleJitterAugment
from saccade.data.loader import SourceEntry, TrainLoader
from saccade.errors import ImageError, UsageError
from saccade.hub.checkpoint import save_model
from saccade.models.vitdet.model import ViTDet
from saccade.predictor import Answer, Predictor
from saccade.results import Instances
from saccade.samples import ClassList, Origin, Sample, Target
from saccade.tasks import Task


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    torch.manual_seed(0)
    form = FORMS["detectron2"]
    model = ViTDet(dataclasses.replace(form, roi=dataclasses.replace(form.roi, min_score=0.0)))
    return saccade.load(save_model(model, tmp_path_factory.mktemp("m") / "d", classes={}, provenance={}), device="cpu")


def picture(kind: str) -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 256, (60, 90, 4), dtype=np.uint8)
    made = {
        "grey": Image.fromarray(noise[..., 0]),
        "alpha": Image.fromarray(noise, mode="RGBA"),
        "palette": Image.fromarray(noise[..., :3]).convert("P"),
        "cmyk": Image.fromarray(noise, mode="CMYK"),
        "16-bit": Image.fromarray(noise[..., 0].astype(np.uint16) * 257),
        "bilevel": Image.fromarray(noise[..., 0]).convert("1"),
        "wide": Image.fromarray(noise[:3, :, :3]).resize((900, 5)),
        "tall": Image.fromarray(noise[:, :3, :3]).resize((5, 900)),
        "one pixel": Image.fromarray(noise[:1, :1, :3]),
        "large": Image.fromarray(noise[..., :3]).resize((1500, 1100)),
    }
    return made[kind]


KINDS = ("grey", "alpha", "palette", "cmyk", "16-bit", "bilevel", "wide", "tall", "one pixel", "large")


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_size_and_channels(predictor: Predictor, kind: str, tmp_path: Path) -> None:
    file = tmp_path / ("p.tif" if kind == "cmyk" else "p.png")
    picture(kind).save(file)
    found = predictor.predict(file, task="instance", score=0.0)
    width, height = picture(kind).size
    assert isinstance(found, Instances) and found.size_hw == (height, width)
    x0, y0, x1, y1 = found.boxes_xyxy.unbind(1)
    assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
    assert found.masks is not None and len(found.masks) == len(found.scores)
    assert all(tuple(mask["size"]) == (height, width) for mask in found.masks)


def test_a_batch_of_mixed_sizes_equals_its_pictures_one_by_one(predictor: Predictor) -> None:
    pictures = [picture(kind).convert("RGB") for kind in ("wide", "large", "palette", "one pixel")]
    together = predictor.predict(pictures, task="detection", score=0.0, batch_size=4)
    assert isinstance(together, list)
    for answer, alone in zip(together, pictures, strict=True):
        single = predictor.predict(alone, task="detection", score=0.0)
        assert isinstance(answer, Answer) and isinstance(single, Instances)
        assert isinstance(answer.prediction, Instances)
        torch.testing.assert_close(answer.prediction.boxes_xyxy, single.boxes_xyxy, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(answer.prediction.scores, single.scores, rtol=1e-4, atol=1e-5)


def test_what_a_detector_cannot_do_is_said(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="caption"):
        predictor.predict(picture("large"), task="caption")
    with pytest.raises(UsageError, match="its own names: --classes ball,box,cup"):
        predictor.predict(picture("large"), task="detection", classes=["bal"])
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(40))
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        predictor.predict(tmp_path / "cut.jpg", task="detection")


class Odd:
    """Truths that touch or leave the frame, boxes without extent, empty masks, no object."""

    name, task, skipped = "odd", Task.INSTANCE, {}
    classes = ClassList(names=CLASSES, category_ids=(0, 1, 2))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        boxes = (
            torch.tensor([[-10.0, -10, 30, 30], [50, 20, 200, 90], [70, 50, 80, 60]]),
            torch.tensor([[10.0, 10, 10, 30], [20, 20, 20, 20]]),
            torch.tensor([[5.0, 5, 60, 50]]),
            torch.zeros(0, 4),
        )[index]
        masks = torch.zeros(len(boxes), 60, 80, dtype=torch.bool)
        if index == 0:
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.clamp(min=0).int().tolist(), strict=True):
                mask[y0:y1, x0:x1] = True
        return Sample(
            image=tv_tensors.Image(torch.full((3, 60, 80), 40 * index, dtype=torch.uint8)),
            target=Target(
                boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(60, 80)),
                class_ids=torch.zeros(len(boxes), dtype=torch.int64),
                masks=tv_tensors.Mask(masks),
            ),
            origin=Origin(dataset="odd", path=f"{index}.png", image_id=index, size_hw=(60, 80)),
            task=Task.INSTANCE,
            classes=self.classes,
        )


def test_odd_truths_train() -> None:
    torch.manual_seed(0)
    model = ViTDet(config()).train()
    entry = SourceEntry(
        source=Odd(),
        preprocess=model.preprocess(Task.INSTANCE),
        augment=ScaleJitterAugment(scales=(0.5, 2.0)),
        batch_size=4,
    )
    batches = iter(TrainLoader([entry], seed=0))
    for _ in range(4):
        batch = next(batches)
        for target, (height, width) in zip(batch.targets, batch.input_sizes_hw, strict=True):
            assert target.boxes is not None
            x0, y0, x1, y1 = target.boxes.as_subclass(torch.Tensor).unbind(1)
            assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
            assert (x1 > x0).all() and (y1 > y0).all()
        losses = model.loss(batch)
        assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("form", list(FORMS))
def test_the_network_compiles_without_a_graph_break(form: str) -> None:
    torch.manual_seed(0)
    model = ViTDet(FORMS[form]).eval()
    images = torch.randn(1, 3, 64, 64, requires_grad=True)

    def network(x: torch.Tensor) -> list[torch.Tensor]:
        levels = model.features(x)
        return [*levels, *model.rpn(levels).deltas]

    for got, expected in zip(
        torch.compile(network, backend="eager", fullgraph=True)(images), network(images), strict=True
    ):
        torch.testing.assert_close(got, expected)
