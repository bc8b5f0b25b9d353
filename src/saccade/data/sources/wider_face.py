"""WIDER FACE (arXiv 1511.06523): the official text file, or one XML file per image as GiT's configuration reads it."""

from __future__ import annotations

from pathlib import Path

from saccade.data.class_names import CLASS_NAMES
from saccade.data.sources.boxes import BoxSource, LabelledBox, LabelledImage, official_classes
from saccade.data.sources.layout import data_root, find_file, find_images, per_split, read_lines
from saccade.data.sources.spec import SourceSpec
from saccade.data.sources.voc import read_voc_file
from saccade.errors import DataError
from saccade.samples import ClassList

_LISTS = ("wider_face_split/wider_face_{}_bbx_gt.txt", "wider_face_{}_bbx_gt.txt", "{}.txt")
_INVALID = 7  # column: x y w h blur expression illumination invalid occlusion pose
_FACE = CLASS_NAMES["wider_face"][0]


def open_wider_face(spec: SourceSpec) -> BoxSource:
    """Opens WIDER FACE. Faces marked invalid (or difficult in XML), and those below ``min_box``, are ignored regions.

    Args:
        spec: Root is the folder with ``WIDER_train`` and ``WIDER_val``. ``annotations`` names the official text file
            (``wider_face_split/wider_face_train_bbx_gt.txt``) or a list of names (``train.txt``) whose XML files are in
            ``WIDER_train/Annotations``; empty = the first of the two that is there.

    Raises:
        UsageError: Files are not found.
        DataError: An annotation file is damaged.
    """
    root = data_root(spec.root)
    return BoxSource(
        task=spec.task,
        name=f"{root.name}/{spec.split}",
        images=read_wider_face(spec, root),
        classes=official_classes(ClassList.from_names(CLASS_NAMES["wider_face"]), spec.classes, root),
        drop_empty=spec.drop_empty,
        min_side=spec.min_side,
        min_box=spec.min_box,
    )


def read_wider_face(spec: SourceSpec, root: Path) -> list[LabelledImage]:
    """The images of a split.

    Raises:
        UsageError: Files are not found.
        DataError: An annotation file is damaged.
    """
    candidates = per_split(_LISTS, spec.split)
    path = find_file(root, spec.annotations, candidates, f"the WIDER FACE list of the split '{spec.split}'")
    if path.name.endswith("_bbx_gt.txt"):
        return _read_text(path, root, spec)
    folder = find_images(root, [], spec.images, per_split(("WIDER_{}",), spec.split))
    return [read_voc_file(folder / "Annotations" / f"{stem}.xml") for stem in read_lines(path)]


def _read_text(path: Path, root: Path, spec: SourceSpec) -> list[LabelledImage]:
    listed = _read_blocks(path)
    names = [name for name, _ in listed]
    folder = find_images(root, names, spec.images, per_split(("WIDER_{}/images",), spec.split))
    return [
        LabelledImage(image=folder / name, image_id=Path(name).stem, size_hw=None, objects=objects)
        for name, objects in listed
    ]


def _read_blocks(path: Path) -> list[tuple[str, list[LabelledBox]]]:
    """File name and faces of each image: a line with the name, one with the number of faces, and one per face."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError("the annotation file cannot be read", where=path, why=str(error)) from error
    listed: list[tuple[str, list[LabelledBox]]] = []
    position = 0
    while position < len(lines):
        name = lines[position].strip()
        try:
            if not name.lower().endswith((".jpg", ".jpeg", ".png")):
                raise ValueError(f"'{name}' is no image file")
            count = int(lines[position + 1])
            rows = [_read_face(line) for line in lines[position + 2 : position + 2 + count]]
            if len(rows) != count:
                raise ValueError(f"{count} faces are announced, {len(rows)} lines follow")
        except (ValueError, IndexError) as error:
            raise DataError(
                "a block of the annotation file is damaged",
                where=f"{path}, line {position + 1}",
                why=str(error),
                fix="fetch the file again",
            ) from error
        listed.append((name, rows))
        position += 2 + count
        if not count and position < len(lines) and set(lines[position].split()) == {"0"}:
            position += 1  # an image without faces is followed by a line of zeros
    return listed


def _read_face(line: str) -> LabelledBox:
    numbers = [int(word) for word in line.split()]
    if len(numbers) <= _INVALID:
        raise ValueError(f"'{line}' has fewer than {_INVALID + 1} numbers")
    x, y, width, height = numbers[:4]
    return LabelledBox(name=_FACE, box_xyxy=(x, y, x + width, y + height), ignored=numbers[_INVALID] == 1)
