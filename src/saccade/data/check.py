"""Looks for every defect of a data set on disk, without changing it (``saccade data check``)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from saccade.data.checks import coco, depth, detection_sets, masks, object_masks, panoptic, phrases, text, voc
from saccade.data.checks.report import DEFECTS, Finding, ImageEntry, Report, check_images
from saccade.data.sources import DRAWN, names_one_split
from saccade.data.sources.coco_layouts import LVIS, OBJECTS365, V3DET
from saccade.data.sources.depth_folder import DepthLayout
from saccade.data.sources.layout import data_root, split_names
from saccade.data.sources.object_masks import CVC_PAIRS, ISIC_PAIRS, cvc_clinicdb_pairs, isic2018_pairs
from saccade.data.sources.parts import PACO, PASCAL_PART
from saccade.data.sources.refcoco import GREFCOCO_PATTERNS, REFZOM_PATTERNS
from saccade.data.sources.spec import SourceSpec
from saccade.data.sources.voc import read_voc_file
from saccade.errors import DataError, UsageError, nearest

__all__ = ["CHECKS", "DEFECTS", "Finding", "Report", "check_dataset"]

Check: TypeAlias = Callable[[SourceSpec, Path, Report], list[ImageEntry]]
List: TypeAlias = Callable[[SourceSpec, Path], list[Path]]


def _check_ade20k(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    return masks.check(masks.ade20k_spec(spec), root, report)


CHECKS: dict[str, Check] = {
    "coco": coco.check,
    "voc": voc.check,
    "mask_folder": masks.check,
    "ade20k": _check_ade20k,
    "karpathy": text.check_captions,
    "caption_hdf5": text.check_caption_hdf5,
    "nocaps": text.check_nocaps,
    "refcoco": text.check_references,
    "grefcoco": partial(text.check_references, patterns=GREFCOCO_PATTERNS),
    "refzom": partial(text.check_references, patterns=REFZOM_PATTERNS),
    "reasonseg": phrases.check_reasonseg,
    "coco_stuff": phrases.check_coco_stuff,
    "mapillary": phrases.check_mapillary,
    "paco": partial(phrases.check_parts, layout=PACO),
    "pascal_part": partial(phrases.check_parts, layout=PASCAL_PART),
    "llava_instruct": phrases.check_dialogues,
    "lvis": partial(coco.check, layout=LVIS),
    "objects365": partial(coco.check, layout=OBJECTS365),
    "openimages": detection_sets.check_openimages,
    "v3det": partial(coco.check, layout=V3DET),
    "crowdhuman": partial(detection_sets.check_crowdhuman, extent="full"),
    "crowdhuman_visible": partial(detection_sets.check_crowdhuman, extent="visible"),
    "wider_face": detection_sets.check_wider_face,
    "bdd100k": detection_sets.check_bdd100k,
    "nuimages": detection_sets.check_nuimages,
    "cityscapes": detection_sets.check_cityscapes,
    "panoptic": panoptic.check,
    "nyu": depth.check_nyu,
    "depth_folder": depth.check_folder,
    "mask_crops": masks.check_crops,
    "isic2018": partial(object_masks.check_pairs, pairs=isic2018_pairs, published=ISIC_PAIRS),
    "cvc_clinicdb": partial(object_masks.check_pairs, pairs=cvc_clinicdb_pairs, published=CVC_PAIRS),
    "lits": object_masks.check_lits,
}
"""Reader name -> function that looks at its annotation files and lists its images."""

_IMAGES: dict[str, List] = {
    "coco": lambda spec, root: [path for _, path in coco.list_images(spec, root)],
    "voc": lambda spec, root: [read_voc_file(path).image for path in voc.list_images(spec, root) if path.is_file()],
    "mask_folder": lambda spec, root: [image for image, _ in masks.layout_of(spec, root).pairs],
    "ade20k": lambda spec, root: [image for image, _ in masks.layout_of(masks.ade20k_spec(spec), root).pairs],
    "karpathy": lambda spec, root: [entry.path for entry in text.captioned_images(spec, root)],
    "refcoco": lambda spec, root: [entry.path for entry in text.referenced_images(spec, root)],
    "grefcoco": lambda spec, root: [
        entry.path for entry in text.referenced_images(spec, root, patterns=GREFCOCO_PATTERNS)
    ],
    "refzom": lambda spec, root: [entry.path for entry in text.referenced_images(spec, root, patterns=REFZOM_PATTERNS)],
    "lvis": lambda spec, root: [path for _, path in coco.list_images(spec, root, LVIS)],
    "objects365": lambda spec, root: [path for _, path in coco.list_images(spec, root, OBJECTS365)],
    "v3det": lambda spec, root: [path for _, path in coco.list_images(spec, root, V3DET)],
    "isic2018": lambda spec, root: [image for image, _ in isic2018_pairs(spec).pairs],
    "cvc_clinicdb": lambda spec, root: [image for image, _ in cvc_clinicdb_pairs(spec).pairs],
    "nyu": lambda spec, root: [image for image, _ in depth.nyu_files(spec, root)],
    "depth_folder": lambda spec, root: [image for image, _ in DepthLayout(spec, root, must_exist=False).pairs],
}
"""Reader name -> function that lists the images of a split without looking at its annotations."""

_SPLITS = ("train", "val", "test", "testA", "testB")
_PARTS = {"trainval": ("train", "val")}
_ALIKE = ("mask_crops",)  # small masks of different objects are often the same file


def check_dataset(
    spec: SourceSpec,
    *,
    other_splits: Sequence[str] = _SPLITS,
    decode: bool = True,
    max_examples: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Looks for every defect of one split.

    Args:
        spec: The data set, as for :func:`saccade.data.sources.open_source`.
        other_splits: Splits that must not share an image with this one; those that do not exist are passed over, and
            a split whose annotation file is named by hand (``annotations``) is compared with none.
        decode: Decode every image; otherwise look at the headers only (faster, misses truncated files).
        max_examples: Examples kept per kind of defect.
        progress: Called with (images done, images in all).

    Returns:
        The report; ``report.ok`` is True when nothing was found.

    Raises:
        UsageError: The reader cannot be checked, or the data set is not found.
    """
    if spec.reader not in CHECKS:
        raise UsageError(
            f"there is nothing to check for reader '{spec.reader}'",
            why="scenes are drawn" if spec.reader in DRAWN else None,
            fix=nearest(spec.reader, CHECKS),
        )
    root = data_root(spec.root)
    report = Report(name=f"{root.name}/{spec.split}", reader=spec.reader, max_examples=max_examples)
    try:
        entries = CHECKS[spec.reader](spec, root, report)
    except DataError as error:
        report.add("unreadable_annotations", f"{error.where}: {error.what}" + (f" ({error.why})" if error.why else ""))
        return report
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        # Annotations may be damaged in ways that no list foresees; the report still has what was found before.
        report.add("invalid_entry", f"the files are not as the format says ({type(error).__name__}: {error})")
        return report
    report.counts.setdefault("images", len(entries))
    if not report.counts["images"]:
        report.add("no_images", report.name)
    check_images(report, entries, decode=decode, progress=progress)
    if spec.split == "all" and spec.reader not in _ALIKE:
        _check_twins(entries, report)
    _check_leaks(spec, root, entries, other_splits, report)
    return report


def _check_twins(entries: list[ImageEntry], report: Report) -> None:
    """Finds images with the same bytes among files that may yet be divided; only files of equal size are read."""
    by_size: dict[int, list[ImageEntry]] = {}
    for entry in {entry.path: entry for entry in entries if entry.path.is_file()}.values():
        by_size.setdefault(entry.path.stat().st_size, []).append(entry)
    for group in by_size.values():
        first: dict[str, ImageEntry] = {}
        for entry in group if len(group) > 1 else ():
            twin = first.setdefault(_digest(entry.path), entry)
            if twin is not entry:
                report.add("duplicate_image", f"{entry.label} is {twin.label}")


def _check_leaks(
    spec: SourceSpec, root: Path, entries: list[ImageEntry], other_splits: Sequence[str], report: Report
) -> None:
    if not entries or spec.split == "all" or spec.reader in _ALIKE or names_one_split(spec.reader, spec.annotations):
        return
    own = {entry.path: entry for entry in entries}
    prints: dict[int, dict[str, ImageEntry]] | None = None
    mine: set[Path] = set()
    for split in other_splits:
        if split in (*split_names(spec.split), *_PARTS.get(spec.split, ())):
            continue
        try:
            others = _images_of(dataclasses.replace(spec, split=split), root)
        except (UsageError, DataError):
            continue  # no such split, or a damaged one: that is for its own check to tell
        if prints is None:
            prints = _by_size(entries)
        for other in dict.fromkeys(others):
            if other in own:
                twin: ImageEntry | None = own[other]
            else:
                twin = _same_content(other, prints)
            if twin is not None and twin.path not in mine:
                mine.add(twin.path)
                report.add("image_in_both_splits", f"{twin.label} is also in '{split}' ({other.name})")


def _images_of(spec: SourceSpec, root: Path) -> list[Path]:
    if spec.reader in _IMAGES:
        return _IMAGES[spec.reader](spec, root)
    apart = Report(name="", reader=spec.reader)  # the defects of another split are for its own check to tell
    return [entry.path for entry in CHECKS[spec.reader](spec, root, apart)]


def _by_size(entries: list[ImageEntry]) -> dict[int, dict[str, ImageEntry]]:
    """Size in bytes -> (lazily filled) hash -> image."""
    grouped: dict[int, dict[str, ImageEntry]] = {}
    for entry in entries:
        if entry.path.is_file():
            grouped.setdefault(entry.path.stat().st_size, {})[f"?{entry.path}"] = entry
    return grouped


def _same_content(other: Path, prints: dict[int, dict[str, ImageEntry]]) -> ImageEntry | None:
    """The image with the same bytes; only files of equal size are read."""
    if not other.is_file() or not (group := prints.get(other.stat().st_size)):
        return None
    for key in [key for key in group if key.startswith("?")]:
        entry = group.pop(key)
        group[_digest(entry.path)] = entry
    return group.get(_digest(other))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
