"""Scenes as files, in the layouts in which the official data sets come.

The scenes written for a split are those that :class:`saccade.data.sources.scenes.ScenesSource` draws for it. Pictures
are JPEG at quality 95, because the official names end in ``.jpg``; truths are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from saccade.data.scenes.files import Drawn, Job, box_xywh, image_record, save_image, thing_categories
from saccade.data.scenes.refer_writers import write_grefcoco, write_refcoco
from saccade.data.scenes.scene import SPLITS, draw_scene
from saccade.data.scenes.words import SEMANTIC_CLASSES, THING_CLASSES
from saccade.errors import UsageError, nearest


def write_scenes(
    out: str | Path,
    *,
    format: str,
    count: int,
    split: str = "val",
    size: int | tuple[int, int] = 224,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Draws scenes and writes them in an official layout.

    Several splits may be written into one folder, one call each. A picture that is already there is never overwritten:
    the call stops instead, so that a real data set in the same folder comes to no harm.

    Args:
        out: Root folder of the data set; made if needed.
        format: ``coco``, ``ade``, ``karpathy``, ``refcoco``, ``grefcoco`` or ``nyu``.
        count: How many scenes, from the first of the split on.
        split: ``train``, ``val`` or ``test``. RefCOCO and gRefCOCO call the latter ``testA``; NYU has no ``val``: both
            ``val`` and ``test`` go to its test list.
        size: Height and width in pixels; one number is a square (for ``nyu`` the height of a 3:4 picture, so that 480
            gives the official 480 x 640).
        seed: Seed of the world.
        progress: Called with the index of each scene after it is written.

    Returns:
        What was written: ``format``, ``split``, ``root``, ``images``, counts of annotations by kind, ``files``.

    Raises:
        UsageError: Unknown format or split, a count that the split does not have, a size out of range, a root that is a
            file, or a picture that is already there.
        DataError: A RefCOCO or gRefCOCO file that is already there cannot be added to.
    """
    if format not in _WRITERS:
        raise UsageError(f"scenes cannot be written as '{format}'", fix=nearest(format, _WRITERS))
    if split not in SPLITS:
        raise UsageError(f"the scenes have no split '{split}'", fix=nearest(split, SPLITS))
    if not 1 <= count <= SPLITS[split][1]:
        raise UsageError(f"the split '{split}' has {SPLITS[split][1]} scenes, {count} were asked for", where="count")
    root = Path(out)
    if root.exists() and not root.is_dir():
        raise UsageError("scenes are written into a folder", where=root, why="this is a file")
    size_hw = size if isinstance(size, tuple) else (size, round(size * 4 / 3) if format == "nyu" else size)
    word = SPLITS[split][0]

    def draw() -> Iterator[Drawn]:
        for index in range(count):
            scene = draw_scene((seed, word, index), size_hw)
            yield Drawn(scene=scene, index=index, image_id=word * 10**9 + index + 1)
            if progress is not None:
                progress(index)

    job = Job(out=root, split=split, drawn=draw())
    counts = _WRITERS[format](job)
    return {
        "format": format,
        "split": split,
        "root": str(root),
        "images": count,
        **counts,
        "files": [str(path) for path in job.files],
    }


def _write_coco(job: Job) -> dict[str, int]:
    """COCO 2017: instances, captions and panoptic."""
    folder = f"{job.split}2017"
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    sentences: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    masks = job.out / "annotations" / f"panoptic_{folder}"
    masks.mkdir(parents=True, exist_ok=True)
    for drawn in job.drawn:
        stem = f"{drawn.image_id:012d}"
        save_image(drawn, job.out / folder / f"{stem}.jpg")
        images.append(image_record(drawn, f"{stem}.jpg"))
        scene = drawn.scene
        for k in range(len(scene)):
            run_lengths = coco_mask.encode(np.asfortranarray(scene.masks[k]))
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": drawn.image_id,
                    "category_id": int(scene.class_ids[k]) + 1,
                    "bbox": box_xywh(drawn, k),
                    "area": int(scene.areas[k]),
                    "iscrowd": 0,
                    "segmentation": {"size": list(scene.size_hw), "counts": run_lengths["counts"].decode("ascii")},
                }
            )
        for text in scene.captions:
            sentences.append({"id": len(sentences) + 1, "image_id": drawn.image_id, "caption": text})
        panoptic.append(_save_panoptic(drawn, masks / f"{stem}.png"))
    info = {"description": "Saccade scenes", "version": "1"}
    base = job.out / "annotations"
    head = {"info": info, "images": images}
    job.save_json(
        base / f"instances_{folder}.json", {**head, "annotations": instances, "categories": thing_categories()}
    )
    job.save_json(base / f"captions_{folder}.json", {**head, "annotations": sentences})
    categories = [
        {
            "id": k + 1,
            "name": name,
            "supercategory": "object" if k < len(THING_CLASSES) else "background",
            "isthing": int(k < len(THING_CLASSES)),
            "color": [(k * 53 + 40) % 256, (k * 97 + 90) % 256, (k * 151 + 20) % 256],
        }
        for k, name in enumerate(SEMANTIC_CLASSES)
    ]
    job.save_json(base / f"panoptic_{folder}.json", {**head, "annotations": panoptic, "categories": categories})
    segments = sum(len(entry["segments_info"]) for entry in panoptic)
    return {"instances": len(instances), "captions": len(sentences), "segments": segments}


def _save_panoptic(drawn: Drawn, path: Path) -> dict[str, Any]:
    """Writes the segment numbers as colours (R + 256 G + 65536 B) and returns the annotation."""
    scene = drawn.scene
    # Numbers far apart, so that the PNG can also be looked at.
    numbers = np.array([0] + [1 + (segment.id * 4_567_891) % (2**24 - 1) for segment in scene.segments], dtype=np.int32)
    painted = numbers[scene.panoptic]
    channels = np.stack([painted & 255, (painted >> 8) & 255, painted >> 16], axis=-1).astype(np.uint8)
    Image.fromarray(channels).save(path)
    infos = []
    for segment in scene.segments:
        rows, columns = np.nonzero(scene.panoptic == segment.id)
        x0, y0 = int(columns.min()), int(rows.min())
        infos.append(
            {
                "id": int(numbers[segment.id]),
                "category_id": segment.label + 1,
                "area": segment.area,
                "bbox": [x0, y0, int(columns.max()) + 1 - x0, int(rows.max()) + 1 - y0],
                "iscrowd": 0,
            }
        )
    return {"image_id": drawn.image_id, "file_name": path.name, "segments_info": infos}


def _write_ade(job: Job) -> dict[str, int]:
    """ADEChallengeData2016: label 0 is unlabelled, class k is stored as k + 1."""
    folder, tag = ("training", "train") if job.split == "train" else ("validation", job.split)
    pixels: npt.NDArray[np.int64] = np.zeros(len(SEMANTIC_CLASSES), dtype=np.int64)
    present: npt.NDArray[np.int64] = np.zeros(len(SEMANTIC_CLASSES), dtype=np.int64)
    annotations = job.out / "annotations" / folder
    annotations.mkdir(parents=True, exist_ok=True)
    stems = []
    for drawn in job.drawn:
        stem = f"ADE_{tag}_{drawn.index + 1:08d}"
        stems.append(stem)
        save_image(drawn, job.out / "images" / folder / f"{stem}.jpg")
        Image.fromarray((drawn.scene.semantic + 1).astype(np.uint8)).save(annotations / f"{stem}.png")
        areas = np.bincount(drawn.scene.semantic.ravel(), minlength=len(SEMANTIC_CLASSES))
        pixels += areas
        present += areas > 0
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for k, name in enumerate(SEMANTIC_CLASSES):
        seen = (int(present[k]), 0) if folder == "training" else (0, int(present[k]))
        stuff = int(k >= len(THING_CLASSES))
        lines.append(f"{k + 1}\t{pixels[k] / pixels.sum():.4f}\t{seen[0]}\t{seen[1]}\t{stuff}\t{name}")
    classes = job.out / "objectInfo150.txt"
    classes.write_text("\n".join(lines) + "\n", encoding="utf-8")
    job.files.append(classes)
    return {"label_maps": len(stems)}


def _write_karpathy(job: Job) -> dict[str, int]:
    """The Karpathy split files as BLIP keeps them, and the ground truth of the caption evaluation."""
    folder = "train2014" if job.split == "train" else "val2014"
    entries: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    images = []
    for drawn in job.drawn:
        name = f"{folder}/COCO_{folder}_{drawn.image_id:012d}.jpg"
        save_image(drawn, job.out / name)
        images.append({"id": drawn.image_id})
        captions = drawn.scene.captions
        if job.split == "train":
            entries += [{"caption": text, "image": name, "image_id": f"coco_{drawn.image_id}"} for text in captions]
        else:
            entries.append({"image": name, "caption": list(captions)})
        for text in captions:
            truth.append({"image_id": drawn.image_id, "caption": text, "id": len(truth)})
    base = job.out / "annotations"
    job.save_json(base / f"coco_karpathy_{job.split}.json", entries)
    if job.split != "train":
        job.save_json(base / f"coco_karpathy_{job.split}_gt.json", {"annotations": truth, "images": images})
    return {"captions": len(truth)}


def _write_nyu(job: Job) -> dict[str, int]:
    """NYU Depth v2 as monocular depth estimation uses it: pairs of JPEG and 16-bit PNG in millimetres, and a list."""
    training = job.split == "train"
    base = job.out if training else job.out / "official_splits" / "test"
    lines = []
    for drawn in job.drawn:
        # Rooms of a hundred pictures, as the official folders keep one scene each.
        room = f"{job.split}_{drawn.index // 100:04d}"
        pair = f"/{room}/rgb_{drawn.index:05d}.jpg", f"/{room}/sync_depth_{drawn.index:05d}.png"
        save_image(drawn, base / pair[0][1:])
        millimetres = np.round(drawn.scene.depth_m.astype(np.float64) * 1000).astype(np.uint16)
        Image.fromarray(millimetres).save(base / pair[1][1:])
        lines.append(" ".join(pair))
    listing = job.out / ("train_list.txt" if training else "test_list.txt")
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    job.files.append(listing)
    return {"depth_maps": len(lines)}


_WRITERS: dict[str, Callable[[Job], dict[str, int]]] = {
    "coco": _write_coco,
    "ade": _write_ade,
    "karpathy": _write_karpathy,
    "refcoco": write_refcoco,
    "grefcoco": write_grefcoco,
    "nyu": _write_nyu,
}

FORMATS: tuple[str, ...] = tuple(_WRITERS)
"""The layouts that :func:`write_scenes` knows."""
