"""Loads batches: an endless mixture for training, one exact pass for evaluation."""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import os
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import RawValue
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from saccade.data.augment import Augment
from saccade.data.mixture import Mixture
from saccade.data.parcel import Parcel, pack, unpack
from saccade.data.pipeline import Extra, Redraw, Transform
from saccade.data.sources.base import Repeated, Source
from saccade.data.transforms import collate, preprocess
from saccade.errors import DataError, SaccadeError, UsageError
from saccade.samples import Batch, Preprocess, Sample

_MAX_REDRAWS = 100


@dataclass(kw_only=True)
class SourceEntry:
    """One source of a training mixture.

    Attributes:
        source: Where samples come from.
        preprocess: What the model declares for the source's task.
        augment: Training augmentation; None = the test-time resize.
        weight: Probability weight.
        batch_size: Samples per process and step.
        extra: What the model is given besides pictures. The augmentation then leaves samples in the frame of the
            original image.
    """

    source: Source
    preprocess: Preprocess
    augment: Augment | None = None
    weight: float = 1.0
    batch_size: int = 1
    extra: Extra | None = None


class TrainLoader:
    """An endless iterator over training batches, one task per batch.

    Batch number k of a rank is a pure function of (seed, k, rank): the number of workers does not change it, and a
    loader with ``start_step=k`` goes on exactly where another one stopped before batch k.

    Args:
        sources: The mixture.
        seed: Seeds order, choice of sources and augmentation.
        rank: This process.
        world_size: Number of processes.
        workers: Loader processes (0 = load in this process).
        start_step: Number of the first batch.
        rounds: Batches of every source in a round; None = sources are drawn by weight.
        repeat: Batches in a row that a drawn source is kept for.
        mixed: A source is drawn for every sample, not for every batch; all have the task and batch size of the first.
        pin_memory: Pin the tensors for the copy to a GPU.

    Attributes:
        redraws: How many samples were drawn again so far, by source and reason.
    """

    def __init__(
        self,
        sources: Sequence[SourceEntry],
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        start_step: int = 0,
        rounds: Sequence[int] | None = None,
        repeat: int = 1,
        mixed: bool = False,
        pin_memory: bool = False,
    ) -> None:
        mixture = Mixture(
            lengths=[len(entry.source) for entry in sources],
            factors=[entry.source.factors if isinstance(entry.source, Repeated) else None for entry in sources],
            weights=[entry.weight for entry in sources],
            batch_sizes=[1 if mixed else entry.batch_size for entry in sources],
            seed=seed,
            rank=0 if mixed else rank,
            world_size=1 if mixed else world_size,
            rounds=rounds,
            repeat=repeat,
        )
        # Mixed, the plan is one of single samples, of which every rank takes a batch in turn.
        each = sources[0].batch_size * world_size if mixed else 1
        own = range(rank, each, world_size) if mixed else range(1)
        self.redraws: Counter[str] = Counter()
        self._steps = _Steps(sources, mixture, each, own)
        self._start_step, self._workers, self._pin_memory = start_step, workers, pin_memory

    def __iter__(self) -> Generator[Batch, None, None]:
        for batch, redraws in _load(self._steps, _CountFrom(self._start_step), self._workers, self._pin_memory):
            self.redraws.update(redraws)
            yield batch


class EvalLoader:
    """Iterates once over a source: every sample exactly once over all ranks.

    Yields pairs of the original samples (truth in the frame of the original image) and the batch of network inputs
    (without targets).

    Args:
        source: Where samples come from.
        preprocess: What the model declares for the source's task.
        batch_size: Samples per batch; the last one may be smaller.
        workers: Loader processes (0 = load in this process).
        rank: This process takes samples rank, rank + world_size, ...
        world_size: Number of processes.
        pin_memory: Pin the tensors for the copy to a GPU.
        even: Every rank gets equally many samples, for processes that must go in step: where one has none left, it is
            given the first ones of the source again, which the caller leaves out.
        extra: What the model is given besides pictures.
    """

    def __init__(
        self,
        source: Source,
        *,
        preprocess: Preprocess,
        extra: Extra | None = None,
        batch_size: int = 1,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        even: bool = False,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, not {batch_size}", where=source.name)
        end = -(-len(source) // world_size) * world_size if even else len(source)
        indices = [index % len(source) for index in range(rank, end, world_size)]
        chunks = [indices[k : k + batch_size] for k in range(0, len(indices), batch_size)]
        self._chunks = _Chunks(source, preprocess, extra, chunks)
        self._workers, self._pin_memory = workers, pin_memory

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Generator[tuple[list[Sample], Batch], None, None]:
        yield from _load(self._chunks, range(len(self._chunks)), self._workers, self._pin_memory)


class _CountFrom:
    """The endless sampler start, start + 1, ..."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        step = self._start
        while True:
            yield step
            step += 1


class _Steps(Dataset[Parcel]):
    """Step number -> (batch, counts of redraws), packed."""

    def __init__(self, sources: Sequence[SourceEntry], mixture: Mixture, each: int, own: range) -> None:
        self._sources, self._mixture = list(sources), mixture
        self._each, self._own = each, own  # draws of the plan in a step, and which of them are of this rank
        self._transforms: list[Transform] | None = None

    def __getitem__(self, step: int) -> Parcel:
        return _packed(lambda: self._load(step))

    def _load(self, step: int) -> tuple[Batch, Counter[str]]:
        if self._transforms is None:  # built here, in the worker: closures do not cross process borders
            self._transforms = [_transform_of(entry) for entry in self._sources]
        plans = [self._mixture.plan(step * self._each + offset) for offset in self._own]
        redraws: Counter[str] = Counter()
        entry = self._sources[plans[0].source]
        drawn = [self._draw(plan.source, position, redraws) for plan in plans for position in plan.positions]
        batch = collate([sample for sample, _ in drawn], entry.preprocess)
        if entry.extra is not None:
            batch = entry.extra.join(batch, [prepared for _, prepared in drawn], training=True)
        return batch, redraws

    def _draw(self, number: int, position: int, redraws: Counter[str]) -> tuple[Sample, Any]:
        """A sample in the frame of the network input, and what the model is given besides."""
        assert self._transforms is not None
        entry, transform = self._sources[number], self._transforms[number]
        source = entry.source
        rng = self._mixture.generator(number, position)
        index = self._mixture.index(number, position)
        for _ in range(_MAX_REDRAWS):
            try:
                sample = transform(source[index], rng)
            except Redraw as signal_:
                redraws[f"{source.name}: {signal_.reason}"] += 1
                index = int(rng.integers(len(source)))
                continue
            if entry.extra is None:
                return sample, None
            return preprocess(sample, entry.preprocess, with_target=False), entry.extra.prepare(sample, rng)
        raise DataError(
            f"{_MAX_REDRAWS} samples in a row could not be used",
            where=source.name,
            why="; ".join(redraws),
            fix="run `saccade data check` on the source, or weaken its augmentation",
        )


class _Chunks(Dataset[Parcel]):
    """Batch number -> (original samples, batch), packed."""

    def __init__(self, source: Source, declared: Preprocess, extra: Extra | None, chunks: list[list[int]]) -> None:
        self._source, self._declared, self._extra, self._chunks = source, declared, extra, chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, number: int) -> Parcel:
        return _packed(lambda: self._load(number))

    def _load(self, number: int) -> tuple[list[Sample], Batch]:
        samples = [self._source[index] for index in self._chunks[number]]
        inputs = [preprocess(sample, self._declared, with_target=False) for sample in samples]
        batch = collate(inputs, self._declared)
        if self._extra is not None:
            batch = self._extra.join(batch, [self._extra.prepare(sample) for sample in samples], training=False)
        return samples, batch


def _transform_of(entry: SourceEntry) -> Transform:
    declared = entry.preprocess
    if entry.augment is None and entry.extra is not None:
        return lambda sample, rng: sample
    if entry.augment is None:
        return lambda sample, rng: _without_crowds(preprocess(sample, declared))
    height, width = declared.size_hw
    if height != width:
        raise UsageError(f"training augmentation makes square inputs, not {height} x {width}", where=entry.source.name)
    return entry.augment.build(height)


def _without_crowds(sample: Sample) -> Sample:
    """Crowd regions are never training targets."""
    target = sample.target
    if target.is_crowd is None or not target.is_crowd.any():
        return sample
    keep = ~target.is_crowd
    kept = {
        name: value[keep]
        for name in ("boxes", "class_ids", "masks", "is_crowd", "areas")
        if (value := getattr(target, name)) is not None
    }
    return dataclasses.replace(sample, target=dataclasses.replace(target, **kept))


def _packed(load: Any) -> Parcel:
    # An error raised in a worker would arrive wrapped in the text of a traceback: send it as a value instead.
    try:
        return pack(load())
    except SaccadeError as error:
        return pack(error)


def _load(dataset: Dataset[Parcel], sampler: Any, workers: int, pin_memory: bool) -> Generator[Any, None, None]:
    """Loads in order, in this process or in others; raises what a loader raised."""
    ending = RawValue(ctypes.c_bool, False)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        prefetch_factor=2 if workers else None,
        worker_init_fn=partial(_start_worker, ending=ending) if workers else None,
        collate_fn=_as_it_is,
    )
    end = partial(setattr, ending, "value", True)
    # At exit this iterator may still be alive (a traceback holds it). Handlers run last come first: this one before
    # that of multiprocessing, which sends SIGTERM to the workers and waits for them.
    atexit.register(end)
    parcels = iter(loader)
    try:
        while True:
            try:
                value = unpack(next(parcels))
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise SaccadeError(
                    "a loader process died",
                    why=str(error),
                    fix="it was probably killed for memory: use fewer workers or smaller batches",
                ) from error
            if isinstance(value, SaccadeError):
                raise value
            yield value
    finally:
        end()
        atexit.unregister(end)


def _as_it_is(parcel: Any) -> Any:
    return parcel


def _start_worker(number: int, *, ending: Any) -> None:
    """Ctrl-C and SIGTERM, which may be sent to all processes of a job, are for the training process.

    It saves and then ends its workers, by SIGTERM too if they are slow; only then they obey.
    """
    del number

    def end(signum: int, frame: object) -> None:
        if ending.value:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    torch.set_num_threads(1)
