"""ImageNet-1K and the sets that ask the same classes of other pictures, in their official layouts.

The names and prompts are data that the protocol fixes to the letter: those that CLIP's authors published for zero-shot
classification (github.com/openai/CLIP, MIT licence, as open_clip keeps them; two names occur twice, as there).
``imagenet_classes.txt`` has a line per class, in the order of the class index: WordNet id, whether the class is in
ImageNet-A and ImageNet-R (lists of their authors, as timm keeps them, Apache-2.0), name.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from saccade.data.images import IMAGE_SUFFIXES
from saccade.data.sources.layout import data_root, files_of, find_file, first_existing, read_json
from saccade.errors import DataError, MissingDataError

_HERE = Path(__file__).parent
OBJECTNET_BORDER = 2
"""Pixels cut off every side of ObjectNet's pictures: they have a red border."""


@dataclass(kw_only=True, frozen=True)
class ImageNetClass:
    """One of the thousand.

    Attributes:
        wordnet_id: ``n01440764`` ...
        name: As it is put into prompts.
        in_a: One of the 200 classes of ImageNet-A.
        in_r: One of the 200 classes of ImageNet-R.
    """

    wordnet_id: str
    name: str
    in_a: bool
    in_r: bool


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The thousand classes by class index."""
    rows = [line.split("\t") for line in (_HERE / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()]
    return tuple(
        ImageNetClass(wordnet_id=id_, name=name, in_a="A" in sets, in_r="R" in sets) for id_, sets, name in rows
    )


@functools.cache
def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompts, ``{}`` in the place of the name."""
    return tuple((_HERE / "imagenet_templates.txt").read_text(encoding="utf-8").splitlines())


@dataclass(kw_only=True)
class ClassifiedPictures:
    """Pictures with one label each.

    Attributes:
        name: Of the set.
        class_names: As they are put into prompts; labels are positions in it.
        paths: The pictures.
        labels: One per picture.
        border: Pixels to cut off every side.
        skipped: What was left out, and how often.
    """

    name: str
    class_names: tuple[str, ...]
    paths: list[Path]
    labels: list[int]
    border: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


def open_imagenet(root: str | Path) -> ClassifiedPictures:
    """The validation pictures: ``val/WORDNET_ID/*.JPEG``, or as the challenge's own download lays them out.

    The latter is ``ILSVRC/Data/CLS-LOC/val/*.JPEG`` beside ``LOC_val_solution.csv``.
    """
    folder = data_root(root)
    solution = first_existing(folder, ["LOC_val_solution.csv", "ILSVRC/LOC_val_solution.csv"])
    if solution is None:
        return _folders("imagenet", folder, ("val", "validation", "ILSVRC2012_img_val", "."), lambda one: True)
    index_of = {one.wordnet_id: index for index, one in enumerate(imagenet_classes())}
    pictures = first_existing(folder, ["ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "val"])
    if pictures is None:
        raise MissingDataError("the validation pictures are not found", where=folder, why="no Data/CLS-LOC/val")
    found = ClassifiedPictures(name="imagenet", class_names=_names(lambda one: True), paths=[], labels=[])
    with solution.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            try:
                label = index_of[row["PredictionString"].split()[0]]
                path = pictures / f"{row['ImageId']}.JPEG"
            except (KeyError, IndexError, AttributeError) as error:
                raise DataError("not the solution file of the challenge", where=solution, why=repr(error)) from error
            found.paths.append(path)
            found.labels.append(label)
    return found


def open_imagenet_a(root: str | Path) -> ClassifiedPictures:
    """ImageNet-A: natural adversarial pictures of 200 classes, in folders by WordNet id."""
    return _folders("imagenet_a", data_root(root), ("imagenet-a", "."), lambda one: one.in_a)


def open_imagenet_r(root: str | Path) -> ClassifiedPictures:
    """ImageNet-R: renditions of 200 classes, in folders by WordNet id."""
    return _folders("imagenet_r", data_root(root), ("imagenet-r", "."), lambda one: one.in_r)


def open_imagenet_sketch(root: str | Path) -> ClassifiedPictures:
    """ImageNet-Sketch: drawings of all classes, in folders by WordNet id."""
    return _folders("imagenet_sketch", data_root(root), ("sketch", "imagenet-sketch", "."), lambda one: True)


def open_imagenet_v2(root: str | Path) -> ClassifiedPictures:
    """ImageNet-V2 (matched frequency): folders named by class index, 0 to 999."""
    folder = data_root(root)
    inner = first_existing(folder, ["imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"])
    found = ClassifiedPictures(name="imagenet_v2", class_names=_names(lambda one: True), paths=[], labels=[])
    known = {str(index): index for index in range(len(found.class_names))}
    return _collected(found, inner or folder, known)


def open_objectnet(root: str | Path) -> ClassifiedPictures:
    """ObjectNet: the 113 classes that ImageNet has, too, by the set's own mapping files, under ObjectNet's names."""
    folder = data_root(root)
    inner = first_existing(folder, ["objectnet-1.0", "objectnet"]) or folder
    labels, shared = (
        read_json(find_file(inner, "", [f"mappings/{name}.json"], "a mapping file of ObjectNet"))
        for name in ("folder_to_objectnet_label", "objectnet_to_imagenet_1k")
    )
    if not isinstance(labels, dict) or not isinstance(shared, dict) or not set(shared) <= set(labels.values()):
        raise DataError("ObjectNet's mapping files contradict each other", where=inner / "mappings")
    names = sorted(shared)
    found = ClassifiedPictures(
        name="objectnet",
        class_names=tuple(name.lower() for name in names),
        paths=[],
        labels=[],
        border=OBJECTNET_BORDER,
    )
    known = {place: names.index(name) for place, name in labels.items() if name in shared}
    return _collected(found, inner / "images", known)


CLASSIFIED: dict[str, Callable[[str | Path], ClassifiedPictures]] = {
    "imagenet": open_imagenet,
    "imagenet_a": open_imagenet_a,
    "imagenet_r": open_imagenet_r,
    "imagenet_v2": open_imagenet_v2,
    "imagenet_sketch": open_imagenet_sketch,
    "objectnet": open_objectnet,
}
"""Name of a set to what opens it."""


def _names(keep: Callable[[ImageNetClass], bool]) -> tuple[str, ...]:
    return tuple(one.name for one in imagenet_classes() if keep(one))


def _folders(
    name: str, root: Path, places: tuple[str, ...], keep: Callable[[ImageNetClass], bool]
) -> ClassifiedPictures:
    """A set in folders by WordNet id, restricted to some of the classes."""
    kept = [one.wordnet_id for one in imagenet_classes() if keep(one)]
    known = {wordnet_id: label for label, wordnet_id in enumerate(kept)}
    inner = next(
        (root / place for place in places if any((root / place / wordnet_id).is_dir() for wordnet_id in kept)), root
    )
    found = ClassifiedPictures(name=name, class_names=_names(keep), paths=[], labels=[])
    return _collected(found, inner, known, refused={one.wordnet_id for one in imagenet_classes() if not keep(one)})


def _collected(
    found: ClassifiedPictures, folder: Path, known: Mapping[str, int], *, refused: Collection[str] = ()
) -> ClassifiedPictures:
    """Fills in the pictures of every folder that stands for a class.

    Raises:
        MissingDataError: There is no such folder.
        DataError: A folder is among those refused: this is another set.
    """
    if not folder.is_dir():
        raise MissingDataError(f"the pictures of {found.name} are not found", where=folder)
    places = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not any(place.name in known for place in places):
        raise MissingDataError(
            f"no folder of a class of {found.name}",
            where=folder,
            why=f"its folders are called like {', '.join(list(known)[:3])} ...",
        )
    for place in places:
        if place.name not in known:
            if place.name in refused:
                raise DataError(f"the folder '{place.name}' stands for no class of {found.name}", where=folder)
            found.skipped["folder of no class"] = found.skipped.get("folder of no class", 0) + 1
            continue
        pictures = files_of(place, IMAGE_SUFFIXES)
        found.paths += pictures
        found.labels += [known[place.name]] * len(pictures)
    return found
