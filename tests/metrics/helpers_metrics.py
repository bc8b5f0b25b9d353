"""Samples and predictions for the metric tests."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torchvision import tv_tensors

from saccade.metrics import Metric
from saccade.results import Instances
from saccade.samples import ClassList, Origin, Sample, Target
from saccade.tasks import Task

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics"


def load_check() -> ModuleType:
    """tests/metrics/check.py as a module (its name is taken by tests/parity/check.py)."""
    name = "metrics_check"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("check.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def read_json(*parts: str) -> Any:
    """A committed JSON file."""
    return load_check().read_json(FIXTURES.joinpath(*parts))


def sample(
    task: Task,
    image_id: int | str,
    target: Target,
    *,
    size_hw: tuple[int, int] = (8, 8),
    classes: ClassList | None = None,
    phrase: str | None = None,
) -> Sample:
    """A sample whose pixels no metric looks at."""
    return Sample(
        image=tv_tensors.Image(torch.zeros((3, *size_hw), dtype=torch.uint8)),
        task=task,
        origin=Origin(dataset="test", image_id=image_id, path=None, size_hw=size_hw),
        target=target,
        classes=classes,
        phrase=phrase,
    )


def boxes(rows: Any, size_hw: tuple[int, int], dtype: torch.dtype = torch.float32) -> tv_tensors.BoundingBoxes:
    """XYXY boxes of an image."""
    data = torch.as_tensor(rows, dtype=dtype).reshape(-1, 4)
    return tv_tensors.BoundingBoxes(data, format="XYXY", canvas_size=size_hw)  # type: ignore[call-overload]


def to_samples(
    truth: dict[str, Any], found: list[dict[str, Any]], iou_type: str
) -> tuple[ClassList, list[tuple[Sample, Instances]]]:
    """COCO dictionaries as the samples and predictions that a metric is given."""
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    classes = ClassList(
        names=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
    )
    pairs = []
    for image in truth["images"]:
        size_hw = image["height"], image["width"]
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        mine = [d for d in found if d["image_id"] == image["id"]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in objects)]
        target = Target(
            boxes=boxes(corners, size_hw),
            class_ids=torch.tensor([classes.class_id(a["category_id"]) for a in objects], dtype=torch.int64),
            is_crowd=torch.tensor([bool(a["iscrowd"]) for a in objects]),
            areas=torch.tensor([a["area"] for a in objects], dtype=torch.float64),
        )
        masks = None
        if iou_type == "segm":
            target.masks = tv_tensors.Mask(torch.from_numpy(_decode(objects, size_hw)))
            masks = [d["segmentation"] for d in mine]
            rows = [list(mask_utils.toBbox(rle)) for rle in masks]
        else:
            rows = [d["bbox"] for d in mine]
        prediction = Instances(
            boxes_xyxy=torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float64).reshape(-1, 4),
            scores=torch.tensor([d["score"] for d in mine], dtype=torch.float64),
            class_ids=torch.tensor([classes.class_id(d["category_id"]) for d in mine], dtype=torch.int64),
            classes=classes,
            size_hw=size_hw,
            masks=masks,
        )
        task = Task.INSTANCE if iou_type == "segm" else Task.DETECTION
        pairs.append((sample(task, image["id"], target, size_hw=size_hw, classes=classes), prediction))
    return classes, pairs


def _decode(objects: list[dict[str, Any]], size_hw: tuple[int, int]) -> np.ndarray:
    masks = np.zeros((len(objects), *size_hw), bool)
    for mask, annotation in zip(masks, objects, strict=True):
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            rle = mask_utils.merge(mask_utils.frPyObjects(segmentation, *size_hw))
        elif isinstance(segmentation["counts"], list):
            rle = mask_utils.frPyObjects(segmentation, *size_hw)
        else:
            rle = segmentation
        mask[:] = mask_utils.decode(rle)
    return masks


def through_ranks(states: list[Metric], whole: Metric) -> Metric:
    """Merges states into a metric as ranks do: each is pickled on its way."""
    whole.merge([pickle.loads(pickle.dumps(metric.state())) for metric in states])
    return whole
