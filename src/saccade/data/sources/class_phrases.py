"""Label maps as phrases: the name of every class in the image, with its pixels. COCO-Stuff and Mapillary Vistas."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision import tv_tensors

from saccade.data.class_names import CLASS_NAMES
from saccade.data.sources.base import Source
from saccade.data.sources.label_maps import LabelMapSource, PairLayout, find_pairs, ignoring, renamed
from saccade.data.sources.layout import data_root, first_existing, list_of, read_json
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, MissingDataError, UsageError
from saccade.samples import IGNORE_LABEL, Sample, Target
from saccade.tasks import Task

COCO_STUFF = PairLayout(
    images=("coco/{}2017", "{}2017", "images/{}2017"),
    maps=("cocostuff/{}2017", "stuffthingmaps/{}2017", "annotations/{}2017"),
    image_suffix=".jpg",
    map_suffixes=(".png",),
)
MAPILLARY = PairLayout(
    images=("mapillary/{}/images", "{}/images"),
    maps=("mapillary/{}/v2.0/labels", "{}/v2.0/labels"),
    image_suffix=".jpg",
    map_suffixes=(".png",),
)
_MAPILLARY_NAMES = ("mapillary/config_v2.0.json", "config_v2.0.json")


class ClassPhrases:
    """A source of label maps in the form of phrases: the classes of an image by ascending id, one mask each.

    Args:
        source: Of semantic segmentation.
        without: Classes that are no phrases (COCO-Stuff's ``wall-brick`` and the like are no words that one says).
    """

    classes = None

    def __init__(self, source: Source, without: frozenset[int] = frozenset()) -> None:
        if source.classes is None:
            raise UsageError("label maps without class names", where=source.name, fix="name the classes (classes=...)")
        self._source, self._names, self._without = source, source.classes.names, without
        self.name, self.task, self.skipped = source.name, Task.REFERRING, source.skipped

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image with the names of its classes, in the frame of the original image; there may be none."""
        sample = self._source[index]
        assert sample.target.semantic is not None
        labels = sample.target.semantic.as_subclass(torch.Tensor)
        present = [k for k in torch.unique(labels).tolist() if k < len(self._names) and k not in self._without]
        masks = labels == torch.tensor(present, dtype=labels.dtype).reshape(-1, 1, 1)
        return dataclasses.replace(
            sample,
            task=self.task,
            classes=None,
            target=Target(masks=tv_tensors.Mask(masks)),
            phrases=tuple(self._names[k] for k in present),
            wording="class",
        )


def open_coco_stuff(spec: SourceSpec) -> Source:
    """COCO-Stuff with its 182 names; as phrases without those that have a hyphen, as GSVA leaves them out.

    Raises:
        UsageError: Files are not found.
    """
    source = _open(spec, COCO_STUFF, CLASS_NAMES["coco_stuff_182"])
    return as_asked(source, spec.task, frozenset(k for k, name in enumerate(source.classes.names) if "-" in name))


def open_mapillary(spec: SourceSpec) -> Source:
    """Mapillary Vistas 2.0 with the names of its configuration, in small letters.

    Raises:
        UsageError: Files are not found.
        DataError: The configuration is damaged.
    """
    return as_asked(_open(spec, MAPILLARY, mapillary_names(data_root(spec.root))), spec.task)


def _open(spec: SourceSpec, layout: PairLayout, names: tuple[str, ...]) -> LabelMapSource:
    root = data_root(spec.root)
    found = find_pairs(root, layout, spec.split, images=spec.images, maps=spec.annotations)
    classes = renamed(names, spec.classes, root)
    return LabelMapSource(
        task=Task.SEMANTIC,
        name=f"{spec.reader}/{spec.split}",
        pairs=found.pairs,
        classes=classes,
        class_id_of=values_of(len(classes), spec.ignore_labels),
        skipped=found.skipped,
    )


def values_of(classes: int, ignored: Sequence[int] = ()) -> dict[int, int]:
    """Stored value to class id, where the values are the class ids, and 255 is unlabelled."""
    return ignoring({k: k for k in range(classes)}, (IGNORE_LABEL, *ignored))


def mapillary_names(root: Path) -> tuple[str, ...]:
    """Class names by stored value.

    Raises:
        UsageError: There is no configuration.
        DataError: It is damaged.
    """
    path = first_existing(root, _MAPILLARY_NAMES)
    if path is None:
        raise MissingDataError("config_v2.0.json is not found", where=root, fix="it comes with Mapillary Vistas 2.0")
    try:
        return tuple(str(label["readable"]).lower() for label in list_of(read_json(path), "labels", path))
    except (KeyError, TypeError) as error:
        raise DataError("a label lacks its name", where=path, why=repr(error)) from error


def as_asked(source: Source, task: Task, without: frozenset[int] = frozenset()) -> Source:
    """A source of label maps for the task that is asked for.

    Raises:
        UsageError: Neither semantic nor referring segmentation.
    """
    if task is Task.SEMANTIC:
        return source
    if task is not Task.REFERRING:
        raise UsageError(f"label maps serve semantic or referring segmentation, not {task}", where=source.name)
    return ClassPhrases(source, without)
