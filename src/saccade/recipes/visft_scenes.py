"""ViSFT at a scale that a desk computer trains: a backbone from captions of drawn scenes, heads, low-rank updates."""

from __future__ import annotations

import dataclasses
from typing import Any

from saccade.data.augment import CaptionAugment
from saccade.data.scenes import THING_CLASSES, VOCABULARY
from saccade.layers.lora import LoRAConfig
from saccade.layers.show_attend_tell import SpeakerConfig
from saccade.models.git.presets import PRESETS as GIT_PRESETS
from saccade.models.visft.caption import CaptionHeadConfig
from saccade.models.visft.config import Head, ViSFTConfig
from saccade.models.visft.presets import nano, nano_pair
from saccade.recipes.small import scratch_optim
from saccade.recipes.visft import TASK_OF, only
from saccade.tasks import Task
from saccade.training.config import OptimConfig, SourceConfig, TrainConfig

SIDE = 112
_WORDS = len(VOCABULARY) + 4  # and <pad>, <unk>, <start>, <end>
# Scenes never end, and captions speak of left and right: nothing is flipped or cut.
_CAPTIONS = CaptionAugment(flip=0.0, min_area=1.0)
_PAIRED = CaptionAugment(flip=0.0, min_area=1.0, brightness=0.2, contrast=0.2)
_WEIGHTS: dict[Head, float] = {"caption": 0.4, "instance": 0.3, "detection": 0.3}
_HEAD_RATE = 5e-4


def nano_clip(*, steps: int = 4_000, images: int = 64) -> TrainConfig:
    """The backbone with a class token and a text tower, contrastively on images and captions.

    All scenes are plain, a little brighter or darker than they are drawn: the other styles remain unseen.

    Args:
        steps: Steps.
        images: Images of a step; each is told from all others of it.
    """
    return _run(
        "nano_clip",
        steps=steps,
        model=nano_pair(GIT_PRESETS["nano"]().vocab_size),
        initialise="local",
        train=(dataclasses.replace(_source("caption", batch_size=images), augment=_PAIRED),),
        optim=dataclasses.replace(scratch_optim(steps), warmup_steps=steps // 20, no_decay=("log_scale",)),
    )


def nano_first_stage(head: Head, *, backbone: str = "", steps: int = 3_000) -> TrainConfig:
    """One head on the frozen backbone.

    Args:
        head: Which one.
        backbone: The checkpoint of :func:`nano_clip`; empty = fresh weights.
        steps: Steps.
    """
    return _run(
        f"nano_{head}",
        steps=steps,
        model=only(_model(), head),
        init_from=backbone,
        train=(_source(head, batch_size=16),),
        val=(_source(head, batch_size=16, split="val"),),
        optim=dataclasses.replace(
            scratch_optim(steps), betas=(0.9, 0.999), lr=_HEAD_RATE, weight_decay=1e-4, clip_norm=0.1
        ),
    )


def nano_lora(
    *, backbone: str = "", detection: str = "", instance: str = "", caption: str = "", steps: int = 1_000
) -> TrainConfig:
    """Low-rank updates of queries and values, one task per step.

    The published ones have a scale of 1/64 and 1e-5 as their rate for up to 50,000 steps, which would change next to
    nothing in so few as here. So the scale is 1, and the rate high.

    Args:
        backbone: The checkpoint of :func:`nano_clip`, or ``weights`` of the whole: updates need what was trained.
        detection: The checkpoint of its head; empty = a fresh one, which is trained in full beside the updates.
        instance: The same for masks.
        caption: The same for captions.
        steps: Steps.
    """
    return _run(
        "nano_lora",
        steps=steps,
        model=_model(),
        init_from=backbone,
        detection_init=detection,
        instance_init=instance,
        caption_init=caption,
        lora=LoRAConfig(rank=16),
        train=tuple(
            dataclasses.replace(_source(head, batch_size=16), weight=weight) for head, weight in _WEIGHTS.items()
        ),
        mixture="stepwise",
        val=tuple(_source(head, batch_size=16, split="val") for head in _WEIGHTS),
        optim=OptimConfig(lr=4e-3, weight_decay=1e-4, clip_norm=0.1, warmup_steps=min(100, steps // 10), min_lr=0.0),
    )


def _model() -> ViSFTConfig:
    speaker = SpeakerConfig(attention_width=128, embed_width=96, state_width=192, vocabulary=_WORDS)
    words = CaptionHeadConfig(speaker=speaker)
    return nano(words=words, classes=len(THING_CLASSES)).named(THING_CLASSES)


def _source(head: Head, *, batch_size: int, split: str = "train") -> SourceConfig:
    training = split == "train"
    return SourceConfig(
        task=TASK_OF[head],
        reader="scenes",
        split=split,
        size=SIDE,
        limit=0 if training else 300,
        batch_size=batch_size,
        augment=_CAPTIONS if training and TASK_OF[head] is Task.CAPTION else None,
    )


def _run(name: str, *, steps: int, **settings: Any) -> TrainConfig:
    return TrainConfig(
        name=f"visft/{name}", steps=steps, precision="bf16", save_every=250, log_every=50, workers=1, **settings
    )
