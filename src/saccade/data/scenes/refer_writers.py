"""Scenes as referring expressions: RefCOCO (a pickle of references) and gRefCOCO (JSON, several targets or none)."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saccade.data.scenes.dice import Dice
from saccade.data.scenes.files import Drawn, Job, box_xywh, image_record, save_image, thing_categories
from saccade.data.scenes.language import single_phrases
from saccade.errors import DataError

_SENTENCES = 3
_SPLIT_NAMES = {"train": "train", "val": "val", "test": "testA"}


def write_refcoco(job: Job) -> dict[str, int]:
    """RefCOCO as the refer API reads it: one reference per object that something singles out, up to three sentences."""
    folder = job.out / "refcoco"
    refs: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for drawn in job.drawn:
        name = _save(job, drawn)
        images.append(image_record(drawn, name))
        annotations += _annotations(drawn)
        for k, texts in enumerate(_sentences(drawn)):
            if texts:
                refs.append(
                    {
                        **_reference(job, drawn, _annotation_id(drawn, k), name, texts),
                        "ann_id": _annotation_id(drawn, k),
                        "category_id": int(drawn.scene.class_ids[k]) + 1,
                    }
                )
    path = folder / "refs(unc).p"
    _merge_instances(job, folder / "instances.json", images, annotations)
    kept = [ref for ref in _load_plain(path) if ref["split"] != _SPLIT_NAMES[job.split]] if path.exists() else []
    path.write_bytes(pickle.dumps(kept + refs, protocol=2))
    job.files.append(path)
    return {
        "instances": len(annotations),
        "references": len(refs),
        "sentences": sum(len(ref["sentences"]) for ref in refs),
    }


def write_grefcoco(job: Job) -> dict[str, int]:
    """gRefCOCO: every phrase of the scene is a reference with a list of targets; no target is ``[-1]``."""
    folder = job.out / "grefcoco"
    refs: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for drawn in job.drawn:
        name = _save(job, drawn)
        images.append(image_record(drawn, name))
        annotations += _annotations(drawn)
        for number, phrase in enumerate(drawn.scene.phrases):
            targets = list(phrase.targets)
            ref = {
                **_reference(job, drawn, drawn.image_id * 10 + number, name, [phrase.text]),
                "ann_id": [_annotation_id(drawn, k) for k in targets] or [-1],
                "category_id": [int(drawn.scene.class_ids[k]) + 1 for k in targets] or [-1],
            }
            refs.append(ref if targets else {**ref, "no_target": True})
    path = folder / "grefs(unc).json"
    _merge_instances(job, folder / "instances.json", images, annotations)
    old = _load_json(path) if path.exists() else []
    job.save_json(path, [ref for ref in old if ref["split"] != _SPLIT_NAMES[job.split]] + refs)
    return {
        "instances": len(annotations),
        "references": len(refs),
        "several_targets": sum(len(ref["ann_id"]) > 1 for ref in refs),
        "no_target": sum("no_target" in ref for ref in refs),
    }


def _save(job: Job, drawn: Drawn) -> str:
    name = f"COCO_train2014_{drawn.image_id:012d}.jpg"
    save_image(drawn, job.out / "images" / "mscoco" / "images" / "train2014" / name)
    return name


def _annotation_id(drawn: Drawn, k: int) -> int:
    return drawn.image_id * 10 + k


def _annotations(drawn: Drawn) -> list[dict[str, Any]]:
    scene = drawn.scene
    return [
        {
            "id": _annotation_id(drawn, k),
            "image_id": drawn.image_id,
            "category_id": int(scene.class_ids[k]) + 1,
            "segmentation": rectangles(scene.masks[k]),
            "iscrowd": 0,
            "area": int(scene.areas[k]),
            "bbox": box_xywh(drawn, k),
        }
        for k in range(len(scene))
    ]


def _sentences(drawn: Drawn) -> list[list[str]]:
    """Up to three expressions of each object, of different kinds where there are."""
    scene = drawn.scene
    dice = Dice((*scene.seed, 2))
    found: list[list[str]] = [[] for _ in range(len(scene))]
    for kind in single_phrases(scene.things):
        for k, texts in enumerate(found):
            options = [phrase.text for phrase in kind if phrase.targets == (k,)]
            if options and len(texts) < _SENTENCES:
                texts.append(dice.pick(options))
    return found


def _reference(job: Job, drawn: Drawn, ref_id: int, name: str, texts: list[str]) -> dict[str, Any]:
    sentences = [
        {"tokens": text.split(), "raw": text, "sent_id": ref_id * 10 + j, "sent": text} for j, text in enumerate(texts)
    ]
    return {
        "ref_id": ref_id,
        "image_id": drawn.image_id,
        "split": _SPLIT_NAMES[job.split],
        "sentences": sentences,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": f"{name.removesuffix('.jpg')}_{ref_id}.jpg",
    }


def _merge_instances(job: Job, path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    """Writes ``instances.json``, which all splits share: entries of other splits stay."""
    splits = {image["id"] // 10**9 for image in images}
    if path.exists():
        old = _load_json(path)
        images = [image for image in old["images"] if image["id"] // 10**9 not in splits] + images
        annotations = [entry for entry in old["annotations"] if entry["image_id"] // 10**9 not in splits] + annotations
    job.save_json(path, {"images": images, "annotations": annotations, "categories": thing_categories()})


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _cannot_add(path, error) from error


def _cannot_add(path: Path, error: Exception) -> DataError:
    return DataError(
        "the annotation file that is already there cannot be added to",
        where=path,
        why=str(error),
        fix="write into another folder, or remove the file",
    )


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings and numbers, and refuses everything that could run code."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"the file names {module_name}.{global_name}")


def _load_plain(path: Path) -> list[dict[str, Any]]:
    try:
        refs: list[dict[str, Any]] = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, ImportError, ValueError) as error:
        raise _cannot_add(path, error) from error
    return refs


def rectangles(mask: npt.NDArray[np.bool_]) -> list[list[float]]:
    """A mask as polygons that rasterise to exactly its pixels: rectangles, because polygons have no holes.

    Args:
        mask: ``[H, W]``.

    Returns:
        Polygons ``[x0, y0, x1, y0, x1, y1, x0, y1]`` in pixels, from top to bottom.
    """
    found: list[list[float]] = []
    running: dict[tuple[int, int], int] = {}
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return found
    for row in range(int(rows[0]), int(rows[-1]) + 2):
        spans: set[tuple[int, int]] = set()
        if row < mask.shape[0]:
            steps = np.flatnonzero(np.diff(mask[row].astype(np.int8), prepend=0, append=0)).tolist()
            spans = set(zip(steps[::2], steps[1::2], strict=True))
        for span in [span for span in running if span not in spans]:
            x0, x1, y0 = float(span[0]), float(span[1]), float(running.pop(span))
            found.append([x0, y0, x1, y0, x1, float(row), x0, float(row)])
        for span in sorted(spans):
            running.setdefault(span, row)
    return found
