"""Defects of caption files and of files of referring expressions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from saccade.data.checks.coco import check_segmentation
from saccade.data.checks.report import ImageEntry, Report, add_unsayable, check_box
from saccade.data.sources.caption_hdf5 import CaptionHdf5Source
from saccade.data.sources.karpathy import caption_image_folders, find_captions, read_captions
from saccade.data.sources.layout import find_images, read_json
from saccade.data.sources.nocaps import nocaps_annotations
from saccade.data.sources.refcoco import (
    PATTERNS,
    chosen_references,
    find_references,
    read_instances,
    read_record_list,
    reference_image_folders,
    targets_of,
)
from saccade.data.sources.spec import SourceSpec
from saccade.errors import UsageError
from saccade.tasks import Task
from saccade.tokens.pieces import WITHOUT_WORDS, unsayable


def captioned_images(spec: SourceSpec, root: Path) -> list[ImageEntry]:
    """The images of a caption file."""
    listed = read_captions(find_captions(root, spec.split, spec.annotations), spec.split, Counter())
    files = list(dict.fromkeys(file for file, _, _ in listed))
    folder = find_images(root, files, spec.images, caption_image_folders(spec.split))
    return [ImageEntry(path=folder / file, declared_hw=None, label=file) for file in files]


def check_captions(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the caption file of a split.

    Returns:
        The images that it names.
    """
    path = find_captions(root, spec.split, spec.annotations)
    content = read_json(path)
    skipped: Counter[str] = Counter()
    listed = read_captions(path, spec.split, skipped)
    if isinstance(content, dict) and "annotations" in content:
        _check_coco_captions(content, report)
    else:
        for _ in range(skipped["blank caption"]):
            report.add("blank_caption", path.name)
        for _ in range(skipped["image without a caption"]):
            report.add("image_without_caption", path.name)
    ids = Counter(image_id for _, image_id, _ in listed)
    for image_id, count in ids.items():
        if count > 1:
            report.add("duplicate_image_id", f"id {image_id}: {count} files")
    report.counts |= {"annotations": sum(len(captions) for _, _, captions in listed)}
    try:
        return captioned_images(spec, root)
    except UsageError as error:
        report.add("missing_image", f"{error.what}: {error.why}")
        return []


def check_caption_hdf5(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the captions of a split in HDF5; its images lie in one file, so that none is listed.

    Raises:
        DataError: Images, captions and words do not belong together.
    """
    source = CaptionHdf5Source(dataclasses.replace(spec, per_caption=False))
    captions = [len(source.captions_of(index)) for index in range(len(source))]
    report.counts |= {"images": len(captions), "annotations": sum(captions)}
    return []


def check_nocaps(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the caption file of nocaps, which has the form of COCO's; returns the images that it names."""
    return check_captions(
        dataclasses.replace(spec, annotations=nocaps_annotations(root, spec.annotations)), root, report
    )


def _check_coco_captions(content: dict[str, Any], report: Report) -> None:
    known = Counter(image.get("id") for image in content["images"])
    for key, count in known.items():
        if count > 1:
            report.add("duplicate_image_id", f"id {key}")
    ids = Counter(annotation.get("id") for annotation in content["annotations"])
    for key, count in ids.items():
        if count > 1:
            report.add("duplicate_annotation_id", f"annotation {key}")
    captioned = set()
    for annotation in content["annotations"]:
        label = f"annotation {annotation.get('id')}"
        if annotation.get("image_id") not in known:
            report.add("dangling_annotation", f"{label}: image {annotation.get('image_id')}")
        elif not str(annotation.get("caption") or "").strip():
            report.add("blank_caption", label)
        else:
            captioned.add(annotation["image_id"])
    for image in content["images"]:
        if image.get("id") not in captioned:
            report.add("image_without_caption", f"image {image.get('id')} ({image.get('file_name')})")


def referenced_images(spec: SourceSpec, root: Path, *, patterns: tuple[str, ...] = PATTERNS) -> list[ImageEntry]:
    """The images of a file of references."""
    return _References(spec, root, patterns).images()


def check_references(
    spec: SourceSpec, root: Path, report: Report, *, patterns: tuple[str, ...] = PATTERNS
) -> list[ImageEntry]:
    """Looks at the references of a split, and at the masks that they name where these are asked for.

    Args:
        spec: The data set.
        root: Its folder.
        report: Where defects go.
        patterns: Names of the file of references.

    Returns:
        The images that they name.
    """
    references = _References(spec, root, patterns)
    references.check(report)
    try:
        return references.images()
    except UsageError as error:
        report.add("missing_image", f"{error.what}: {error.why}")
        return []


class _References:
    """The records of a split and what they point to."""

    def __init__(self, spec: SourceSpec, root: Path, patterns: tuple[str, ...]) -> None:
        self._spec, self._root, self._masks = spec, root, spec.task is Task.REFERRING
        path = find_references(root, spec.annotations, patterns)
        self._entries = chosen_references(read_record_list(path), spec.split)
        self._plain = any("expression" in entry for entry in self._entries)
        self._images, self._annotations = ({}, {}) if self._plain else read_instances(root, path, spec.split)
        self._seen: set[int | str] = set()

    def images(self) -> list[ImageEntry]:
        sizes: dict[str, tuple[int, int] | None] = {}
        for entry in self._entries:
            holder = entry if self._plain else self._images.get(entry.get("image_id", ""), {})
            if "file_name" in holder:
                declared = (int(holder["height"]), int(holder["width"])) if "height" in holder else None
                sizes[str(holder["file_name"])] = declared
        candidates = reference_image_folders(self._spec.split)
        folder = find_images(self._root, list(sizes), self._spec.images, candidates)
        return [ImageEntry(path=folder / name, declared_hw=size, label=name) for name, size in sizes.items()]

    def check(self, report: Report) -> None:
        phrases = 0
        for number, entry in enumerate(self._entries):
            if self._plain:
                label = f"expression {entry.get('id', number)}"
                phrases += 1
                self._check_phrase(entry.get("expression"), label, report)
                boxes = entry.get("boxes_xyxy") or []
                size = (int(entry["height"]), int(entry["width"])) if "height" in entry else None
                for box in boxes:
                    check_box(report, box, size, label)
                self._note_targets(len(boxes), 1, report)
            else:
                phrases += len(entry.get("sentences", ()))
                self._check_ref(entry, f"reference {entry.get('ref_id', number)}", report)
        report.counts |= {"annotations": phrases}

    def _check_ref(self, entry: dict[str, Any], label: str, report: Report) -> None:
        sentences = entry.get("sentences") or []
        for sentence in sentences:
            self._check_phrase(sentence.get("sent") or sentence.get("raw"), label, report)
        image = self._images.get(entry.get("image_id", ""))
        if image is None:
            report.add("dangling_reference", f"{label}: image {entry.get('image_id')}")
        targets = targets_of(entry)
        self._note_targets(len(targets), len(sentences), report)
        for target in targets:
            annotation = self._annotations.get(target)
            if annotation is None:
                report.add("dangling_reference", f"{label}: annotation {target}")
                continue
            box = annotation.get("bbox")
            if self._masks and image is not None and target not in self._seen:
                self._seen.add(target)
                declared = (int(image["height"]), int(image["width"]))
                check_segmentation(annotation.get("segmentation") or [], declared, f"annotation {target}", report)
            if self._masks and box is None:
                continue  # masks are what counts
            if not isinstance(box, list | tuple) or len(box) != 4:
                report.add("missing_box", f"{label}: annotation {target}")
            else:
                x, y, width, height = (float(value) for value in box)
                size = (int(image["height"]), int(image["width"])) if image is not None else None
                check_box(report, (x, y, x + width, y + height), size, f"{label}, annotation {target}")

    def _check_phrase(self, phrase: object, label: str, report: Report) -> None:
        text = str(phrase or "")
        # A model that answers with boxes reads no marks.
        reason = unsayable(text) if self._masks else None if text.strip() else WITHOUT_WORDS
        add_unsayable(report, reason, label)

    def _note_targets(self, targets: int, phrases: int, report: Report) -> None:
        if targets != 1:
            what = "phrase with several targets" if targets else "phrase without a target"
            report.note(what if self._masks else f"{what} (left out in grounding)", phrases)
