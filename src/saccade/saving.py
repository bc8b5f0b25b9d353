"""Writing predictions to files: JSON, COCO results, PNG and NPY masks, and annotated pictures."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.drawing import ImageLike, to_pil
from saccade.errors import SaccadeError, UsageError, nearest
from saccade.measures import MeasureCollector
from saccade.results import DepthMap, Grounding, Instances, Panoptic, Prediction, Referral, SemanticMap
from saccade.samples import ClassList, Origin
from saccade.tasks import TASKS, Task

FORMATS: dict[str, str] = {
    "json": "one JSON file per image with everything the model said",
    "coco": "one COCO results file for the whole run (and a data set file for labelling tools)",
    "png": "maps as PNG: 16-bit instance ids, class ids with a palette, segment ids in three channels, or 16-bit mm",
    "npy": "maps as NumPy files: [N, H, W] bool, [H, W] class or segment ids, or [H, W] metres",
    "csv": "one table for the whole run: every region with its area, its border and its place",
    "overlay": "the picture with the prediction drawn on it",
}
"""What ``saccade predict --save`` accepts."""

_MASK_FORMATS = frozenset({"png", "npy"})
_MEASURED_TASKS = frozenset({Task.INSTANCE, Task.SEMANTIC})
_MASK_TASKS = frozenset({Task.INSTANCE, Task.SEMANTIC, Task.DEPTH, Task.REFERRING})


def check_formats(formats: Iterable[str], task: Task | None = None) -> frozenset[str]:
    """Checks names of output formats before anything is computed.

    Args:
        formats: Names among :data:`FORMATS`.
        task: The task whose predictions will be saved, where known.

    Raises:
        UsageError: An unknown format, or one that the task's predictions do not have (detection has no masks).
    """
    asked = frozenset(formats)
    for name in sorted(asked):
        if name not in FORMATS:
            raise UsageError(f"unknown output format '{name}'", fix=nearest(name, FORMATS))
        if task is Task.DEPTH and name == "coco":
            raise UsageError("COCO has no form for depth", fix="save png, npy, json or overlay")
        if task is Task.CENTER and name == "coco":
            raise UsageError("COCO has no form for centres", fix="save json or overlay")
        if task is not None and name == "csv" and task not in _MEASURED_TASKS:
            raise UsageError(
                f"the task '{task}' gives no regions to measure",
                fix=f"ask for the task {' or '.join(sorted(TASKS[t].alias for t in _MEASURED_TASKS))}",
            )
        if task is not None and name in _MASK_FORMATS and task not in _MASK_TASKS:
            raise UsageError(
                f"the task '{task}' gives no masks to save as '{name}'",
                fix=f"save {', '.join(sorted(set(FORMATS) - _MASK_FORMATS))}, "
                f"or ask for the task {' or '.join(sorted(TASKS[t].alias for t in _MASK_TASKS))}",
            )
    return asked


def save(
    prediction: Prediction,
    image: ImageLike,
    stem: str,
    out_dir: str | Path,
    formats: Iterable[str],
    *,
    origin: Origin | None = None,
    collector: CocoCollector | None = None,
    measures: MeasureCollector | None = None,
) -> list[Path]:
    """Writes one prediction in every format asked for.

    ========  =====================================================================================================
    json      ``stem.json``: the values of ``to_dict``, the class list and the origin
    coco      added to ``collector``, which writes the whole run; without one ``stem_coco.json`` for this image alone;
              and ``stem_panoptic.png``, which the record of a panoptic map names
    png       ``stem_instances.png`` (16 bit; instance k has the value k + 1, better scores on top),
              ``stem_semantic.png`` (class ids, with a palette) or ``stem_panoptic.png`` (segment ids, red + 256 green
              + 65536 blue); and ``stem.json``, which names the ids
    npy       ``stem_masks.npy`` (``[N, H, W]`` bool), ``stem_semantic.npy`` (``[H, W]`` uint8 or uint16 class ids) or
              ``stem_panoptic.npy`` (``[H, W]`` int32 segment ids)
    csv       added to ``measures``, which writes the whole run; without one ``stem_measures.csv``
    overlay   ``stem_overlay.png``
    ========  =====================================================================================================

    Depth is ``stem_depth.png`` (16-bit millimetres) and ``stem_depth.npy`` (``[H, W]`` float32 metres). What phrases
    refer to is one 0/1 mask per phrase, ``stem_phrase0.png``, ``stem_phrase1.png`` ... (they may overlap), and
    ``stem_masks.npy`` (``[K, H, W]`` bool); a phrase without an answer has an empty mask.

    Instances of a single class (a lesion) also give their union as a 0/1 mask: ``stem_mask.png`` and ``stem_mask.npy``.

    Args:
        prediction: What the model said, in the frame of the original image.
        image: The original picture.
        stem: File name without suffix, relative to ``out_dir``; may contain folders.
        out_dir: Folder to write to; made where it is missing.
        formats: Names among :data:`FORMATS`.
        origin: Where the image came from; goes into the JSON files.
        collector: Gathers the COCO records of a run.
        measures: Gathers the regions of a run.

    Returns:
        The files written, in a fixed order.

    Raises:
        UsageError: An unknown format, or one that this prediction does not have.
    """
    asked = check_formats(formats)
    has_masks = isinstance(prediction, SemanticMap | Panoptic | DepthMap | Referral) or (
        isinstance(prediction, Instances) and prediction.masks is not None
    )
    if asked & _MASK_FORMATS and not has_masks:
        wanted = " or ".join(sorted(asked & _MASK_FORMATS))
        raise UsageError(
            f"a {type(prediction).__name__} without masks cannot be saved as {wanted}",
            fix=f"save {', '.join(sorted(set(FORMATS) - _MASK_FORMATS))}",
        )
    base = Path(out_dir) / stem
    base.parent.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    if asked & {"json", "png"}:
        files.append(write_json(_beside(base, ".json"), describe(prediction, origin)))
    if "coco" in asked:
        where = origin or _unknown_origin(prediction, image, stem)
        if collector is not None:
            collector.add(prediction, origin=where, file_name=f"{stem}_panoptic.png")
        else:
            records = _records(prediction, where.image_id, f"{stem}_panoptic.png")
            files.append(write_json(_beside(base, "_coco.json"), _results(type(prediction), records)))
    if "png" in asked or ("coco" in asked and isinstance(prediction, Panoptic)):
        files += _write_png(prediction, base)
    if "npy" in asked:
        files += _write_npy(prediction, base)
    if "csv" in asked:
        where = origin or _unknown_origin(prediction, image, stem)
        if measures is not None:
            measures.add(prediction, origin=where)
        else:
            alone = MeasureCollector()
            alone.add(prediction, origin=where)
            files += alone.write(base.parent, name=f"{base.name}_measures.csv")
    if "overlay" in asked:
        files.append(_beside(base, "_overlay.png"))
        prediction.draw(image).save(files[-1], compress_level=3)  # half the time of the default, 5 % more bytes
    return files


def describe(prediction: Prediction, origin: Origin | None) -> dict[str, Any]:
    """The prediction and where its image came from, as plain JSON values."""
    source = {} if origin is None else {"dataset": origin.dataset, "image_id": origin.image_id, "path": origin.path}
    return {"origin": source, **prediction.to_dict()}


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> Path:
    """Writes a JSON file and returns its path.

    Args:
        path: The file.
        content: Plain JSON values.
        indent: Spaces per level; None for a compact file.

    Raises:
        SaccadeError: The content holds NaN or infinity, which JSON does not know.
    """
    try:
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise SaccadeError(
            "a prediction holds NaN or infinity",
            where=path,
            why=str(error),
            fix="the weights are damaged or their training diverged",
        ) from error
    # A file name that is no UTF-8 reaches us with lone surrogates; written as backslash escapes they are valid JSON.
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return path


def _records(prediction: Prediction, image_id: int | str, file_name: str) -> list[dict[str, Any]]:
    if isinstance(prediction, Panoptic):
        return prediction.to_coco(image_id, file_name)
    return prediction.to_coco(image_id)


def _results(kind: type[Prediction] | None, records: list[dict[str, Any]]) -> Any:
    """What a COCO results file holds: the list of records, or for panoptic maps an object with that list."""
    return {"annotations": records} if kind is Panoptic else records


def _beside(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)


def _unknown_origin(prediction: Prediction, image: ImageLike, stem: str) -> Origin:
    size_hw = getattr(prediction, "size_hw", None)
    if size_hw is None:
        picture = to_pil(image)
        size_hw = (picture.height, picture.width)
    return Origin(dataset="", image_id=stem, path=None, size_hw=size_hw)


def _write_png(prediction: Prediction, base: Path) -> list[Path]:
    files: list[Path] = []
    if isinstance(prediction, SemanticMap):
        files.append(_beside(base, "_semantic.png"))
        prediction.to_png().save(files[-1])
    elif isinstance(prediction, Panoptic):
        files.append(_beside(base, "_panoptic.png"))
        prediction.to_png().save(files[-1])
    elif isinstance(prediction, DepthMap):
        files.append(_beside(base, "_depth.png"))
        prediction.to_png().save(files[-1])
    elif isinstance(prediction, Instances):
        files.append(_beside(base, "_instances.png"))
        Image.fromarray(prediction.id_map().numpy().astype(np.uint16)).save(files[-1])
        if len(prediction.classes) == 1:
            files.append(_beside(base, "_mask.png"))
            _save_binary(prediction.union_mask().numpy(), files[-1])
    elif isinstance(prediction, Referral):
        for k, mask in enumerate(prediction.dense_masks().numpy()):
            files.append(_beside(base, f"_phrase{k}.png"))
            _save_binary(mask, files[-1])
    return files


def _save_binary(mask: NDArray[np.bool_], path: Path) -> None:
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])  # the values are 0 and 1; viewers show black and white
    image.save(path)


def _write_npy(prediction: Prediction, base: Path) -> list[Path]:
    arrays: dict[str, Any] = {}
    if isinstance(prediction, SemanticMap):
        labels = prediction.labels.cpu().numpy()
        arrays["_semantic.npy"] = labels.astype(np.uint8 if labels.max(initial=0) <= 255 else np.uint16)
    elif isinstance(prediction, Panoptic):
        arrays["_panoptic.npy"] = prediction.segment_ids.cpu().numpy().astype(np.int32)
    elif isinstance(prediction, DepthMap):
        arrays["_depth.npy"] = prediction.depth_m.cpu().float().numpy()
    elif isinstance(prediction, Instances):
        arrays["_masks.npy"] = prediction.dense_masks().numpy()
        if len(prediction.classes) == 1:
            arrays["_mask.npy"] = prediction.union_mask().numpy().astype(np.uint8)
    elif isinstance(prediction, Referral):
        arrays["_masks.npy"] = prediction.dense_masks().numpy()
    for ending, array in arrays.items():
        np.save(_beside(base, ending), array)
    return [_beside(base, ending) for ending in arrays]


@dataclass
class CocoCollector:
    """Gathers the predictions of a run and writes them as COCO files.

    Image ids that are whole numbers stay as they are. Other images (file names, or a second image with the same number)
    get the free numbers from 1 on; the data set file tells which is which.
    """

    _images: dict[Origin, list[dict[str, Any]]] = field(default_factory=dict)
    _kind: type[Prediction] | None = None
    _classes: ClassList | None = None

    def add(self, prediction: Prediction, *, origin: Origin, file_name: str = "") -> None:
        """Adds a prediction; an image may come several times (one per phrase).

        Args:
            prediction: What the model said about the image.
            origin: Where the image came from.
            file_name: PNG of a panoptic map, relative to the folder of the COCO files.

        Raises:
            UsageError: The prediction is of another kind, or speaks of other classes, than those before.
        """
        classes = getattr(prediction, "classes", None)
        if self._kind is not None and type(prediction) is not self._kind:
            raise UsageError(
                f"one COCO file cannot hold both {self._kind.__name__} and {type(prediction).__name__}",
                fix="run one task at a time",
            )
        if self._kind is not None and classes != self._classes:
            raise UsageError("one COCO file cannot hold predictions for two class lists", fix="run them separately")
        self._kind, self._classes = type(prediction), classes
        self._images.setdefault(origin, []).extend(_records(prediction, origin.image_id, file_name))

    def __len__(self) -> int:
        return len(self._images)

    def _numbers(self) -> dict[Origin, int]:
        """The image id that each image has in the files."""
        numbers: dict[Origin, int] = {}
        taken: set[int] = set()
        for origin in self._images:
            if isinstance(origin.image_id, int) and origin.image_id not in taken:
                numbers[origin] = origin.image_id
                taken.add(origin.image_id)
        free = itertools.filterfalse(taken.__contains__, itertools.count(1))
        return {origin: numbers[origin] if origin in numbers else next(free) for origin in self._images}

    def write(self, out_dir: str | Path) -> list[Path]:
        """Writes ``coco_results.json`` and ``coco_dataset.json``.

        The first is the list that ``pycocotools.COCO.loadRes`` and evaluation servers read, or for panoptic maps the
        object that panopticapi reads. The second is a whole data set (images, categories, and the predictions as
        annotations) for labelling tools.

        Args:
            out_dir: Folder to write to; made where it is missing.

        Returns:
            The two paths.
        """
        folder = Path(out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        numbers = self._numbers()
        results = [
            {**record, "image_id": numbers[origin]} for origin, records in self._images.items() for record in records
        ]
        names = _relative_names(list(self._images))
        images = [
            {"id": numbers[origin], "file_name": name, "width": origin.size_hw[1], "height": origin.size_hw[0]}
            for origin, name in zip(self._images, names, strict=True)
        ]
        annotations = results
        if self._kind is not Panoptic:
            annotations = [{"id": number, "iscrowd": 0, **record} for number, record in enumerate(results, start=1)]
        info = {"description": "predictions of Saccade"}
        dataset: dict[str, Any] = {"info": info, "images": images, "annotations": annotations}
        if self._classes is not None:
            named = zip(self._classes.category_ids, self._classes.names, strict=True)
            dataset["categories"] = [{"id": category_id, "name": name} for category_id, name in named]
            for category, is_thing in zip(dataset["categories"], self._classes.things, strict=False):
                category["isthing"] = int(is_thing)
        elif self._kind in (Grounding, Referral):
            dataset["categories"] = [{"id": 1, "name": "referred object"}]
        return [
            write_json(folder / "coco_results.json", _results(self._kind, results), indent=None),
            write_json(folder / "coco_dataset.json", dataset, indent=None),
        ]


def _relative_names(origins: list[Origin]) -> list[str]:
    """File names relative to the deepest folder that holds all of them; the image id where there is no file."""
    parents = [str(Path(origin.path).resolve().parent) for origin in origins if origin.path is not None]
    root = Path(os.path.commonpath(parents)) if parents else Path()
    return [
        str(origin.image_id) if origin.path is None else Path(origin.path).resolve().relative_to(root).as_posix()
        for origin in origins
    ]
