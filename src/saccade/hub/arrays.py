"""Numpy arrays inside a pickle, rebuilt from an allow-list without importing what the file names.

detectron2 releases its weights as a plain pickle of numpy arrays. Of such an array the pickle says: the call that makes
an empty one, then a state of (version, shape, dtype, column-major or not, bytes).
"""

from __future__ import annotations

import math
import pickle
from typing import Any

import torch
from torch import Tensor

_DTYPES: dict[str, torch.dtype] = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}


class ArrayType:
    """``numpy.dtype`` of the file."""

    def __init__(self, code: object = "", *_flags: object) -> None:
        if code not in _DTYPES:
            raise pickle.UnpicklingError(f"an array of the type {str(code)[:40]!r}")
        self.dtype = _DTYPES[str(code)]

    def build(self, state: object) -> None:
        """The state of a dtype: its byte order is all that matters."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
            raise pickle.UnpicklingError("an array that is not little-endian")


class Array:
    """``numpy.ndarray`` of the file, empty until its state comes."""

    def __init__(self, *_arguments: object) -> None:
        self.tensor: Tensor | None = None

    def build(self, state: object) -> None:
        """Takes shape, type and bytes.

        Raises:
            pickle.UnpicklingError: They do not agree with one another.
        """
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("the state of an array has another form")
        _, shape, kind, column_major, data = state
        if not isinstance(kind, ArrayType) or not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("the state of an array has another form")
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise pickle.UnpicklingError("an array with an impossible shape")
        if math.prod(shape) * kind.dtype.itemsize != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(data)} bytes")
        flat = torch.frombuffer(bytearray(data), dtype=kind.dtype) if data else torch.empty(0, dtype=kind.dtype)
        if column_major:
            self.tensor = flat.reshape(shape[::-1]).permute(*reversed(range(len(shape))))
        else:
            self.tensor = flat.reshape(shape)


def from_buffer(data: object, kind: object, shape: object, order: object = "C", axes: object = None) -> Array:
    """``numpy.core.numeric._frombuffer``: how protocol 5 writes an array.

    Args:
        data: The bytes.
        kind: The type of the numbers.
        shape: Of the array as it lies in memory.
        order: ``C``, ``F``, or ``K``: the axes are exchanged afterwards (numpy from 2.3 on).
        axes: Which axis of memory each axis of the array is, for ``K``.

    Raises:
        pickle.UnpicklingError: They do not agree with one another.
    """
    array = Array()
    array.build((1, shape, kind, order == "F", data))
    if order == "K":
        assert array.tensor is not None
        if not isinstance(axes, tuple) or set(axes) != set(range(array.tensor.ndim)) or len(set(axes)) != len(axes):
            raise pickle.UnpicklingError("an array whose axes are in no order")
        array.tensor = array.tensor.permute(axes)
    return array


def encode(text: object, encoding: object = "latin1") -> bytes:
    """``_codecs.encode``: how protocol 2 writes bytes.

    Raises:
        pickle.UnpicklingError: Anything but text in latin1.
    """
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return text.encode("latin1")


def with_tensors(tree: Any, depth: int = 0) -> Any:
    """The tree with a tensor in the place of every array, a few levels deep."""
    if isinstance(tree, Array):
        return tree.tensor
    if isinstance(tree, dict) and depth < 3:
        return {key: with_tensors(value, depth + 1) for key, value in tree.items()}
    return tree
