"""GSVA: pre-training and fine-tuning as published (specs/gsva.md 7.3 and 10), and GSVA-nano on drawn scenes.

``data`` is a folder laid out as the authors' (docs/gsva.md); sets that are missing are left out with a warning.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from saccade.data.phrases import PhraseAugment
from saccade.models.gsva import presets
from saccade.recipes.small import scratch_optim
from saccade.tasks import Task
from saccade.training.config import OptimConfig, PartRate, SourceConfig, TrainConfig

Base: TypeAlias = Literal["7b", "13b", "llama2-13b"]

_EPOCH = 500  # steps; an epoch of the authors is a number of steps, not a pass
_PHRASES = 5
_CLASSES = (
    ("ade20k", "ade20k", ""),
    ("coco_stuff", "", ""),
    ("pascal_part", "", ""),
    ("paco", "", ""),
    ("mapillary", "mapillary", ""),
)
_REFERENCES = (
    ("refcoco", "refer_seg", "refclef/refs(unc).p"),
    ("refcoco", "refer_seg", "refcoco/refs(unc).p"),
    ("refcoco", "refer_seg", "refcoco+/refs(unc).p"),
    ("refcoco", "refer_seg", "refcocog/refs(umd).p"),
    ("grefcoco", "refer_seg", ""),
)
# At the full rate CLIP's states become one great constant, beside which nothing of the picture is left.
_SLOW_EYES = PartRate(names=("clip.*", "projector.*"), multiplier=0.1)
_RATES = {"classes": 9.0, "references": 6.0, "dialogues": 3.0, "reasons": 1.0}


def pretrain(
    base: Base,
    *,
    data: str = "data",
    llava: str = "",
    llama: str = "",
    clip: str = "",
    sam: str = "",
    vocabulary: str = "",
    images: int = 20,
) -> TrainConfig:
    """The training on everything: classes, parts, expressions, dialogues and questions.

    Rates and data are those of the command that third parties have kept (gRefCOCO among the expressions, without which
    no [REJ] is learned); all else is the default of the released code. A kind of data keeps its rate where some of its
    sets are missing, as in the original.

    Args:
        base: The language model.
        data: Folder of all data sets.
        llava: The LLaVA to start from (or its difference from a LLaMA); empty = fresh weights.
        llama: The LLaMA that is added to a difference.
        clip: The CLIP to start from; empty = fresh weights.
        sam: The SAM to start from; empty = fresh weights.
        vocabulary: Its ``tokenizer.model``.
        images: Pictures per process and step.
    """
    groups = (
        ("classes", _CLASSES),
        ("references", _REFERENCES),
        ("dialogues", (("llava_instruct", "", ""),)),
        ("reasons", (("reasonseg", "", ""),)),
    )
    train = tuple(
        dataclasses.replace(
            _source(data, *place, batch_size=images, augment=PhraseAugment(count=_PHRASES)),
            weight=_RATES[group] / len(places),
            group=group,
        )
        for group, places in groups
        for place in places
    )
    config = _published(f"pretrain_{base}", base, train, data=data, lr=3e-4)
    return dataclasses.replace(
        config, init_from=sam, language_init=llava, language_base=llama, clip_init=clip, vocabulary=vocabulary
    )


def finetune_gres(
    base: Base, *, data: str = "data", weights: str = "", vocabulary: str = "", images: int = 20
) -> TrainConfig:
    """The fine-tuning on gRefCOCO: expressions with one target, several or none.

    Args:
        base: The language model.
        data: Folder of all data sets.
        weights: What :func:`pretrain` made, or the released ``gsva-7b-pt``.
        vocabulary: Its ``tokenizer.model``; empty = that of the weights.
        images: Pictures per process and step.
    """
    train = (_source(data, *_REFERENCES[-1], batch_size=images, augment=PhraseAugment(count=_PHRASES)),)
    config = _published(f"finetune_gres_{base}", base, train, data=data, lr=1e-4)
    return dataclasses.replace(config, weights=weights, vocabulary=vocabulary)


def _published(name: str, base: Base, train: tuple[SourceConfig, ...], *, data: str, lr: float) -> TrainConfig:
    return TrainConfig(
        name=f"gsva/{name.replace('-', '_')}",
        model=presets.PRESETS[f"gsva-{base}"](),
        train=train,
        val=(
            _source(data, "grefcoco", "refer_seg", "", split="val"),
            _source(data, "reasonseg", "", "", split="val"),
        ),
        mixture="mixed",
        missing="leave_out",
        steps=10 * _EPOCH,
        optim=OptimConfig(
            lr=lr,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            clip_norm=1.0,
            schedule="deepspeed",
            warmup_steps=100,
        ),
        precision="bf16",
        parallel="shard",
        activation_checkpointing=True,
        workers=8,
        eval_every=_EPOCH,
        save_every=_EPOCH,
    )


def _source(
    data: str,
    reader: str,
    folder: str,
    annotations: str,
    *,
    split: str = "train",
    batch_size: int = 1,
    augment: PhraseAugment | None = None,
) -> SourceConfig:
    return SourceConfig(
        task=Task.REFERRING,
        reader=reader,
        root=f"{data}/{folder}".rstrip("/"),
        annotations=annotations,
        split=split,
        batch_size=batch_size,
        augment=augment,
    )


def nano_describe(*, steps: int = 8_000, size: int = 160, images: int = 16) -> TrainConfig:
    """The first stage of ``gsva-nano``: it tells what it sees, every object by its looks and its mask.

    A yes or no per phrase is not worth learning to see for: asked for phrases from the beginning, the language model
    finds out that it does better without the picture, and what CLIP says becomes one great constant. It is not
    evaluated: phrases are what it was never asked.

    Args:
        steps: Optimiser steps.
        size: Side of the scenes in pixels.
        images: Pictures per step.
    """
    config = nano_scenes(steps=steps, size=size, images=images)
    described = dataclasses.replace(config.train[1], weight=1.0)
    return dataclasses.replace(config, name="gsva/nano_describe", train=(described,), val=(), monitor="")


def nano_scenes(*, start: str = "", steps: int = 6_000, size: int = 160, images: int = 16) -> TrainConfig:
    """``gsva-nano`` on drawn scenes: its Llama, its CLIP-like tower and its SAM learn everything from scenes.

    A quarter of the pictures is described whole instead of asked about: every object by its looks and its mask.

    Args:
        start: The checkpoint of the first stage (``gsva.nano_describe``); empty = fresh weights.
        steps: Optimiser steps.
        size: Side of the scenes in pixels.
        images: Pictures per step, with five phrases each.
    """
    scenes = SourceConfig(task=Task.REFERRING, reader="scenes", size=size)
    phrases = dataclasses.replace(scenes, batch_size=images, augment=PhraseAugment(count=_PHRASES))
    described = dataclasses.replace(phrases, reader="scene_dialogues", weight=0.25)
    return TrainConfig(
        name="gsva/nano_scenes",
        model=presets.nano(size),
        train=(dataclasses.replace(phrases, weight=0.75), described),
        mixture="mixed",
        val=(dataclasses.replace(scenes, split="val", limit=500, batch_size=16),),
        steps=steps,
        optim=dataclasses.replace(scratch_optim(steps), part_rates=(_SLOW_EYES,)),
        weights=start,
        precision="bf16",
        initialise="plain" if start else "local",
        ema_decay=0.999,
        save_every=500,
        log_every=50,
        workers=1,
        monitor=f"{Task.REFERRING}/gIoU",
    )
