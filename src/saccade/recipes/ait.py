"""AiT as published: the nine configurations of its solver and the two of its VQ-VAEs (specs/ait.md 2.6, 8 and 9)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeAlias

from saccade.data.augment import ScaleJitterAugment
from saccade.data.class_names import CLASS_NAMES, COCO_CATEGORY_IDS
from saccade.data.depth_augment import DepthAugment
from saccade.data.mask_crops import MaskCropAugment
from saccade.errors import UsageError
from saccade.models.ait import presets
from saccade.models.ait.config import AiTConfig
from saccade.recipes.steps import batches_per_step, world_size
from saccade.tasks import Task
from saccade.training.config import LayerDecay, OptimConfig, SourceConfig, TrainConfig

DepthForm: TypeAlias = Literal["depth-b", "depth-b-hard", "depth-b-parallel", "depth-l", "depth-l-parallel"]
InstanceForm: TypeAlias = Literal["instance-b", "instance-b-hard"]

NO_DECAY = (
    "*.logit_scale",
    "*.attn.position.*",
    "transformer.task_embed",
    "transformer.position_embed",
    "transformer.token_embed",
    "transformer.parallel_embed",
)
"""What the originals exempt from weight decay besides norms and biases."""

_DEPTH_BATCH = 24
_NYU_PAIRS = 24_231
# Instances of COCO train2017 that have a crop: what an epoch of the VQ-VAE of masks is (the original's list is not
# published; its schedule differs by as much as its count does).
_MASK_CROPS = 849_949
_VQVAE_EPOCHS = 20


@dataclass(kw_only=True, frozen=True)
class _Schedule:
    """What the configurations of a task differ in.

    Attributes:
        lr: Base learning rate.
        decay: Factor of the learning rate per layer.
        clip: Greatest norm of the gradients.
        steps: Of the training.
        warmup: Steps of the warm-up.
        every: Steps between checkpoints.
        weight_decay: Of matrices.
        milestones: Where the rate falls to a tenth; none = it falls linearly to a hundredth.
    """

    lr: float
    decay: float
    clip: float
    steps: int
    warmup: int
    every: int
    weight_decay: float = 0.05
    milestones: tuple[int, ...] = ()


_DEPTH = _Schedule(lr=2e-4, decay=0.9, clip=10.0, steps=25_250, warmup=500, every=5_050, milestones=(18_180,))
_DETECTION = _Schedule(lr=1e-3, decay=0.85, clip=1.0, steps=183_300, warmup=18_330, every=9_165)
_INSTANCE = _Schedule(lr=1e-4, decay=0.85, clip=50.0, steps=366_500, warmup=14_660, every=7_330)
_JOINT = _Schedule(lr=8e-4, decay=0.85, clip=10.0, steps=302_875, warmup=12_115, every=12_115)


def depth(
    form: DepthForm,
    *,
    data: str = "data",
    pretrained: str = "",
    depth_vqvae: str = "ait-vqvae-depth",
    processes: int = 0,
    images: int = 3,
) -> TrainConfig:
    """Metric depth on NYU Depth v2: 25 epochs, 24 images per step.

    Args:
        form: The preset: SwinV2-B or L, token by token or in one pass, with soft tokens or without.
        data: Folder that holds ``nyu_depth_v2``.
        pretrained: The SimMIM file that the backbone starts from; empty = fresh weights.
        depth_vqvae: The VQ-VAE whose codes are learned: a checkpoint folder, a released file, or a zoo name.
        processes: GPUs; 0 = those that torchrun started.
        images: Images per GPU at a time; a step gathers them until it has 24.
    """
    large = form.startswith("depth-l")
    schedule = dataclasses.replace(_DEPTH, lr=1e-4, weight_decay=0.075) if large else _DEPTH
    return TrainConfig(
        name=f"ait/{form.replace('-', '_')}",
        model=presets.PRESETS[form](),
        init_from=pretrained,
        depth_vqvae=depth_vqvae,
        train=(_nyu(data, images),),
        val=(_nyu_test(data),),
        accumulate=batches_per_step(_DEPTH_BATCH, processes=processes, images=images),
        steps=schedule.steps,
        optim=_optim(schedule),
        precision="bf16",
        save_every=schedule.every,
        workers=4,
        monitor="depth/d1",
    )


def detection_b(*, data: str = "data", pretrained: str = "", processes: int = 0, images: int = 4) -> TrainConfig:
    """Boxes on COCO, 128 images per step, as published.

    Args:
        data: Folder that holds ``coco``.
        pretrained: The SimMIM file that the backbone starts from; empty = fresh weights.
        processes: GPUs; 0 = those that torchrun started.
        images: Images per GPU at a time; a step gathers them until it has 128.
    """
    return TrainConfig(
        name="ait/detection_b",
        model=_with_coco(presets.detection()),
        init_from=pretrained,
        train=(_coco(Task.DETECTION, data, images),),
        val=(_coco_test(Task.DETECTION, data, 20),),
        accumulate=batches_per_step(128, processes=processes, images=images),
        steps=_DETECTION.steps,
        optim=_optim(_DETECTION),
        eval_every=18_330,
        save_every=_DETECTION.every,
        workers=8,
        monitor="detection/AP",
    )


def instance(
    form: InstanceForm,
    *,
    data: str = "data",
    pretrained: str = "",
    mask_vqvae: str = "ait-vqvae-masks",
    processes: int = 0,
) -> TrainConfig:
    """Boxes and masks on COCO: 50 epochs, 16 images per step, one per GPU at a time.

    Args:
        form: The preset: with soft tokens or without.
        data: Folder that holds ``coco``.
        pretrained: What it starts from: the authors' detection solver (``ait_det_swinv2b_wodec.pth``, or one that
            ``ait.detection_b`` trained), or a SimMIM file; empty = fresh weights.
        mask_vqvae: The VQ-VAE whose codes are learned: a checkpoint folder, a released file, or a zoo name.
        processes: GPUs; 0 = those that torchrun started.
    """
    return TrainConfig(
        name=f"ait/{form.replace('-', '_')}",
        model=_with_coco(presets.PRESETS[form]()),
        init_from=pretrained,
        mask_vqvae=mask_vqvae,
        train=(_coco(Task.INSTANCE, data, 1),),
        val=(_coco_test(Task.INSTANCE, data, 8),),
        accumulate=batches_per_step(16, processes=processes, images=1),
        steps=_INSTANCE.steps,
        optim=_optim(_INSTANCE),
        precision="bf16",
        eval_every=73_300,
        save_every=_INSTANCE.every,
        workers=8,
        monitor="instance_segmentation/mask_AP",
    )


def joint_b(
    *,
    data: str = "data",
    pretrained: str = "",
    mask_vqvae: str = "ait-vqvae-masks",
    depth_vqvae: str = "ait-vqvae-depth",
    processes: int = 0,
) -> TrainConfig:
    """Boxes and masks on COCO with depth on NYU: 60 + 4 images in every step.

    Args:
        data: Folder that holds ``coco`` and ``nyu_depth_v2``.
        pretrained: The SimMIM file that the backbone starts from; empty = fresh weights.
        mask_vqvae: The VQ-VAE of masks: a checkpoint folder, a released file, or a zoo name.
        depth_vqvae: The VQ-VAE of depth.
        processes: GPUs, 1, 2 or 4; 0 = those that torchrun started.
    """
    together = world_size(processes)
    if 4 % together:
        raise UsageError(
            f"{together} processes do not share 60 + 4 images", where="processes", fix="choose 1, 2 or 4 processes"
        )
    masks = dataclasses.replace(_coco(Task.INSTANCE, data, 1), per_step=60 // together)
    metres = dataclasses.replace(_nyu(data, 1), per_step=4 // together)
    return TrainConfig(
        name="ait/joint_b",
        model=_with_coco(presets.joint()),
        init_from=pretrained,
        mask_vqvae=mask_vqvae,
        depth_vqvae=depth_vqvae,
        train=(masks, metres),
        val=(_coco_test(Task.INSTANCE, data, 8), _nyu_test(data)),
        mixture="together",
        steps=_JOINT.steps,
        optim=_optim(_JOINT),
        precision="bf16",
        save_every=_JOINT.every,
        workers=8,
        monitor="instance_segmentation/mask_AP",
    )


def vqvae_masks(*, data: str = "data", processes: int = 0, images: int = 512) -> TrainConfig:
    """The VQ-VAE of masks on crops of COCO's instances: 20 epochs, 512 crops per step.

    Args:
        data: Folder that holds ``maskcoco/instances_train2017``, which
            ``saccade data convert --from coco --to mask_crops`` writes.
        processes: GPUs; 0 = those that torchrun started.
        images: Crops per GPU at a time; a step gathers them until it has 512.
    """
    train = SourceConfig(
        task=Task.INSTANCE,
        reader="mask_crops",
        root=f"{data}/maskcoco",
        batch_size=images,
        augment=MaskCropAugment(),
    )
    steps = -(-_VQVAE_EPOCHS * _MASK_CROPS // 512)
    return TrainConfig(
        name="ait/vqvae_masks",
        model=presets.vqvae(Task.INSTANCE),
        train=(train,),
        val=(_coco_test(Task.INSTANCE, data, 1),),
        accumulate=batches_per_step(512, processes=processes, images=images),
        steps=steps,
        optim=OptimConfig(
            lr=3e-4,
            weight_decay=0.0,
            clip_norm=0.0,
            warmup_steps=500,
            warmup_start=0.001,
            warmup_counted=True,
            min_lr=1e-6,
        ),
        save_every=steps // _VQVAE_EPOCHS,
        workers=8,
        monitor="instance_segmentation/mask_AP",
    )


def vqvae_depth(*, data: str = "data", processes: int = 0, images: int = 8) -> TrainConfig:
    """The VQ-VAE of depth on NYU Depth v2, half of the patches hidden: 20 epochs, 8 maps per step.

    Args:
        data: Folder that holds ``nyu_depth_v2``.
        processes: GPUs; 0 = those that torchrun started.
        images: Maps per GPU at a time; a step gathers them until it has 8.
    """
    per_epoch = _NYU_PAIRS // 8
    # Every 500th step of an epoch, and the first one of it, lower the rate of the steps behind them.
    falls = tuple(epoch * per_epoch + step + 1 for epoch in range(_VQVAE_EPOCHS) for step in range(0, per_epoch, 500))
    augment = DepthAugment(cut_depth=0.0, light=0.0, resize=False, columns="nyu")
    return TrainConfig(
        name="ait/vqvae_depth",
        model=presets.vqvae(Task.DEPTH),
        train=(dataclasses.replace(_nyu(data, images), augment=augment),),
        val=(_nyu_test(data),),
        accumulate=batches_per_step(8, processes=processes, images=images),
        steps=_VQVAE_EPOCHS * per_epoch,
        optim=OptimConfig(
            lr=3e-4, weight_decay=0.0, clip_norm=0.0, schedule="steps", milestones=falls, milestone_factor=0.98
        ),
        save_every=per_epoch,
        workers=4,
        monitor="depth/d1",
    )


def _optim(schedule: _Schedule) -> OptimConfig:
    return OptimConfig(
        lr=schedule.lr,
        weight_decay=schedule.weight_decay,
        decay_matrices_only=True,
        no_decay=NO_DECAY,
        clip_norm=schedule.clip,
        layer_rates=LayerDecay(rate=schedule.decay, layers=27, stages=(2, 2, 18, 2)),
        schedule="steps" if schedule.milestones else "linear",
        milestones=schedule.milestones,
        warmup_steps=schedule.warmup,
        warmup_start=0.1,
    )


def _nyu(data: str, images: int) -> SourceConfig:
    return SourceConfig(
        task=Task.DEPTH, reader="nyu", root=f"{data}/nyu_depth_v2", batch_size=images, augment=DepthAugment()
    )


def _nyu_test(data: str) -> SourceConfig:
    return SourceConfig(task=Task.DEPTH, reader="nyu", root=f"{data}/nyu_depth_v2", split="test", batch_size=1)


def _coco(task: Task, data: str, images: int) -> SourceConfig:
    return SourceConfig(
        task=task,
        reader="coco",
        root=f"{data}/coco",
        batch_size=images,
        augment=ScaleJitterAugment(scales=(0.1, 3.0), rules="ait"),
        drop_empty=True,
        min_side=32,
        min_box=1.0,
    )


def _coco_test(task: Task, data: str, images: int) -> SourceConfig:
    return SourceConfig(task=task, reader="coco", root=f"{data}/coco", split="val", batch_size=images)


def _with_coco(model: AiTConfig) -> AiTConfig:
    return dataclasses.replace(model, classes=CLASS_NAMES["coco"], category_ids=COCO_CATEGORY_IDS)
