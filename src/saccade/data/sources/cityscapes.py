"""Cityscapes (arXiv 1604.01685): fine annotations in nested city folders, or the COCO form of mmdetection."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from saccade.data.class_names import CLASS_NAMES
from saccade.data.images import read_labels
from saccade.data.sources.base import Source
from saccade.data.sources.boxes import official_classes
from saccade.data.sources.coco import open_coco
from saccade.data.sources.coco_layouts import CITYSCAPES
from saccade.data.sources.label_maps import (
    FoundPairs,
    InstanceMap,
    InstanceMapSource,
    LabelMapSource,
    PairLayout,
    find_pairs,
    ignoring,
    renamed,
)
from saccade.data.sources.layout import data_root, first_existing, per_split
from saccade.data.sources.spec import SourceSpec
from saccade.samples import IGNORE_LABEL, ClassList
from saccade.tasks import Task

_TRAIN_IDS = "_gtFine_labelTrainIds.png"
_LABEL_IDS = "_gtFine_labelIds.png"
_IMAGES = ("leftImg8bit/{}",)
_MAPS = ("gtFine/{}",)
_SEMANTIC = PairLayout(
    images=_IMAGES, maps=_MAPS, image_suffix="_leftImg8bit.png", map_suffixes=(_TRAIN_IDS, _LABEL_IDS)
)
_INSTANCES = PairLayout(
    images=_IMAGES, maps=_MAPS, image_suffix="_leftImg8bit.png", map_suffixes=("_gtFine_instanceIds.png",)
)
_GROUP_BELOW = 1000  # values of instanceIds: label id * 1000 + number; a bare label id is a group or stuff

SEMANTIC_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Official label ids of the 19 evaluated classes, in the order of the train ids."""

INSTANCE_LABEL_IDS = (24, 25, 26, 27, 28, 31, 32, 33)
"""Official label ids of the 8 evaluated classes that have instances."""

_ALL_LABEL_IDS = (*range(34), IGNORE_LABEL)  # 255: the licence plate, whose id is -1


def cityscapes_instances() -> ClassList:
    """The 8 classes with instances; category ids are the official label ids."""
    return ClassList(names=CLASS_NAMES["cityscapes_instances"], category_ids=INSTANCE_LABEL_IDS)


def open_cityscapes(spec: SourceSpec) -> Source:
    """Opens Cityscapes: 19 classes of label maps, or 8 classes of instances (groups are ignored regions).

    Args:
        spec: Root is the folder with ``leftImg8bit`` and ``gtFine``. ``annotations`` names another folder of maps, or a
            JSON file in COCO form; without either, that JSON file is read where ``gtFine`` is not there.

    Raises:
        UsageError: Files are not found, or a class that the data set does not have.
    """
    root = data_root(spec.root)
    if coco_form(spec, root):
        return open_coco(spec, layout=CITYSCAPES)
    found = cityscapes_pairs(spec, root)
    name = f"{root.name}/{spec.split}"
    if spec.task is Task.SEMANTIC:
        return LabelMapSource(
            task=spec.task,
            name=name,
            pairs=found.pairs,
            classes=renamed(CLASS_NAMES["cityscapes"], spec.classes, root),
            class_id_of=ignoring(semantic_values(found), spec.ignore_labels),
            skipped=found.skipped,
        )
    return InstanceMapSource(
        task=spec.task,
        name=name,
        pairs=found.pairs,
        classes=official_classes(cityscapes_instances(), spec.classes, root),
        decode=read_instance_ids,
        skipped=found.skipped,
        drop_empty=spec.drop_empty,
    )


def coco_form(spec: SourceSpec, root: Path) -> bool:
    """Whether the objects are read from a JSON file in COCO form."""
    if spec.task is Task.SEMANTIC:
        return False
    if spec.annotations:
        return spec.annotations.endswith(".json")
    if first_existing(root, per_split(_MAPS, spec.split)) is not None:
        return False
    return first_existing(root, per_split(CITYSCAPES.annotations, spec.split)) is not None


def cityscapes_pairs(spec: SourceSpec, root: Path) -> FoundPairs:
    """Images and maps of the task."""
    layout = _SEMANTIC if spec.task is Task.SEMANTIC else _INSTANCES
    return find_pairs(root, layout, spec.split, images=spec.images, maps=spec.annotations)


def semantic_values(found: FoundPairs) -> dict[int, int]:
    """Stored value -> class id, for train ids or label ids."""
    if found.map_suffix == _TRAIN_IDS:
        return {**{class_id: class_id for class_id in range(len(SEMANTIC_LABEL_IDS))}, IGNORE_LABEL: IGNORE_LABEL}
    classes = {label: class_id for class_id, label in enumerate(SEMANTIC_LABEL_IDS)}
    return {label: classes.get(label, IGNORE_LABEL) for label in _ALL_LABEL_IDS}


def read_instance_ids(path: Path) -> InstanceMap:
    """Reads an ``*_instanceIds.png``."""
    values = read_labels(path).astype(np.int64)
    objects = {}
    for value in np.unique(values).tolist():
        is_group = value < _GROUP_BELOW
        label = value if is_group else value // _GROUP_BELOW
        if label in INSTANCE_LABEL_IDS:
            objects[value] = (label, is_group)
    return InstanceMap(values=values, objects=objects)
