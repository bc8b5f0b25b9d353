"""COCO average precision of boxes, masks and boundaries of masks.

Protocol: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", and its reference evaluator. Two engines run
it: ``pycocotools`` is that evaluator itself, for numbers that are reported; ``faster`` is faster-coco-eval, for the
evaluations inside a training run. The tests hold the two to the same numbers.

Boundary AP (B. Cheng et al., "Boundary IoU", CVPR 2021) takes the smaller of mask IoU and boundary IoU as overlap. The
boundary of a mask is what ``d`` erosions by a 3x3 square take from it, where ``d`` is a share of the image diagonal in
whole pixels, at least one. pycocotools has no boundaries: faster-coco-eval always runs this one, to the numbers of the
authors' evaluator.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from saccade.errors import DataError, UsageError, nearest
from saccade.metrics.base import ImageRecords, Key, check_classes, image_key
from saccade.results import Instances, Prediction
from saccade.samples import ClassList, Sample

Engine = Literal["pycocotools", "faster"]
IouType = Literal["bbox", "segm", "boundary"]
STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
DILATION_RATIO = 0.02
_ALL_AREAS, _MOST_DETECTIONS = 0, 2  # positions in the area ranges and in the detection limits (1, 10, 100)


@dataclass(kw_only=True, frozen=True)
class CocoResult:
    """Average precision and recall; every value is in 0..1, or -1 where no object falls into its range.

    Attributes:
        stats: The official numbers by name: :data:`STAT_NAMES`, or those of LVIS.
        per_category: AP (all areas, most detections) by category id.
        ap_per_iou: AP at each of the IoU thresholds 0.50, 0.55 .. 0.95.
        ar_per_iou: The same for the recall at the most detections.
        precision: ``[IoU thresholds, 101 recalls, categories, 4 areas, 3 detection limits]`` (one category if they are
            ignored; one limit for LVIS).
    """

    stats: dict[str, float]
    per_category: dict[int, float]
    ap_per_iou: tuple[float, ...]
    ar_per_iou: tuple[float, ...]
    precision: NDArray[np.float64]


def coco_ap(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    iou_type: IouType,
    *,
    engine: Engine = "pycocotools",
    use_cats: bool = True,
    img_ids: Iterable[int] | None = None,
    dilation_ratio: float = DILATION_RATIO,
) -> CocoResult:
    """Evaluates detections in COCO form. Neither argument is changed.

    Args:
        ground_truth: An annotation file: ``images``, ``annotations``, ``categories``.
        detections: ``image_id``, ``category_id``, ``score`` and ``bbox`` (x, y, width, height in pixels) or
            ``segmentation`` (run lengths). May be empty. Among equal scores the order of the list decides. For masks
            leave ``bbox`` out: with it the official evaluator takes the area of the box for the size ranges.
        iou_type: Overlap of boxes, of masks, or of masks and their boundaries.
        engine: ``"pycocotools"`` or ``"faster"``; boundaries are always left to the latter.
        use_cats: False ignores the categories (class-agnostic).
        img_ids: Only these images; None = all.
        dilation_ratio: Width of a boundary as a share of the image diagonal.

    Raises:
        DataError: A detection names an image that the ground truth does not have.
        UsageError: Unknown engine or overlap.
    """
    for value, known in ((engine, get_args(Engine)), (iou_type, get_args(IouType))):
        if value not in known:
            raise UsageError(f"unknown evaluation choice '{value}'", fix=nearest(value, known))
    images = ground_truth["images"]
    wanted = check_images(ground_truth, detections)
    if img_ids is not None:
        wanted &= set(img_ids)
    category_ids = sorted(category["id"] for category in ground_truth["categories"])
    if not wanted or not category_ids:
        num_categories = len(category_ids) if use_cats else 1
        nothing = np.full((10, 101, num_categories, 4, 3), -1.0)
        return _result(nothing, nothing[:, 0], category_ids, use_cats)
    # The engines write into the annotations, so each run gets its own copies of the dictionaries.
    truth = {
        "info": {},
        "images": images,
        "categories": ground_truth["categories"],
        "annotations": [dict(annotation) for annotation in ground_truth["annotations"]],
    }
    own = [dict(detection) for detection in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        if engine == "pycocotools" and iou_type != "boundary":
            evaluator = _official(truth, own, iou_type)
        else:
            evaluator = faster_evaluator(truth, own, iou_type, boundary_dilation_ratio=dilation_ratio)
        evaluator.params.imgIds = sorted(wanted)
        evaluator.params.useCats = int(use_cats)
        evaluator.evaluate()
        evaluator.accumulate()
    precision = np.asarray(evaluator.eval["precision"], np.float64)
    recall = np.asarray(evaluator.eval["recall"], np.float64)
    shape = (10, 101, -1, 4, 3)
    return _result(precision.reshape(shape), recall.reshape(10, -1, 4, 3), category_ids, use_cats)


def _official(truth: dict[str, Any], detections: list[dict[str, Any]], iou_type: IouType) -> Any:
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    if detections:
        results = coco.loadRes(detections)
    else:  # the official loader cannot read an empty list
        results = COCO()
        results.dataset = {**truth, "annotations": []}
        results.createIndex()
    return COCOeval(coco, results, iou_type)


def faster_evaluator(truth: dict[str, Any], detections: list[dict[str, Any]], iou_type: IouType, **options: Any) -> Any:
    """The evaluator of faster-coco-eval, on one core; it writes into both arguments."""
    from faster_coco_eval import COCO as FasterCOCO  # imported here: it costs 0.3 s that reported numbers do not need
    from faster_coco_eval import COCOeval_faster

    coco = FasterCOCO(truth)
    return COCOeval_faster(
        coco, coco.loadRes(detections), iou_type, rle_iou_max_workers=1, boundary_cpu_count=1, **options
    )


def check_images(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]]) -> set[int]:
    """The image ids of the ground truth.

    Raises:
        DataError: A detection names another image.
    """
    known = {image["id"] for image in ground_truth["images"]}
    strangers = {detection["image_id"] for detection in detections} - known
    if strangers:
        raise DataError(
            f"detections name {len(strangers)} images that the ground truth does not have",
            where=sorted(strangers)[:5],
            fix="evaluate against the annotation file of the same split",
        )
    return known


def mean_defined(values: NDArray[np.float64]) -> float:
    """The mean of the values that are not -1; -1 where there are none."""
    counted = values[values > -1]
    return float(np.mean(counted)) if counted.size else -1.0


def _result(
    precision: NDArray[np.float64], recall: NDArray[np.float64], category_ids: list[int], use_cats: bool
) -> CocoResult:
    """Averages as the official evaluator does.

    Args:
        precision: ``[10 IoU, 101 recalls, K, 4 areas, 3 limits]``.
        recall: ``[10 IoU, K, 4 areas, 3 limits]``.
        category_ids: Ids of the K categories.
        use_cats: Whether K counts categories.
    """
    best = precision[:, :, :, _ALL_AREAS, _MOST_DETECTIONS]
    stats = {"AP": mean_defined(best), "AP50": mean_defined(best[0]), "AP75": mean_defined(best[5])}
    stats |= {
        f"AP{size}": mean_defined(precision[:, :, :, area, _MOST_DETECTIONS])
        for area, size in enumerate("sml", start=1)
    }
    stats |= {f"AR{limit}": mean_defined(recall[:, :, _ALL_AREAS, at]) for at, limit in enumerate((1, 10, 100))}
    stats |= {
        f"AR{size}": mean_defined(recall[:, :, area, _MOST_DETECTIONS]) for area, size in enumerate("sml", start=1)
    }
    per_category = {id_: mean_defined(best[:, :, at]) for at, id_ in enumerate(category_ids)} if use_cats else {}
    return CocoResult(
        stats=stats,
        per_category=per_category,
        ap_per_iou=tuple(mean_defined(row) for row in best),
        ar_per_iou=tuple(mean_defined(row) for row in recall[:, :, _ALL_AREAS, _MOST_DETECTIONS]),
        precision=precision,
    )


@dataclass(kw_only=True)
class _Image:
    """One evaluated image in COCO form (x, y, width, height; run-length masks)."""

    size_hw: tuple[int, int]
    objects: list[dict[str, Any]]
    detections: list[dict[str, Any]]
    entry: dict[str, Any] = field(default_factory=dict)  # what its entry in the annotation file says besides


class DetectionMetric(ImageRecords[Key, _Image]):
    """COCO AP of boxes, and of masks for instance segmentation.

    Boxes and areas are compared in double precision as they come; masks are run-length encoded on arrival. Images are
    evaluated in the order of their ids, as the official evaluator does (it matters for equal scores).

    Args:
        classes: The classes; their category ids name the rows of :meth:`per_class`.
        masks: Also score masks, with names that begin with ``mask_``.
        boundary: Also score masks and their boundaries, with names that begin with ``boundary_``; needs ``masks``.
        engine: See :func:`coco_ap`.

    Raises:
        UsageError: Boundaries without masks.
    """

    def __init__(
        self, classes: ClassList, *, masks: bool = False, boundary: bool = False, engine: Engine = "faster"
    ) -> None:
        super().__init__()
        if boundary and not masks:
            raise UsageError("boundaries are those of masks", fix="score instance segmentation")
        self.classes, self.masks, self.boundary, self.engine = classes, masks, boundary, engine
        self._results: dict[IouType, CocoResult] = {}

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one image.

        Args:
            target: With ``boxes`` and ``class_ids`` (and ``masks``; ``is_crowd`` and ``areas`` where known).
            prediction: An :class:`~saccade.results.Instances`, best first.

        Raises:
            DataError: The two do not belong together (size, classes), or masks are missing.
            UsageError: The prediction is of another task.
        """
        key = image_key(target)
        if not isinstance(prediction, Instances):
            raise UsageError(f"detection is scored on Instances, not on {type(prediction).__name__}", where=key)
        check_classes(self.classes, target.classes, key)
        check_classes(self.classes, prediction.classes, key)
        if prediction.size_hw != target.size_hw:
            raise DataError(
                f"the prediction is for an image of {prediction.size_hw}, the target for {target.size_hw}",
                where=key,
                why="one of them is not in the frame of the original image",
            )
        if self.masks and (target.target.masks is None or prediction.masks is None):
            raise DataError("instance segmentation is scored on masks, and one side has none", where=key)
        image = _Image(
            size_hw=target.size_hw,
            objects=self._objects(target),
            detections=self._detections(prediction),
            entry=self._entry(target),
        )
        self.keep(key, image)
        self._results.clear()

    def _entry(self, sample: Sample) -> dict[str, Any]:
        """Further fields of the image's entry in the annotation file."""
        return {}

    def _objects(self, sample: Sample) -> list[dict[str, Any]]:
        truth = sample.target
        if truth.boxes is None or truth.class_ids is None:
            raise DataError("a detection target needs boxes and class ids", where=image_key(sample))
        boxes = _xywh(truth.boxes)
        number = len(boxes)
        crowd = [0] * number if truth.is_crowd is None else [int(flag) for flag in truth.is_crowd.tolist()]
        segments = _encode(truth.masks) if self.masks and truth.masks is not None else None
        if truth.areas is not None:
            areas = [float(area) for area in truth.areas.tolist()]
        elif segments is not None:
            areas = [float(mask_utils.area(segment)) for segment in segments]
        else:
            areas = [box[2] * box[3] for box in boxes]
        class_ids = truth.class_ids.tolist()
        if any(not 0 <= id_ < len(self.classes) for id_ in class_ids):
            raise DataError(f"a class id of the target is outside 0..{len(self.classes) - 1}", where=image_key(sample))
        objects = [
            {"category_id": self.classes.category_ids[id_], "bbox": box, "area": area, "iscrowd": flag}
            for id_, box, area, flag in zip(class_ids, boxes, areas, crowd, strict=True)
        ]
        if segments is not None:
            for annotation, segment in zip(objects, segments, strict=True):
                annotation["segmentation"] = segment
        return objects

    def _detections(self, prediction: Instances) -> list[dict[str, Any]]:
        scores = prediction.scores.double().tolist()
        found = [
            {"category_id": self.classes.category_ids[id_], "bbox": box, "score": score}
            for id_, box, score in zip(prediction.class_ids.tolist(), _xywh(prediction.boxes_xyxy), scores, strict=True)
        ]
        if any(not math.isfinite(number) for entry in found for number in (*entry["bbox"], entry["score"])):
            raise DataError("a predicted box or score is not a finite number", why="the model diverged or overflowed")
        if self.masks and prediction.masks is not None:
            for entry, rle in zip(found, prediction.masks, strict=True):
                entry["segmentation"] = rle
        return found

    def evaluate(self, iou_type: IouType) -> CocoResult:
        """The full evaluation of what has been added; all but ``"bbox"`` need ``masks=True``."""
        if iou_type not in self._results:
            truth, detections = self.to_coco(iou_type)
            self._results[iou_type] = coco_ap(truth, detections, iou_type, engine=self.engine)
        return self._results[iou_type]

    def to_coco(self, iou_type: IouType) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What has been added, as a COCO annotation file and a result list (images renumbered from 1)."""
        truth: dict[str, Any] = {
            "categories": [
                {"id": id_, "name": name}
                for id_, name in zip(self.classes.category_ids, self.classes.names, strict=True)
            ],
            "images": [],
            "annotations": [],
        }
        detections: list[dict[str, Any]] = []
        dropped = "segmentation" if iou_type == "bbox" else "bbox"  # a box beside a mask would decide its area
        # Numbers sort as numbers, names as names.
        ordered = sorted(self.images, key=lambda key: (key[0], isinstance(key[1], str), key[1]))
        for image_id, key in enumerate(ordered, start=1):
            image = self.images[key]
            height, width = image.size_hw
            truth["images"].append({"id": image_id, "height": height, "width": width, **image.entry})
            for annotation in image.objects:
                truth["annotations"].append({"id": len(truth["annotations"]) + 1, "image_id": image_id, **annotation})
            for entry in image.detections:
                kept = {name: value for name, value in entry.items() if name != dropped}
                detections.append({"image_id": image_id, **kept})
        return truth, detections

    @property
    def _kinds(self) -> dict[str, IouType]:
        """What is scored, by the prefix of its names."""
        kinds: dict[str, IouType] = {"": "bbox"}
        if self.masks:
            kinds["mask_"] = "segm"
        if self.boundary:
            kinds["boundary_"] = "boundary"
        return kinds

    def compute(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.

        With masks the same names after ``mask_`` too, and with boundaries after ``boundary_``.
        """
        return {
            f"{prefix}{name}": value
            for prefix, iou_type in self._kinds.items()
            for name, value in self.evaluate(iou_type).stats.items()
        }

    def per_class(self) -> list[dict[str, Any]]:
        """Class, number of objects (without crowds), and the APs; -1 where a class has no object."""
        counts = dict.fromkeys(self.classes.category_ids, 0)
        for image in self.images.values():
            for annotation in image.objects:
                counts[annotation["category_id"]] += 1 - annotation["iscrowd"]
        rows = []
        for class_id, (name, category_id) in enumerate(zip(self.classes.names, self.classes.category_ids, strict=True)):
            row: dict[str, Any] = {
                "class_id": class_id,
                "class_name": name,
                "category_id": category_id,
                "objects": counts[category_id],
            }
            for prefix, iou_type in self._kinds.items():
                row[f"{prefix}AP"] = self.evaluate(iou_type).per_category[category_id]
            rows.append(row)
        return rows

    def merge(self, states: Sequence[Any]) -> None:
        """See :class:`saccade.metrics.base.Metric`."""
        super().merge(states)
        self._results.clear()


def _xywh(boxes_xyxy: torch.Tensor) -> list[list[float]]:
    boxes = torch.as_tensor(boxes_xyxy).detach().cpu().double().reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()


def _encode(masks: torch.Tensor) -> list[dict[str, Any]]:
    if not len(masks):
        return []
    stack = np.asfortranarray(masks.detach().cpu().numpy().astype(np.uint8).transpose(1, 2, 0))
    return list(mask_utils.encode(stack))
