"""COCO panoptic annotations: one PNG of segment ids per image, and a JSON file that says what the segments are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.data.geometry import mask_tensor
from saccade.data.images import read_image
from saccade.data.sources.coco import CocoLayout, find_annotations, locate_images, read_categories
from saccade.data.sources.layout import Records, choose_classes, data_root, list_of, load_image, read_json
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError
from saccade.samples import IGNORE_LABEL, ClassList, Sample, Segment, Target
from saccade.tasks import Task

LAYOUT = CocoLayout(
    annotations=("annotations/panoptic_{}2017.json", "annotations/panoptic_{}.json", "panoptic_{}.json"),
    images=("{}2017", "{}", "images/{}2017", "images/{}", "images", "."),
)
"""The folders of COCO 2017; the PNGs lie in a folder beside the JSON file, named like it."""


class PanopticSource:
    """Images with a panoptic map each, and with the label map that follows from it.

    It serves semantic segmentation, and the scoring of panoptic predictions (the target has both maps). Segments of
    classes that were not asked for are unlabelled.

    Args:
        spec: The data set; ``annotations`` names the JSON file.

    Raises:
        UsageError: Another task, files are not found, or a class is not in the file.
        DataError: The file is damaged or contradicts itself.
    """

    def __init__(self, spec: SourceSpec) -> None:
        if spec.task is not Task.SEMANTIC:
            raise UsageError(f"panoptic maps serve semantic segmentation, not {spec.task}", where=spec.root)
        root = data_root(spec.root)
        self._path, _ = find_annotations(root, spec.split, spec.annotations, LAYOUT)
        self._maps = self._path.with_suffix("")
        if not self._maps.is_dir():
            raise UsageError(
                "the folder of the panoptic PNGs does not exist",
                where=self._maps,
                fix="unpack the archive of the same name there",
            )
        content = read_json(self._path)
        skipped: Counter[str] = Counter()
        self.name, self.task = f"{root.name}/{spec.split}", spec.task
        self.classes: ClassList = self._read_classes(content, spec, skipped)
        class_id_of = {category_id: class_id for class_id, category_id in enumerate(self.classes.category_ids)}
        images = {image["id"]: image for image in list_of(content, "images", self._path)}
        entries, records = [], []
        for annotation in list_of(content, "annotations", self._path):
            try:
                entry = images[annotation["image_id"]]
                size_hw = (int(entry["height"]), int(entry["width"]))
                segments = [self._segment(info, class_id_of) for info in annotation["segments_info"]]
                record = (annotation["image_id"], size_hw, str(annotation["file_name"]), segments)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    "a panoptic annotation, its image or a segment lacks a field or has a wrong one",
                    where=f"{self._path}, {str(annotation)[:80]}",
                    why=repr(error),
                ) from error
            if min(size_hw) < spec.min_side:
                skipped[f"image smaller than {spec.min_side} pixels"] += 1
                continue
            skipped["segment of another class"] += sum(class_id is None for _, class_id, _ in segments)
            entries.append(entry)
            records.append(record)
        if not records:
            raise DataError("no image is left", where=self._path, why=str(dict(skipped)))
        self._images, files = locate_images(root, entries, spec.images, self._path, spec.split, LAYOUT)
        self._records = Records((file, *record) for file, record in zip(files, records, strict=True))
        self.skipped: dict[str, int] = dict(+skipped)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image and its maps, in the frame of the original image."""
        file, image_id, size_hw, png, listed = self._records[index]
        image, origin = load_image(self._images / file, self.name, image_id, size_hw)
        ids = read_segment_ids(self._maps / png)
        if ids.shape != size_hw:
            raise DataError(
                "a panoptic map has another size than its image",
                where=self._maps / png,
                why=f"the map has height and width {list(ids.shape)}, the image {list(size_hw)}",
            )
        if odd := {id_ for id_, _, _ in listed} ^ set(np.unique(ids[ids > 0]).tolist()):
            raise DataError(
                "a panoptic map and the JSON file name different segments",
                where=self._maps / png,
                why=f"ids {sorted(odd)[:5]}",
                fix="do the PNGs belong to this JSON file?",
            )
        labels = np.full(size_hw, IGNORE_LABEL, np.int64)
        segments = []
        for id_, class_id, is_crowd in listed:
            inside = ids == id_
            if class_id is None:
                ids[inside] = 0
            else:
                labels[inside] = class_id
                segments.append(Segment(id=id_, class_id=class_id, is_crowd=is_crowd))
        target = Target(semantic=mask_tensor(labels), panoptic=mask_tensor(ids), segments=tuple(segments))
        return Sample(image=image, task=self.task, origin=origin, target=target, classes=self.classes)

    def class_ids_of(self, index: int) -> set[int]:
        """Class ids in an image, crowds left out."""
        *_, listed = self._records[index]
        return {class_id for _, class_id, is_crowd in listed if class_id is not None and not is_crowd}

    def _read_classes(self, content: Any, spec: SourceSpec, skipped: Counter[str]) -> ClassList:
        classes = choose_classes(read_categories(content, self._path, skipped), spec.classes, self._path)
        is_thing = {entry["id"]: bool(entry.get("isthing")) for entry in list_of(content, "categories", self._path)}
        return ClassList(
            names=classes.names,
            category_ids=classes.category_ids,
            things=tuple(is_thing[category_id] for category_id in classes.category_ids),
        )

    def _segment(self, info: dict[str, Any], class_id_of: dict[int, int]) -> tuple[int, int | None, bool]:
        """Id in the map, class id (None for a class that was not asked for), and whether it is a crowd."""
        return int(info["id"]), class_id_of.get(int(info["category_id"])), bool(info.get("iscrowd", 0))


def read_segment_ids(path: Path) -> NDArray[np.int64]:
    """Reads a panoptic PNG.

    Returns:
        ``[H, W]`` segment ids (red + 256 green + 65536 blue), 0 = unlabelled.

    Raises:
        ImageError: The file cannot be read.
    """
    red, green, blue = read_image(path).numpy().astype(np.int64)
    return red + (green << 8) + (blue << 16)
