"""Released weights in one file or several: a folder, or an index that says which file holds what, read as one file."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from saccade.errors import CheckpointError
from saccade.hub.shards import INDEX, read_index
from saccade.hub.unpickle import TensorFile, read_tensor_file

_INDEX_ENDING = ".index.json"
_INDICES = (INDEX, "pytorch_model.bin.index.json")
_NUMBERED = re.compile(r"-(\d+)-of-(\d+)\.(bin|safetensors)$")


def read_weight_set(path: str | Path) -> TensorFile:
    """Reads a weight file, an index of several, or a folder of some, as one.

    Args:
        path: A file, ``pytorch_model.bin.index.json`` or ``model.safetensors.index.json``, or a folder with one of
            these, with ``*.safetensors`` or with ``pytorch_model*.bin``.

    Returns:
        All tensors, mapped from disk and read when they are looked at (but those in the form of torch before 1.6).

    Raises:
        CheckpointError: A file is missing, damaged or alone, or two of them hold the same tensor.
    """
    given = Path(path)
    if given.is_dir():
        folder = given
        index = next((folder / name for name in _INDICES if (folder / name).is_file()), None)
    elif given.name.endswith(_INDEX_ENDING):
        folder, index = given.parent, given
    else:
        _check_numbers([given])
        return read_tensor_file(given)
    listed = {} if index is None else read_index(index)
    files = [folder / name for name in sorted({Path(name).name for name in listed.values()})]
    lost = [file for file in files if not file.is_file()]
    if lost:
        raise CheckpointError(
            f"{len(lost)} of {len(files)} weight files are missing",
            where=lost[0],
            why=f"{index} lists them",
            fix="copy or download the folder again",
        )
    if index is None:
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise CheckpointError(
            "the folder has no weights", where=folder, fix="it must hold *.safetensors or pytorch_model*.bin"
        )
    _check_numbers(files)
    parts = [read_tensor_file(file) for file in files]
    tensors: dict[str, Tensor] = {}
    for part in parts:
        twice = next((key for key in part.tensors if key in tensors), None)
        if twice is not None:
            raise CheckpointError(
                "two files of the folder hold the same tensor", where=part.path, why=twice, fix="keep one set of files"
            )
        tensors |= part.tensors
    lacking = [key for key in listed if key not in tensors]
    if lacking:
        raise CheckpointError(
            f"the files lack {len(lacking)} of the tensors that the index lists",
            where=index,
            why=f"e.g. {lacking[0]}, which is to be in {listed[lacking[0]]}",
            fix="copy or download the folder again",
        )
    skipped = {key: reason for part in parts for key, reason in part.skipped.items()}
    return TensorFile(path=folder.absolute(), tensors=tensors, skipped=skipped, parts=parts)


def _check_numbers(files: list[Path]) -> None:
    """Files that are named as the second of three are three."""
    for file in files:
        numbered = _NUMBERED.search(file.name)
        if numbered is None:
            continue
        stem, total = file.name[: numbered.start()], int(numbered[2])
        found = sum(other.name.startswith(f"{stem}-") for other in files)
        if found != total:
            raise CheckpointError(
                f"{found} of the {total} files of these weights",
                where=file,
                fix="give the folder that holds all of them, or its index",
            )
