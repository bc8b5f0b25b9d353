"""Pairs of an image and a map of the same size: label maps whose values a table translates, and instance maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torchvision import tv_tensors

from saccade.data.geometry import boxes_tensor, mask_tensor
from saccade.data.images import read_labels
from saccade.data.sources.layout import Records, load_image, per_split
from saccade.errors import DataError, MissingDataError, UsageError
from saccade.samples import IGNORE_LABEL, ClassList, Origin, Sample, Target
from saccade.tasks import Task

Pairs: TypeAlias = Sequence[tuple[Path, Path]]
"""Image file and map file."""

M = TypeVar("M")

_MOST_VALUES = 65536  # maps hold 8 or 16 bits
_UNKNOWN = -1


class LabelMapSource:
    """Images with a label map each, whose stored values a table translates into class ids.

    Args:
        task: Semantic segmentation.
        name: Name of the data set and split.
        pairs: Images and their maps.
        classes: The classes.
        class_id_of: Stored value -> class id, or :data:`~saccade.samples.IGNORE_LABEL`; other values are an error.
        skipped: What the reader of the layout has left out already.

    Raises:
        UsageError: Another task.
    """

    def __init__(
        self,
        *,
        task: Task,
        name: str,
        pairs: Pairs,
        classes: ClassList,
        class_id_of: Mapping[int, int],
        skipped: Mapping[str, int],
    ) -> None:
        if task is not Task.SEMANTIC:
            raise UsageError(f"label maps serve semantic segmentation, not {task}", where=name)
        self.name, self.task, self.classes, self.skipped = name, task, classes, dict(skipped)
        self._table = np.full(_MOST_VALUES, _UNKNOWN, np.int16)
        self._table[list(class_id_of)] = list(class_id_of.values())
        self._records = Records((str(image), str(labels)) for image, labels in pairs)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image and its label map, in the frame of the original image."""
        image_path, map_path = (Path(text) for text in self._records[index])
        image, origin, labels = load_pair(image_path, map_path, self.name, self._read)
        target = Target(semantic=mask_tensor(labels))
        return Sample(image=image, task=self.task, origin=origin, target=target, classes=self.classes)

    def _read(self, path: Path) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        values = read_labels(path)
        labels = self._table[values].astype(np.int64)
        if (labels == _UNKNOWN).any():
            raise DataError(
                f"a label map has values beyond the {len(self.classes)} classes",
                where=path,
                why=f"values {np.unique(values[labels == _UNKNOWN])[:10].tolist()}",
                fix="is it another kind of map (label ids, train ids, colours)?",
            )
        return labels, labels.shape


@dataclass(kw_only=True)
class InstanceMap:
    """The objects of one map file.

    Attributes:
        values: ``[H, W]``, one value per object.
        objects: Value -> category id and whether it is an ignored region; other values are no objects.
    """

    values: NDArray[np.int64]
    objects: dict[int, tuple[int, bool]]


class InstanceMapSource:
    """Images with a map each in which every object has a value of its own.

    Boxes and areas are those of the objects' pixels. Objects of classes that were not asked for are passed over when a
    map is read; they are not counted, because that would take reading all maps.

    Args:
        task: Detection or instance segmentation.
        name: Name of the data set and split.
        pairs: Images and their maps.
        classes: The classes; their category ids are those that ``decode`` gives.
        decode: Reads a map file (a function of a module: it is sent to loader processes).
        skipped: What the reader of the layout has left out already.
        drop_empty: Leave out images without an object (reads all maps once).

    Raises:
        UsageError: Another task.
        DataError: No image is left.
    """

    def __init__(
        self,
        *,
        task: Task,
        name: str,
        pairs: Pairs,
        classes: ClassList,
        decode: Callable[[Path], InstanceMap],
        skipped: Mapping[str, int],
        drop_empty: bool = False,
    ) -> None:
        if task not in (Task.DETECTION, Task.INSTANCE):
            raise UsageError(f"instance maps serve detection and instance segmentation, not {task}", where=name)
        self.name, self.task, self.classes = name, task, classes
        self._decode = decode
        counts = Counter(skipped)
        if drop_empty:
            kept = [(image, path) for image, path in pairs if self._chosen(decode(path))]
            counts["image without annotations"] += len(pairs) - len(kept)
            pairs = kept
        if not pairs:
            raise DataError("no image is left", where=name, why=str(dict(counts)))
        self.skipped = {reason: count for reason, count in counts.items() if count}
        self._records = Records((str(image), str(path)) for image, path in pairs)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image and its objects, in the frame of the original image."""
        image_path, map_path = (Path(text) for text in self._records[index])
        image, origin, found = load_pair(image_path, map_path, self.name, self._read)
        return Sample(image=image, task=self.task, origin=origin, target=self._target(found), classes=self.classes)

    def _read(self, path: Path) -> tuple[InstanceMap, tuple[int, ...]]:
        found = self._decode(path)
        return found, found.values.shape

    def _chosen(self, found: InstanceMap) -> dict[int, tuple[int, bool]]:
        return {
            value: (self.classes.category_ids.index(category), ignored)
            for value, (category, ignored) in sorted(found.objects.items())
            if category in self.classes.category_ids
        }

    def _target(self, found: InstanceMap) -> Target:
        """The objects in ascending order of their values."""
        chosen = self._chosen(found)
        numbered: NDArray[np.int32] = np.zeros(found.values.shape, np.int32)
        for number, value in enumerate(chosen, start=1):
            numbered[found.values == value] = number
        boxes = [[at[1].start, at[0].start, at[1].stop, at[0].stop] for at in ndimage.find_objects(numbered)]
        areas = np.bincount(numbered.ravel(), minlength=len(chosen) + 1)[1:]
        masks = numbered == np.arange(1, len(chosen) + 1)[:, None, None] if self.task is Task.INSTANCE else None
        size_hw = (int(numbered.shape[0]), int(numbered.shape[1]))
        return Target(
            boxes=boxes_tensor(np.array(boxes, np.float32).reshape(-1, 4), size_hw),
            class_ids=torch.tensor([class_id for class_id, _ in chosen.values()], dtype=torch.int64),
            masks=None if masks is None else mask_tensor(masks),
            is_crowd=torch.tensor([ignored for _, ignored in chosen.values()], dtype=torch.bool),
            areas=torch.from_numpy(areas.astype(np.float64)),
        )


def load_pair(
    image_path: Path,
    map_path: Path,
    dataset: str,
    read: Callable[[Path], tuple[M, tuple[int, ...]]],
    *,
    image_id: str = "",
    what: str = "mask",
) -> tuple[tv_tensors.Image, Origin, M]:
    """Reads an image and its map.

    Args:
        image_path: The image.
        map_path: The map.
        dataset: Name of the source.
        read: Gives the content of a map file, and its height and width.
        image_id: The data set's id; empty = the stem of the image file.
        what: What the errors call the map.

    Raises:
        DataError: The two have different sizes, or one of them cannot be read.
    """
    image, origin = load_image(image_path, dataset, image_id or image_path.stem, None)
    content, size_hw = read(map_path)
    if size_hw != origin.size_hw:
        raise DataError(
            f"a {what} has another size than its image",
            where=map_path,
            why=f"height and width are {size_hw}, those of the image {origin.size_hw}",
            fix="run `saccade data check` on the data set",
        )
    return image, origin, content


def region_target(labels: NDArray[np.int64], things: Sequence[int], *, masks: bool) -> Target:
    """Every 8-connected region of a class as an instance, class by class, in reading order.

    Args:
        labels: ``[H, W]``.
        things: The values of the classes, in the order of their ids.
        masks: Whether the masks are wanted, too.
    """
    found, class_ids, boxes = [], [], []
    for class_id, value in enumerate(things):
        regions, _ = ndimage.label(labels == value, structure=np.ones((3, 3)))
        for number, slices in enumerate(ndimage.find_objects(regions), start=1):
            found.append(regions == number)
            class_ids.append(class_id)
            boxes.append([slices[1].start, slices[0].start, slices[1].stop, slices[0].stop])
    stacked = np.stack(found) if found else np.zeros((0, *labels.shape), bool)
    return Target(
        boxes=boxes_tensor(np.array(boxes, np.float32).reshape(-1, 4), (labels.shape[0], labels.shape[1])),
        class_ids=torch.tensor(class_ids, dtype=torch.int64),
        masks=mask_tensor(stacked) if masks else None,
        is_crowd=torch.zeros(len(found), dtype=torch.bool),
        areas=torch.from_numpy(stacked.sum(axis=(1, 2)).astype(np.float64)),
    )


@dataclass(kw_only=True, frozen=True)
class PairLayout:
    """Where images and maps lie, in nested folders of the same names.

    Attributes:
        images: Patterns of the image folder relative to root; ``{}`` is the split.
        maps: Patterns of the map folder.
        image_suffix: End of the names of images.
        map_suffixes: Ends of the names of maps, best first; the first one that is there counts for all images.
    """

    images: tuple[str, ...]
    maps: tuple[str, ...]
    image_suffix: str
    map_suffixes: tuple[str, ...]


@dataclass(kw_only=True)
class FoundPairs:
    """Images and maps of a split.

    Attributes:
        pairs: Images that have a map, and their maps, sorted by name.
        unmatched_images: Images without a map.
        unmatched_maps: Maps without an image.
        map_suffix: The end of the names of maps that was found; empty where the format has no choice.
    """

    pairs: list[tuple[Path, Path]]
    unmatched_images: list[Path]
    unmatched_maps: list[Path]
    map_suffix: str = ""

    @property
    def skipped(self) -> dict[str, int]:
        """What is left out, and how often."""
        counts = {"image without a mask": len(self.unmatched_images), "mask without an image": len(self.unmatched_maps)}
        return {reason: count for reason, count in counts.items() if count}


def find_pairs(root: Path, layout: PairLayout, split: str, *, images: str = "", maps: str = "") -> FoundPairs:
    """Matches the images of a split with their maps.

    Args:
        root: Folder of the data set.
        layout: Where they lie.
        split: The split.
        images: Image folder relative to root; empty = as the layout says.
        maps: Map folder relative to root; empty = as the layout says.

    Raises:
        UsageError: A folder does not exist, or no image has a map.
    """
    image_folder = _folder(root, images, layout.images, split, "images")
    map_folder = _folder(root, maps, layout.maps, split, "annotations")
    pictures = {_key(path, image_folder, layout.image_suffix): path for path in _all(image_folder, layout.image_suffix)}
    for suffix in layout.map_suffixes:
        found = {_key(path, map_folder, suffix): path for path in _all(map_folder, suffix)}
        if pictures.keys() & found.keys():
            return FoundPairs(
                pairs=[(path, found[key]) for key, path in pictures.items() if key in found],
                map_suffix=suffix,
                unmatched_images=[path for key, path in pictures.items() if key not in found],
                unmatched_maps=[path for key, path in found.items() if key not in pictures],
            )
    raise UsageError(
        "no image has a mask",
        where=map_folder,
        why=f"{len(pictures)} images like *{layout.image_suffix} in {image_folder}",
        fix=f"masks are files like *{' or *'.join(layout.map_suffixes)} in folders of the same names",
    )


def _folder(root: Path, given: str, patterns: Sequence[str], split: str, option: str) -> Path:
    candidates = [given] if given else per_split(patterns, split)
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise MissingDataError(
        f"the folder of the {'images' if option == 'images' else 'masks'} is not found",
        where=root,
        why=f"looked for {', '.join(dict.fromkeys(candidates))}",
        fix=f"name it, relative to root ({option}=...)",
    )


def _all(folder: Path, suffix: str) -> list[Path]:
    return sorted(path for path in folder.rglob(f"*{suffix}") if not path.name.startswith("."))


def _key(path: Path, folder: Path, suffix: str) -> str:
    return str(path.relative_to(folder)).removesuffix(suffix)


def renamed(official: Sequence[str], asked: Sequence[str], where: object) -> ClassList:
    """The classes of label maps, under other names where these are given.

    Raises:
        UsageError: The maps have another number of classes.
    """
    if asked and len(asked) != len(official):
        raise UsageError(
            f"{len(asked)} class names for the {len(official)} classes of the label maps",
            where=where,
            fix="leave classes out, or give every class another name in the same order",
        )
    return ClassList.from_names(asked or official)


def ignoring(class_id_of: Mapping[int, int], ignored: Sequence[int]) -> dict[int, int]:
    """The table with further values that are neither learned nor scored."""
    return {**class_id_of, **dict.fromkeys(ignored, IGNORE_LABEL)}
