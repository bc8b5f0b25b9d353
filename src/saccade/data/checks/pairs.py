"""Defects of images and maps in nested folders: label maps and instance maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from saccade.data.checks.report import ImageEntry, Report
from saccade.data.images import image_size, read_labels
from saccade.data.sources.binary_masks import values_in
from saccade.data.sources.label_maps import InstanceMap
from saccade.errors import ImageError
from saccade.samples import ClassList


def check_label_maps(
    pairs: Sequence[tuple[Path, Path]], class_id_of: Mapping[int, int], classes: Sequence[str], report: Report
) -> list[ImageEntry]:
    """Looks at label maps whose values a table translates.

    Args:
        pairs: Images and their maps.
        class_id_of: Stored value -> class id.
        classes: Class names by class id.
        report: Where defects go.

    Returns:
        The images.
    """
    present: set[int] = set()

    def look(path: Path) -> tuple[int, ...]:
        labels = read_labels(path)
        values = values_in(labels)
        if beyond := sorted(values - class_id_of.keys()):
            report.add("value_outside_classes", f"{path.name}: {beyond[:8]}")
        present.update(class_id_of[value] for value in values & class_id_of.keys())
        return labels.shape

    entries = check_maps(pairs, look, report)
    for class_id, name in enumerate(classes):
        if class_id not in present:
            report.add("unused_class", name)
    report.counts |= {"annotations": len(pairs), "classes": len(classes)}
    return entries


def check_instance_maps(
    pairs: Sequence[tuple[Path, Path]], decode: Callable[[Path], InstanceMap], classes: ClassList, report: Report
) -> list[ImageEntry]:
    """Looks at maps in which every object has a value of its own.

    Args:
        pairs: Images and their maps.
        decode: Reads a map.
        classes: The classes, with the category ids that ``decode`` gives.
        report: Where defects go.

    Returns:
        The images.
    """
    used: Counter[int] = Counter()

    def look(path: Path) -> tuple[int, ...]:
        found = decode(path)
        used.update(category for category, _ in found.objects.values())
        report.note("ignored region", sum(ignored for _, ignored in found.objects.values()))
        report.note("image without annotations", int(not found.objects))
        return found.values.shape

    entries = check_maps(pairs, look, report)
    for category, name in zip(classes.category_ids, classes.names, strict=True):
        if not used[category]:
            report.add("unused_class", name)
    report.counts |= {"annotations": sum(used.values()), "classes": len(classes)}
    return entries


def check_partners(
    unmatched_images: Sequence[Path],
    unmatched_maps: Sequence[Path],
    report: Report,
    *,
    what: Literal["mask", "depth"] = "mask",
) -> None:
    """Counts images without a map, and maps without an image."""
    for path in unmatched_images:
        report.add(f"missing_{what}", path.name)
    for path in unmatched_maps:
        report.add(f"missing_image_of_{what}", path.name)


def check_maps(
    pairs: Sequence[tuple[Path, Path]],
    look: Callable[[Path], tuple[int, ...] | None],
    report: Report,
    *,
    what: Literal["mask", "depth"] = "mask",
) -> list[ImageEntry]:
    """Reads every map and compares its size with that of its image.

    Args:
        pairs: Images and their maps.
        look: Reads a map, tells what is wrong with its content, and gives its height and width, None where it has none.
        report: Where defects go.
        what: Which kind of map, as the defects call it.

    Returns:
        The images.
    """
    for image, path in pairs:
        try:
            shape = look(path)
        except ImageError as error:
            report.add(f"unreadable_{what}", f"{path.name}: {error.what}" + (f" ({error.why})" if error.why else ""))
            continue
        if shape is None:
            continue
        try:
            size_hw = image_size(image)
        except ImageError:
            continue  # told where the images are looked at
        if shape != size_hw:
            sizes = f"{shape[1]} x {shape[0]}, image {size_hw[1]} x {size_hw[0]}"
            report.add(f"{what}_size_mismatch", f"{path.name}: {sizes}")
    return [ImageEntry(path=image, declared_hw=None, label=image.name) for image, _ in pairs]
