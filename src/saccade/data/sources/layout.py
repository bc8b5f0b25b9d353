"""Finding and opening the files of a data set: what all readers share."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from saccade.data.images import IMAGE_SUFFIXES, read_image
from saccade.errors import DataError, MissingDataError, UsageError, nearest
from saccade.samples import ClassList, Origin

_VAL_SHARE = 5  # without split files, one image in five is validation
_SHOWN = 6  # names of files in an error
_SYNONYMS = (("train", "training"), ("val", "valid", "validation"))
_SPLIT_FILES = ("splits/{}.txt", "{}.txt", "ImageSets/Segmentation/{}.txt", "ImageSets/{}.txt")
_COMMON_SPLITS = ("train", "training", "val", "valid", "validation", "test", "trainval")


class Records:
    """A list of picklable records in one block of bytes.

    Loader processes are forked; a list of Python objects would be copied page by page as its reference counts change.
    A block of bytes is not.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        blobs = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        self._ends = np.cumsum([len(blob) for blob in blobs], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(blobs), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self._ends):
            raise IndexError(f"record {index} of {len(self._ends)}")
        begin = int(self._ends[index - 1]) if index else 0
        return pickle.loads(self._bytes[begin : int(self._ends[index])].data)


def data_root(root: str | Path) -> Path:
    """The root folder of a data set.

    Raises:
        UsageError: No name, or no such folder.
    """
    path = Path(root)
    if not str(root):
        raise UsageError("no folder of the data set is given", fix="set root")
    if path.is_file():
        raise UsageError(
            "a file is given where the folder of the data set is wanted",
            where=path,
            fix="name the folder, and the file with annotations",
        )
    if not path.is_dir():
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
        raise MissingDataError(
            "the folder of the data set does not exist",
            where=path,
            fix=nearest(path.name, beside) if beside else None,
        )
    return path


def split_names(split: str) -> tuple[str, ...]:
    """The split itself, then what else people call it (``val``, ``valid``, ``validation``)."""
    group = next((names for names in _SYNONYMS if split in names), ())
    return (split, *(name for name in group if name != split))


def per_split(patterns: Iterable[str], split: str) -> list[str]:
    """Every pattern with every name of the split in place of ``{}``, the patterns in their order."""
    names = split_names(split)
    return [pattern.format(name) for pattern in patterns for name in names]


def first_existing(root: Path, candidates: Iterable[str]) -> Path | None:
    """The first candidate, relative to root, that exists."""
    return next((root / candidate for candidate in candidates if (root / candidate).exists()), None)


def find_file(root: Path, given: str, candidates: Sequence[str], what: str) -> Path:
    """An annotation file: the one that is given, or the first candidate that exists.

    Args:
        root: Folder of the data set.
        given: The file relative to root; empty = look for it.
        candidates: Where it may be, relative to root.
        what: What it is, for the errors: ``"the table of the split 'val'"``.

    Raises:
        UsageError: It is not found.
    """
    if given:
        if not (root / given).is_file():
            raise MissingDataError(f"{what} does not exist", where=root / given)
        return root / given
    path = first_existing(root, candidates)
    if path is None:
        more = ", ..." if len(candidates) > _SHOWN else ""
        raise MissingDataError(
            f"{what} is not found",
            where=root,
            why=f"looked for {', '.join(candidates[:_SHOWN])}{more}",
            fix="name the file, relative to root (annotations=...)",
        )
    return path


def find_images(root: Path, file_names: Sequence[str], given: str, candidates: Sequence[str]) -> Path:
    """The image folder: the one that is given, or the first candidate that holds one of the first few files.

    Args:
        root: Folder of the data set.
        file_names: Names relative to the image folder.
        given: Folder relative to root; empty = look for it.
        candidates: Where it may be, relative to root.

    Raises:
        UsageError: The given one does not exist, or no candidate holds the files.
    """
    if given:
        if not (root / given).is_dir():
            raise MissingDataError("the image folder does not exist", where=root / given)
        return root / given
    probe = list(file_names[:3])
    present = [folder for folder in dict.fromkeys(candidates) if (root / folder).is_dir()]
    for folder in present:
        if not probe or any((root / folder / name).is_file() for name in probe):
            return root / folder
    raise MissingDataError(
        "the images are in none of the usual folders",
        where=root,
        why=f"looked for {probe[0] if probe else 'images'} in {', '.join(present) or 'no existing folder'}",
        fix="name their folder, relative to root (images=...)",
    )


def find_folder(
    root: Path, split: str, given: str, patterns: Sequence[str], what: str, *, exclude: Path | None = None
) -> Path:
    """The folder of the images, or of the maps that belong to them: the one that is given, or the first that has files.

    Args:
        root: Folder of the data set.
        split: The split.
        given: Folder relative to root; empty = look for it.
        patterns: Where it may be, relative to root; ``{}`` is the split.
        what: What it holds, for the errors: ``"images"``, ``"masks"`` ...
        exclude: A folder that is not meant.

    Raises:
        UsageError: It is not found.
    """
    if given:
        if not (root / given).is_dir():
            raise MissingDataError(f"the folder of the {what} does not exist", where=root / given)
        return root / given
    for candidate in per_split(patterns, split):
        folder = root / candidate
        if folder != exclude and folder.is_dir() and any(path.is_file() for path in folder.iterdir()):
            return folder
    raise MissingDataError(
        f"the folder of the {what} is not found",
        where=root,
        why=f"looked for {', '.join(dict.fromkeys(pattern.format(split) for pattern in patterns))}",
        fix=f"name it, relative to root ({'images' if what == 'images' else 'annotations'}=...)",
    )


def files_of(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files of these kinds in a folder, sorted by name; hidden ones are left out."""
    return [
        path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]


@dataclass(kw_only=True)
class Part:
    """Which images belong to a split.

    Attributes:
        stems: File stems of the images.
        missing: Stems that the split file names and that are no images.
        undivided: The data set has no splits; this one was made from the names.
    """

    stems: list[str]
    missing: list[str] = field(default_factory=list)
    undivided: bool = False


def divide(root: Path, split: str, stems: Sequence[str], image_folder: Path, *, must_exist: bool = True) -> Part:
    """The images of a split: by a split file, by the name of their folder, or by their hash.

    Args:
        root: Folder of the data set.
        split: The split, or ``all``.
        stems: File stems of all images.
        image_folder: The folder of the images.
        must_exist: Raise where the split file names an image that does not exist.

    Raises:
        UsageError: There are split files, but not for this split.
        DataError: The split file names images that do not exist.
    """
    if split == "all":
        return Part(stems=list(stems))
    listed = first_existing(root, per_split(_SPLIT_FILES, split))
    if listed is not None:
        return _listed(listed, set(stems), must_exist=must_exist)
    parts = image_folder.relative_to(root).parts
    if any(name in part for name in split_names(split) for part in parts):
        return Part(stems=list(stems))
    others = [root / pattern.format(name) for pattern in _SPLIT_FILES for name in _COMMON_SPLITS]
    if any(path.is_file() for path in others):
        known = [path.stem for path in others if path.is_file()]
        raise UsageError(f"there is no split '{split}'", where=root, fix=nearest(split, known))
    return Part(stems=[stems[index] for index in hash_split(stems, split, root)], undivided=True)


def _listed(split_file: Path, known: Collection[str], *, must_exist: bool) -> Part:
    names = read_lines(split_file)
    stems = [Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else Path(name).name for name in names]
    missing = [stem for stem in stems if stem not in known]
    if missing and must_exist:
        raise DataError(
            f"{len(missing)} images of the split do not exist",
            where=split_file,
            why=", ".join(missing[:5]),
            fix="run `saccade data check` on the data set",
        )
    return Part(stems=[stem for stem in stems if stem in known], missing=missing)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: Missing, unreadable, or not JSON; the message names the file and the line.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError("the annotation file does not exist", where=path) from error
    except OSError as error:
        raise DataError("the annotation file cannot be read", where=path, why=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            "the annotation file is not valid JSON", where=path, why=str(error), fix="fetch or export it again"
        ) from error


def read_lines(path: Path) -> list[str]:
    """The first word of every line that has one (split files).

    Raises:
        DataError: The file cannot be read.
    """
    return [words[0] for words in read_rows(path)]


def read_rows(path: Path) -> list[list[str]]:
    """The words of every line that has one.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return [words for line in path.read_text(encoding="utf-8").splitlines() if (words := line.split())]
    except (OSError, ValueError) as error:
        raise DataError("the split file cannot be read", where=path, why=str(error)) from error


def list_of(data: Any, key: str, path: Path) -> list[Any]:
    """``data[key]``, which must be a list.

    Raises:
        DataError: It is missing or something else.
    """
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, list):
        raise DataError(
            f"the annotation file has no list '{key}'", where=path, fix="is it in the format of the reader?"
        )
    return value


def hash_split(names: Sequence[str], split: str, where: Path) -> list[int]:
    """Splits a data set that has no split of its own: one name in five, chosen by its hash, is validation.

    The choice for a name does not depend on the other names, so adding images moves none.

    Args:
        names: File stems.
        split: ``train``, ``val`` or ``all``.
        where: For the error.

    Returns:
        Positions in ``names``.

    Raises:
        UsageError: Another split is asked for.
    """
    if split == "all":
        return list(range(len(names)))
    if split not in ("train", "val"):
        raise UsageError(
            f"the data set has no split '{split}'", where=where, fix="it is not divided: use train, val or all"
        )
    held_out = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % _VAL_SHARE == 0 for name in names]
    return [index for index, is_val in enumerate(held_out) if is_val == (split == "val")]


def choose_classes(categories: dict[int, str], asked: Sequence[str], where: Path) -> ClassList:
    """The class list of a file: all its categories by ascending id, or the ones asked for in that order.

    Args:
        categories: Category id to name, as the file declares.
        asked: Class names (empty = all).
        where: For the error.

    Raises:
        UsageError: A class that the file does not declare.
        DataError: No categories, or a name twice.
    """
    if not categories:
        raise DataError("the annotation file declares no categories", where=where)
    twice = sorted(name for name, count in Counter(categories.values()).items() if count > 1)
    if twice:
        raise DataError("a category name is used twice", where=where, why=", ".join(twice))
    if not asked:
        ids = sorted(categories)
        return ClassList(names=tuple(categories[key] for key in ids), category_ids=tuple(ids))
    id_of = {name: key for key, name in categories.items()}
    for name in asked:
        if name not in id_of:
            raise UsageError(
                f"there is no class '{name}' in the annotation file", where=where, fix=nearest(name, id_of)
            )
    return ClassList(names=tuple(asked), category_ids=tuple(id_of[name] for name in asked))


def load_image(
    path: Path, dataset: str, image_id: int | str, declared_hw: tuple[int, int] | None
) -> tuple[tv_tensors.Image, Origin]:
    """Reads an image and notes where it came from.

    Args:
        path: The file.
        dataset: Name of the source.
        image_id: The data set's id.
        declared_hw: Size that the annotations declare, None if they do not.

    Raises:
        ImageError: The file cannot be read.
        DataError: It has another size than declared.
    """
    image = read_image(path)
    size_hw = (int(image.shape[1]), int(image.shape[2]))
    if declared_hw is not None and size_hw != declared_hw:
        raise DataError(
            "the image has another size than its annotations say",
            where=path,
            why=f"it is {size_hw[1]} x {size_hw[0]} (upright), declared {declared_hw[1]} x {declared_hw[0]}",
            fix="run `saccade data check` on the data set",
        )
    return tv_tensors.Image(image), Origin(dataset=dataset, image_id=image_id, path=str(path), size_hw=size_hw)
