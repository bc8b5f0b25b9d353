"""Checkpoints that are whole or absent."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from saccade.errors import CheckpointError
from saccade.training.checkpoint import MANIFEST, CheckpointStore, damage, read_state, write_state


def writer(text: str):  # type: ignore[no-untyped-def]
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.bin").write_text(text * 100)
        (folder / "part").mkdir()
        (folder / "part" / "more.bin").write_text(text)

    return write


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def names(store: CheckpointStore) -> list[str]:
    return sorted(entry.name for entry in store.folder.iterdir())


def test_saves_points_and_prunes(store: CheckpointStore) -> None:
    for step in (10, 20, 30, 40):
        store.save(step, writer(str(step)), best=step == 10)
    assert names(store) == ["best", "last", "step-00000010", "step-00000030", "step-00000040"]
    assert (store.folder / "last").resolve() == store.path(40).resolve()
    assert (store.folder / "last" / "model.bin").read_text().startswith("40")
    assert store.best() == store.path(10)
    assert store.newest().folder == store.path(40)
    assert all(damage(store.path(step)) is None for step in store.steps())


@pytest.mark.parametrize("kind", ["truncated", "flipped", "missing", "no manifest", "bad manifest", "nested"])
def test_damaged_checkpoints_are_found_and_passed_over(store: CheckpointStore, kind: str) -> None:
    store.save(10, writer("a"))
    store.save(20, writer("b"))
    path = store.path(20) / "model.bin"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "flipped":
        data = bytearray(path.read_bytes())
        data[7] ^= 1
        path.write_bytes(data)
    elif kind == "missing":
        path.unlink()
    elif kind == "no manifest":
        (store.path(20) / MANIFEST).unlink()
    elif kind == "bad manifest":
        (store.path(20) / MANIFEST).write_text("[1, 2")
    else:
        (store.path(20) / "part" / "more.bin").write_text("x")
    found = store.newest()
    assert found.folder == store.path(10)
    assert [folder for folder, _ in found.damaged] == [store.path(20)]
    assert found.damaged[0][1]
    aside = store.set_aside(store.path(20))
    assert aside.is_dir()
    assert store.steps() == [10]
    store.save(20, writer("c"))
    assert store.newest().folder == store.path(20)


def test_only_damaged_checkpoints_are_an_error(store: CheckpointStore) -> None:
    store.save(10, writer("a"))
    (store.path(10) / "model.bin").write_text("")
    with pytest.raises(CheckpointError, match=r"step-00000010: model\.bin has 0 bytes"):
        store.newest()


def test_no_checkpoint_is_no_error(store: CheckpointStore) -> None:
    assert store.newest().folder is None


def test_full_disk_leaves_the_previous_one_whole(store: CheckpointStore) -> None:
    store.save(10, writer("a"))

    def full(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.bin").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left") as caught:
        store.save(20, full)
    assert "step-00000010" in str(caught.value)
    assert names(store) == ["last", "step-00000010"]
    assert store.newest().folder == store.path(10)


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    store.save(10, writer("a"))
    store.save(10, writer("b"), best=True)
    assert names(store) == ["best", "last", "step-00000010"]
    assert (store.path(10) / "part" / "more.bin").read_text() == "b"


def test_a_kill_while_replacing_loses_nothing(store: CheckpointStore) -> None:
    store.save(10, writer("a"))
    store.path(10).rename(store.folder / ".replaced-step-00000010")  # where the kill hits between the two renames
    assert store.newest().folder == store.path(10)


def test_leftovers_of_a_killed_save_are_swept(store: CheckpointStore) -> None:
    store.save(10, writer("a"))
    writer("half")(store.folder / ".tmp-step-00000020-99")
    (store.folder / ".tmp-last-99").symlink_to("nowhere")
    assert store.newest().folder == store.path(10)
    store.save(20, writer("b"))
    assert names(store) == ["last", "step-00000010", "step-00000020"]


def test_state_is_exact_and_its_absence_is_explained(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4, dtype=torch.float64).T, "b": torch.tensor(3.0), "c": torch.arange(3)}
    write_state(tmp_path, tensors, {"step": 3})
    read, values = read_state(tmp_path, torch.device("cpu"))
    assert values == {"step": 3}
    assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in tensors.items())
    (tmp_path / "trainer.json").unlink()
    with pytest.raises(CheckpointError, match="no training state"):
        read_state(tmp_path, torch.device("cpu"))
