"""The plan is a pure function; workers, restarts and ranks do not change the data; errors keep their name."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import MadeSource, make_sample

from saccade.data.augment import CaptionAugment, DetectionAugment, GroundingAugment, Redraw
from saccade.data.loader import EvalLoader, SourceEntry, TrainLoader
from saccade.data.mixture import MAX_SHUFFLED, Mixture
from saccade.data.parcel import pack, unpack
from saccade.data.sources.base import select_range
from saccade.errors import DataError, ImageError, SaccadeError, UsageError
from saccade.samples import Batch, Preprocess, Sample
from saccade.tasks import Task

INPUT = Preprocess(size_hw=(64, 64))


def _mixture(**changes: object) -> Mixture:
    arguments: dict[str, object] = {"lengths": [10, 7], "weights": [3.0, 1.0], "batch_sizes": [2, 3], "seed": 5}
    return Mixture(**(arguments | changes))  # type: ignore[arg-type]


def test_plan_is_a_pure_function_of_seed_and_step() -> None:
    forwards = [_mixture().plan(step) for step in range(5000)]
    fresh = _mixture()
    for step in (4999, 0, 4096, 4095, 1234):
        assert fresh.plan(step) == forwards[step]
    assert [_mixture(seed=6).plan(step) for step in range(50)] != forwards[:50]


def test_plan_follows_the_weights_and_walks_each_stream_without_gaps() -> None:
    mixture = _mixture()
    plans = [mixture.plan(step) for step in range(8000)]
    share = np.mean([plan.source == 0 for plan in plans])
    assert abs(share - 0.75) < 0.02
    for source in (0, 1):
        positions = [position for plan in plans if plan.source == source for position in plan.positions]
        assert positions == list(range(len(positions)))
    assert {_mixture(weights=[0.0, 1.0]).plan(step).source for step in range(200)} == {1}


def test_every_pass_shows_every_sample_once_in_a_new_order() -> None:
    mixture = _mixture()
    passes = [[mixture.index(0, 10 * turn + k) for k in range(10)] for turn in range(4)]
    assert all(sorted(order) == list(range(10)) for order in passes)
    assert len({tuple(order) for order in passes}) == 4
    assert _mixture().index(0, 37) == passes[3][7]


def test_repeat_factors_hold_on_average_and_are_rounded_anew_in_every_pass() -> None:
    factors = [1.0, 2.25, 1.0, 3.0, 1.5, 1.0]  # 9.75 in all: passes of 9
    mixture = _mixture(lengths=[6, 7], factors=[factors, None])
    passes = np.array(
        [np.bincount([mixture.index(0, 9 * turn + k) for k in range(9)], minlength=6) for turn in range(2000)]
    )
    assert (passes >= np.floor(factors) - 1).all() and (passes <= np.ceil(factors)).all()
    assert passes[:, 1].min() == 2 and passes[:, 1].max() == 3
    np.testing.assert_allclose(passes.mean(0), np.array(factors) * 9 / 9.75, atol=0.05)
    assert sorted(mixture.index(1, k) for k in range(7)) == list(range(7))
    whole = _mixture(lengths=[3, 7], factors=[[2, 1, 1], None])
    assert all(sorted(whole.index(0, 4 * turn + k) for k in range(4)) == [0, 0, 1, 2] for turn in range(5))


@pytest.mark.parametrize("world_size", [1, 2])
def test_rounds_take_the_sources_in_turn(world_size: int) -> None:
    """Three batches of the first, one of the second, whatever their weights, beyond the end of a block, too."""
    ranks = [_mixture(rounds=[3, 1], rank=rank, world_size=world_size) for rank in range(world_size)]
    plans = [[mixture.plan(step) for step in range(4200)] for mixture in ranks]
    for own in plans:
        assert [plan.source for plan in own] == [0, 0, 0, 1] * 1050
    for source, size in ((0, 2), (1, 3)):
        steps = zip(*[[plan.positions for plan in own if plan.source == source] for own in plans], strict=True)
        seen = [sorted(position for positions in step for position in positions) for step in steps]
        together = size * world_size
        assert seen == [list(range(k * together, (k + 1) * together)) for k in range(len(seen))]
    fresh = _mixture(rounds=[3, 1], world_size=world_size)
    for step in (4199, 4097, 0, 4096):
        assert fresh.plan(step) == plans[0][step]


def test_ranks_share_a_stream() -> None:
    one = _mixture(batch_sizes=[4, 4])
    two = [_mixture(batch_sizes=[2, 2], rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(50):
        plans = [mixture.plan(step) for mixture in two]
        assert plans[0].source == plans[1].source == one.plan(step).source
        assert sorted(plans[0].positions + plans[1].positions) == list(one.plan(step).positions)


@pytest.mark.parametrize("world_size", [1, 3])
def test_mixed_batches_draw_a_source_for_every_sample(world_size: int) -> None:
    """Any number of ranks shares out the same samples, and batches mix the sources by weight."""
    made = MadeSource(Task.CAPTION, 57)
    often, seldom = select_range(made, limit=50), select_range(made, offset=50)

    def seen(rank: int, size: int, batch: int) -> list[list[int]]:
        entries = [
            SourceEntry(source=source, preprocess=INPUT, weight=weight, batch_size=batch)
            for source, weight in ((often, 3.0), (seldom, 1.0))
        ]
        loader = TrainLoader(entries, seed=3, rank=rank, world_size=size, mixed=True)
        return [[int(origin.image_id) for origin in one.origins] for one in itertools.islice(loader, 10)]

    whole = seen(0, 1, 12)
    shared = [seen(rank, world_size, 12 // world_size) for rank in range(world_size)]
    for step, expected in enumerate(whole):
        assert sorted(number for rank in shared for number in rank[step]) == sorted(expected)
    assert sum({number < 50 for number in batch} == {True, False} for batch in whole) >= 8
    drawn = [number for batch in whole for number in batch]
    assert 75 <= sum(number < 50 for number in drawn) <= 105  # of 120
    assert sorted([number for number in drawn if number >= 50][:7]) == list(range(50, 57))  # a stream of its own


def test_endless_sources_are_read_in_order() -> None:
    mixture = _mixture(lengths=[10**9, 7])
    assert MAX_SHUFFLED < 10**9
    assert [mixture.index(0, k) for k in (0, 1, 12345, 10**9)] == [0, 1, 12345, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [0, 7]}, "without samples"),
        ({"weights": [-1.0, 1.0]}, "weight"),
        ({"weights": [0.0, 0.0]}, "weight"),
        ({"weights": [float("nan"), 1.0]}, "weight"),
        ({"batch_sizes": [0, 1]}, "batch size"),
    ],
)
def test_impossible_mixtures_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _mixture(**changes)


def _entries() -> list[SourceEntry]:
    detection = DetectionAugment(short_sides=(60, 80), crop_range=(40, 60))
    return [
        SourceEntry(source=MadeSource(Task.DETECTION, 9), preprocess=INPUT, augment=detection, weight=2, batch_size=3),
        SourceEntry(source=MadeSource(Task.CAPTION, 5), preprocess=INPUT, augment=CaptionAugment(), batch_size=2),
        SourceEntry(source=MadeSource(Task.GROUNDING, 5), preprocess=INPUT, augment=GroundingAugment(min_side=0.3)),
        SourceEntry(source=MadeSource(Task.SEMANTIC, 4), preprocess=INPUT, batch_size=2),
        SourceEntry(
            source=MadeSource(Task.INSTANCE, 4),
            preprocess=INPUT,
            augment=dataclasses.replace(detection, contour_rays=12, resize_as_float=True),
        ),
    ]


def _take(count: int, **changes: object) -> list[Batch]:
    return list(itertools.islice(TrainLoader(_entries(), seed=3, **changes), count))  # type: ignore[arg-type]


def assert_equal_batches(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        assert one.task == two.task and one.origins == two.origins and one.phrases == two.phrases
        assert one.classes == two.classes
        assert torch.equal(one.images, two.images)
        for first, second in zip(one.targets, two.targets, strict=True):
            for field in dataclasses.fields(first):
                a, b = getattr(first, field.name), getattr(second, field.name)
                assert type(a) is type(b)
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_workers_do_not_change_the_batches_and_the_start_step_resumes() -> None:
    plain = _take(24)
    assert {batch.task for batch in plain} == {
        Task.DETECTION,
        Task.CAPTION,
        Task.GROUNDING,
        Task.SEMANTIC,
        Task.INSTANCE,
    }
    assert_equal_batches(plain, _take(24, workers=2))
    assert_equal_batches(plain[17:], _take(7, start_step=17))
    assert_equal_batches(plain[17:], _take(7, start_step=17, workers=1))


def test_rounds_of_a_loader_and_their_resume() -> None:
    plain = _take(14, rounds=[2, 0, 1, 1, 2])
    tasks = [Task.DETECTION, Task.DETECTION, Task.GROUNDING, Task.SEMANTIC, Task.INSTANCE, Task.INSTANCE]
    assert [batch.task for batch in plain] == [*tasks, *tasks, Task.DETECTION, Task.DETECTION]
    assert_equal_batches(plain[5:], _take(9, rounds=[2, 0, 1, 1, 2], start_step=5, workers=1))


def test_two_ranks_together_see_what_one_sees() -> None:
    entries = [SourceEntry(source=MadeSource(Task.DETECTION, 12), preprocess=INPUT, batch_size=4)]
    halves = [SourceEntry(source=MadeSource(Task.DETECTION, 12), preprocess=INPUT, batch_size=2)]
    whole = next(iter(TrainLoader(entries, seed=1)))
    parts = [next(iter(TrainLoader(halves, seed=1, rank=rank, world_size=2))) for rank in (0, 1)]
    seen = [origin.image_id for part in parts for origin in part.origins]
    assert sorted(seen) == sorted(origin.image_id for origin in whole.origins)


class _RedrawsOdd:
    """A pipeline that cannot use odd samples."""

    def build(self, size: int):
        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            if int(sample.origin.image_id) % 2:
                raise Redraw("odd")
            return DetectionAugment(crop_probability=0.0).build(size)(sample, rng)

        return transform


class _RedrawsAll:
    def build(self, size: int):
        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            raise Redraw("never fits")

        return transform


@pytest.mark.parametrize("workers", [0, 1])
def test_redraws_are_counted_and_bounded(workers: int) -> None:
    def loader(augment: object) -> TrainLoader:
        source = MadeSource(Task.DETECTION, 8)
        return TrainLoader(
            [SourceEntry(source=source, preprocess=INPUT, augment=augment, batch_size=4)], seed=0, workers=workers
        )  # type: ignore[arg-type]

    odd = loader(_RedrawsOdd())
    batches = list(itertools.islice(odd, 6))
    assert all(int(origin.image_id) % 2 == 0 for batch in batches for origin in batch.origins)
    assert odd.redraws["made detection: odd"] >= 12  # half of 24, at least once each
    with pytest.raises(DataError, match="in a row"):
        next(iter(loader(_RedrawsAll())))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_arrives_as_it_is(workers: int) -> None:
    source = MadeSource(Task.DETECTION, 6, broken=4)
    train = TrainLoader([SourceEntry(source=source, preprocess=INPUT)], seed=0, workers=workers)
    with pytest.raises(ImageError) as caught:
        list(itertools.islice(train, 7))
    assert caught.value.where == "photos/broken.jpg" and caught.value.fix == "remove it"
    assert "Traceback" not in str(caught.value)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        list(EvalLoader(source, preprocess=INPUT, batch_size=4, workers=workers))


@pytest.mark.parametrize(("workers", "world_size", "batch_size"), [(0, 1, 4), (2, 1, 3), (0, 3, 2), (0, 12, 2)])
def test_evaluation_sees_everything_exactly_once(workers: int, world_size: int, batch_size: int) -> None:
    source = MadeSource(Task.INSTANCE, 11)
    seen: Counter[object] = Counter()
    for rank in range(world_size):
        loader = EvalLoader(
            source, preprocess=INPUT, batch_size=batch_size, workers=workers, rank=rank, world_size=world_size
        )
        pairs = list(loader)
        assert len(pairs) == len(loader)
        for originals, batch in pairs:
            assert len(originals) == len(batch) <= batch_size
            assert [sample.origin for sample in originals] == batch.origins
            assert batch.images.shape[-2:] == (64, 64)
            for sample in originals:
                assert sample.size_hw == sample.origin.size_hw
                expected = make_sample(int(sample.origin.image_id), Task.INSTANCE)
                assert torch.equal(sample.target.masks, expected.target.masks)
                seen[sample.origin.image_id] += 1
    assert seen == Counter(range(11))


def test_parcels_keep_types_and_values_and_share_only_large_tensors() -> None:
    sample = make_sample(1, Task.INSTANCE, size_hw=(200, 200))
    parcel = pack(sample)
    assert len(parcel) == 3  # the pickle, the image and the masks
    assert parcel[0].dtype == torch.uint8 and len(parcel[0]) < 4000
    back = unpack(parcel)
    assert type(back.image) is type(sample.image) and torch.equal(back.image, sample.image)
    assert type(back.target.masks) is type(sample.target.masks)
    assert back.target.boxes.canvas_size == (200, 200) and torch.equal(back.target.boxes, sample.target.boxes)
    assert back.classes == sample.classes and back.origin == sample.origin


class _Killed(MadeSource):
    """A source whose reading kills its process, as the system does when memory runs out."""

    def __getitem__(self, index: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker_is_one_clear_error() -> None:
    loader = TrainLoader([SourceEntry(source=_Killed(Task.DETECTION, 4), preprocess=INPUT)], seed=0, workers=1)
    with pytest.raises(SaccadeError, match="a loader process died"):
        next(iter(loader))


def test_closing_the_iterator_ends_the_workers() -> None:
    before = set(multiprocessing.active_children())
    batches = iter(TrainLoader(_entries(), seed=0, workers=2))
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


PROGRAM = """
import multiprocessing, os, signal, sys
sys.path.insert(0, {folder!r})
from test_loader import _entries, TrainLoader
batches = iter(TrainLoader(_entries(), seed=0, workers=2))
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
kept = [batches]
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("raise RuntimeError('a bug')", 1), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
    ids=["error", "killed"],
)
def test_workers_do_not_outlive_a_program_that_holds_an_iterator(tmp_path: Path, end: str, code: int) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(folder=str(Path(__file__).parent), end=end))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == code, done.stderr
    workers = [int(number) for number in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 120
    while any(_is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "the workers go on without their program"
        time.sleep(0.2)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/status")
    return not (status.exists() and "(zombie)" in status.read_text())


def test_workers_leave_signals_to_the_training_process() -> None:
    others = set(multiprocessing.active_children())
    batches = iter(TrainLoader(_entries(), seed=0, workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert len(list(itertools.islice(batches, 8))) == 8
    assert worker.is_alive()
    batches.close()


def test_errors_cross_a_process_border_unchanged() -> None:
    error = ImageError("what", where="file.jpg", why="why", fix="fix")
    back = unpack(pack(error))
    assert type(back) is ImageError and str(back) == str(error)
