"""The weights of a checkpoint folder: one safetensors file, or several with an index where they are large.

The layout is that of the Hugging Face hub: ``model.safetensors``, or ``model-00001-of-00003.safetensors`` and so on
with ``model.safetensors.index.json``. Models may be larger than half of the memory: writing holds one file's tensors at
a time, and reading puts every tensor where it belongs as it comes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from saccade.errors import CheckpointError
from saccade.hub.unpickle import read_safetensors
from saccade.mapping import apply_mapping

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARD_BYTES = 4 * 2**30
"""Weights of more bytes than this are written as several files."""


def write_weights(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[], None] = lambda: None,
    made: Callable[[str], Tensor] | None = None,
) -> dict[str, Any]:
    """Writes the weights of a checkpoint.

    Args:
        folder: Where to.
        state: Name to tensor; where ``made`` makes the tensors, their forms (on the device ``meta``) are enough.
        dtype: Type that floating-point weights are stored in (None = as they are).
        shard_bytes: Greatest size of a file, one tensor apart.
        written: Called behind every file, e.g. to give the memory of its tensors back.
        made: Name to tensor, for weights that are computed one by one.

    Returns:
        What ``config.json`` says of them: files, sizes, digests, number of tensors, types.
    """
    sizes = {key: _stored_bytes(value, dtype) for key, value in state.items()}
    parts = _plan(sizes, shard_bytes)
    names = [WEIGHTS] if len(parts) == 1 else [_shard_name(index, len(parts)) for index in range(len(parts))]
    dtypes: set[str] = set()
    files: dict[str, dict[str, Any]] = {}
    for name, keys in zip(names, parts, strict=True):
        stored = {
            key: (value.to(dtype) if dtype is not None and value.is_floating_point() else value)
            .detach()
            .cpu()
            .contiguous()
            for key, value in ((key, made(key) if made is not None else state[key]) for key in keys)
        }
        dtypes |= {str(value.dtype).removeprefix("torch.") for value in stored.values()}
        # Tensors that share memory would be refused; a clone costs nothing where none do.
        save_file(_unshared(stored), folder / name, metadata={"format": "pt"})
        del stored
        written()
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
    told = {"tensors": len(state), "dtype": "/".join(sorted(dtypes))}
    if len(parts) == 1:
        return {"file": WEIGHTS, **files[WEIGHTS], **told}
    index = {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {key: name for name, keys in zip(names, parts, strict=True) for key in keys},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return {"file": INDEX, "files": files, **told}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, mapped from disk where the system can.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    return {key: value for file in weight_files(folder) for key, value in read_safetensors(file).items()}


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint folder.

    Raises:
        CheckpointError: There are none, or the index cannot be read.
    """
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(
                "the checkpoint has no weights", where=folder / WEIGHTS, fix="copy or download the folder again"
            )
        return [folder / WEIGHTS]
    listed = set(read_index(folder / INDEX).values())
    return [folder / Path(name).name for name in sorted(listed)]


def read_index(path: Path) -> dict[str, str]:
    """Which file holds which tensor, as an index of the Hugging Face hub says it.

    Raises:
        CheckpointError: It is missing, or no such index.
    """
    try:
        return {str(key): str(name) for key, name in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            "the index of the weights cannot be read",
            where=path,
            why=str(error),
            fix="copy or download the folder again",
        ) from error


def check_weights(folder: Path, told: Mapping[str, Any]) -> None:
    """Compares size and digest of every file with what ``config.json`` says.

    Raises:
        CheckpointError: A file is missing, or another one than was written.
    """
    expected = told.get("files") or {WEIGHTS: told}
    for path in weight_files(folder):
        said = expected.get(path.name, {})
        if not path.is_file():
            raise CheckpointError("the checkpoint lacks a weight file", where=path, fix="copy or download it again")
        size = path.stat().st_size
        if said.get("bytes") is not None and size != said["bytes"]:
            raise CheckpointError(
                "the weight file is truncated or was replaced",
                where=path,
                why=f"{size} bytes, but config.json says {said['bytes']}",
                fix="copy or download it again",
            )
        if said.get("sha256") is not None and file_sha256(path) != said["sha256"]:
            raise CheckpointError(
                "the weight file is damaged or was replaced",
                where=path,
                why="its SHA-256 is not the one in config.json",
                fix="copy or download it again",
            )


@contextmanager
def no_weights() -> Iterator[None]:
    """Modules that are built inside have parameters without memory, for :func:`fill`; their buffers are real."""

    def forget(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    # torch's annotation forgets that a hook may return what is registered in the place of the parameter.
    handle = register_module_parameter_registration_hook(cast(Any, forget))
    try:
        yield
    finally:
        handle.remove()


def fill(model: nn.Module, folder: Path, *, device: str | torch.device, dtype: torch.dtype) -> None:
    """Gives a model its weights, file by file and tensor by tensor.

    Args:
        model: Built under :func:`no_weights`, or with weights that are replaced.
        folder: The checkpoint.
        device: Where the weights go.
        dtype: Type that floating-point weights are converted to.

    Raises:
        CheckpointError: A file is damaged, or a key is missing or left over.
    """
    own = model.state_dict()
    files = weight_files(folder)
    found = {key: shape for file in files for key, shape in _shapes(file).items()}
    _, report = apply_mapping(
        {key: torch.empty(shape, device="meta") for key, shape in found.items()},
        expected={key: tuple(value.shape) for key, value in own.items()},
        rename=lambda key: key,
        source=str(folder / (WEIGHTS if len(files) == 1 else INDEX)),
    )
    report.check()
    for file in files:
        part = {}
        with _opened(file) as stored:
            for key in stored.keys():  # noqa: SIM118 (not a dict)
                kind = dtype if own[key].is_floating_point() else own[key].dtype
                # The memory format of the model's own tensor stays.
                part[key] = torch.empty_like(own[key], device=device, dtype=kind).copy_(stored.get_tensor(key))
        model.load_state_dict(part, strict=False, assign=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with _opened(file) as stored:
        return {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            "the weight file cannot be read",
            where=file,
            why=str(error),
            fix="it is truncated or damaged: copy or download it again",
        ) from error


def _stored_bytes(value: Tensor, dtype: torch.dtype | None) -> int:
    kind = dtype if dtype is not None and value.is_floating_point() else value.dtype
    return value.numel() * kind.itemsize


def _plan(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in their order, cut so that no file is larger than it may be (a single tensor may)."""
    parts: list[list[str]] = [[]]
    room = most
    for key, size in sizes.items():
        if parts[-1] and size > room:
            parts.append([])
            room = most
        parts[-1].append(key)
        room -= size
    return parts


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    result = {}
    for key, value in state.items():
        address = value.untyped_storage().data_ptr()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        result[key] = value if whole and address not in seen else value.clone()
        seen.add(address)
    return result
