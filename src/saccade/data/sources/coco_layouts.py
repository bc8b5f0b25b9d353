"""Public data sets whose annotations have the form of COCO: where each keeps its files, and what it adds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.data.sources.coco import CocoLayout, CocoSource, file_name
from saccade.data.sources.layout import choose_classes, list_of
from saccade.errors import DataError
from saccade.samples import ClassList, Target


def last_two(path: str) -> str:
    """The file and the folder that holds it: ``patch8/x.jpg`` of ``images/v1/patch8/x.jpg``."""
    return str(PurePosixPath(*PurePosixPath(path).parts[-2:]))


def _lvis_file(entry: dict[str, Any]) -> str:
    return last_two(str(entry.get("coco_url") or entry["file_name"]))


def _objects365_file(entry: dict[str, Any]) -> str:
    return last_two(str(entry["file_name"]))


LVIS = CocoLayout(
    annotations=("annotations/lvis_v1_{}.json", "lvis_v1_{}.json"),
    images=(".", "images", "coco", "../coco"),
    file_names=(_lvis_file,),
)
"""LVIS v1: its splits cut across COCO's, so each entry says (in ``coco_url``) in which folder of COCO its image is."""

OBJECTS365 = CocoLayout(
    annotations=("annotations/zhiyuan_objv2_{}.json", "zhiyuan_objv2_{}.json", "{0}/zhiyuan_objv2_{0}.json"),
    images=("{}", "images/{}", "{}/images", "images", "."),
    file_names=(file_name, _objects365_file),
    absent=frozenset(
        (
            "patch6/objects365_v1_00320532.jpg",
            "patch6/objects365_v1_00320534.jpg",
            "patch16/objects365_v2_00908726.jpg",
        )
    ),
    masks=False,
)
"""Objects365 v2: 365 classes; the archives unpack to ``patchN`` folders, the entries say ``images/v1/patchN``."""

V3DET = CocoLayout(
    annotations=("annotations/v3det_2023_v1_{}.json", "v3det_2023_v1_{}.json"),
    images=(".", "V3Det", "images"),
    masks=False,
)
"""V3Det: 13204 classes; images lie in one folder per class, shared by the splits."""

NUIMAGES = CocoLayout(
    annotations=("annotations/nuimages_v1.0-{}.json", "nuimages_v1.0-{}.json"),
    images=(".",),
)
"""nuImages as mmdetection3d's ``nuimage_converter.py`` writes it: 10 classes, masks, ids from 0."""

BDD100K_BOXES = CocoLayout(
    annotations=("jsons/det_{}_cocofmt.json", "annotations/det_{}_cocofmt.json", "labels_coco/det_{}_coco.json"),
    images=("images/100k/{}", "100k/{}", "{}"),
    masks=False,
)
"""BDD100K boxes as ``bdd100k.label.to_coco -m det`` writes them."""

BDD100K_MASKS = CocoLayout(
    annotations=(
        "jsons/ins_seg_{}_cocofmt.json",
        "annotations/ins_seg_{}_cocofmt.json",
        "annotations/bdd_ins_{}_coco.json",
    ),
    images=("images/10k/{}", "10k/{}", "{}"),
)
"""BDD100K masks (of the 10k images) as ``bdd100k.label.to_coco -m ins_seg`` writes them."""

CITYSCAPES = CocoLayout(
    annotations=("annotations/instancesonly_filtered_gtFine_{}.json",),
    images=("leftImg8bit/{}", "."),
)
"""Cityscapes as mmdetection's ``cityscapes.py`` converter writes it: category ids are the official label ids."""


class LvisSource(CocoSource):
    """LVIS v1 (arXiv 1908.03195): which classes an image was searched for, and how frequent each class is.

    The target of a sample says which classes are verified to be absent (``absent_class_ids``) and of which not every
    object is annotated (``partial_class_ids``); the class list says how frequent the classes are (``frequencies``) and
    in how many training images each occurs (``image_counts``).
    """

    def _read_classes(self, content: Any, categories: dict[int, str], asked: Sequence[str]) -> ClassList:
        plain = choose_classes(categories, asked, self._path)
        entries = {entry["id"]: entry for entry in list_of(content, "categories", self._path)}
        chosen = [entries[key] for key in plain.category_ids]
        try:
            return ClassList(
                names=plain.names,
                category_ids=plain.category_ids,
                frequencies=tuple(str(entry["frequency"]) for entry in chosen),
                image_counts=tuple(int(entry["image_count"]) for entry in chosen),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                "an LVIS category lacks its frequency or image count",
                where=self._path,
                why=repr(error),
                fix="use the official file of LVIS v1, or the reader coco",
            ) from error

    def _read_image_entry(self, image: dict[str, Any]) -> dict[str, Any]:
        record = super()._read_image_entry(image)
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            record[key] = self._class_ids(image, key)
        return record

    def _class_ids(self, image: dict[str, Any], key: str) -> NDArray[np.int64]:
        """Class ids of the listed categories; those that were not asked for are left out."""
        listed = image.get(key)
        if not isinstance(listed, list):
            raise DataError(
                f"an LVIS image has no list '{key}'",
                where=f"{self._path}, image {image.get('id')}",
                fix="use the official file of LVIS v1, or the reader coco",
            )
        return np.array([self._class_id_of[one] for one in listed if one in self._class_id_of], np.int64)

    def _target(self, record: dict[str, Any]) -> Target:
        target = super()._target(record)
        target.absent_class_ids = torch.from_numpy(record["neg_category_ids"])
        target.partial_class_ids = torch.from_numpy(record["not_exhaustive_category_ids"])
        return target
