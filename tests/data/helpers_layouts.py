"""Miniature data sets in the official layouts, written by the tests."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def save_image(path: Path, size_hw: tuple[int, int] = (30, 40), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_mask(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco_content() -> dict[str, Any]:
    """Three images of 30 x 40: two annotated; category ids with gaps, not in order."""
    square = [[5, 5, 15, 5, 15, 15, 5, 15]]
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 30, "width": 40},
            {"id": 9, "file_name": "b.png", "height": 30, "width": 40},
            {"id": 4, "file_name": "empty.png", "height": 30, "width": 40},
        ],
        "categories": [{"id": 90, "name": "bird"}, {"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 5, 10, 10], "area": 99.5, "iscrowd": 0,
             "segmentation": square},
            {"id": 2, "image_id": 7, "category_id": 90, "bbox": [0, 0, 40, 30], "area": 1200, "iscrowd": 1,
             "segmentation": {"size": [30, 40], "counts": [0, 1200]}},
            {"id": 3, "image_id": 9, "category_id": 1, "bbox": [20, 10, 4, 6], "area": 24, "iscrowd": 0,
             "segmentation": [[20, 10, 24, 10, 24, 16, 20, 16], [0, 0, 3, 0, 3, 3]]},
        ],
    }  # fmt: skip


def write_coco_layout(root: Path, content: dict[str, Any] | None = None, split: str = "train") -> dict[str, Any]:
    content = coco_content() if content is None else content
    write_json(root / "annotations" / f"instances_{split}.json", content)
    for number, image in enumerate(content["images"]):
        save_image(root / "images" / image["file_name"], seed=number)
    return content


def voc_xml(name: str, objects: list[tuple[str, tuple[object, ...], int]], *, database: str = "Unknown") -> str:
    items = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for label, box, difficult in objects
    )
    return (
        f"<annotation><filename>{name}</filename><source><database>{database}</database></source>"
        f"<size><width>40</width><height>30</height><depth>3</depth></size>{items}</annotation>"
    )


def write_voc_layout(root: Path) -> None:
    files = {
        "one": [("dog", (5, 6, 20, 25), 0), ("cat", (1, 1, 9, 9), 1)],
        "two": [("bird", (0, 0, 40, 30), 0), ("dog", (7, 7, 7, 20), 0)],
        "three": [],
    }
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for number, (stem, objects) in enumerate(files.items()):
        save_image(root / "JPEGImages" / f"{stem}.jpg", seed=number)
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(f"{stem}.jpg", objects))
    (root / "ImageSets" / "Main" / "train.txt").write_text("one\ntwo 1\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("three -1\n\n")


def refs() -> list[dict[str, Any]]:
    return [
        {"ref_id": 1, "image_id": 7, "ann_id": 1, "category_id": 3, "split": "train", "file_name": "x_7_1.jpg",
         "sent_ids": [1, 2], "sentences": [{"sent_id": 1, "raw": "The dog!", "sent": "the dog", "tokens": []},
                                           {"sent_id": 2, "raw": "left", "sent": "left", "tokens": []}]},
        {"ref_id": 2, "image_id": 9, "ann_id": 3, "category_id": 1, "split": "testA", "file_name": "x_9_3.jpg",
         "sent_ids": [3], "sentences": [{"sent_id": 3, "raw": "A cat", "sent": "a cat", "tokens": []}]},
    ]  # fmt: skip


def write_refcoco_layout(root: Path) -> None:
    content = coco_content()
    (root / "refcoco").mkdir(parents=True)
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs(), protocol=2))
    write_json(root / "refcoco" / "instances.json", content)
    for number, image in enumerate(content["images"]):
        save_image(root / "train2014" / image["file_name"], seed=number)
