"""Images with phrases, and one mask per phrase: the union of what the phrase refers to, empty where there is nothing.

Read are the RefCOCO family (one target per phrase), and gRefCOCO and Ref-ZOM (any number of targets).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.data.geometry import boxes_tensor, mask_tensor
from saccade.data.sources.coco import Shape, decode_shape, is_far_outside, to_polygon, to_xyxy
from saccade.data.sources.layout import Records, data_root, find_images, load_image
from saccade.data.sources.refcoco import (
    chosen_references,
    find_references,
    read_instances,
    read_record_list,
    reference_image_folders,
    targets_of,
)
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError
from saccade.samples import Sample, Target
from saccade.tasks import Task
from saccade.tokens.pieces import unsayable

Shapes: TypeAlias = list[Shape]
"""What a mask is the union of: run-length masks, and at most one set of polygons."""


class ReferringSource:
    """One sample per image, with all phrases that its references of this split have.

    Images come in the order of their first reference, phrases in the order of the file. A phrase whose annotations have
    no pixel has an empty mask, as one that has no target at all.

    Args:
        spec: For referring segmentation; the split as the files name it.
        patterns: Names of the file of references.

    Attributes:
        skipped: Phrases and shapes left out, by reason.

    Raises:
        UsageError: Files are not found, or the split is empty.
        DataError: A file is damaged, or the pickle holds more than plain data.
    """

    classes = None

    def __init__(self, spec: SourceSpec, *, patterns: tuple[str, ...]) -> None:
        if spec.task is not Task.REFERRING:
            raise UsageError(f"phrases with masks serve referring segmentation, not {spec.task}", where=spec.root)
        folder, split = data_root(spec.root), spec.split
        path = find_references(folder, spec.annotations, patterns)
        self.name, self.task = f"{path.parent.name}/{split}", spec.task
        skipped: Counter[str] = Counter()
        content = read_record_list(path)
        if content and "expression" in content[0]:
            raise UsageError("these phrases have boxes and no masks", where=path, fix="task=grounding")
        chosen = chosen_references(content, split)
        if not chosen:
            known = sorted({str(entry.get("split")) for entry in content})
            raise UsageError(f"no phrase has the split '{split}'", where=path, fix=f"it has {', '.join(known)}")
        entries, targets = read_instances(folder, path, split)
        try:
            listed = list(_by_image(chosen, entries, targets, skipped))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError("a reference lacks a field or has a wrong one", where=path, why=repr(error)) from error
        if not listed:
            raise DataError(f"no image of the split '{split}' is left", where=path, why=str(dict(skipped)))
        self._path = path
        names = [record["file"] for record in listed]
        self._images = find_images(folder, names, spec.images, reference_image_folders(split))
        self._records = Records(listed)
        self.skipped: dict[str, int] = dict(skipped)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image with its phrases, in the frame of the original image."""
        record = self._records[index]
        image, origin = load_image(self._images / record["file"], self.name, record["id"], record["size_hw"])
        drawn = {
            key: decode_union(shapes, record["size_hw"], where=f"{self._path}, annotation {key}")
            for key, (shapes, _) in record["targets"].items()
        }
        masks = np.zeros((len(record["phrases"]), *record["size_hw"]), bool)
        boxes: list[list[float]] = []
        phrase_ids: list[int] = []
        for k, (_, targets) in enumerate(record["phrases"]):
            for key in targets:
                masks[k] |= drawn[key]
                if record["targets"][key][1] is not None:
                    boxes.append(record["targets"][key][1])
                    phrase_ids.append(k)
        return Sample(
            image=image,
            task=self.task,
            origin=origin,
            target=Target(
                masks=mask_tensor(masks),
                boxes=boxes_tensor(np.array(boxes, np.float32).reshape(-1, 4), origin.size_hw),
                phrase_ids=torch.tensor(phrase_ids, dtype=torch.int64),
            ),
            phrases=tuple(text for text, _ in record["phrases"]),
        )


def _by_image(
    chosen: Sequence[dict[str, Any]],
    images: dict[int | str, dict[str, Any]],
    annotations: dict[int | str, dict[str, Any]],
    skipped: Counter[str],
) -> Iterable[dict[str, Any]]:
    """Records ``{file, id, size_hw, phrases, targets}``: phrases name targets, targets have shapes and a box."""
    records: dict[int | str, dict[str, Any]] = {}
    for entry in chosen:
        targets, sentences = targets_of(entry), entry["sentences"]
        image = images.get(entry["image_id"])
        if image is None:
            skipped["phrase of an image that is not listed"] += len(sentences)
            continue
        if any(key not in annotations for key in targets):
            skipped["phrase with a target that is not listed"] += len(sentences)
            continue
        record = records.setdefault(
            image["id"],
            {
                "file": str(image["file_name"]),
                "id": image["id"],
                "size_hw": (int(image["height"]), int(image["width"])),
                "phrases": [],
                "targets": {},
            },
        )
        for sentence in sentences:
            phrase = str(sentence.get("sent") or sentence.get("raw") or "")
            if (reason := unsayable(phrase)) is not None:
                skipped[f"phrase {reason}"] += 1
                continue
            record["phrases"].append((phrase, targets))
            for key in targets:
                if key not in record["targets"]:
                    shapes = read_shapes(annotations[key].get("segmentation"), record["size_hw"], skipped)
                    record["targets"][key] = (shapes, to_xyxy(annotations[key].get("bbox")))
    return (record for record in records.values() if record["phrases"])


def read_shapes(segmentation: Any, size_hw: tuple[int, int], skipped: Counter[str]) -> Shapes:
    """The shapes of an annotation: polygons, a run-length mask, or a list of such masks (RefCLEF).

    Args:
        segmentation: As the file has it; None and an empty list are an empty mask.
        size_hw: Height and width of the image.
        skipped: Counts the polygons left out.
    """
    if isinstance(segmentation, dict):
        return [segmentation]
    shapes: Shapes = [part for part in segmentation or [] if isinstance(part, dict)]
    polygons: list[NDArray[np.float64]] = []
    for points in segmentation or []:
        if isinstance(points, dict):
            continue
        polygon = to_polygon(points)
        if polygon is None:
            skipped["polygon with fewer than 3 points"] += 1
        elif not np.isfinite(polygon).all() or is_far_outside(polygon, size_hw):
            skipped["polygon far outside the image"] += 1
        else:
            polygons.append(polygon)
    return [*shapes, polygons] if polygons else shapes


def decode_union(shapes: Shapes, size_hw: tuple[int, int], *, where: object) -> NDArray[np.bool_]:
    """The pixels of any of the shapes, ``[H, W]``.

    Raises:
        DataError: A run-length mask is damaged, or of another size.
    """
    union = np.zeros(size_hw, bool)
    try:
        for shape in shapes:
            mask = decode_shape(shape, size_hw)
            if mask.shape != size_hw or (isinstance(shape, dict) and tuple(shape.get("size", size_hw)) != size_hw):
                raise ValueError(f"height and width {shape['size'] if isinstance(shape, dict) else mask.shape}")
            union |= mask
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            "a run-length mask is damaged, or of another size than its image",
            where=where,
            why=str(error),
            fix="run `saccade data check` on the data set",
        ) from error
    return union
