"""Fine-tuning on a folder of one's own images: the format and the classes are found in the folder."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

import torch

from saccade.data.augment import Augment, LightAugment, ScaleJitterAugment
from saccade.data.depth_augment import DepthAugment
from saccade.data.mask_crops import MaskCropAugment
from saccade.data.sources import WITHOUT_EMPTY, Source, SourceSpec, names_one_split, open_source
from saccade.data.sources.base import most_objects
from saccade.errors import DataError, UsageError
from saccade.hub.checkpoint import read_card
from saccade.hub.resolve import resolve
from saccade.layers.precision import Precision
from saccade.layers.swin import SwinV2Config
from saccade.models.ait.adapt import for_depth, for_objects
from saccade.models.ait.config import AiTConfig
from saccade.models.ait.vqvae import MapVQVAEConfig
from saccade.models.git.config import GiTConfig
from saccade.models.polar.config import PixelConfig, PolarConfig, SegmenterConfig
from saccade.models.systems import ModelConfig, width_of
from saccade.models.visft.config import ViSFTConfig
from saccade.models.vitdet.config import ViTDetConfig
from saccade.recipes.ait import NO_DECAY
from saccade.recipes.git import LAYER_RATES, only
from saccade.recipes.small import STEM_RATES
from saccade.samples import ClassList
from saccade.tasks import TASKS, Task, parse_task
from saccade.training.config import LayerDecay, LayerRates, OptimConfig, SourceConfig, TrainConfig

_READERS: dict[Task, tuple[str, ...]] = {
    Task.DETECTION: ("coco", "voc", "mask_folder"),
    Task.INSTANCE: ("coco", "mask_folder"),
    Task.SEMANTIC: ("mask_folder",),
    Task.DEPTH: ("nyu", "depth_folder"),
}
"""Formats that can teach a task, in the order in which they are tried."""

_MONITOR = {
    Task.DETECTION: "detection/AP",
    Task.INSTANCE: "instance_segmentation/mask_AP",
    Task.SEMANTIC: "semantic_segmentation/mIoU",
    Task.DEPTH: "depth/d1",
}
_PASSES = 60
_JITTER = (0.6, 1.5)  # milder than the published 0.1 to 2, which is meant for a hundred thousand pictures
_SWIN_DECAY = 0.85  # AiT's, of its objects
_LEAST_STEPS, _MOST_STEPS = 600, 12_000
_FAR_M = 1000
_HELD_OUT = 5  # without a validation part, the last fifth of the training part is held out


def finetune(
    *,
    data_root: str,
    task: str,
    model: str = "git-nano",
    classes: tuple[str, ...] = (),
    reader: str = "",
    images: str = "",
    annotations: str = "",
    val_annotations: str = "",
    mask_suffix: str = "",
    depth_scale: float = 1000.0,
    steps: int = 0,
) -> TrainConfig:
    """Fine-tunes a model on 50 to 5,000 images of a folder.

    The folder may hold a COCO JSON, PASCAL VOC files, images with mask files, or images with depth maps. Its own split
    is used; a data set without one is divided by the reader, and where there is no validation part the last fifth of
    the training part is held out. The checkpoint with the best validation metric is kept.

    A VQ-VAE of masks or of depth is fine-tuned, too; the solver that says its codes then takes it as
    ``mask_vqvae=`` or ``depth_vqvae=``.

    Args:
        data_root: The folder.
        task: ``detection``, ``instance``, ``semantic`` or ``depth``.
        model: A bundled name, a zoo name or a checkpoint folder.
        classes: Class names: a choice among those of the files, or the names of label values where files carry none.
        reader: The format; empty = recognised.
        images: Image folder relative to data_root; empty = looked for.
        annotations: Annotation file or mask folder relative to data_root; empty = looked for.
        val_annotations: The same for validation; empty = looked for, or the end of ``annotations``.
        mask_suffix: What mask files append to the stem of their image; empty = looked for.
        depth_scale: What the numbers of 16-bit depth maps are divided by to give metres.
        steps: Optimiser steps; 0 = by the number of images. Warm-up and evaluations follow them.

    Raises:
        DataError: The folder holds no data set for the task, or a damaged one.
        UsageError: Unknown model or task, or a model that does not offer the task.
    """
    chosen = parse_task(task)
    if chosen not in _READERS:
        raise UsageError(
            f"recipe finetune does not train the task {chosen}",
            fix=f"choose one of: {', '.join(TASKS[one].alias for one in _READERS)}",
        )
    card = read_card(resolve(model))
    if chosen not in card.tasks:
        raise UsageError(f"'{model}' does not offer the task {chosen}", fix=f"it offers: {', '.join(card.tasks)}")
    spec = SourceSpec(
        task=chosen,
        reader=reader,
        root=data_root,
        classes=classes,
        images=images,
        annotations=annotations,
        mask_suffix=mask_suffix,
        depth_scale=depth_scale,
        drop_empty=reader in WITHOUT_EMPTY,
    )
    train, opened = _open_training(spec)
    if opened.classes is not None and (train.reader != "mask_folder" or chosen is Task.SEMANTIC):
        # Both parts get the same list, in the same order. (Objects made from masks lack the background, which the
        # reader needs to know the values by: it finds the list again.)
        train = dataclasses.replace(train, classes=opened.classes.names)
    train, val, count = _divide(train, len(opened), val_annotations)
    batch_size, accumulate = _batch(card.config)
    steps = steps or min(max(_PASSES * count // (batch_size * accumulate), _LEAST_STEPS), _MOST_STEPS)
    return TrainConfig(
        name=f"finetune/{_word(Path(data_root).resolve().name)}-{TASKS[chosen].alias}-{_word(Path(model).name)}",
        model=_adapted(card.config, chosen, opened),
        weights=model,
        train=(_source(train, batch_size=batch_size, augment=_augment(chosen, card.config)),),
        val=(dataclasses.replace(_source(val, batch_size=batch_size), protocol=_protocol(val)),),
        steps=steps,
        optim=_optim(card.config, steps),
        accumulate=accumulate,
        precision=_fast_precision(),
        activation_checkpointing=width_of(card.config) >= 768,
        ema_decay=0.998,
        eval_every=max(1, steps // 10),
        save_every=max(1, steps // 10),
        keep=1,
        monitor=_MONITOR[chosen],
    )


def _open_training(spec: SourceSpec) -> tuple[SourceSpec, Source]:
    """The first format that finds its files in the folder."""
    reasons = []
    for reader in [spec.reader] if spec.reader else _READERS[spec.task]:
        candidate = dataclasses.replace(spec, reader=reader, split="train")
        try:
            return candidate, open_source(candidate)
        except UsageError as error:
            if spec.reader or not Path(spec.root).is_dir():
                raise
            reasons.append(f"as {reader}: {error.what}" + (f" ({error.why})" if error.why else ""))
    raise DataError(
        f"no data set for {spec.task} is recognised in the folder",
        where=spec.root,
        why="; ".join(reasons),
        fix="name the format (reader=...) and its files (annotations=..., images=...), or see docs/recipes.md",
    )


def _divide(train: SourceSpec, count: int, val_annotations: str) -> tuple[SourceSpec, SourceSpec, int]:
    """The training part, the validation part, and the number of training samples."""
    one_file = names_one_split(train.reader, train.annotations) and not val_annotations
    if not one_file:
        val = dataclasses.replace(train, split="val", annotations=val_annotations or train.annotations)
        try:
            open_source(val)
        except UsageError:
            if val_annotations:
                raise
        else:
            return train, val, count
    # The test part, where there is one, is not looked at: what chooses the best checkpoint tests nothing any more.
    kept = count - max(1, count // _HELD_OUT)
    if not kept:
        raise DataError("one image cannot be both training and validation", where=train.annotations or train.root)
    return dataclasses.replace(train, limit=kept), dataclasses.replace(train, offset=kept), kept


def _protocol(val: SourceSpec) -> str:
    """The Eigen crop and the limit of 10 m are NYU's: of other depth every known pixel counts."""
    return f"crop=none,max_m={_FAR_M}" if val.task is Task.DEPTH and val.reader != "nyu" else ""


def _source(spec: SourceSpec, *, batch_size: int, augment: Augment | None = None) -> SourceConfig:
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(SourceSpec)}
    return SourceConfig(**fields, batch_size=batch_size, augment=augment)


def _adapted(model: ModelConfig, task: Task, source: Source) -> ModelConfig:
    """The model for one task; a detector and AiT get the classes of the data, GiT reads their names.

    A VQ-VAE knows no classes.
    """
    if isinstance(model, GiTConfig):
        return only(model, [task])
    if isinstance(model, AiTConfig) and task is Task.DEPTH:
        return for_depth(model)
    if isinstance(model, MapVQVAEConfig):
        return model
    classes = source.classes
    assert classes is not None  # detection and instance segmentation have classes
    if isinstance(model, AiTConfig):
        return for_objects(model, task, classes, most_objects(source))
    if isinstance(model, PolarConfig):
        inner = _adapted(model.segmenter, task, source)
        assert isinstance(inner, PixelConfig)
        return dataclasses.replace(model, segmenter=inner)
    if isinstance(model, SegmenterConfig):
        _require_count(classes, len(model.classes), source)
        return dataclasses.replace(model, classes=classes.names, category_ids=classes.category_ids)
    if isinstance(model, ViSFTConfig):
        if model.semantic is None or task is not Task.SEMANTIC:
            raise UsageError(
                f"recipe finetune does not train ViSFT's head for the task {task}",
                fix="train it with recipe=visft.nano_... or a configuration of your own (docs/visft.md)",
            )
        _require_count(classes, model.semantic.num_classes, source)
        named = dataclasses.replace(model.semantic, classes=classes.names, category_ids=classes.category_ids)
        return dataclasses.replace(model, semantic=named)
    assert isinstance(model, ViTDetConfig)  # no other system finds objects
    heads = dataclasses.replace(
        model.roi, num_classes=len(classes), mask="none" if task is Task.DETECTION else model.roi.mask
    )
    return dataclasses.replace(model, classes=classes.names, category_ids=classes.category_ids, roi=heads)


def _require_count(classes: ClassList, known: int, source: Source) -> None:
    if len(classes) != known:
        raise UsageError(
            f"the data has {len(classes)} classes, the segmenter tells {known} apart",
            where=source.name,
            fix="train one with these classes (recipe=polar.unet classes=...)",
        )


def _augment(task: Task, model: ModelConfig) -> Augment | None:
    if isinstance(model, MapVQVAEConfig):
        return DepthAugment(cut_depth=0.0, light=0.0) if task is Task.DEPTH else MaskCropAugment()
    if task is Task.DEPTH:
        return DepthAugment()
    inner = model.segmenter if isinstance(model, PolarConfig) else model
    if isinstance(inner, SegmenterConfig) and inner.input_hw[0] != inner.input_hw[1]:
        return None  # training augmentation makes squares
    if isinstance(model, AiTConfig):
        return ScaleJitterAugment(scales=_JITTER, rules="ait")
    if isinstance(model, ViTDetConfig):
        rules: Literal["mmdet", "detectron2"] = "detectron2" if model.resize == "pillow" else "mmdet"
        return ScaleJitterAugment(scales=_JITTER, rules=rules)
    if task is Task.INSTANCE and isinstance(model, GiTConfig) and model.instance_segmentation is not None:
        return LightAugment(resize_as_float=True, contour_rays=model.instance_segmentation.num_rays)
    return LightAugment()


def _batch(model: ModelConfig) -> tuple[int, int]:
    """Images per batch, and batches per step, by the width of the model."""
    if width_of(model) < 384:
        return 16, 1
    return (8, 1) if width_of(model) < 768 else (2, 4)


def _optim(model: ModelConfig, steps: int) -> OptimConfig:
    small = width_of(model) < 768
    return OptimConfig(
        lr=5e-4 if small else 1e-4,
        weight_decay=0.05,
        decay_matrices_only=True,
        no_decay=NO_DECAY if isinstance(model, AiTConfig) else (),
        clip_norm=1.0,
        layer_rates=None if _without_blocks(model) else STEM_RATES if small else _rates(model),
        warmup_steps=steps // 20,
        min_lr=1e-6,
    )


def _without_blocks(model: ModelConfig) -> bool:
    """Whether no transformer learns, whose stem could do so at another rate."""
    inner = model.segmenter if isinstance(model, PolarConfig) else model
    frozen = isinstance(inner, ViSFTConfig) and "backbone" not in inner.trained
    return frozen or isinstance(inner, MapVQVAEConfig | SegmenterConfig)


def _rates(model: ModelConfig) -> LayerRates | LayerDecay | None:
    """The published ramp of the model's size: the lower blocks know more than a small data set can teach them."""
    if isinstance(model, ViTDetConfig):
        return LayerDecay(layers=model.vit.depth, cells=len(getattr(model.backbone, "cells", ())))
    if isinstance(model, AiTConfig) and isinstance(model.backbone, SwinV2Config):
        stages = model.backbone.depths
        return LayerDecay(rate=_SWIN_DECAY, layers=sum(stages) + len(stages) - 1, stages=stages)
    return {768: LAYER_RATES["base"], 1024: LAYER_RATES["large"], 1280: LAYER_RATES["huge"]}.get(width_of(model))


def _fast_precision() -> Precision:
    """bfloat16 where the machine computes it faster than float32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "float32"


def _word(text: str) -> str:
    """The text as one word of a folder name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("._-") or "data"
