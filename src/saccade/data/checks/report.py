"""What a check found."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.data.images import image_size, read_image
from saccade.errors import ImageError
from saccade.tokens.pieces import WITHOUT_WORDS

DEFECTS: dict[str, tuple[str, str]] = {
    "unreadable_annotations": ("an annotation file cannot be read", "fetch or export it again"),
    "no_images": ("there are no images", "check the folder and the split"),
    "missing_image": ("an image file does not exist", "fetch it, or remove its entry"),
    "unreadable_image": ("an image file cannot be read", "fetch it again, or remove it with its entry"),
    "image_size_mismatch": ("an image has another size than declared", "correct the declared size and the annotations"),
    "duplicate_image_id": ("an image id occurs twice", "number the images anew"),
    "duplicate_annotation_id": ("an annotation id occurs twice", "number the annotations anew"),
    "duplicate_category": ("a category id or name occurs twice", "merge the categories"),
    "duplicate_file": ("an image file is listed twice", "merge the entries"),
    "invalid_entry": ("an entry lacks a field or has a wrong one", "export it again"),
    "dangling_annotation": ("an annotation points to an image that is not listed", "list the image, or remove it"),
    "dangling_reference": ("a reference points to an annotation or image that is not there", "add it, or remove it"),
    "unknown_category": ("a category is not declared", "declare it, or correct the annotation"),
    "missing_box": ("an annotation has no box of four numbers", "add the box"),
    "nan_box": ("a box has a coordinate that is not finite", "correct the box"),
    "degenerate_box": ("a box has no width or no height", "correct or remove it; readers leave it out"),
    "box_out_of_frame": ("a box reaches out of its image", "clip the box"),
    "empty_polygon": ("a mask has no polygon", "draw the mask, or remove the annotation"),
    "short_polygon": ("a polygon has fewer than 3 points", "correct or remove it"),
    "invalid_polygon": ("a polygon has coordinates that are not finite or far outside", "correct or remove it"),
    "bad_rle": ("a run-length mask is damaged or has another size than its image", "encode the mask anew"),
    "missing_mask": ("an image has no mask file", "add the mask, or remove the image"),
    "missing_image_of_mask": ("a mask file has no image", "add the image, or remove the mask"),
    "unreadable_mask": ("a mask file cannot be read", "export it again"),
    "mask_size_mismatch": ("a mask has another size than its image", "export it in the size of the image"),
    "missing_depth": ("an image has no depth map", "add the map, or remove the image"),
    "missing_image_of_depth": ("a depth map has no image", "add the image, or remove the map"),
    "unreadable_depth": ("a depth map cannot be read", "export it again"),
    "depth_size_mismatch": ("a depth map has another size than its image", "export it in the size of the image"),
    "depth_number_type": ("a depth map holds no 16-bit or floating-point numbers", "export depth, not a picture of it"),
    "unknown_depth": ("a depth map has no known pixel", "remove the pair"),
    "implausible_depth": ("a depth map is nearer or farther than any scene", "correct depth_scale, or export it again"),
    "value_outside_classes": ("a mask has values beyond the classes", "name all classes, or ignore these values"),
    "blank_caption": ("a caption is blank", "write it, or remove it"),
    "image_without_caption": ("a listed image has no caption", "caption it, or remove it"),
    "empty_phrase": ("a referring phrase is blank", "write it, or remove it"),
    "unsayable_phrase": (
        "a phrase has a mark of the models that converse in it, or is no Unicode text",
        "take it out (until then it is not used)",
    ),
    "unused_class": ("a declared class never occurs", "remove it, or add examples"),
    "duplicate_image": (
        "an image is there twice, under different names",
        "remove one with its mask: one may teach what the other tests",
    ),
    "same_name": (
        "two files differ in nothing but the ending of their names, and one is not read",
        "remove or rename one",
    ),
    "image_in_both_splits": ("an image is in this split and in another one", "remove it from one of them"),
}
"""Kind of defect -> what it is, what to do."""

UNDIVIDED = "data set without splits: divided by the names of the images"
"""Note of a report: one set of files serves every split."""

NO_OBJECT = "image without an object"
SOFT_MASK = "mask with soft edges: cut at half of white"
"""Notes of reports on binary masks."""

_SLACK = 1.0  # pixels that a box may reach out of its image: annotation tools round


@dataclass(kw_only=True)
class Finding:
    """One kind of defect.

    Attributes:
        kind: A key of :data:`DEFECTS`.
        count: How often it occurs.
        examples: Where, the first few.
    """

    kind: str
    count: int
    examples: list[str]

    @property
    def what(self) -> str:
        """The defect in words."""
        return DEFECTS[self.kind][0]

    @property
    def fix(self) -> str:
        """What to do about it."""
        return DEFECTS[self.kind][1]


@dataclass(kw_only=True)
class Report:
    """Everything that was found in one split of a data set.

    Attributes:
        name: Data set and split.
        reader: How it was read.
        counts: Images, annotations, classes and so on that were looked at.
        notes: Things to know that are no defects, and how often they occur.
        max_examples: Examples kept per kind.
    """

    name: str
    reader: str
    counts: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    max_examples: int = 5
    _findings: dict[str, Finding] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no defect was found."""
        return not self._findings

    @property
    def findings(self) -> list[Finding]:
        """The defects, in the order of :data:`DEFECTS`."""
        return [self._findings[kind] for kind in DEFECTS if kind in self._findings]

    def add(self, kind: str, example: object) -> None:
        """Counts one defect."""
        finding = self._findings.setdefault(kind, Finding(kind=kind, count=0, examples=[]))
        finding.count += 1
        if len(finding.examples) < self.max_examples:
            finding.examples.append(str(example))

    def note(self, what: str, count: int = 1) -> None:
        """Counts something that is no defect."""
        if count:
            self.notes[what] = self.notes.get(what, 0) + count

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "name": self.name,
            "reader": self.reader,
            "ok": self.ok,
            "counts": dict(self.counts),
            "notes": dict(self.notes),
            "defects": [
                {"kind": f.kind, "what": f.what, "count": f.count, "examples": list(f.examples), "fix": f.fix}
                for f in self.findings
            ],
        }


@dataclass(kw_only=True, frozen=True)
class ImageEntry:
    """An image that the annotations name.

    Attributes:
        path: The file.
        declared_hw: Declared height and width, None where nothing is declared.
        label: What the report calls it.
    """

    path: Path
    declared_hw: tuple[int, int] | None
    label: str


def check_images(
    report: Report, entries: Sequence[ImageEntry], *, decode: bool, progress: Callable[[int, int], None] | None
) -> list[tuple[int, int] | None]:
    """Reads every image, in threads.

    Args:
        report: Where defects go.
        entries: The images.
        decode: Decode the pixels; otherwise look at the header only (much faster, misses truncated files).
        progress: Called with (done, total).

    Returns:
        Height and width of each image, None where it cannot be read.
    """

    def look(entry: ImageEntry) -> tuple[int, int] | ImageError:
        try:
            if not decode:
                return image_size(entry.path)
            image = read_image(entry.path)
            return int(image.shape[1]), int(image.shape[2])
        except ImageError as error:
            return error

    sizes: list[tuple[int, int] | None] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for entry, result in zip(entries, pool.map(look, entries), strict=True):
            if isinstance(result, ImageError):
                kind = "missing_image" if not entry.path.exists() else "unreadable_image"
                report.add(kind, f"{entry.label}: {result.what}" + (f" ({result.why})" if result.why else ""))
                sizes.append(None)
            else:
                if entry.declared_hw is not None and result != entry.declared_hw:
                    report.add("image_size_mismatch", f"{entry.label}: (h, w) {result}, declared {entry.declared_hw}")
                sizes.append(result)
            if progress is not None:
                progress(len(sizes), len(entries))
    return sizes


def add_unsayable(report: Report, reason: str | None, label: str) -> None:
    """Notes a phrase that no model can be asked for (:func:`saccade.tokens.pieces.unsayable`); None = it can."""
    if reason is not None:
        blank = reason == WITHOUT_WORDS
        report.add("empty_phrase" if blank else "unsayable_phrase", label if blank else f"{label}: {reason}")


def check_box(report: Report, box_xyxy: Iterable[float], size_hw: tuple[int, int] | None, label: str) -> bool:
    """Looks at the corners of a box.

    Returns:
        Whether it is sound.
    """
    x0, y0, x1, y1 = box_xyxy
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        report.add("nan_box", f"{label}: {[x0, y0, x1, y1]}")
        return False
    if x1 <= x0 or y1 <= y0:
        report.add("degenerate_box", f"{label}: {[x0, y0, x1, y1]}")
        return False
    if size_hw is not None and (
        min(x0, y0) < -_SLACK
        or x1 > size_hw[1] + _SLACK
        or y1 > size_hw[0] + _SLACK
        or x0 >= size_hw[1]
        or y0 >= size_hw[0]
    ):
        report.add("box_out_of_frame", f"{label}: {[x0, y0, x1, y1]} in {size_hw[1]} x {size_hw[0]}")
        return False
    return True
