"""PASCAL VOC: one XML file with boxes per image (also as LabelImg and Roboflow write them)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from saccade.data.images import IMAGE_SUFFIXES
from saccade.data.sources.boxes import BoxSource, LabelledBox, LabelledImage
from saccade.data.sources.layout import data_root, hash_split, read_lines, split_names
from saccade.errors import DataError, UsageError, nearest
from saccade.samples import ClassList
from saccade.tasks import Task


class VocSource(BoxSource):
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
        drop_empty: Leave out images without a box.
        min_side: Leave out images whose shorter side is below this, in pixels.
        min_box: Boxes with a side below this, in pixels, are ignored regions.

    Raises:
        UsageError: No such split, or a class that does not occur.
        DataError: A file of the split is missing or damaged.
    """

    def __init__(
        self,
        *,
        task: Task,
        root: str | Path,
        split: str = "train",
        classes: Sequence[str] = (),
        drop_empty: bool = False,
        min_side: int = 0,
        min_box: float = 0.0,
    ) -> None:
        if task is not Task.DETECTION:
            raise UsageError(f"VOC boxes serve detection, not {task}", where=str(root))
        folder = data_root(root)
        paths, every = find_voc_files(folder, split)
        files = [read_voc_file(path) for path in paths]
        occurring = {item.name for file in files for item in file.objects}
        if not set(classes) <= occurring or not classes:  # the split alone may lack a class of the data set
            chosen = set(paths)
            occurring |= {item.name for path in every if path not in chosen for item in read_voc_file(path).objects}
        super().__init__(
            task=task,
            name=f"{folder.name}/{split}",
            images=files,
            classes=_choose(occurring, classes, folder),
            drop_empty=drop_empty,
            min_side=min_side,
            min_box=min_box,
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


def read_voc_file(path: Path) -> LabelledImage:
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
        objects.append(LabelledBox(name=name, box_xyxy=box, ignored=difficult))
    height, width = _number(tree.findtext("size/height")), _number(tree.findtext("size/width"))
    declared = (int(height), int(width)) if height > 0 and width > 0 else None
    image = _image_of(path, *((tree.findtext(key) or "").strip() for key in ("folder", "filename")))
    return LabelledImage(image=image, image_id=path.stem, size_hw=declared, objects=objects)


def _number(text: str | None) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def _image_of(path: Path, folder_name: str, file_name: str) -> Path:
    """The image of an XML file: named in it, or of the same stem; beside it, in JPEGImages or in the folder it says."""
    folders = [path.parent.parent / "JPEGImages", path.parent, path.parent.parent / "images"]
    if folder_name and Path(folder_name).name == folder_name:  # a plain name: files from elsewhere hold whole paths
        folders.append(path.parent.parent / folder_name)
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
