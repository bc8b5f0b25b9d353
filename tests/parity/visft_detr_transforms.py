"""ViSFT's detection data against the original (the ``det/`` part of ``io_transforms``)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor
from visft_transforms import EXACT, FILE, write_coco

from saccade.data.detr_augment import DETRAugment
from saccade.data.sources import SourceSpec, open_source
from saccade.data.transforms import normalize, preprocess
from saccade.samples import Preprocess, Sample
from saccade.tasks import Task
from saccade.tokens.boxes import xyxy_to_cxcywh

if TYPE_CHECKING:
    from check import Report

T = TypeVar("T")


class RecordedDraws:
    """The draws of the original: Python's from a list, corners of crops from torch's generator.

    Args:
        recorded: Kind and value of Python's draws, in order.
        least: Least side of a crop, from which sides are counted.
        torch_seed: Of torch's generator.
    """

    def __init__(self, recorded: list[list[Any]], least: int, torch_seed: int) -> None:
        self._recorded, self._least = list(recorded), least
        self._generator = torch.Generator().manual_seed(torch_seed)

    def _next(self, kind: str) -> Any:
        drawn, value = self._recorded.pop(0)
        assert drawn == kind
        return value

    def share(self) -> float:
        return self._next("random")

    def pick(self, options: Sequence[T]) -> T:
        value = self._next("choice")
        assert value in options
        return value

    def below(self, total: int) -> int:
        if self._recorded and self._recorded[0][0] == "randint":
            value = self._next("randint") - self._least
            assert 0 <= value < total
            return value
        return int(torch.randint(0, total, (1,), generator=self._generator))

    def subset(self, total: int, count: int) -> list[int]:
        raise AssertionError("nothing of the kind is drawn")

    @property
    def spent(self) -> bool:
        return not self._recorded


def compare_detection_transforms(report: Report, folder: Path) -> None:
    """Every tensor of ``det/``: what is loaded, training, validation."""
    tensors = load_file(folder / FILE)
    meta = json.loads((folder / "meta.json").read_text())
    report.expect(FILE, ["image_uint8", *(name for name in tensors if name.startswith("det/"))])
    report.skip(f"{FILE}/image_uint8")
    with tempfile.TemporaryDirectory() as temporary:
        write_coco(Path(temporary), tensors["image_uint8"], meta["transforms_annotations"])
        sample = open_source(SourceSpec(task=Task.DETECTION, reader="coco", root=temporary))[0]
    config = meta["transforms_detection_config"]
    _loaded(report, tensors, sample)
    least, greatest = config["train_crop_size"]
    augment = DETRAugment(
        short_sides=tuple(config["train_image_sizes"]),
        crop_short_sides=tuple(config["train_resize_random_sizes"]),
        crop_range=(least, greatest),
    )
    for name in sorted({name.rsplit("/", 1)[0] for name in tensors if name.startswith("det/train")}):
        draws = RecordedDraws(
            meta[f"transforms_{name.replace('/', '_')}_draws"], least, int(tensors[f"{name}/torch_seed"])
        )
        report.skip(f"{FILE}/{name}/torch_seed")
        done = augment.apply(sample, config["max_size"], draws)
        assert draws.spent
        _compare(report, tensors, name, done)
        report.same(f"{FILE}/{name}/labels", _category_ids(done), tensors[f"{name}/labels"])
    longest = config["max_size"]
    declared = Preprocess(
        size_hw=(longest, longest), keep_ratio=True, short_side=config["test_image_size"], interpolation="pillow"
    )
    done = preprocess(sample, declared)
    _compare(report, tensors, "det/val", done)
    report.same(f"{FILE}/det/val/size", torch.tensor(done.size_hw), tensors["det/val/size"])


def _loaded(report: Report, tensors: dict[str, Tensor], sample: Sample) -> None:
    target = sample.target
    assert target.areas is not None
    own = _own(sample)
    report.close(f"{FILE}/det/loaded/boxes", _clipped(sample)[own], tensors["det/loaded/boxes"], EXACT)
    report.same(f"{FILE}/det/loaded/labels", _category_ids(sample)[own], tensors["det/loaded/labels"])
    report.close(f"{FILE}/det/loaded/area", target.areas[own], tensors["det/loaded/area"], EXACT)
    size = torch.tensor(sample.origin.size_hw)
    report.same(f"{FILE}/det/loaded/orig_size", size, tensors["det/loaded/orig_size"])


def _own(sample: Sample) -> Tensor:
    target = sample.target
    assert target.boxes is not None
    crowd = target.is_crowd
    return torch.ones(len(target.boxes), dtype=torch.bool) if crowd is None else ~crowd


def _clipped(sample: Sample) -> Tensor:
    """The original clips when it loads, ours where pictures are changed; boxes of COCO lie within them anyway."""
    assert sample.target.boxes is not None
    height, width = sample.size_hw
    return sample.target.boxes.as_subclass(Tensor).clamp(min=0).minimum(torch.tensor([width, height, width, height]))


def _category_ids(sample: Sample) -> Tensor:
    assert sample.classes is not None and sample.target.class_ids is not None
    return torch.tensor(sample.classes.category_ids)[sample.target.class_ids]


def _compare(report: Report, tensors: dict[str, Tensor], name: str, sample: Sample) -> None:
    image = normalize(sample.image, Preprocess(size_hw=sample.size_hw))
    report.close(f"{FILE}/{name}/image", image, tensors[f"{name}/image"], EXACT)
    # Grey levels are whole numbers: they are the same, not only near.
    declared = Preprocess(size_hw=sample.size_hw)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (declared.mean, declared.std))
    theirs = (tensors[f"{name}/image"] * std + mean).round()
    report.same(f"{FILE}/{name}/grey levels", sample.image.as_subclass(Tensor), theirs)
    height, width = sample.size_hw
    boxes = xyxy_to_cxcywh(_clipped(sample)[_own(sample)] / torch.tensor([width, height, width, height]))
    report.close(f"{FILE}/{name}/boxes", boxes, tensors[f"{name}/boxes"], EXACT)
