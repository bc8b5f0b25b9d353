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
        All tensors. Those of zip files (``.bin``) are mapped from disk and read when they are looked at.

    Raises:
        CheckpointError: A file is missing, damaged or alone, or two of them hold the same tensor.
    """
    given = Path(path)
    listed: dict[str, str] = {}
    files = [given]
    if given.is_dir():
        index = next((given / name for name in _INDICES if (given / name).is_file()), None)
        files = sorted(given.glob("*.safetensors")) or sorted(given.glob("pytorch_model*.bin"))
    else:
        index = given if given.name.endswith(_INDEX_ENDING) else None
    if index is not None:
        listed = read_index(index)
        files = [index.parent / Path(name).name for name in sorted(set(listed.values()))]
    if not files:
        raise CheckpointError(
            "the folder has no weights", where=given, fix="it must hold *.safetensors or pytorch_model*.bin"
        )
    _check_numbers(files)
    if files == [given]:
        return read_tensor_file(given)
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
    return TensorFile(path=given, tensors=tensors, skipped=skipped, parts=parts)


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
