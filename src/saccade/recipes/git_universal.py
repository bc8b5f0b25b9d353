"""The universal training of GiT: 26 sources of five tasks (specs of GiT, section 7.1).

The probabilities are the published ones, the same for the three sizes. Sources whose reader comes later are named all
the same; :mod:`saccade.recipes.readers` lists them and says what to do about them.
"""

from __future__ import annotations

import dataclasses

from saccade.data.augment import CaptionAugment, DetectionAugment, GroundingAugment, SemanticAugment
from saccade.data.class_names import CLASS_NAMES
from saccade.models.git.config import GIT_TASKS
from saccade.models.git.presets import PRESETS
from saccade.recipes.git import (
    BASE_BATCH,
    Size,
    ade20k,
    coco_captions,
    coco_detection,
    coco_instances,
    refcoco,
    training,
    validation,
)
from saccade.tasks import Task
from saccade.training.config import SourceConfig, TrainConfig

_BATCH: dict[Size, int] = {"base": 3, "large": 2, "huge": 1}
_STEPS: dict[Size, int] = {"base": 320_000, "large": 320_000, "huge": 480_000}
_OPENIMAGES_THRESHOLD = 1 / 601
_LVIS_THRESHOLD = 1e-3
# The images of VOC 2007 and 2012 trainval: together they are one published source, drawn in proportion to their size.
_VOC_IMAGES = {"VOC2007": 5_011, "VOC2012": 11_540}

_RESIZE_ONLY = DetectionAugment(crop_probability=0.0)
_BOTH = DetectionAugment()
_UNFILTERED = DetectionAugment(filter_boxes=False)
_MASKS = DetectionAugment(resize_as_float=True, contour_rays=24)


def universal(size: Size, *, data: str = "data", total_batch: int = BASE_BATCH) -> TrainConfig:
    """Twenty-six sources of five tasks; batches of 3, 2 and 1 images per process for base, large and huge.

    Args:
        size: base, large or huge.
        data: Folder of the data sets.
        total_batch: Images per step over all processes. The published configs scale the learning rate with it; a
            comment in the base config mentions 32 GPUs of 3 images, which would be 96.
    """
    batch = _BATCH[size]
    train = (*_detection(data), *_instances(data), *_semantic(data), *_captions(data), *_grounding(data))
    return training(
        f"git/universal_{size}",
        size,
        PRESETS[size](),
        tuple(dataclasses.replace(source, batch_size=batch) for source in train),
        validation(data, size, GIT_TASKS),
        steps=_STEPS[size],
        every=10_000,
        total_batch=total_batch,
    )


def _boxes(
    reader: str,
    root: str,
    annotations: str,
    weight: float,
    augment: DetectionAugment,
    *,
    classes: tuple[str, ...] = (),
    repeat_threshold: float = 0.0,
    min_box: float = 0.0,
) -> SourceConfig:
    """Boxes for training; images without a box, or with a side below 32 pixels, are left out."""
    return SourceConfig(
        task=Task.DETECTION,
        reader=reader,
        root=root,
        split="train",
        annotations=annotations,
        classes=classes,
        repeat_threshold=repeat_threshold,
        drop_empty=True,
        min_side=32,
        min_box=min_box,
        weight=weight,
        augment=augment,
    )


def _as_instances(
    source: SourceConfig, weight: float, *, annotations: str = "", classes: tuple[str, ...] = ()
) -> SourceConfig:
    return dataclasses.replace(
        source,
        task=Task.INSTANCE,
        weight=weight,
        augment=_MASKS,
        annotations=annotations or source.annotations,
        classes=classes or source.classes,
    )


def _openimages(data: str) -> SourceConfig:
    boxes = _boxes(
        "openimages",
        f"{data}/openimages",
        "annotations/oidv6-train-annotations-bbox.csv",
        0.032197,
        _RESIZE_ONLY,
        repeat_threshold=_OPENIMAGES_THRESHOLD,
    )
    return dataclasses.replace(boxes, drop_empty=False, min_side=0)  # its table lists no empty image


def _lvis(data: str) -> SourceConfig:
    return _boxes(
        "lvis",
        f"{data}/coco",
        "annotations/lvis_v1_train.json",
        0.002273,
        _UNFILTERED,
        repeat_threshold=_LVIS_THRESHOLD,
    )


def _nuimages(data: str) -> SourceConfig:
    return _boxes(
        "nuimages",
        f"{data}/nuimages",
        "annotations/nuimages_v1.0-train.json",
        0.033333,
        _RESIZE_ONLY,
        classes=CLASS_NAMES["nuimages"],
    )


def _bdd100k(data: str) -> SourceConfig:
    return _boxes("bdd100k", f"{data}/bdd100k", "", 0.033333, _BOTH, classes=CLASS_NAMES["bdd100k_boxes"])


def _detection(data: str) -> tuple[SourceConfig, ...]:
    all_voc = sum(_VOC_IMAGES.values())
    voc = tuple(
        dataclasses.replace(
            _boxes("voc", f"{data}/VOCdevkit/{year}", "", 0.005926 * images / all_voc, _RESIZE_ONLY, min_box=32),
            split="trainval",
            classes=CLASS_NAMES["voc"],
        )
        for year, images in _VOC_IMAGES.items()
    )
    return (
        _boxes("objects365", f"{data}/objects365v2", "annotations/zhiyuan_objv2_train.json", 0.032197, _RESIZE_ONLY),
        _openimages(data),
        _lvis(data),
        *voc,
        _nuimages(data),
        coco_detection(data, batch_size=1, weight=0.060741),
        _bdd100k(data),
    )


def _instances(data: str) -> tuple[SourceConfig, ...]:
    return (
        _as_instances(_lvis(data), 0.007547),
        _as_instances(_openimages(data), 0.059119, annotations="annotations/train-annotations-object-segmentation.csv"),
        _as_instances(_nuimages(data), 0.044444),
        coco_instances(data, batch_size=1, weight=0.066667),
        _as_instances(_bdd100k(data), 0.022222, classes=CLASS_NAMES["bdd100k_instances"]),
    )


def _labels(root: str, images: str, maps: str, names: str, weight: float) -> SourceConfig:
    return SourceConfig(
        task=Task.SEMANTIC,
        reader="mask_folder",
        root=root,
        split="train",
        images=images,
        annotations=maps,
        classes=CLASS_NAMES[names],
        weight=weight,
        augment=SemanticAugment(),
    )


def _semantic(data: str) -> tuple[SourceConfig, ...]:
    stuff = _labels(f"{data}/coco_stuff164k", "images/train2017", "annotations/train2017", "coco_stuff", 0.062835)
    nuimages = _labels(f"{data}/nuimages", "", "annotations/nuimages_v1.0-train.json", "nuimages_semantic", 0.048438)
    context = _labels(
        f"{data}/VOCdevkit/VOC2010", "JPEGImages", "SegmentationClassContext", "pascal_context_59", 0.003831
    )
    return (
        dataclasses.replace(stuff, mask_suffix="_labelTrainIds"),
        dataclasses.replace(nuimages, reader="nuimages"),
        dataclasses.replace(context, split="ImageSets/SegmentationContext/train", reduce_zero_label=True),
        _labels(f"{data}/bdd100k", "images/10k/train", "labels/sem_seg/masks/train", "cityscapes", 0.005208),
        _labels(f"{data}/mapillary", "training/images", "training/v2.0/labels_mask", "mapillary_v2", 0.013021),
        ade20k(data, batch_size=1, weight=0.066667),
    )


def _sentences(reader: str, root: str, annotations: str, weight: float) -> SourceConfig:
    return SourceConfig(
        task=Task.CAPTION,
        reader=reader,
        root=root,
        split="train",
        annotations=annotations,
        per_caption=True,
        weight=weight,
        augment=CaptionAugment(),
    )


def _captions(data: str) -> tuple[SourceConfig, ...]:
    return (
        _sentences("ccs", f"{data}/ccs", "ccs_synthetic_filtered_mask_12m.json", 0.092851),
        _sentences("visual_genome", f"{data}/visual_genome", "vg_caption.json", 0.007149),
        coco_captions(data, batch_size=1, weight=0.1),
    )


def _grounding(data: str) -> tuple[SourceConfig, ...]:
    three = refcoco(data, batch_size=1, weight=0.04)
    clef = dataclasses.replace(three[0], root=f"{data}/refclef", images="saiapr_tc-12", annotations="refs(unc).p")
    flickr = SourceConfig(
        task=Task.GROUNDING,
        reader="flickr30k",
        root=f"{data}/flickr30k",
        split="train",
        annotations="flickr30k_train.json",
        weight=0.04,
        augment=GroundingAugment(),
    )
    return (*three, clef, flickr)
