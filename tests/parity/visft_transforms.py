"""ViSFT's readers and transforms against the original (``io_transforms``)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from saccade.data.large_scale_jitter import LargeScaleJitterAugment, scaled_size
from saccade.data.sources import SourceSpec, open_source
from saccade.data.transforms import collate, preprocess
from saccade.models.visft.presets import _CATEGORY_IDS
from saccade.samples import Preprocess, Sample
from saccade.tasks import Task

if TYPE_CHECKING:
    from check import Report

EXACT = 1e-6
FILE = "io_transforms.safetensors"
VAL_SHORT, VAL_LONGEST = 80, 100  # meta.json says so in words, under seg/val/image
PAD_MULTIPLE, PAD_VALUE = 32, 128


def write_coco(folder: Path, image_HW3: Tensor, annotations: list[dict[str, Any]]) -> None:
    """One image with its annotations in COCO form.

    The crowds of the fixture have runs of nothing, which the original drops unread and our reader refuses.
    """
    empty = {"counts": [image_HW3.shape[0] * image_HW3.shape[1]]}
    annotations = [
        entry | {"segmentation": entry["segmentation"] | empty} if entry["iscrowd"] else entry for entry in annotations
    ]
    (folder / "annotations").mkdir()
    (folder / "train").mkdir()
    Image.fromarray(image_HW3.numpy()).save(folder / "train" / "1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": image_HW3.shape[0], "width": image_HW3.shape[1]}],
        "categories": [{"id": id_, "name": f"category {id_}"} for id_ in _CATEGORY_IDS],
        "annotations": [{"id": number, "image_id": 1} | entry for number, entry in enumerate(annotations)],
    }
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))


class RecordedDraws:
    """A generator of recorded numbers in 0..1, and of crops from torch's generator, as the original draws them."""

    def __init__(self, numbers: list[float], torch_seed: int) -> None:
        self._numbers = iter(numbers)
        self._crops = torch.Generator().manual_seed(torch_seed)

    def random(self) -> float:
        return next(self._numbers)

    def integers(self, below: int) -> int:
        return int(torch.randint(0, below, (1,), generator=self._crops))


def compare_segmentation_transforms(report: Report, folder: Path) -> None:
    """Every tensor of ``seg/``: what is loaded, training, validation."""
    tensors = load_file(folder / FILE)
    meta = json.loads((folder / "meta.json").read_text())
    report.expect(FILE, ["image_uint8", *(name for name in tensors if name.startswith("seg/"))])
    report.skip(f"{FILE}/image_uint8")
    with tempfile.TemporaryDirectory() as temporary:
        write_coco(Path(temporary), tensors["image_uint8"], meta["transforms_annotations"])
        sample = open_source(SourceSpec(task=Task.INSTANCE, reader="coco", root=temporary, soft_masks=True))[0]
    _loaded(report, tensors, sample)
    config = meta["transforms_segmentation_config"]
    low, high, size = config["min_scale"], config["max_scale"], config["target_size"]
    # The network input is what the augmentation gives: nothing is left to pad.
    declared = Preprocess(size_hw=(size, size))
    augment = LargeScaleJitterAugment(scales=(low, high), pad_value=PAD_VALUE).build(size)
    for name in sorted({name.rsplit("/", 1)[0] for name in tensors if name.startswith("seg/train")}):
        (_, flip), (_, factor) = meta[f"transforms_{name.replace('/', '_')}_draws"]
        rng = RecordedDraws([flip, (factor - low) / (high - low)], int(tensors[f"{name}/torch_seed"]))
        done = augment(sample, rng)  # type: ignore[arg-type]
        _compare(report, tensors, name, done, declared)
        assert done.target.class_ids is not None
        report.same(f"{FILE}/{name}/labels", done.target.class_ids + 1, tensors[f"{name}/labels"])
        resized = torch.tensor(scaled_size(sample.size_hw, size, factor))
        report.same(f"{FILE}/{name}/rescaled_hw", resized, tensors[f"{name}/rescaled_hw"])
        report.skip(f"{FILE}/{name}/torch_seed")
    _validation(report, tensors, sample)


def _loaded(report: Report, tensors: dict[str, Tensor], sample: Sample) -> None:
    target, size_hw = sample.target, sample.size_hw
    assert target.boxes is not None and target.class_ids is not None and target.masks is not None
    assert target.is_crowd is not None
    own = ~target.is_crowd
    limit = torch.tensor([size_hw[1], size_hw[0]] * 2)
    boxes = target.boxes.as_subclass(Tensor)[own].clamp(min=0).minimum(limit)
    report.close(f"{FILE}/seg/loaded/boxes", boxes, tensors["seg/loaded/boxes"], EXACT)
    report.same(f"{FILE}/seg/loaded/labels", target.class_ids[own] + 1, tensors["seg/loaded/labels"])
    report.close(f"{FILE}/seg/loaded/masks", target.masks[own], tensors["seg/loaded/masks"], 0.0)


def _compare(report: Report, tensors: dict[str, Tensor], name: str, sample: Sample, declared: Preprocess) -> None:
    batch = collate([sample], declared)
    masks = batch.targets[0].masks
    assert masks is not None
    report.close(f"{FILE}/{name}/image", batch.images[0], tensors[f"{name}/image"], EXACT)
    own = slice(None) if sample.target.is_crowd is None else ~sample.target.is_crowd
    report.close(f"{FILE}/{name}/masks", masks[own], tensors[f"{name}/masks"], EXACT)


def _validation(report: Report, tensors: dict[str, Tensor], sample: Sample) -> None:
    declared = Preprocess(
        size_hw=(VAL_LONGEST, VAL_LONGEST),
        keep_ratio=True,
        short_side=VAL_SHORT,
        short_rounding="down",
        interpolation="pillow",
        pad_multiple=PAD_MULTIPLE,
        pad_value=PAD_VALUE,
    )
    done = preprocess(sample, declared)
    _compare(report, tensors, "seg/val", done, declared)
    report.same(f"{FILE}/seg/val/rescaled_wh", torch.tensor(done.size_hw).flip(0), tensors["seg/val/rescaled_wh"])
    padded = torch.tensor(collate([done], declared).images.shape[-2:])
    report.same(f"{FILE}/seg/val/size", padded, tensors["seg/val/size"])
