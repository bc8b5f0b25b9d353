"""GiT on data sets that it was not trained on: zero-shot evaluation and few-shot fine-tuning (specs 7.2, 7.3)."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from saccade.data.augment import DetectionAugment, SemanticAugment
from saccade.data.class_names import CLASS_NAMES
from saccade.models.git.presets import PRESETS
from saccade.recipes.git import Size, only, published_optim
from saccade.tasks import Task
from saccade.training.config import SourceConfig, TrainConfig

ZeroShot: TypeAlias = Literal["cityscapes_det", "cityscapes_ins", "cityscapes_seg", "sunrgbd_seg", "nocaps"]
FewShot: TypeAlias = Literal["drive", "loveda", "potsdam", "widerface", "deepfashion"]

LOVEDA_SUPPORT: tuple[int, ...] = (
    *(2327, 1828, 27, 2475, 175, 2061, 1976, 712, 2422, 2268, 397, 934, 1923, 1769, 606, 331, 553, 775),
    *(997, 2363, 394, 1247, 1395, 772, 1135, 228, 1040, 172, 931, 1342, 1093, 225, 603, 2048, 550),
)
"""Image ids of the 35 support images of few-shot LoveDA: the lines of the split file ``few_shot.txt``."""


def zero_shot(which: ZeroShot, size: Size, *, data: str = "data", weights: str = "") -> TrainConfig:
    """An evaluation without training (``steps`` is 0).

    Args:
        which: The data set and its task.
        size: base, large or huge.
        data: Folder of the data sets.
        weights: The model; empty = the universal one of that size (``git-base`` is the multi-task row of the paper).
    """
    source = _zero_shot_source(which, data)
    model = only(PRESETS[size](), [source.task])
    if which == "nocaps" and model.caption is not None:
        model.caption = dataclasses.replace(model.caption, beams=3)
    return TrainConfig(
        name=f"git/zero_shot_{which}_{size}",
        model=model,
        train=(),
        val=(source,),
        steps=0,
        weights=weights or f"git-universal-{size}",
    )


def _zero_shot_source(which: ZeroShot, data: str) -> SourceConfig:
    cityscapes = f"{data}/cityscapes"
    if which in ("cityscapes_det", "cityscapes_ins"):
        return SourceConfig(
            task=Task.DETECTION if which == "cityscapes_det" else Task.INSTANCE,
            reader="cityscapes",
            root=cityscapes,
            split="val",
            annotations="annotations/instancesonly_filtered_gtFine_val.json",
            classes=CLASS_NAMES["cityscapes_instances"],
            drop_empty=True,
        )
    if which == "cityscapes_seg":
        return SourceConfig(
            task=Task.SEMANTIC,
            reader="cityscapes",
            root=cityscapes,
            split="val",
            classes=CLASS_NAMES["cityscapes"],
        )
    if which == "sunrgbd_seg":
        return SourceConfig(
            task=Task.SEMANTIC,
            reader="mask_folder",
            root=f"{data}/sunrgbd",
            split="val",
            images="val/images",
            annotations="val/labels",
            classes=CLASS_NAMES["sun_rgbd"],
            reduce_zero_label=True,
        )
    return SourceConfig(
        task=Task.CAPTION,
        reader="nocaps",
        root=f"{data}/nocaps",
        split="val",
        images="images",
        annotations="annotations/nocaps_val_4500_captions.json",
        batch_size=16,
    )


def few_shot(which: FewShot, size: Size, *, data: str = "data", weights: str = "") -> TrainConfig:
    """Fine-tuning on a handful of images: batch 1, a constant learning rate, the published ramp and clipping.

    Args:
        which: The data set.
        size: base, large or huge.
        data: Folder of the data sets.
        weights: The model to start from; empty = the universal one of that size.
    """
    train, val = _few_shot_sources(which, data)
    return TrainConfig(
        name=f"git/few_shot_{which}_{size}",
        model=only(PRESETS[size](), [train.task]),
        train=(train,),
        val=(val,),
        steps=50 if which == "widerface" else 100,
        optim=dataclasses.replace(published_optim(size), schedule="constant"),
        weights=weights or f"git-universal-{size}",
        activation_checkpointing=True,
        eval_every=50,
        save_every=50,
        log_every=10,
    )


def _few_shot_sources(which: FewShot, data: str) -> tuple[SourceConfig, SourceConfig]:
    if which == "widerface":
        root = f"{data}/WIDERFace"
        # The support set is the first five images of train.txt; in training, faces below 17 px are ignored.
        train = SourceConfig(
            task=Task.DETECTION,
            reader="wider_face",
            root=root,
            split="train",
            annotations="train.txt",
            classes=CLASS_NAMES["wider_face"],
            drop_empty=True,
            min_side=32,
            min_box=17,
            limit=5,
            augment=_RESIZE_AND_FLIP,
        )
        val = dataclasses.replace(train, split="val", annotations="val.txt", limit=0, augment=None)
        return train, dataclasses.replace(val, drop_empty=False, min_side=0, min_box=0.0, protocol="voc07")
    if which == "deepfashion":
        train = SourceConfig(
            task=Task.DETECTION,
            reader="coco",
            root=f"{data}/DeepFashion/In-shop",
            split="train",
            images="Img",
            annotations="Anno/segmentation/DeepFashion_segmentation_train.json",
            classes=CLASS_NAMES["deepfashion"],
            limit=75,
            augment=_RESIZE_AND_FLIP,
        )
        query = "Anno/segmentation/DeepFashion_segmentation_query.json"
        return train, dataclasses.replace(train, split="query", annotations=query, limit=0, augment=None)
    return _few_shot_maps(which, data)


_RESIZE_AND_FLIP = DetectionAugment(crop_probability=0.0)


def _few_shot_maps(which: FewShot, data: str) -> tuple[SourceConfig, SourceConfig]:
    if which == "drive":
        root, images, maps, val_images, val_maps = (
            "DRIVE",
            "images/training",
            "annotations/training",
            "images/validation",
            "annotations/validation",
        )
    elif which == "loveda":
        root, images, maps, val_images, val_maps = (
            "loveDA",
            "img_dir/train",
            "ann_dir/train",
            "img_dir/val",
            "ann_dir/val",
        )
    else:
        root, images, maps, val_images, val_maps = (
            "potsdam",
            "img_dir/train",
            "ann_dir/train",
            "img_dir/val",
            "ann_dir/val",
        )
    train = SourceConfig(
        task=Task.SEMANTIC,
        reader="mask_folder",
        root=f"{data}/{root}",
        # The support images are the first ten of DRIVE in sorted order, and fixed lists for the other two: a file
        # few_shot.txt of image names in the folder of the data set.
        split="train" if which == "drive" else "few_shot",
        images=images,
        annotations=maps,
        classes=CLASS_NAMES[which],
        mask_suffix="_manual1" if which == "drive" else "",
        reduce_zero_label=which != "drive",
        limit=10 if which == "drive" else 0,
        augment=SemanticAugment(),
    )
    val = dataclasses.replace(train, split="val", images=val_images, annotations=val_maps, limit=0, augment=None)
    return train, val
