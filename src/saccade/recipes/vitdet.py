"""ViTDet and ViTAE as published: the ViTAE repository's three recipes and detectron2's twelve (specs/vitdet.md 11)."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from saccade.data.augment import ScaleJitterAugment
from saccade.data.class_names import CLASS_NAMES, COCO_CATEGORY_IDS
from saccade.data.sources.scenes import ScenesSource
from saccade.models.vitdet import presets
from saccade.models.vitdet.config import ViTDetConfig
from saccade.recipes.git_scenes import scenes_source, scenes_validation
from saccade.recipes.small import STEM_RATES, scratch_optim
from saccade.recipes.steps import batches_per_step
from saccade.tasks import Task
from saccade.training.config import LayerDecay, OptimConfig, SourceConfig, TrainConfig

Size: TypeAlias = Literal["b", "l", "h"]
Form: TypeAlias = Literal["vit-b", "vitae-b", "vitae-s"]

_IMAGES_PER_STEP = 64
# detectron2 counts 184,375 iterations as 100 epochs and 138,281 as 75; the ViTAE repository 25 epochs of a set that is
# repeated four times, 7,330 iterations each.
_SHORT = {"b": (184_375, (163_889, 177_546), 250), "l": (184_375, (163_889, 177_546), 250)}
_SCHEDULES = {**_SHORT, "h": (138_281, (122_916, 133_159), 187)}
_LVIS_SCHEDULE = (156_250, (138_889, 150_463), 250)
_DECAY = {"b": (0.7, 12), "l": (0.8, 24), "h": (0.9, 32)}


def vitae_repository(
    form: Form, *, data: str = "data", pretrained: str = "", masks: bool = True, processes: int = 0, images: int = 2
) -> TrainConfig:
    """One of the ViTAE repository's three recipes: Mask R-CNN on COCO, 100 epochs, 64 images per step.

    Args:
        form: The backbone.
        data: Folder that holds ``coco``.
        pretrained: The backbone's pre-training file (MAE; for ViTAE-S supervised); empty = fresh weights.
        masks: Train mask heads; without them it is a Faster R-CNN.
        processes: GPUs; 0 = those that torchrun started.
        images: Images per GPU at a time; a step gathers them until it has 64.
    """
    task = Task.INSTANCE if masks else Task.DETECTION
    decay = LayerDecay(rate=0.7, layers=17, cells=3) if form == "vitae-s" else LayerDecay(rate=0.7, layers=12)
    return TrainConfig(
        name=f"vitdet/vitae_repo_{form}",
        model=with_coco_classes(presets.with_masks(presets.vitae_repo(form), masks)),
        init_from=pretrained,
        train=(_source(task, "coco", data, "train", batch_size=images, augment=ScaleJitterAugment()),),
        val=(_source(task, "coco", data, "val", batch_size=1),),
        accumulate=batches_per_step(_IMAGES_PER_STEP, processes=processes, images=images),
        steps=25 * 7_330,
        optim=OptimConfig(
            lr=1e-4,
            weight_decay=0.1,
            decay_matrices_only=True,
            clip_norm=0.0,
            layer_rates=decay,
            schedule="steps",
            milestones=(22 * 7_330, 24 * 7_330),
            warmup_steps=250,
            warmup_start=0.067,
        ),
        activation_checkpointing=form == "vitae-b",
        eval_every=7_330,
        save_every=7_330,
        monitor=f"{task}/AP",
    )


def detectron2(
    size: Size,
    *,
    cascade: bool = False,
    lvis: bool = False,
    data: str = "data",
    pretrained: str = "",
    masks: bool = True,
    processes: int = 0,
    images: int = 1,
) -> TrainConfig:
    """One of detectron2's twelve recipes: Mask or Cascade R-CNN, COCO or LVIS, 64 images per step.

    Args:
        size: ViT-B, L or H.
        cascade: Cascade R-CNN.
        lvis: LVIS v1 instead of COCO.
        data: Folder that holds ``coco`` and ``lvis``.
        pretrained: The MAE file; empty = fresh weights.
        masks: Train mask heads; without them it is a Faster R-CNN.
        processes: GPUs; 0 = those that torchrun started.
        images: Images per GPU at a time; a step gathers them until it has 64.
    """
    task = Task.INSTANCE if masks else Task.DETECTION
    model = presets.with_masks(presets.detectron2(size, stages=3 if cascade else 1, lvis=lvis), masks)
    rate, layers = _DECAY[size]
    steps, milestones, warmup = _LVIS_SCHEDULE if lvis else _SCHEDULES[size]
    augment = ScaleJitterAugment(rules="detectron2")
    name: Literal["coco", "lvis"] = "lvis" if lvis else "coco"
    every = steps // 20
    train = _source(task, name, data, "train", batch_size=images, augment=augment)
    # Large models exempt nothing from weight decay, the others norms of the blocks and positions.
    exempt = () if size == "h" else ("backbone.blocks.*.norm?.*", "backbone.pos_embed")
    return TrainConfig(
        name=f"vitdet/{'lvis_' if lvis else ''}{'cascade' if cascade else 'mask'}_rcnn_vit_{size}",
        model=model if lvis else with_coco_classes(model),
        init_from=pretrained,
        train=(dataclasses.replace(train, repeat_threshold=0.001, repeat_rounding="random") if lvis else train,),
        val=(_source(task, name, data, "val", batch_size=1),),
        accumulate=batches_per_step(_IMAGES_PER_STEP, processes=processes, images=images),
        steps=steps,
        optim=OptimConfig(
            lr=(1e-4 if size == "h" else 2e-4) if lvis else 1e-4,
            weight_decay=0.1,
            no_decay=exempt,
            clip_norm=0.0,
            layer_rates=LayerDecay(rate=rate, layers=layers),
            schedule="steps",
            milestones=milestones,
            warmup_steps=warmup,
            warmup_start=0.001,
        ),
        precision="bf16",
        eval_every=every,
        save_every=every,
        monitor=f"{task}/AP",
    )


def nano_scenes(*, steps: int = 5_500, size: int = 224) -> TrainConfig:
    """``vitdet-nano`` on drawn scenes: instance masks from nothing but scenes."""
    source = ScenesSource(task=Task.INSTANCE, size=size)
    classes = source.classes
    assert classes is not None
    model = presets.nano()
    model = dataclasses.replace(
        model,
        classes=classes.names,
        category_ids=classes.category_ids,
        roi=dataclasses.replace(model.roi, num_classes=len(classes)),
    )
    return TrainConfig(
        name="vitdet/nano_scenes",
        model=model,
        # Scenes never end, and nothing is drawn twice; flips and mild scaling still teach that place and size are free.
        train=(
            dataclasses.replace(
                scenes_source(Task.INSTANCE, size=size), batch_size=12, augment=ScaleJitterAugment(scales=(0.8, 1.3))
            ),
        ),
        val=(scenes_validation(Task.INSTANCE, size=size),),
        steps=steps,
        optim=dataclasses.replace(scratch_optim(steps), lr=6e-4, layer_rates=STEM_RATES),
        precision="bf16",
        initialise="local",
        ema_decay=0.999,
        save_every=250,
        log_every=50,
        workers=1,
    )


def with_coco_classes(model: ViTDetConfig) -> ViTDetConfig:
    """The model with COCO's names and category ids."""
    return dataclasses.replace(model, classes=CLASS_NAMES["coco"], category_ids=COCO_CATEGORY_IDS)


def _source(
    task: Task,
    name: Literal["coco", "lvis"],
    data: str,
    split: str,
    *,
    batch_size: int,
    augment: ScaleJitterAugment | None = None,
) -> SourceConfig:
    training = augment is not None
    return SourceConfig(
        task=task,
        reader=name,
        root=f"{data}/{name}",
        split=split,
        batch_size=batch_size,
        augment=augment,
        drop_empty=training,
        min_side=32 if training and name == "coco" else 0,
    )
