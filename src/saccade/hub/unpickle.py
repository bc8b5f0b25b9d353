"""Reads the tensors of a ``torch.save`` file without running anything that the file asks for.

A pickle is a program: it names importable objects and calls them. ``torch.load(weights_only=True)`` refuses the
released checkpoints (their message hub pickles ``mmengine`` and numpy objects), and ``weights_only=False`` would import
and call whatever the file names. This reader is a third way. Its unpickler looks nothing up: the few globals of the
allow-list below are answered with our own objects, and every other global, ``os.system`` as well as
``mmengine...HistoryBuffer``, becomes an :class:`Inert` class that takes any construction, call, item and state and does
nothing with it. The containers are parsed here too (zip and the older stream of pickles), so that sizes, offsets and
strides are checked against the file before a tensor is made of them.
"""

from __future__ import annotations

import io
import json
import mmap
import pickle
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.hub.arrays import Array, ArrayType, encode, from_buffer, with_tensors

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MOST_PICKLE_BYTES = 1 << 30
_MOST_BROADCAST_ELEMENTS = 1 << 20

_STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
_STATE_NAMES = ("state_dict", "model", "weights", "model_state_dict", "module", "state_dict_ema", "model_ema")


class Inert:
    """Stands for an object that the file names and that is not built. It takes everything and does nothing.

    Subclasses are made per global name; ``path`` tells which one it was.
    """

    __slots__ = ()
    path = "unknown"

    def __new__(cls, *_args: object, **_kwargs: object) -> Inert:
        """Takes any arguments and looks at none."""
        return object.__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __call__(self, *_args: object, **_kwargs: object) -> Inert:
        """Calls nothing."""
        return Inert()

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _item: object) -> None:
        """Forgets the item."""

    def extend(self, _items: object) -> None:
        """Forgets the items."""

    def add(self, _item: object) -> None:
        """Forgets the item."""

    def __repr__(self) -> str:
        return f"<inert {self.path}>"


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: torch.dtype
    untyped: bool = False


@dataclass(frozen=True, slots=True)
class _Storage:
    """The bytes of one storage and the dtype under which the file refers to them."""

    data_bytes: Tensor
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Function:
    """An allow-listed callable."""

    call: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


class _Dict(dict[Any, Any]):
    """``OrderedDict`` of the file."""

    __slots__ = ()


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_rest: object) -> Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _view(storage.data_bytes, storage.dtype, offset, size, stride)


def _rebuild_tensor_v3(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    *_rest: object,
) -> Tensor:
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor without a storage or dtype")
    return _view(storage.data_bytes, dtype, offset, size, stride)


def _rebuild_parameter(data: object, *_rest: object) -> object:
    return data


def _rebuild_from_type(function: object, _kind: object, args: object, _state: object = None) -> object:
    if isinstance(function, _Function) and isinstance(args, tuple):
        return function(*args)
    return Inert()


def _size(dims: object = ()) -> tuple[Any, ...]:
    if not isinstance(dims, (tuple, list)):
        raise pickle.UnpicklingError("a size that is no sequence")
    return tuple(dims)


def _view(data_bytes: Tensor, dtype: torch.dtype, offset: object, size: object, stride: object) -> Tensor:
    """A strided view of the storage, after checking that it stays inside."""
    if not isinstance(offset, int) or not isinstance(size, (tuple, list)) or not isinstance(stride, (tuple, list)):
        raise pickle.UnpicklingError("offset, size or stride of a tensor has the wrong type")
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or any(not isinstance(number, int) or number < 0 for number in numbers):
        raise pickle.UnpicklingError("size and stride of a tensor do not agree, or are negative")
    itemsize = dtype.itemsize
    held = data_bytes.numel() // itemsize
    elements = 1
    for length in size:
        elements *= length
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if elements else offset
    if (elements and last >= held) or offset > held:
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} reaches beyond its storage of {held} elements")
    if elements > max(held, _MOST_BROADCAST_ELEMENTS):
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} repeats a storage of {held} elements")
    typed = data_bytes[: held * itemsize].view(dtype)
    return torch.as_strided(typed, tuple(size), tuple(stride), offset)


_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_rebuild_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_rebuild_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_rebuild_from_type),
    ("torch", "Size"): _Function(_size),
    **{
        (module, name): _StorageType(dtype, untyped=name == "UntypedStorage")
        for name, dtype in _STORAGES.items()
        for module in ("torch", "torch.storage", "torch.cuda")
    },
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    ("_codecs", "encode"): _Function(encode),
    ("numpy", "ndarray"): Array,
    ("numpy.core.numeric", "_frombuffer"): _Function(from_buffer),
    ("numpy._core.numeric", "_frombuffer"): _Function(from_buffer),
    ("numpy", "dtype"): _Function(ArrayType),
    ("numpy.core.multiarray", "_reconstruct"): _Function(Array),
    ("numpy._core.multiarray", "_reconstruct"): _Function(Array),
}


# The pure-Python unpickler, on purpose: its instructions can be replaced (see load_build), the C one lets a short file
# reserve gigabytes for its memo table, and the pickle of a checkpoint is small, so that speed does not matter.
class _Unpickler(pickle._Unpickler):
    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: lambda self: self.load_build()}

    def __init__(self, file: IO[bytes], *, storage: Callable[[tuple[Any, ...]], _Storage], inert: Counter[str]) -> None:
        super().__init__(file, encoding="latin1")
        self._storage = storage
        self._inert = inert
        self._stubs: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        # No import ever happens here: the names are only compared with the allow-list.
        allowed = _ALLOWED.get((module, name))
        if allowed is not None:
            return allowed
        path = f"{module}.{name}"
        self._inert[path] += 1
        if path not in self._stubs:
            self._stubs[path] = type("Inert", (Inert,), {"__slots__": (), "path": path})
        return self._stubs[path]

    def load_build(self) -> None:
        # BUILD hands a state to an object: `__setstate__`, or attributes set one by one. Of the objects that are made
        # here arrays need one; all other states (an OrderedDict's is its `_metadata`) are dropped unseen.
        stack: list[Any] = self.stack  # type: ignore[attr-defined]  # (typeshed shows the C class)
        state = stack.pop()
        if isinstance(stack[-1], (Array, ArrayType)):
            stack[-1].build(state)
        elif not isinstance(stack[-1], (Inert, _Dict)):
            raise pickle.UnpicklingError(f"state for a {type(stack[-1]).__name__}")

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 5 or _text(pid[0]) != "storage":
            raise pickle.UnpicklingError(f"unknown persistent id {str(pid)[:80]}")
        return self._storage(pid[1:])


@dataclass(kw_only=True)
class TensorFile:
    """What a weight file holds.

    Attributes:
        path: The file.
        tensors: Name to tensor, in file order, on the CPU, in the dtype of the file.
        meta: The plain values (numbers, strings, lists, dicts of them) that stand beside the state dict.
        skipped: Names in the state dict that hold no tensor, to the reason.
        inert: Global names that the pickle asked for and that were not built, with counts.
        mapping: Where the tensors are mapped from disk, as those of a zip or safetensors file are: they are read when
            they are looked at.
        parts: The files of a folder (:mod:`saccade.hub.weight_sets`), whose path is then ``path``.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    inert: dict[str, int] = field(default_factory=dict)
    mapping: mmap.mmap | None = None
    parts: list[TensorFile] = field(default_factory=list)

    def release(self) -> None:
        """Gives back the memory of mapped tensors that were looked at; the next look reads them from disk again.

        Whoever goes through a file larger than the memory calls this now and then. Tensors must not have been changed.
        """
        if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)
        for part in self.parts:
            part.release()


def read_pickled_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a ``.pth``, ``.pt``, ``.pkl`` or ``.safetensors`` file.

    Args:
        path: The file. Nothing that it names is imported or called.

    Returns:
        Name to tensor, on the CPU. Tensors of a zip file are mapped from disk, copy on write.

    Raises:
        CheckpointError: The file is missing, damaged, of an unknown kind, or holds no state dict.
    """
    return read_tensor_file(path).tensors


def read_tensor_file(path: str | Path) -> TensorFile:
    """Like :func:`read_pickled_state`, together with the plain metadata and what was left out.

    Raises:
        CheckpointError: The file is missing, damaged, of an unknown kind, or holds no state dict.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError("there is no such weight file", where=file, fix="check the path")
    if file.suffix == ".safetensors":
        tensors, mapping = _map_safetensors(file)
        return TensorFile(path=file, tensors=tensors, mapping=mapping)
    tree, inert, mapped = _read_tree(file)
    tensors, meta, skipped = _find_state(tree, file)
    return TensorFile(path=file, tensors=tensors, meta=meta, skipped=skipped, inert=dict(inert), mapping=mapped)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    Raises:
        CheckpointError: The file is missing, truncated or damaged.
    """
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            "the weight file cannot be read",
            where=path,
            why=str(error),
            fix="it is truncated or damaged: copy or download it again",
        ) from error


def _map_safetensors(path: Path) -> tuple[dict[str, Tensor], mmap.mmap]:
    """The tensors of a safetensors file on a mapping of our own: that of the library cannot give memory back."""
    checked = read_safetensors(path)  # the library has compared names, types, shapes and offsets with the file
    with path.open("rb") as raw:
        mapped = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)
    (length,) = struct.unpack("<Q", mapped[:8])
    header = json.loads(mapped[8 : 8 + length])
    tensors = {}
    for name, form in checked.items():
        first, last = header[name]["data_offsets"]
        tensors[name] = (
            _bytes_at(mapped, 8 + length + first, last - first, form.itemsize).view(form.dtype).view(form.shape)
        )
    return tensors, mapped


def read_pickle(path: Path) -> tuple[Any, Counter[str]]:
    """The whole object tree of a ``torch.save`` file, with :class:`Inert` objects where it names foreign classes.

    Returns:
        The tree, and how often each foreign global was asked for.

    Raises:
        CheckpointError: The file is damaged, or no ``torch.save`` file.
    """
    tree, inert, _ = _read_tree(path)
    return tree, inert


def _read_tree(path: Path) -> tuple[Any, Counter[str], mmap.mmap | None]:
    inert: Counter[str] = Counter()
    try:
        if zipfile.is_zipfile(path):
            tree, mapping = _read_zip(path, inert)
            return tree, inert, mapping
        return _read_legacy(path, inert), inert, None
    except CheckpointError:
        raise
    except Exception as error:  # the bytes decide what goes wrong in an unpickler, so that any type can come out of it
        raise CheckpointError(
            "the weight file cannot be read",
            where=path,
            why=f"{type(error).__name__}: {error}",
            fix="it is truncated, damaged or no torch.save file: copy or download it again",
        ) from error


def _read_zip(path: Path, inert: Counter[str]) -> tuple[Any, mmap.mmap]:
    with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if not pickles:
            raise CheckpointError(
                "this is a zip archive of other files, and no weight file",
                where=path,
                why=f"it holds {_names(records)}, and no data.pkl of torch.save",
                fix="unpack it first, and name one of the files in it",
            )
        if len(pickles) > 1:
            raise pickle.UnpicklingError("the zip archive has several data.pkl, so it is not one torch.save file")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in records:
            raise pickle.UnpicklingError("this is a TorchScript program, not a state dict")
        byteorder = f"{root}byteorder"
        if byteorder in records and archive.read(byteorder) != b"little":
            raise pickle.UnpicklingError("the file was written on a big-endian machine")
        if records[pickles[0]].file_size > _MOST_PICKLE_BYTES:
            raise pickle.UnpicklingError("the pickle inside is larger than 1 GiB")
        program = archive.read(pickles[0])
        # Copy on write: the tensors may be changed, the file stays as it is.
        mapped = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)
        held: dict[str, Tensor] = {}

        def storage(parts: tuple[Any, ...]) -> _Storage:
            kind, key = parts[0], _text(parts[1])
            if not isinstance(kind, _StorageType):
                raise pickle.UnpicklingError(f"unknown storage type {kind!r}")
            if key not in held:
                held[key] = _map_record(mapped, records[f"{root}data/{key}"])
            return _Storage(held[key], kind.dtype)

        return _Unpickler(io.BytesIO(program), storage=storage, inert=inert).load(), mapped


def _map_record(mapped: mmap.mmap, info: zipfile.ZipInfo) -> Tensor:
    """The bytes of one uncompressed zip record as a uint8 tensor that shares the mapping."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise pickle.UnpicklingError(f"record '{info.filename}' is compressed; torch.save never does that")
    header = mapped[info.header_offset : info.header_offset + 30]
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name_length + extra_length
    if header[:4] != b"PK\x03\x04" or start + info.file_size > len(mapped):
        raise pickle.UnpicklingError(f"record '{info.filename}' reaches beyond the end of the file")
    return _bytes_at(mapped, start, info.file_size, alignment=16)


def _bytes_at(mapped: mmap.mmap, start: int, count: int, alignment: int) -> Tensor:
    """Bytes of a file, as a uint8 tensor that shares the mapping."""
    if count == 0:
        return torch.empty(0, dtype=torch.uint8)
    data_bytes = torch.frombuffer(mapped, dtype=torch.uint8, count=count, offset=start)
    # torch aligns its records to 64 bytes; a file from elsewhere may not, and a typed view needs it.
    return data_bytes if data_bytes.data_ptr() % alignment == 0 else data_bytes.clone()


def _read_legacy(path: Path, inert: Counter[str]) -> Any:
    """The layout before torch 1.6: a stream of pickles, then each storage as its length and its raw bytes."""
    size = path.stat().st_size
    pending: dict[str, _Storage] = {}
    reserved = 0

    def storage(parts: tuple[Any, ...]) -> _Storage:
        nonlocal reserved
        kind, key, numel = parts[0], _text(parts[1]), parts[3]
        view = parts[4] if len(parts) > 4 else None
        if not isinstance(kind, _StorageType) or not isinstance(numel, int) or numel < 0:
            raise pickle.UnpicklingError("a storage without type or length")
        if view is not None:
            raise pickle.UnpicklingError("storage views of torch < 0.4 are not read")
        if key not in pending:
            reserved += numel * kind.dtype.itemsize
            if reserved > size:
                raise pickle.UnpicklingError("the storages are larger than the file")
            data_bytes = torch.zeros(numel * kind.dtype.itemsize, dtype=torch.uint8)
            pending[key] = _Storage(data_bytes, kind.dtype)
        return pending[key]

    def load(stream: IO[bytes]) -> Any:
        return _Unpickler(stream, storage=storage, inert=inert).load()

    with path.open("rb") as stream:
        first = load(stream)
        if isinstance(first, dict) and not stream.read(1):
            return with_tensors(first)  # a plain pickle of arrays, as detectron2 writes
        if first != _LEGACY_MAGIC:
            raise pickle.UnpicklingError("a pickle, but not one that torch.save wrote")
        if load(stream) != _LEGACY_PROTOCOL:
            raise pickle.UnpicklingError("unknown protocol of torch.save")
        system = load(stream)
        if isinstance(system, Mapping) and system.get("little_endian") is False:
            raise pickle.UnpicklingError("the file was written on a big-endian machine")
        tree = load(stream)
        keys = load(stream)
        if not isinstance(keys, list) or set(map(_text, keys)) != set(pending):
            raise pickle.UnpicklingError("the list of storages does not agree with the tensors")
        for key in map(_text, keys):
            target = pending[key]
            (numel,) = struct.unpack("<q", _exactly(stream, 8))
            if numel * target.dtype.itemsize != target.data_bytes.numel():
                raise pickle.UnpicklingError(f"storage '{key}' has {numel} elements, another number than declared")
            if numel:
                raw = bytearray(_exactly(stream, target.data_bytes.numel()))
                target.data_bytes.copy_(torch.frombuffer(raw, dtype=torch.uint8))
    return tree


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError("the file ends inside a storage")
    return data


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _find_state(tree: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """The state dict inside the tree, the plain values beside it, and the entries that are no tensors."""
    if not isinstance(tree, dict):
        raise CheckpointError("the file holds no state dict", where=path, why=f"its top is {_describe(tree)}")
    inner = next((name for name in _STATE_NAMES if _has_tensors(tree.get(name))), None)
    state = tree if inner is None else tree[inner]
    if not _has_tensors(state):
        raise CheckpointError(
            "the file holds no state dict",
            where=path,
            why=f"no tensor at its top nor under {', '.join(_STATE_NAMES)}; it has {_names(tree)}",
        )
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    rest = {str(key): value for key, value in state.items() if not isinstance(value, Tensor)}
    beside = rest if inner is None else {str(key): value for key, value in tree.items() if key != inner}
    meta = {key: plain for key, value in beside.items() if (plain := _plain(value)) is not None}
    skipped = {key: f"{_describe(value)}, not a tensor" for key, value in rest.items() if key not in meta}
    return tensors, meta, skipped


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def _plain(value: Any, depth: int = 0) -> Any:
    """The value if it is plain data throughout, with everything else left out; None if nothing remains."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if depth < 6 and isinstance(value, dict):
        kept = {str(key): plain for key, item in value.items() if (plain := _plain(item, depth + 1)) is not None}
        return kept or None
    if depth < 6 and isinstance(value, (list, tuple)):
        items = [_plain(item, depth + 1) for item in value]
        return items if items and all(item is not None for item in items) else None
    return None


def _describe(value: Any) -> str:
    return value.path if isinstance(value, Inert) else type(value).__name__


def _names(tree: Iterable[Any]) -> str:
    names = [str(name)[:60] for name in tree]
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "nothing"
