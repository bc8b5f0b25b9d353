"""Objects and their parts as phrases: PACO-LVIS and PASCAL-Part, in COCO form."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.data.geometry import mask_tensor
from saccade.data.sources.coco import read_categories
from saccade.data.sources.layout import (
    Records,
    data_root,
    find_file,
    find_images,
    list_of,
    load_image,
    per_split,
    read_json,
)
from saccade.data.sources.referring import decode_union, read_shapes
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError
from saccade.samples import Sample, Target
from saccade.tasks import Task


@dataclass(kw_only=True, frozen=True)
class PartsLayout:
    """Where a data set of parts keeps its files.

    Attributes:
        annotations: Patterns of the annotation file relative to root; ``{}`` is the split.
        images: Image folders relative to root.
    """

    annotations: tuple[str, ...]
    images: tuple[str, ...]


PACO = PartsLayout(
    annotations=tuple(f"{place}paco_lvis_v1_{{}}.json" for place in ("vlpart/paco/annotations/", "annotations/", "")),
    images=("coco", "images", "."),
)
PASCAL_PART = PartsLayout(
    annotations=("vlpart/pascal_part/{}.json", "pascal_part/{}.json", "{}.json"),
    images=(
        "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages", "pascal_part/VOCdevkit/VOC2010/JPEGImages",
        "VOCdevkit/VOC2010/JPEGImages", "JPEGImages",
    ),
)  # fmt: skip


class PartsSource:
    """One sample per image: every annotation is a phrase, ``object`` or ``object:part``, with its own mask.

    So a picture of two chairs has the phrase ``chair:back`` twice, once for each; that is how GSVA trains on parts.

    Args:
        spec: Task, root, split, and ``images`` or ``annotations`` where they have other names.
        layout: Where the data set keeps its files.

    Attributes:
        skipped: What was left out, by reason.

    Raises:
        UsageError: Another task, or files are not found.
        DataError: The file is damaged.
    """

    classes = None

    def __init__(self, spec: SourceSpec, layout: PartsLayout) -> None:
        if spec.task is not Task.REFERRING:
            raise UsageError(f"parts serve referring segmentation, not {spec.task}", where=spec.root)
        root = data_root(spec.root)
        self._path = find_parts(root, spec.split, spec.annotations, layout)
        self.name, self.task = f"{spec.reader}/{spec.split}", spec.task
        skipped: Counter[str] = Counter()
        listed = read_parts(self._path, skipped)
        if not listed:
            raise DataError("the annotation file lists no image", where=self._path)
        self._images = find_images(root, [record["file"] for record in listed], spec.images, layout.images)
        self._records = Records(listed)
        self.skipped: dict[str, int] = dict(skipped)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image with its parts, in the frame of the original image; it may have none."""
        record = self._records[index]
        image, origin = load_image(self._images / record["file"], self.name, record["id"], record["size_hw"])
        masks = np.zeros((len(record["parts"]), *record["size_hw"]), bool)
        for mask, (_, shapes) in zip(masks, record["parts"], strict=True):
            mask |= decode_union(shapes, record["size_hw"], where=f"{self._path}, image {record['id']}")
        return Sample(
            image=image,
            task=self.task,
            origin=origin,
            target=Target(masks=mask_tensor(masks)),
            phrases=tuple(name for name, _ in record["parts"]),
            wording="part",
        )


def find_parts(root: Path, split: str, annotations: str, layout: PartsLayout) -> Path:
    """The annotation file of a split.

    Raises:
        UsageError: It is not found.
    """
    return find_file(
        root, annotations, per_split(layout.annotations, split), f"the annotation file of the split '{split}'"
    )


def read_parts(path: Path, skipped: Counter[str]) -> list[dict[str, Any]]:
    """Records ``{file, id, size_hw, parts}`` of all images, in the order of the file.

    Raises:
        DataError: A field is missing, or a category is not declared.
    """
    content = read_json(path)
    names = {key: part_name(name) for key, name in read_categories(content, path, skipped).items()}
    records: dict[Any, dict[str, Any]] = {}
    try:
        for image in list_of(content, "images", path):
            size_hw = (int(image["height"]), int(image["width"]))
            records[image["id"]] = {
                "file": str(image["file_name"]), "id": image["id"], "size_hw": size_hw, "parts": []
            }  # fmt: skip
        for annotation in list_of(content, "annotations", path):
            record = records.get(annotation["image_id"])
            if record is None:
                skipped["annotation of an image that is not listed"] += 1
                continue
            shapes = read_shapes(annotation.get("segmentation"), record["size_hw"], skipped)
            record["parts"].append((names[annotation["category_id"]], shapes))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "an image or annotation lacks a field, or has an undeclared category",
            where=path,
            why=repr(error),
            fix="run `saccade data check` on the data set",
        ) from error
    return list(records.values())


def part_name(category: str) -> str:
    """``object`` or ``object:part``, without what PACO puts behind a name to tell its meanings apart (``_(part)``)."""
    return ":".join(word.split("_(")[0] for word in category.strip().split(":"))
