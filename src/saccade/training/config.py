"""The configuration tree of a training run. A recipe is a function that returns a complete :class:`TrainConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from saccade.data.augment import Augment
from saccade.models.git.config import GiTConfig
from saccade.tasks import Task


@dataclass(kw_only=True)
class SourceConfig:
    """One data source of the mixture.

    Attributes:
        task: What it trains or evaluates.
        reader: Name of the reader (``saccade.data.sources.READERS``).
        root: Folder of the data set.
        split: Split name as the reader understands it.
        images: Image folder, relative to root, where the format leaves it open.
        annotations: Annotation file, relative to root, where the format leaves it open.
        classes: Class names, where the format does not carry them.
        limit: Read only the first N samples (0 = all).
        offset: Skip the first N samples.
        weight: Probability weight of this source in the mixture.
        batch_size: Images per process and step.
        repeat_threshold: Class-balanced repeat factor threshold (0 = off).
        augment: Training augmentation; None for evaluation.
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
    weight: float = 1.0
    batch_size: int = 1
    repeat_threshold: float = 0.0
    augment: Augment | None = None


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
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        lr: Base learning rate.
        betas: AdamW betas.
        eps: AdamW epsilon.
        weight_decay: Weight decay of every parameter (or only of matrices, with ``decay_matrices_only``).
        decay_matrices_only: No weight decay on norms, biases and tables.
        clip_norm: Greatest L2 norm of all gradients (0 = no clipping).
        layer_rates: Per-layer multipliers; None = 1 everywhere.
        schedule: ``cosine`` to ``min_lr`` or ``constant``.
        warmup_steps: Linear warm-up.
        min_lr: Absolute learning rate at the end of the cosine, the same for every group.
    """

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_matrices_only: bool = False
    clip_norm: float = 0.1
    layer_rates: LayerRates | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    min_lr: float = 2e-6


@dataclass(kw_only=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        name: Name of the run; the run folder is ``out/name``.
        model: The model to build.
        train: The mixture; every step draws one source by weight.
        val: What is evaluated, each with the metric of its task.
        steps: Optimiser steps.
        optim: Optimiser and schedule.
        weights: A checkpoint folder or zoo name whose whole model is the start (fine-tuning).
        init_from: A pre-training file whose backbone is the start (e.g. a SAM ViT).
        text_init: A BERT embedding file for ``text_embed`` (GiT's ``bert_embed*.pt``).
        vocabulary: A WordPiece vocabulary file; empty = the bundled one.
        accumulate: Batches per optimiser step.
        precision: Arithmetic of the forward pass.
        activation_checkpointing: Recompute activations in the backward pass.
        ema_decay: Decay of the averaged weights that are evaluated and saved (0 = off).
        seed: Seeds initialisation, data order and augmentation.
        workers: Loader processes (0 = load in the training process).
        threads: Threads of the training process (0 = torch's default).
        log_every: Steps between log lines.
        eval_every: Steps between evaluations (0 = only at the end).
        save_every: Steps between checkpoints.
        keep: Checkpoints kept.
        monitor: Metric that decides the best checkpoint, e.g. ``detection/AP``; empty = keep only the last.
        out: Folder of all runs.
        resume: ``auto`` continues from the last whole checkpoint of the run folder; ``never`` refuses an existing one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    name: str
    model: GiTConfig
    train: tuple[SourceConfig, ...]
    steps: int
    val: tuple[SourceConfig, ...] = ()
    optim: OptimConfig = field(default_factory=OptimConfig)
    weights: str = ""
    init_from: str = ""
    text_init: str = ""
    vocabulary: str = ""
    accumulate: int = 1
    precision: Literal["float32", "bf16"] = "float32"
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
    out: str = "runs"
    resume: Literal["auto", "never"] = "auto"
    device: str = "auto"
