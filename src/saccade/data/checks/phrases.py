"""Defects of the data sets that GSVA trains on besides references: ReasonSeg, class maps, parts, dialogues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.data.checks.coco import check_segmentation
from saccade.data.checks.pairs import check_label_maps, check_partners
from saccade.data.checks.report import ImageEntry, Report, add_unsayable
from saccade.data.class_names import CLASS_NAMES
from saccade.data.sources.class_phrases import COCO_STUFF, MAPILLARY, mapillary_names, values_of
from saccade.data.sources.coco import is_far_outside, read_categories
from saccade.data.sources.label_maps import FoundPairs, PairLayout, find_pairs
from saccade.data.sources.layout import find_images, list_of, read_json
from saccade.data.sources.llava import IMAGES, find_dialogues, odd_text, read_dialogues
from saccade.data.sources.parts import PartsLayout, find_parts
from saccade.data.sources.reasonseg import read_asked, reasonseg_files
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError
from saccade.tokens.pieces import unsayable

_MOST_SIDE = 10_000  # pixels; corners beyond ten times of it are damage


def check_reasonseg(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the files of texts and polygons.

    Returns:
        The images of the split.
    """
    pairs, alone = reasonseg_files(root, spec.split, spec.images)
    for path in alone:
        report.add("missing_mask", f"{path.name} has no JSON file")
    texts = 0
    for _, path in pairs:
        try:
            asked = read_asked(path)
        except DataError as error:
            report.add("invalid_entry", f"{path.name}: {error.what}" + (f" ({error.why})" if error.why else ""))
            continue
        texts += len(asked.texts)
        for text in asked.texts:
            add_unsayable(report, unsayable(text), path.name)
        names = [name.lower() for name, _ in asked.shapes]
        if not any(name != "flag" and "ignore" not in name for name in names):
            report.add("empty_polygon", f"{path.name} has no target")
        for name, points in asked.shapes:
            if len(points) < 3:
                report.add("short_polygon", f"{path.name}: {name}, {len(points)} points")
            elif is_far_outside(points.ravel(), (_MOST_SIDE, _MOST_SIDE)):
                report.add("invalid_polygon", f"{path.name}: {name}")
        report.note("region that is ignored", sum("ignore" in name for name in names))
    report.counts |= {"annotations": texts}
    return [ImageEntry(path=image, declared_hw=None, label=image.name) for image, _ in pairs]


def check_coco_stuff(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the maps of COCO-Stuff.

    Returns:
        The images of the split.
    """
    return _check_classes(_pairs(spec, root, COCO_STUFF), spec.classes or CLASS_NAMES["coco_stuff_182"], spec, report)


def check_mapillary(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at the maps of Mapillary Vistas.

    Returns:
        The images of the split.
    """
    return _check_classes(_pairs(spec, root, MAPILLARY), spec.classes or mapillary_names(root), spec, report)


def _pairs(spec: SourceSpec, root: Path, layout: PairLayout) -> FoundPairs:
    return find_pairs(root, layout, spec.split, images=spec.images, maps=spec.annotations)


def _check_classes(found: FoundPairs, names: tuple[str, ...], spec: SourceSpec, report: Report) -> list[ImageEntry]:
    check_partners(found.unmatched_images, found.unmatched_maps, report)
    return check_label_maps(found.pairs, values_of(len(names), spec.ignore_labels), names, report)


def check_parts(spec: SourceSpec, root: Path, report: Report, *, layout: PartsLayout) -> list[ImageEntry]:
    """Looks at a file of objects and parts; of their boxes, which are not read, nothing is said.

    Returns:
        The images that it names.
    """
    path = find_parts(root, spec.split, spec.annotations, layout)
    content = read_json(path)
    categories = read_categories(content, path, Counter())
    images: dict[Any, dict[str, Any]] = {}
    for image in list_of(content, "images", path):
        if image["id"] in images:
            report.add("duplicate_image_id", f"id {image['id']} ({image['file_name']})")
        images[image["id"]] = image
    used: Counter[int] = Counter()
    for annotation in list_of(content, "annotations", path):
        label = f"annotation {annotation.get('id')}"
        image = images.get(annotation.get("image_id"), {})
        if not image:
            report.add("dangling_annotation", f"{label}: image {annotation.get('image_id')}")
            continue
        used[annotation["category_id"]] += 1
        if annotation["category_id"] not in categories:
            report.add("unknown_category", f"{label}: category {annotation['category_id']}")
        check_segmentation(annotation.get("segmentation") or [], _size(image), label, report)
    for key, name in categories.items():
        if not used[key]:
            report.add("unused_class", name)
    report.counts |= {"annotations": used.total(), "classes": len(categories)}
    return _entries(
        root, {str(image["file_name"]): _size(image) for image in images.values()}, spec, layout.images, report
    )


def check_dialogues(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at a file of dialogues.

    Returns:
        The images that it names.
    """
    if spec.split not in ("train", "all"):
        raise UsageError(f"the dialogues have no split '{spec.split}'", where=root)
    skipped: Counter[str] = Counter()
    listed = read_dialogues(find_dialogues(root, spec.annotations), skipped)
    for reason, count in skipped.items():
        report.note(f"{reason} (left out)", count)
    for file, image_id, rounds in listed:
        odd = next((why for said in rounds for text in said if (why := odd_text(text))), None)
        add_unsayable(report, odd, f"dialogue {image_id} ({file})")
    report.counts |= {"annotations": sum(len(rounds) for _, _, rounds in listed)}
    return _entries(root, dict.fromkeys(file for file, _, _ in listed), spec, IMAGES, report)


def _entries(
    root: Path,
    sizes: Mapping[str, tuple[int, int] | None],
    spec: SourceSpec,
    folders: tuple[str, ...],
    report: Report,
) -> list[ImageEntry]:
    try:
        folder = find_images(root, list(sizes), spec.images, folders)
    except UsageError as error:
        report.add("missing_image", f"{error.what}: {error.why}")
        return []
    return [ImageEntry(path=folder / name, declared_hw=size, label=name) for name, size in sizes.items()]


def _size(image: dict[str, Any]) -> tuple[int, int]:
    return int(image["height"]), int(image["width"])
