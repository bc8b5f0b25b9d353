"""Writes a source in an official format (``saccade data convert``)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from saccade.data.mask_crops import write_mask_crops
from saccade.data.sources.base import Source
from saccade.errors import UsageError
from saccade.results import encode_masks
from saccade.samples import Sample
from saccade.tasks import Task


def write_coco(
    source: Source,
    out: str | Path,
    *,
    split: str = "train",
    progress: Callable[[int, int], None] | None = None,
    least_region: float = 0.0,
) -> dict[str, int]:
    """Writes ``images/<split>/`` and ``annotations/instances_<split>.json`` (captions: ``captions_<split>.json``).

    Image files are copied as they are; drawn pictures are written as PNG. Image ids are kept where they are numbers and
    unique, category ids always; masks become run lengths.

    Args:
        source: Detection, instance segmentation or captions.
        out: Root folder; several splits may be written into the same one.
        split: Name of the split in the file.
        progress: Called with (samples done, samples in all).
        least_region: Least area of an object as a share of its picture's; smaller ones are left out.

    Returns:
        How many images, annotations and categories were written, and, where ``least_region`` is set, how many
        objects were left out.

    Raises:
        UsageError: The task has no COCO file, or the file exists already.
    """
    kinds = {Task.DETECTION: "instances", Task.INSTANCE: "instances", Task.CAPTION: "captions"}
    if source.task not in kinds:
        raise UsageError(
            f"COCO has no file for the task {source.task}", fix="read the source as detection, instance or caption"
        )
    root = Path(out)
    path = root / "annotations" / f"{kinds[source.task]}_{split}.json"
    if path.exists():
        raise UsageError("the file exists already", where=path, fix="remove it, or choose another folder or split")
    folder = root / "images" / split
    folder.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(exist_ok=True)
    writer = _CocoWriter(folder, least_region)
    for index in range(len(source)):
        writer.add(source[index])
        if progress is not None:
            progress(index + 1, len(source))
    content: dict[str, Any] = {
        "info": {"description": f"{source.name}, written by saccade"},
        "images": writer.images,
        "annotations": writer.annotations,
    }
    if source.classes is not None:
        content["categories"] = [
            {"id": category, "name": name}
            for category, name in zip(source.classes.category_ids, source.classes.names, strict=True)
        ]
    # A killed conversion must not leave half a file that looks like a whole one.
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)
    return {
        "images": len(writer.images),
        "annotations": len(writer.annotations),
        "categories": len(content.get("categories", ())),
        **({"left_out": writer.left_out} if least_region else {}),
    }


WRITERS: dict[str, Callable[..., dict[str, int]]] = {"coco": write_coco, "mask_crops": write_mask_crops}
"""Format name -> function that writes a source in it."""


class _CocoWriter:
    """Collects the entries of one file and writes its images."""

    def __init__(self, folder: Path, least_region: float) -> None:
        self._folder, self._least_region = folder, least_region
        self.left_out = 0
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._id_of: dict[str, int] = {}
        self._taken_ids: set[int] = set()
        self._names: dict[str, str] = {}

    def add(self, sample: Sample) -> None:
        origin = sample.origin
        key = origin.path or f"{origin.dataset}:{origin.image_id}"
        if key not in self._id_of:
            self._id_of[key] = self._new_id(origin.image_id)
            self.images.append(
                {
                    "id": self._id_of[key],
                    "file_name": self._save(sample, self._id_of[key]),
                    "height": origin.size_hw[0],
                    "width": origin.size_hw[1],
                }
            )
        image_id = self._id_of[key]
        least_area = self._least_region * origin.size_hw[0] * origin.size_hw[1]
        for entry in _captions(sample) if sample.task is Task.CAPTION else _objects(sample):
            if entry.get("area", least_area) < least_area:
                self.left_out += 1
                continue
            self.annotations.append({"id": len(self.annotations) + 1, "image_id": image_id, **entry})

    def _new_id(self, wanted: int | str) -> int:
        number = wanted if isinstance(wanted, int) else len(self._taken_ids) + 1
        while number in self._taken_ids:
            number += 1
        self._taken_ids.add(number)
        return number

    def _save(self, sample: Sample, image_id: int) -> str:
        source = sample.origin.path
        name = Path(source).name if source else f"{image_id:012d}.png"
        if self._names.setdefault(name, source or name) != (source or name):  # two folders, one name
            name = f"{image_id:012d}_{name}"
        target = self._folder / name
        if source is None:
            Image.fromarray(sample.image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy()).save(target)
        elif Path(source).resolve() != target.resolve():
            shutil.copyfile(source, target)
        return name


def _captions(sample: Sample) -> list[dict[str, Any]]:
    return [{"caption": caption} for caption in sample.target.captions]


def _objects(sample: Sample) -> list[dict[str, Any]]:
    target, classes = sample.target, sample.classes
    if target.boxes is None or target.class_ids is None or classes is None:
        return []
    masks = encode_masks(target.masks.as_subclass(torch.Tensor)) if target.masks is not None else None
    entries = []
    for k, (x0, y0, x1, y1) in enumerate(target.boxes.as_subclass(torch.Tensor).tolist()):
        entry = {
            "category_id": classes.category_ids[int(target.class_ids[k])],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": float(target.areas[k]) if target.areas is not None else (x1 - x0) * (y1 - y0),
            "iscrowd": int(target.is_crowd[k]) if target.is_crowd is not None else 0,
        }
        if masks is not None:
            entry["segmentation"] = {"size": list(masks[k]["size"]), "counts": masks[k]["counts"].decode("ascii")}
        entries.append(entry)
    return entries
