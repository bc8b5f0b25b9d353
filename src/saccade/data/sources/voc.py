"""PASCAL VOC: one XML file with boxes per image (also as LabelImg and Roboflow write them)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

from saccade.data.geometry import boxes_tensor
from saccade.data.images import IMAGE_SUFFIXES
from saccade.data.sources.layout import (
    Records,
    data_root,
    hash_split,
    load_image,
    read_lines,
    split_names,
)
from saccade.errors import DataError, UsageError, nearest
from saccade.samples import ClassList, Sample, Target
from saccade.tasks import Task


@dataclass(kw_only=True)
class VocObject:
    """One ``<object>`` of a file.

    Attributes:
        name: Class name.
        box_xyxy: Corners in pixels, the origin at the corner of the first pixel; not finite where it could not be read.
        difficult: Marked difficult: not trained, ignored by the metric.
    """

    name: str
    box_xyxy: tuple[float, float, float, float]
    difficult: bool


@dataclass(kw_only=True)
class VocFile:
    """One XML file.

    Attributes:
        image: The image file.
        size_hw: Declared height and width, None where the file does not declare them.
        objects: The objects in order.
    """

    image: Path
    size_hw: tuple[int, int] | None
    objects: list[VocObject]


class VocSource:
    """Images with boxes.

    Objects marked difficult are kept as ignored regions (``is_crowd``): they are neither trained nor scored. The files
    of the VOC challenges count pixels from 1 and include the last one; they are recognised by their ``database`` entry,
    all others are taken as written.

    Args:
        task: Detection.
        root: A folder with ``JPEGImages``, ``Annotations`` and ``ImageSets/Main``, or one that holds several such
            (``VOC2007``, ``VOC2012``), or one with images and XML files together, in ``<split>`` subfolders or not.
        split: A file of ``ImageSets/Main``, or a subfolder; ``train``, ``val`` or ``all`` of a data set without either.
        classes: Class names in order; empty = all that occur in the XML files, sorted.

    Attributes:
        skipped: Boxes without extent, and objects of classes that were not asked for.

    Raises:
        UsageError: No such split, or a class that does not occur.
        DataError: A file of the split is missing or damaged.
    """

    def __init__(self, *, task: Task, root: str | Path, split: str = "train", classes: Sequence[str] = ()) -> None:
        if task is not Task.DETECTION:
            raise UsageError(f"VOC boxes serve detection, not {task}", where=str(root))
        folder = data_root(root)
        self.name, self.task = f"{folder.name}/{split}", task
        paths, every = find_voc_files(folder, split)
        files = [read_voc_file(path) for path in paths]
        occurring = {item.name for file in files for item in file.objects}
        if not set(classes) <= occurring or not classes:  # the split alone may lack a class of the data set
            chosen = set(paths)
            occurring |= {item.name for path in every if path not in chosen for item in read_voc_file(path).objects}
        self.classes: ClassList = _choose(occurring, classes, folder)
        skipped: Counter[str] = Counter()
        self._records = Records(self._record(path, file, skipped) for path, file in zip(paths, files, strict=True))
        self.skipped: dict[str, int] = dict(skipped)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image and its boxes, in the frame of the original image."""
        path, stem, size_hw, boxes, class_ids, difficult = self._records[index]
        image, origin = load_image(Path(path), self.name, stem, size_hw)
        target = Target(
            boxes=boxes_tensor(boxes, origin.size_hw),
            class_ids=torch.from_numpy(class_ids),
            is_crowd=torch.from_numpy(difficult),
            areas=torch.from_numpy((boxes[:, 2] - boxes[:, 0]).astype(np.float64) * (boxes[:, 3] - boxes[:, 1])),
        )
        return Sample(image=image, task=self.task, origin=origin, target=target, classes=self.classes)

    def class_ids_of(self, index: int) -> set[int]:
        """Class ids in an image, difficult objects left out."""
        *_, class_ids, difficult = self._records[index]
        return set(class_ids[~difficult].tolist())

    def _record(self, path: Path, file: VocFile, skipped: Counter[str]) -> tuple:
        boxes, class_ids, difficult = [], [], []
        for item in file.objects:
            if item.name not in self.classes.names:
                skipped["object of another class"] += 1
            elif not has_extent(item.box_xyxy):
                skipped["box without extent"] += 1
            else:
                boxes.append(item.box_xyxy)
                class_ids.append(self.classes.names.index(item.name))
                difficult.append(item.difficult)
        return (
            str(file.image),
            path.stem,
            file.size_hw,
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(class_ids, np.int64),
            np.array(difficult, bool),
        )


def find_voc_files(root: Path, split: str, *, must_exist: bool = True) -> tuple[list[Path], list[Path]]:
    """The XML files of a split, and those of the whole data set.

    Args:
        root: Folder of the data set.
        split: As :class:`VocSource` takes it.
        must_exist: Raise where a file that the split names does not exist.

    Raises:
        UsageError: No such split, or no XML files.
        DataError: A file that the split names does not exist.
    """
    years = _years(root)
    if years:
        every = [path for year in years for path in sorted((year / "Annotations").glob("*.xml"))]
        if split == "all":
            return every, every
        lists = [
            [path for name in split_names(split) if (path := year / "ImageSets" / "Main" / f"{name}.txt").is_file()]
            for year in years
        ]
        present = [paths[0] for paths in lists if paths]
        if not present:
            known = sorted({path.stem for year in years for path in (year / "ImageSets" / "Main").glob("*.txt")})
            raise UsageError(f"there is no split '{split}'", where=root, fix=nearest(split, known))
        return [file for path in present for file in _listed(path, must_exist)], every
    for name in split_names(split):
        if (root / name).is_dir() and (own := sorted((root / name).glob("**/*.xml"))):
            return own, sorted(root.glob("**/*.xml"))
    every = sorted(root.glob("**/*.xml"))
    if not every:
        raise UsageError("there are no VOC annotations (XML files)", where=root, fix="choose another reader or root")
    return [every[index] for index in hash_split([path.stem for path in every], split, root)], every


def has_splits(root: Path, split: str) -> bool:
    """Whether the data set says itself what belongs to the split."""
    return bool(_years(root)) or any(next((root / name).glob("**/*.xml"), None) for name in split_names(split))


def _years(root: Path) -> list[Path]:
    """The folders in the layout of the challenges: the root itself, or those in it."""
    if (root / "ImageSets" / "Main").is_dir():
        return [root]
    return [folder for folder in sorted(root.glob("VOC*")) if (folder / "ImageSets" / "Main").is_dir()]


def _listed(split_file: Path, must_exist: bool) -> list[Path]:
    annotations = split_file.parents[2] / "Annotations"
    paths = [annotations / f"{stem}.xml" for stem in read_lines(split_file)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing and must_exist:
        raise DataError(
            f"{len(missing)} annotation files of the split do not exist",
            where=split_file,
            why=", ".join(missing[:5]),
            fix="run `saccade data check` on the data set",
        )
    return paths


def read_voc_file(path: Path) -> VocFile:
    """Reads one XML file.

    Raises:
        DataError: It is not XML, or an object has no name.
    """
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise DataError("the annotation file is damaged", where=path, why=str(error)) from error
    # "The VOC2007 Database": the challenge's files count pixels from 1 and include the last one.
    from_one = "VOC" in (tree.findtext("source/database") or "").upper()
    objects = []
    for item in tree.iter("object"):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise DataError("an object has no name", where=path)
        x0, y0, x1, y1 = (_number(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
        box = (x0 - 1, y0 - 1, x1, y1) if from_one else (x0, y0, x1, y1)
        difficult = (item.findtext("difficult") or "0").strip() not in ("0", "", "Unspecified")
        objects.append(VocObject(name=name, box_xyxy=box, difficult=difficult))
    height, width = _number(tree.findtext("size/height")), _number(tree.findtext("size/width"))
    declared = (int(height), int(width)) if height > 0 and width > 0 else None
    return VocFile(image=_image_of(path, (tree.findtext("filename") or "").strip()), size_hw=declared, objects=objects)


def has_extent(box_xyxy: Sequence[float]) -> bool:
    """Whether the box is finite and has a positive width and height."""
    x0, y0, x1, y1 = box_xyxy
    return all(map(math.isfinite, box_xyxy)) and x1 > x0 and y1 > y0


def _number(text: str | None) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def _image_of(path: Path, file_name: str) -> Path:
    """The image of an XML file: named in it, or of the same stem; beside it or in JPEGImages."""
    folders = (path.parent.parent / "JPEGImages", path.parent, path.parent.parent / "images")
    names = [name for name in (file_name,) if name]
    # Many files keep the name that the image had on the annotator's disk: the stem decides where that is not here.
    names += [path.stem + suffix for suffix in sorted(IMAGE_SUFFIXES)]
    names += [path.stem + suffix.upper() for suffix in sorted(IMAGE_SUFFIXES)]
    by_stem = [name for name in names if Path(name).stem == path.stem]
    for name in (*by_stem, *names):
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    return folders[0] / (file_name or f"{path.stem}.jpg")


def _choose(occurring: set[str], asked: Sequence[str], where: Path) -> ClassList:
    if not occurring:
        raise DataError("no object is annotated", where=where)
    for name in asked:
        if name not in occurring:
            raise UsageError(
                f"there is no class '{name}' in the annotations", where=where, fix=nearest(name, occurring)
            )
    return ClassList.from_names(asked or sorted(occurring))
