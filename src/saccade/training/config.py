"""The configuration tree of a training run. A recipe is a function that returns a complete :class:`TrainConfig`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal, TypeVar

from saccade.data.augment import Augment
from saccade.data.sources.spec import SourceSpec
from saccade.errors import ConfigError, nearest
from saccade.layers.lora import LoRAConfig
from saccade.layers.precision import Precision
from saccade.metrics.center import SCORE_NAMES as CENTER_SCORES
from saccade.metrics.depth import SCORE_NAMES as DEPTH_SCORES
from saccade.metrics.lesion import SCORE_NAMES as LESION_SCORES
from saccade.metrics.referring import SCORE_NAMES as REFERRING_SCORES
from saccade.models.ait.config import AiTConfig
from saccade.models.gsva.config import GSVAConfig
from saccade.models.polar.config import PolarConfig
from saccade.models.systems import ModelConfig, offers
from saccade.models.visft.config import ViSFTConfig
from saccade.tasks import Task

S = TypeVar("S")

_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_RARE = ("APr", "APc", "APf", "AR@300")
METRICS: dict[Task, tuple[str, ...]] = {
    Task.DETECTION: (*_AP, *_RARE),
    Task.INSTANCE: (*_AP, *_RARE, *(f"mask_{name}" for name in (*_AP, *_RARE))),
    Task.SEMANTIC: (
        *("aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall", "image_mIoU", "image_mDice"),
        *("IoU", "Dice", "image_IoU", "image_Dice"),
        *LESION_SCORES,
    ),
    Task.CAPTION: ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"),
    Task.GROUNDING: ("Acc@0.5", "mIoU"),
    Task.DEPTH: DEPTH_SCORES,
    Task.REFERRING: REFERRING_SCORES,
    Task.CENTER: CENTER_SCORES,
}
"""What the metric of each task reports in training, and ``monitor`` may name."""

_FALLING = (frozenset(DEPTH_SCORES) - {"d1", "d2", "d3"}) | {"mse_px", "distance_px"}


@dataclass(kw_only=True)
class SourceConfig(SourceSpec):
    """One source of the mixture: the data set (:class:`~saccade.data.sources.spec.SourceSpec`) and how it is used.

    Attributes:
        weight: Probability weight of this source in the mixture.
        group: Sources of one group keep the sum of their weights where some of them are missing; empty = none.
        batch_size: Images per process and step; in evaluation, images per forward pass.
        per_step: Batches of this source in a step of a mixture that takes its sources ``together``.
        augment: Training augmentation; None for evaluation.
        protocol: How evaluation scores boxes (:data:`saccade.metrics.DETECTION_PROTOCOLS`), phrases
            (:data:`saccade.metrics.REFERRING_PROTOCOLS`), depth (:func:`saccade.metrics.depth.depth_protocol`) or label
            maps (:data:`saccade.metrics.SEMANTIC_PROTOCOLS`); empty = as the data set is.
    """

    weight: float = 1.0
    group: str = ""
    batch_size: int = 1
    per_step: int = 1
    augment: Augment | None = None
    protocol: str = ""


@dataclass(kw_only=True)
class LayerRates:
    """Learning-rate multipliers per layer of the plain ViT.

    Layers below ``first_full`` ramp linearly from ``floor`` to 1; see specs of GiT section 7.

    Attributes:
        floor: Multiplier of the patch embedding, the position table and the layers up to ``frozen_until``.
        frozen_until: Last layer (0-based) that still has the floor.
        first_full: First layer with multiplier 1.
    """

    floor: float = 0.1
    frozen_until: int = 5
    first_full: int = 12


@dataclass(kw_only=True)
class LayerDecay:
    """Learning-rate multipliers that fall by a factor per layer, from the last block down to the patches.

    The multiplier is ``rate ** (layers + 1 - id)``: the stem has id 0, block i the id i + 1, everything behind the
    blocks ``layers + 1``. Residual convolutions between blocks count as behind (detectron2). A backbone with stages
    (Swin) counts its blocks through, and every step between two stages as one more.

    Attributes:
        rate: The factor.
        layers: Layers that are counted.
        cells: Reduction cells before the blocks (ViTAE-S): cell s has the id s, block i the id cells + i.
        stages: Blocks of every stage.
    """

    rate: float = 0.7
    layers: int = 12
    cells: int = 0
    stages: tuple[int, ...] = ()


@dataclass(kw_only=True)
class PartRate:
    """The learning rate of some parameters, on top of ``layer_rates``.

    Attributes:
        names: Shell patterns of their names.
        multiplier: What their rate is multiplied by.
    """

    names: tuple[str, ...]
    multiplier: float


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        lr: Base learning rate.
        betas: AdamW betas.
        eps: AdamW epsilon.
        weight_decay: Weight decay of every parameter (or only of matrices, with ``decay_matrices_only``).
        decay_matrices_only: No weight decay on norms, biases and tables.
        no_decay: Shell patterns of further parameters without weight decay.
        clip_norm: Greatest L2 norm of all gradients (0 = no clipping).
        layer_rates: Per-layer multipliers; None = 1 everywhere.
        part_rates: Parts that learn faster or slower; of several that a parameter is in, the first counts.
        adam: How AdamW treats decay and epsilon: as ``torch`` does, or as ``transformers`` did
            (:class:`saccade.training.adam.TransformersAdamW`).
        schedule: ``cosine`` to ``min_lr``, ``constant``, ``steps``: a factor (a tenth) from every milestone on,
            ``linear``: down to a hundredth of itself at the end, the warm-up counted in (mmcv), ``deepspeed``: behind
            the warm-up linearly to 0, one step late (the first step has the full rate, the second none), as DeepSpeed's
            engine applies its WarmupDecayLR, or ``transformers``: a cosine to 0 behind a warm-up that begins with 0, so
            that the first step changes nothing.
        milestones: Steps (0-based) of the schedule ``steps``.
        milestone_factor: What the rate is multiplied by at each of them.
        warmup_steps: Linear warm-up.
        warmup_counted: The cosine begins with the warm-up, which covers its first part (timm); otherwise behind it.
        warmup_start: Share of the rate that the warm-up begins with; 0 = it rises from 1 / warmup_steps to 1.
        min_lr: Absolute learning rate at the end of the cosine, the same for every group.
    """

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_matrices_only: bool = False
    clip_norm: float = 0.1
    no_decay: tuple[str, ...] = ()
    layer_rates: LayerRates | LayerDecay | None = None
    part_rates: tuple[PartRate, ...] = ()
    adam: Literal["torch", "transformers"] = "torch"
    schedule: Literal["cosine", "constant", "steps", "linear", "deepspeed", "transformers"] = "cosine"
    milestones: tuple[int, ...] = ()
    milestone_factor: float = 0.1
    warmup_steps: int = 0
    warmup_counted: bool = False
    warmup_start: float = 0.0
    min_lr: float = 2e-6


@dataclass(kw_only=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        name: Name of the run; the run folder is ``out/name``.
        model: The model to build.
        train: The mixture.
        val: What is evaluated, each with the metric of its task.
        steps: Optimiser steps. 0 with an empty mixture only evaluates ``val``.
        optim: Optimiser and schedule.
        lora: Low-rank updates that are trained instead of the model, and what is trained beside them; None = the model
            itself is trained.
        initialise: Fresh weights: ``plain`` as published, or ``local`` for training without any pre-training
            (:func:`saccade.layers.local_start.start_local`).
        weights: A checkpoint folder or zoo name whose whole model is the start (fine-tuning).
        init_from: A pre-training file whose backbone is the start (e.g. a SAM ViT); for GSVA a whole SAM; for AiT also
            another solver, of which the transformer is taken, too.
        mask_vqvae: A trained VQ-VAE of masks, whose codes AiT learns to say: a checkpoint folder, or a released file.
        depth_vqvae: The same of depth.
        finder: A trained centre predictor or segmenter that finds centres for a polar segmenter: a checkpoint folder.
        detection_init: A trained detection head, the start of ViSFT's: a file of the authors or of ours.
        instance_init: The same of its segmentation head.
        caption_init: The same of its caption head.
        language_init: A LLaVA with a linear projector, the start of GSVA's language model: a file, or a folder of some.
        language_base: The LLaMA that ``language_init`` is the difference from, where it was released so (a delta).
        clip_init: A CLIP, the start of what GSVA's language model sees with.
        text_init: A BERT embedding file for ``text_embed`` (GiT's ``bert_embed*.pt``).
        vocabulary: A WordPiece vocabulary file (GiT), a SentencePiece model (GSVA), a map of words (ViSFT) or CLIP's
            merges; empty = that of ``weights``, or the bundled one that fits.
        mixture: ``drawn``: every batch comes from one source, drawn by weight, and gradients are the mean over the
            batches of a step; ``stepwise``: the same, but all batches of a step come from one source; ``mixed``: every
            sample of a batch is drawn by itself (for models whose batches may mix sources);
            ``together``: every step takes ``per_step`` batches of every source, the losses of
            different tasks are added, and those of one task averaged.
        parallel: Several processes: ``replicate``: each holds the whole model (DDP); ``shard``: the weights are spread
            over them (FSDP2; GSVA).
        missing: Data sets of ``train`` and ``val`` that are not there: ``refuse`` them, or ``leave_out`` with a warning
            that says what to download; the rest of a source's ``group`` takes over its weight.
        accumulate: Batches per optimiser step; rounds of all sources with ``together``.
        precision: Arithmetic of the forward pass, in training and evaluation.
        activation_checkpointing: Recompute activations in the backward pass.
        ema_decay: Decay of the averaged weights that are evaluated and saved (0 = off).
        seed: Seeds initialisation, data order and augmentation.
        workers: Loader processes (0 = load in the training process).
        threads: Threads of the training process (0 = torch's default).
        log_every: Steps between log lines.
        eval_every: Steps between evaluations (0 = only at the end).
        save_every: Steps between checkpoints.
        keep: Checkpoints kept.
        monitor: Metric that decides the best checkpoint (greater is better), e.g. ``detection/AP``; empty = none is
            best.
        tensorboard: Write TensorBoard events too (needs the extra ``track``).
        out: Folder of all runs.
        resume: ``auto`` continues from the last whole checkpoint of the run folder; ``never`` refuses an existing one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    name: str
    model: ModelConfig
    train: tuple[SourceConfig, ...]
    steps: int
    val: tuple[SourceConfig, ...] = ()
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoRAConfig | None = None
    initialise: Literal["plain", "local"] = "plain"
    weights: str = ""
    init_from: str = ""
    mask_vqvae: str = ""
    depth_vqvae: str = ""
    finder: str = ""
    detection_init: str = ""
    instance_init: str = ""
    caption_init: str = ""
    language_init: str = ""
    language_base: str = ""
    clip_init: str = ""
    text_init: str = ""
    vocabulary: str = ""
    mixture: Literal["drawn", "stepwise", "mixed", "together"] = "drawn"
    parallel: Literal["replicate", "shard"] = "replicate"
    missing: Literal["refuse", "leave_out"] = "refuse"
    accumulate: int = 1
    precision: Precision = "float32"
    activation_checkpointing: bool = False
    ema_decay: float = 0.0
    seed: int = 0
    workers: int = 2
    threads: int = 0
    log_every: int = 20
    eval_every: int = 0
    save_every: int = 1000
    keep: int = 2
    monitor: str = ""
    tensorboard: bool = False
    out: str = "runs"
    resume: Literal["auto", "never"] = "auto"
    device: str = "auto"

    @property
    def batches_per_step(self) -> int:
        """Batches that every process reads for an optimiser step."""
        together = self.mixture == "together"
        return self.accumulate * (sum(source.per_step for source in self.train) if together else 1)


def source_labels(sources: tuple[SourceConfig, ...]) -> list[str]:
    """A name for each evaluated source: its task, with reader and split where the task is evaluated on several.

    Metrics are named ``label/metric``, e.g. ``detection/AP`` or ``grounding[refcoco:val]/Acc@0.5``.
    """
    tasks = [source.task for source in sources]
    labels = [
        str(s.task) if tasks.count(s.task) == 1 else f"{s.task}[{PurePath(s.annotations).stem or s.reader}:{s.split}]"
        for s in sources
    ]
    return [
        label if labels.count(label) == 1 else f"{label}#{labels[:i].count(label)}" for i, label in enumerate(labels)
    ]


def keep_shares(
    named: Sequence[SourceConfig], present: Sequence[tuple[SourceConfig, S]]
) -> list[tuple[SourceConfig, S]]:
    """Weights of the sources that are there: in every group they take over those of its missing ones, in proportion.

    Args:
        named: All sources of the mixture.
        present: Those that are there, with what was opened of them.
    """

    def total(sources: Iterable[SourceConfig], group: str) -> float:
        return sum(source.weight for source in sources if source.group == group)

    whole = {source.group: total(named, source.group) for source in named if source.group}
    left = {group: total((source for source, _ in present), group) for group in whole}
    return [
        (dataclasses.replace(source, weight=source.weight * whole[source.group] / left[source.group]), opened)
        if source.group and 0 < left[source.group] < whole[source.group]
        else (source, opened)
        for source, opened in present
    ]


def validate(config: TrainConfig) -> None:
    """Checks what no single value shows, before anything is built.

    Raises:
        ConfigError: Names the field and what it must be.
    """
    only_evaluates = not config.train and config.steps == 0
    at_least = {
        "steps": 0 if only_evaluates else 1,
        "accumulate": 1,
        "log_every": 1,
        "save_every": 1,
        "keep": 1,
        "eval_every": 0,
        "workers": 0,
    }
    for name, least in at_least.items():
        if getattr(config, name) < least:
            raise ConfigError(f"{name} must be at least {least}, got {getattr(config, name)}", where=name)
    if not 0.0 <= config.ema_decay < 1.0:
        raise ConfigError(f"ema_decay must be in [0, 1), got {config.ema_decay}", where="ema_decay")
    folders = PurePath(config.name).parts
    if not folders or PurePath(config.name).is_absolute() or ".." in folders:
        raise ConfigError(f"'{config.name}' cannot name a run folder", where="name", fix="use a relative name")
    if only_evaluates and not config.val:
        raise ConfigError("a run of 0 steps evaluates, but nothing is to be evaluated", where="val")
    if not config.train and not only_evaluates:
        raise ConfigError("the mixture has no source", where="train", fix="add at least one source to train")
    heads = ("detection_init", "instance_init", "caption_init")
    parts = [name for name in ("init_from", "language_init", "clip_init", *heads) if getattr(config, name)]
    if config.weights and parts:
        raise ConfigError(
            f"weights and {parts[0]} both say what the model starts from",
            where=f"weights, {parts[0]}",
            fix="weights takes a whole model (fine-tuning), init_from a pre-trained backbone: set one of them",
        )
    for index, source in enumerate(config.train):
        if source.weight < 0 or source.batch_size < 1:
            raise ConfigError("weight must not be negative and batch_size at least 1", where=f"train.{index}")
        if source.per_step < 1:
            raise ConfigError(f"per_step must be at least 1, got {source.per_step}", where=f"train.{index}")
        if config.mixture != "together" and source.per_step != 1:
            raise ConfigError("per_step is for a mixture of sources together", where=f"train.{index}.per_step")
        for name, given in (("weight", source.weight != 1.0), ("group", source.group)):
            if config.mixture == "together" and given:
                raise ConfigError(
                    f"{name} is for a mixture that is drawn", where=f"train.{index}.{name}", fix="set per_step instead"
                )
    if config.mixture == "mixed" and len({(source.task, source.batch_size) for source in config.train}) > 1:
        raise ConfigError("sources that share a batch have one task and one batch size", where="train")
    for name in ("language_init", "language_base", "clip_init"):
        if getattr(config, name) and not isinstance(config.model, GSVAConfig):
            raise ConfigError("only GSVA has such a part", where=name, fix="leave it out")
    for name in heads:
        if getattr(config, name) and getattr(config.model, name.removesuffix("_init"), None) is None:
            raise ConfigError("the model has no such head", where=name, fix="leave it out")
        if getattr(config, name) and not isinstance(config.model, ViSFTConfig):
            raise ConfigError("only ViSFT takes heads from elsewhere", where=name, fix="leave it out")
    if config.lora is not None and isinstance(config.model, GSVAConfig):
        raise ConfigError(
            "GSVA has low-rank updates of its own",
            where="lora",
            fix="set model.lora.rank and model.trainable instead",
        )
    if config.language_base and not config.language_init:
        raise ConfigError("a base without the difference that is added to it", where="language_base")
    if config.parallel == "shard" and (config.ema_decay or not isinstance(config.model, GSVAConfig)):
        raise ConfigError(
            "only a GSVA without averaged weights can be spread over processes",
            where="parallel",
            fix="set parallel=replicate" + (", or ema_decay=0" if isinstance(config.model, GSVAConfig) else ""),
        )
    if config.train and not any(source.weight > 0 for source in config.train):
        raise ConfigError("every source of the mixture has weight 0", where="train")
    for part, sources in (("train", config.train), ("val", config.val)):
        for index, source in enumerate(sources):
            if not offers(config.model, source.task):
                raise ConfigError(f"the model does not offer the task {source.task}", where=f"{part}.{index}.task")
    _validate_vqvaes(config)
    _validate_finder(config)
    if config.monitor:
        _validate_monitor(config)


def _validate_vqvaes(config: TrainConfig) -> None:
    model = config.model
    for kind, needed in (
        ("mask", isinstance(model, AiTConfig) and model.instance is not None),
        ("depth", isinstance(model, AiTConfig) and model.depth is not None),
    ):
        given = getattr(config, f"{kind}_vqvae")
        if given and not needed:
            raise ConfigError(f"the model says no {kind} codes", where=f"{kind}_vqvae", fix="leave it out")
        if needed and not given and not config.weights and config.train:
            raise ConfigError(
                f"the model is to say {kind} codes, and there is no VQ-VAE that gives them a meaning",
                where=f"{kind}_vqvae",
                fix=f"train one (recipe=ait.vqvae_{'masks' if kind == 'mask' else kind}), and pass {kind}_vqvae=FOLDER",
            )


def _validate_finder(config: TrainConfig) -> None:
    needed = isinstance(config.model, PolarConfig) and config.model.finder is not None
    if config.finder and not needed:
        raise ConfigError("the model has nothing that finds centres", where="finder", fix="leave it out")
    if needed and not config.finder and not config.weights and config.train:
        raise ConfigError(
            "the model is configured to find centres with another one, which is not named",
            where="finder",
            fix="pass finder=FOLDER of a trained centre predictor or segmenter",
        )


def _validate_monitor(config: TrainConfig) -> None:
    """A wrong name must not show itself after hours of training."""
    known = [
        f"{label}/{metric}"
        for label, source in zip(source_labels(config.val), config.val, strict=True)
        for metric in METRICS[source.task]
    ]
    if config.monitor.rpartition("/")[2] in _FALLING and config.monitor in known:
        raise ConfigError(
            f"monitor '{config.monitor}' is an error: the best checkpoint would be the worst",
            where="monitor",
            fix="choose a metric that rises, e.g. d1",
        )
    if config.monitor not in known:
        raise ConfigError(
            f"monitor '{config.monitor}' names nothing that is evaluated",
            where="monitor",
            fix=nearest(config.monitor, known) if known else "add a source to val",
        )
