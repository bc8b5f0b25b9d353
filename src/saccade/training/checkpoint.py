"""Checkpoints that are whole or absent.

A checkpoint is a folder ``checkpoints/step-00001000`` that is written under a temporary name, flushed to the disk, and
renamed at once. Its ``manifest.json`` lists every file with size and SHA-256 and is checked before a resume; a damaged
folder is passed over, by name, for the one before it. ``last`` and ``best`` are relative links.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saccade.errors import CheckpointError

MANIFEST = "manifest.json"
STATE_TENSORS = "trainer.safetensors"
STATE_VALUES = "trainer.json"

_STEP = re.compile(r"step-(\d{8,})")
_REPLACED = ".replaced-"
_CHUNK = 1 << 22


@dataclass(kw_only=True)
class Found:
    """The outcome of a search for the newest whole checkpoint.

    Attributes:
        folder: The newest whole checkpoint; None where there is none at all.
        damaged: What was passed over on the way: folder and reason.
    """

    folder: Path | None
    damaged: list[tuple[Path, str]] = field(default_factory=list)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: The ``checkpoints`` folder of the run.
        keep: How many to keep, beside the one that ``best`` points to.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps for which a folder exists, whole or not, ascending."""
        if not self.folder.is_dir():
            return []
        names = (_STEP.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir())
        return sorted(int(match.group(1)) for match in names if match)

    def path(self, step: int) -> Path:
        """Folder of one step."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, write: Callable[[Path], None], *, best: bool = False) -> Path:
        """Writes one checkpoint, moves the pointers to it and removes the oldest ones.

        Args:
            step: Optimiser steps done.
            write: Writes the files into the (not yet existing) folder that it is given.
            best: Move ``best`` too.

        Returns:
            The folder, whole and on the disk.

        Raises:
            CheckpointError: It could not be written; the checkpoints before it are untouched.
        """
        final = self.path(step)
        temporary = self.folder / f".tmp-{final.name}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.sweep()
            write(temporary)
            _write_manifest(temporary, step)
            self._put(temporary, final)
            self._point("last", final)
            if best:
                self._point("best", final)
        # Whatever stops the write (a full disk, an interrupt), no half folder may stay behind.
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            # safetensors and torch report a full disk as errors of their own, not as OSError.
            if isinstance(error, OSError | SafetensorError | RuntimeError | CheckpointError):
                raise CheckpointError(
                    f"the checkpoint of step {step} could not be written",
                    where=final,
                    why=getattr(error, "why", None) or str(error),
                    fix=f"make room or choose another out=...; the last whole checkpoint is {self._target('last')}, "
                    "start the same command again to go on from it",
                ) from error
            raise
        self.prune()
        return final

    def newest(self) -> Found:
        """Finds the newest checkpoint whose every file is what the manifest says.

        Raises:
            CheckpointError: There are checkpoints, and all of them are damaged.
        """
        self._restore()
        found = Found(folder=None)
        for step in reversed(self.steps()):
            reason = damage(self.path(step))
            if reason is None:
                found.folder = self.path(step)
                return found
            found.damaged.append((self.path(step), reason))
        if found.damaged:
            raise CheckpointError(
                "every checkpoint of this run is damaged",
                where="; ".join(f"{folder.name}: {reason}" for folder, reason in found.damaged),
                fix=f"restore {self.folder} from a backup, or remove it to start the run anew",
            )
        return found

    def set_aside(self, folder: Path) -> Path:
        """Renames a damaged checkpoint to ``damaged-...``, so that it is neither read nor counted again."""
        aside = folder.with_name(f"damaged-{folder.name}")
        if aside.exists():
            self._remove(aside)
        return folder.rename(aside)

    def best(self) -> Path | None:
        """The folder that ``best`` points to."""
        return self._target("best")

    def prune(self) -> None:
        """Removes the oldest checkpoints, never the one that ``best`` or ``last`` points to."""
        kept = {self._target("best"), self._target("last")}
        for step in self.steps()[: -max(1, self.keep)]:
            if self.path(step) not in kept:
                self._remove(self.path(step))

    def sweep(self) -> None:
        """Removes what a killed process left half written or half removed."""
        self._restore()
        for entry in self.folder.glob(".*"):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _put(self, temporary: Path, final: Path) -> None:
        """Moves the new folder into place; an older one of the same step is never missing for good (see `_restore`)."""
        replaced = final.with_name(f"{_REPLACED}{final.name}")
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        _flush_folder(self.folder)
        if replaced.exists():
            shutil.rmtree(replaced)

    def _restore(self) -> None:
        """Puts back what a process was about to replace when it was killed."""
        for replaced in self.folder.glob(f"{_REPLACED}*"):
            final = replaced.with_name(replaced.name.removeprefix(_REPLACED))
            if not final.exists():
                replaced.rename(final)

    def _remove(self, folder: Path) -> None:
        # First out of the way in one rename: a kill in the middle must not leave a folder that looks like a checkpoint.
        doomed = folder.with_name(f".tmp-removed-{folder.name}-{os.getpid()}")
        folder.rename(doomed)
        shutil.rmtree(doomed)

    def _point(self, name: str, target: Path) -> None:
        fresh = self.folder / f".tmp-{name}-{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target.name)
        fresh.replace(self.folder / name)
        _flush_folder(self.folder)

    def _target(self, name: str) -> Path | None:
        link = self.folder / name
        target = self.folder / link.readlink() if link.is_symlink() else None
        return target if target is not None and target.is_dir() else None


def write_state(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Writes the trainer's state into a checkpoint folder.

    Args:
        folder: Existing folder.
        tensors: Any device; stored exactly.
        values: JSON-able values.
    """
    host = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    save_file(host, folder / STATE_TENSORS)
    (folder / STATE_VALUES).write_text(json.dumps(values, indent=1), encoding="utf-8")


def read_state(folder: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write_state` wrote.

    Raises:
        CheckpointError: The folder holds a model but no training state.
    """
    if not (folder / STATE_TENSORS).is_file() or not (folder / STATE_VALUES).is_file():
        raise CheckpointError(
            "the checkpoint has no training state, so no run can resume from it",
            where=folder,
            fix="use weights=... to start a new run from its model",
        )
    tensors = load_file(folder / STATE_TENSORS, device=str(device))
    values: dict[str, Any] = json.loads((folder / STATE_VALUES).read_text(encoding="utf-8"))
    return tensors, values


def damage(folder: Path) -> str | None:
    """Says what is wrong with a checkpoint folder; None when every file is what the manifest says."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
            if _sha256(path) != expected["sha256"]:
                return f"{name} does not have the recorded SHA-256"
    except OSError as error:
        return f"{MANIFEST if not (folder / MANIFEST).is_file() else 'a file'} cannot be read ({error})"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is not a manifest ({error})"
    return None


def _write_manifest(folder: Path, step: int) -> None:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush_file(path)
        files[path.relative_to(folder).as_posix()] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
    _flush_file(manifest)
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _flush_folder(inner)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _flush_file(path: Path) -> None:
    with _descriptor(path, os.O_RDWR) as descriptor:
        os.fsync(descriptor)


def _flush_folder(path: Path) -> None:
    with _descriptor(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
