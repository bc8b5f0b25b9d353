"""Which data set to open, and how: the part of the configuration that readers understand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saccade.tasks import Task


@dataclass(kw_only=True)
class SourceSpec:
    """A data set on disk, or drawn.

    Attributes:
        task: What it trains or evaluates.
        reader: Name of the reader (``saccade.data.sources.READERS``).
        root: Folder of the data set.
        split: Split name as the reader understands it.
        images: Image folder, relative to root, where the format leaves it open.
        annotations: Annotation file (or mask folder), relative to root, where the format leaves it open.
        classes: Class names, where the format does not carry them; names that the format lacks are an error.
        limit: Read only the first N samples (0 = all).
        offset: Skip the first N samples.
        repeat_threshold: Class-balanced repeat factor threshold of training (0 = off).
        repeat_rounding: Whether repeat factors are rounded up, or up or down at random in every pass.
        size: Side of drawn scenes in pixels.
        seed: Seed of drawn scenes.
        style: Look of drawn scenes (``saccade.data.scenes.SCENE_STYLES``).
        mask_suffix: What mask files append to the stem of the image file, e.g. ``_segmentation``.
        ignore_labels: Values of label maps that are neither learned nor scored.
        reduce_zero_label: Value 0 of label maps means unlabelled, and class k is stored as k + 1 (ADE20K).
        drop_empty: Leave out images without an annotation (GiT's training filter).
        min_side: Leave out images whose shorter side is below this, in pixels (GiT: 32).
        min_box: Boxes with a side below this, in pixels, are ignored regions (GiT: 17 in WIDER FACE, 32 in VOC); read
            by COCO and by formats that list plain boxes.
        depth_scale: What the whole numbers of depth maps are divided by to give metres (1000: millimetres; TUM: 5000).
        soft_masks: Polygons are drawn at four times the size and reduced, so that masks are soft at their outline
            (ViSFT's training; read by COCO).
        per_caption: One sample per caption instead of one per image.
    """

    task: Task
    reader: str
    root: str = ""
    split: str = "train"
    images: str = ""
    annotations: str = ""
    classes: tuple[str, ...] = ()
    limit: int = 0
    offset: int = 0
    repeat_threshold: float = 0.0
    repeat_rounding: Literal["up", "random"] = "up"
    size: int = 224
    seed: int = 0
    style: str = "plain"
    mask_suffix: str = ""
    ignore_labels: tuple[int, ...] = ()
    reduce_zero_label: bool = False
    drop_empty: bool = False
    min_side: int = 0
    min_box: float = 0.0
    depth_scale: float = 1000.0
    soft_masks: bool = False
    per_caption: bool = False
