"""Instance masks cut out by their boxes: what AiT's mask VQ-VAE learns from ("maskcoco", specs/ait.md 2.5 and 2.7).

A crop is a small grey picture of one object, white inside and black outside. Crops are cut while training
(:class:`MaskCropAugment` on any source with masks), or once and for all (:func:`write_mask_crops`), as the original
does; the reader ``mask_crops`` reads what was written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from saccade.data.pipeline import Redraw, Transform
from saccade.data.resize import resize_pillow
from saccade.data.sources.base import Source
from saccade.errors import DataError, UsageError
from saccade.samples import Sample
from saccade.tasks import Task

_LEAST_SIDE = 2  # pixels of a box after rounding
_WHITE = 255


@dataclass(kw_only=True, frozen=True)
class MaskCropAugment:
    """The mask of one instance as the picture, with its short side as large as the input, cut at the centre.

    One of the instances of the sample is drawn. A sample without masks is taken as a crop already (those of the reader
    ``mask_crops``). Divided by 255 (``Preprocess(mean=(0, 0, 0), std=(255, 255, 255))``), each of the three equal
    channels is the map that the mask VQ-VAE reads.

    The original sees every instance once per pass, and so does a training on written crops; cut while training, every
    image gives one instance per pass, however many it has.
    """

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample of ``size`` x ``size`` pixels."""

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            if sample.target.masks is None and sample.target.boxes is None:
                crop = sample.image.as_subclass(torch.Tensor).numpy()[0]
            else:
                crops = instance_crops(sample, Counter())
                if not crops:
                    raise Redraw("no instance to cut out")
                _, crop = crops[int(rng.integers(len(crops)))]
            picture = torch.from_numpy(fit_crop(crop, size))
            return Sample(
                image=tv_tensors.Image(picture), task=sample.task, origin=sample.origin, classes=sample.classes
            )

        return transform


def instance_crops(sample: Sample, skipped: Counter[str]) -> list[tuple[int, NDArray[np.uint8]]]:
    """Cuts out every instance of a sample by its box, rounded to whole pixels.

    Args:
        sample: With boxes and masks.
        skipped: Counts the instances that give no crop, by reason.

    Returns:
        Position of each instance in the sample, and its crop ``[h, w]``, 0 or 255.

    Raises:
        DataError: The sample has no masks.
    """
    target = sample.target
    if target.masks is None or target.boxes is None:
        raise DataError(
            "a sample without masks",
            where=f"{sample.origin.dataset} {sample.origin.image_id}",
            fix="read the source as instance segmentation",
        )
    masks = target.masks.as_subclass(torch.Tensor).numpy()
    # Halves go to the even neighbour, as Python's round() does in the original.
    corners = np.rint(target.boxes.as_subclass(torch.Tensor).numpy()).astype(np.int64).clip(0)
    crops = []
    for number, (x0, y0, x1, y1) in enumerate(corners.tolist()):
        crop = masks[number, y0:y1, x0:x1]
        if target.is_crowd is not None and target.is_crowd[number]:
            skipped["crowd"] += 1
        elif min(crop.shape) < _LEAST_SIDE:
            skipped[f"box with a side below {_LEAST_SIDE} pixels"] += 1
        elif not crop.any():
            skipped["no pixel of the mask in its box"] += 1
        else:
            crops.append((number, crop * np.uint8(_WHITE)))
    return crops


def fit_crop(crop: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resizes the short side to ``size`` as Pillow does, bilinearly with antialiasing, and keeps the centre.

    Args:
        crop: ``[h, w]`` grey levels.
        size: Side of the result in pixels.

    Returns:
        ``[3, size, size]``, the same grey levels three times.
    """
    height, width = crop.shape
    short = min(height, width)
    grown = (int(size * height / short), int(size * width / short))  # truncated, as torchvision does
    resized = resize_pillow(np.repeat(crop[None], 3, axis=0), grown)
    top, left = round((grown[0] - size) / 2), round((grown[1] - size) / 2)
    return np.ascontiguousarray(resized[:, top : top + size, left : left + size])


def write_mask_crops(
    source: Source, out: str | Path, *, split: str = "train", progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Writes every instance as a grey PNG: ``instances_<split>2017/<category id>/<image id>_<number>.png``.

    It is the layout of the original's "maskcoco": a folder of images per class. Crops keep their size.

    Args:
        source: Instance segmentation.
        out: Root folder; several splits may be written into the same one.
        split: Name of the split in the folder.
        progress: Called with (samples done, samples in all).

    Returns:
        How many images were read and masks written, and how many instances were skipped, by reason.

    Raises:
        UsageError: Another task, or the folder exists already.
        DataError: A sample has no masks, or two images have the same id.
    """
    if source.task is not Task.INSTANCE:
        raise UsageError(
            f"the task {source.task} has no masks to cut out", where=source.name, fix="read the source as instance"
        )
    folder = Path(out) / f"instances_{split}2017"
    if folder.exists():
        raise UsageError("the folder exists already", where=folder, fix="remove it, or choose another folder or split")
    # A killed conversion must not leave half a folder that looks like a whole one.
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        raise UsageError("a conversion was broken off here", where=partial, fix="remove the folder")
    partial.mkdir(parents=True)
    skipped: Counter[str] = Counter()
    written = 0
    for index in range(len(source)):
        sample = source[index]
        for number, crop in instance_crops(sample, skipped):
            path = partial / _class_folder(sample, number) / f"{_word(sample.origin.image_id)}_{number}.png"
            if path.exists():
                raise DataError("two images have the same id", where=f"{source.name} {sample.origin.image_id}")
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(crop).save(path)
            written += 1
        if progress is not None:
            progress(index + 1, len(source))
    partial.rename(folder)
    return {"images": len(source), "masks": written, **skipped}


def _class_folder(sample: Sample, number: int) -> str:
    if sample.classes is None or sample.target.class_ids is None:
        return "0"
    return str(sample.classes.category_ids[int(sample.target.class_ids[number])])


def _word(image_id: int | str) -> str:
    return str(image_id).replace("/", "-")
