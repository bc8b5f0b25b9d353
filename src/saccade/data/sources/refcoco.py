"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg pickles, gRefCOCO JSON, and plain lists of expressions."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from saccade.data.geometry import boxes_tensor
from saccade.data.sources.coco import to_xyxy
from saccade.data.sources.layout import Records, data_root, find_images, list_of, load_image, read_json, split_names
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, MissingDataError, UsageError
from saccade.samples import Sample, Target
from saccade.tasks import Task

GREFCOCO_PATTERNS = ("grefs*.json", "grefs*.p")
REFZOM_PATTERNS = ("Ref_ZOM*.p",)
PATTERNS = ("refs(*).p", "grefs*.json", "expressions*.json")
"""What files of references are called."""


class RefCocoSource:
    """One sample per sentence that refers to exactly one object; the target is its box.

    Understood are

    - ``refs(<by>).p`` with ``instances.json`` beside it (RefCOCO, RefCOCO+, RefCOCOg, RefCLEF);
    - ``grefs(<by>).json`` of gRefCOCO, with the instances beside it or in ``annotations/instances_<split>.json``;
      expressions with several targets or none are left out and counted;
    - a JSON list of ``{file_name, split, expression, boxes_xyxy}``.

    Args:
        spec: For grounding; the split is ``train``, ``val``, ``test``, ``testA`` or ``testB``.
        patterns: Names of the file of references.

    Attributes:
        skipped: Expressions left out, by reason.

    Raises:
        UsageError: Files are not found, or the split is empty.
        DataError: A file is damaged, or the pickle holds more than plain data.
    """

    def __init__(self, spec: SourceSpec, *, patterns: tuple[str, ...]) -> None:
        if spec.task is not Task.GROUNDING:
            raise UsageError(f"referring expressions serve grounding, not {spec.task}", where=spec.root)
        folder = data_root(spec.root)
        path = find_references(folder, spec.annotations, patterns)
        self.name, self.task, self.classes = f"{path.parent.name}/{spec.split}", spec.task, None
        skipped: Counter[str] = Counter()
        listed = read_references(folder, path, spec.split, skipped)
        if not listed:
            raise UsageError(
                f"no expression with one target in the split '{spec.split}'",
                where=path,
                why=", ".join(f"{count} x {reason}" for reason, count in skipped.items()) or "no record has this split",
            )
        names = [record["file"] for record in listed]
        self._images = find_images(folder, names, spec.images, reference_image_folders(spec.split))
        self._records = Records(listed)
        self.skipped: dict[str, int] = dict(skipped)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image with one phrase and its box."""
        record = self._records[index]
        image, origin = load_image(self._images / record["file"], self.name, record["id"], record["size_hw"])
        boxes = np.array([record["box"]], np.float32)
        return Sample(
            image=image,
            task=self.task,
            origin=origin,
            target=Target(boxes=boxes_tensor(boxes, origin.size_hw)),
            phrase=record["phrase"],
        )


def find_references(root: Path, annotations: str = "", patterns: tuple[str, ...] = PATTERNS) -> Path:
    """The file of references.

    Args:
        root: Folder of the data set.
        annotations: The file relative to root; empty = looked for, there and one folder below.
        patterns: What it may be called.

    Raises:
        UsageError: It is not found, or there are several.
    """
    if annotations:
        if not (root / annotations).is_file():
            raise MissingDataError("the file of references does not exist", where=root / annotations)
        return root / annotations
    found = [path for depth in ("", "*/") for pattern in patterns for path in sorted(root.glob(depth + pattern))]
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise (UsageError if found else MissingDataError)(
            "there are several files of references" if found else "no file of references is found",
            where=root,
            why=names or f"looked for {', '.join(patterns)}",
            fix="name the file, relative to root (annotations=...)",
        )
    return found[0]


def reference_image_folders(split: str) -> list[str]:
    """Where the images of references usually are, relative to root."""
    per_split = [f"{name}2014" for name in split_names(split)]
    return [
        "images/mscoco/images/train2014", "images/train2014", "train2014", "images/saiapr_tc-12", *per_split,
        "images", "JPEGImages", "train2017", "val2017", ".",
    ]  # fmt: skip


def read_references(root: Path, path: Path, split: str, skipped: Counter[str]) -> list[dict[str, Any]]:
    """Records ``{file, id, size_hw, box, phrase}`` of one split, one per sentence with one target."""
    content = read_record_list(path)
    chosen = chosen_references(content, split)
    try:
        if content and "expression" in content[0]:
            return list(_from_expressions(chosen, skipped))
        return list(_from_refs(chosen, *read_instances(root, path, split), skipped))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("a reference lacks a field or has a wrong one", where=path, why=repr(error)) from error


def read_record_list(path: Path) -> list[dict[str, Any]]:
    """The records of a file of references.

    Raises:
        DataError: Damaged, or something else.
    """
    content = read_pickle(path) if path.suffix == ".p" else read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise DataError("the file of references is not a list of records", where=path)
    return content


def chosen_references(content: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """The records of a split.

    Where a record names several targets (gRefCOCO, Ref-ZOM), splits are named exactly. Elsewhere, as the refer API has
    it, ``testA`` is every test split with an A in its name, and ``test`` every test split.
    """
    exact = {split, *split_names(split)}
    several = any(isinstance(entry.get("ann_id"), list | tuple) for entry in content[:1])

    def belongs(name: str) -> bool:
        if name in exact or several or "test" not in name or not split.startswith("test"):
            return name in exact
        return split == "test" or split[-1] in name.removeprefix("test")

    return [entry for entry in content if belongs(str(entry.get("split")))]


def targets_of(entry: dict[str, Any]) -> tuple[int | str, ...]:
    """Annotations that a reference names; none is written as ``[-1]``, ``[]`` or ``no_target``."""
    targets = entry["ann_id"] if isinstance(entry["ann_id"], list | tuple) else [entry["ann_id"]]
    return () if entry.get("no_target") or list(targets) == [-1] else tuple(targets)


def _from_expressions(entries: Iterable[dict[str, Any]], skipped: Counter[str]) -> Iterable[dict[str, Any]]:
    for entry in entries:
        boxes = entry["boxes_xyxy"]
        if len(boxes) != 1:
            skipped["phrase with several targets" if boxes else "phrase without a target"] += 1
        elif not (boxes[0][2] > boxes[0][0] and boxes[0][3] > boxes[0][1]):
            skipped["target without a box"] += 1
        elif not str(entry["expression"]).strip():
            skipped["empty phrase"] += 1
        else:
            yield {
                "file": str(entry["file_name"]),
                "id": Path(str(entry["file_name"])).stem,
                "size_hw": (int(entry["height"]), int(entry["width"])) if "height" in entry else None,
                "box": [float(value) for value in boxes[0]],
                "phrase": str(entry["expression"]).strip(),
            }


def _from_refs(
    entries: Iterable[dict[str, Any]],
    images: dict[int | str, dict[str, Any]],
    annotations: dict[int | str, dict[str, Any]],
    skipped: Counter[str],
) -> Iterable[dict[str, Any]]:
    for entry in entries:
        sentences = entry["sentences"]
        targets = targets_of(entry)
        if not targets:
            skipped["phrase without a target"] += len(sentences)
            continue
        if len(targets) > 1:
            skipped["phrase with several targets"] += len(sentences)
            continue
        image = images.get(entry["image_id"])
        box = to_xyxy(annotations.get(targets[0], {}).get("bbox"))
        if image is None or box is None:
            skipped["phrase of an image that is not listed" if image is None else "target without a box"] += len(
                sentences
            )
            continue
        for sentence in sentences:
            phrase = str(sentence.get("sent") or sentence.get("raw") or "").strip()
            if not phrase:
                skipped["empty phrase"] += 1
                continue
            yield {
                "file": str(image["file_name"]),
                "id": image["id"],
                "size_hw": (int(image["height"]), int(image["width"])),
                "box": box,
                "phrase": phrase,
            }


def read_instances(
    root: Path, path: Path, split: str
) -> tuple[dict[int | str, dict[str, Any]], dict[int | str, dict[str, Any]]]:
    """Images and annotations by their ids: of ``instances.json`` beside the references, or of the COCO files.

    Raises:
        UsageError: Neither is there.
        DataError: A file is damaged.
    """
    beside = path.parent / "instances.json"
    named = [
        root / "annotations" / f"instances_{name}{year}.json"
        for name in split_names(split)
        for year in ("", 2014, 2017)
    ]
    files = [beside] if beside.is_file() else [file for file in named if file.is_file()][:1]
    files = files or sorted((root / "annotations").glob("instances_*.json"))
    if not files:
        raise MissingDataError(
            "the instances that the references point to are not found",
            where=path,
            fix=f"put instances.json into {path.parent}",
        )
    images: dict[int | str, dict[str, Any]] = {}
    annotations: dict[int | str, dict[str, Any]] = {}
    for file in files:
        content = read_json(file)
        try:
            images |= {image["id"]: image for image in list_of(content, "images", file)}
            annotations |= {annotation["id"]: annotation for annotation in list_of(content, "annotations", file)}
        except (KeyError, TypeError) as error:
            raise DataError("an image or annotation has no id", where=file, why=repr(error)) from error
    return images, annotations


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings and numbers, and refuses everything that could run code."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def read_pickle(path: Path) -> Any:
    """Reads a pickle of plain data without the power to run anything.

    Raises:
        DataError: Missing, damaged, or not plain data.
    """
    try:
        content = path.read_bytes()
        # Written by Python 2: its strings are bytes of an 8-bit encoding.
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except FileNotFoundError as error:
        raise DataError("the file of references does not exist", where=path) from error
    except pickle.UnpicklingError as error:
        raise DataError(
            "the pickle holds more than plain data, or is damaged",
            where=path,
            why=str(error),
            fix="fetch the official file again",
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError("the pickle is damaged", where=path, why=f"{type(error).__name__}: {error}") from error
