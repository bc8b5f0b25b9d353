"""Sends samples and batches from a loader process to the training process with few file descriptors.

Every tensor that crosses through shared memory holds a file descriptor open; a batch of detection targets has hundreds
of small ones, and the usual limit is 1024. A parcel is a short list of tensors: one that holds the pickled value with
all its small tensors, and the large tensors. Nothing of any size goes through the pipe between the processes: a full
pipe would keep a loader process alive after its training process was killed.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

Parcel: TypeAlias = list[Tensor]
"""The pickled value as bytes (uint8), then its large tensors."""

_SHARED_FROM_BYTES = 1 << 16


def pack(value: object) -> Parcel:
    """Packs any picklable value with CPU tensors in it."""
    packer = _Packer()
    packer.dump(value)
    return [torch.frombuffer(packer.buffer.getbuffer(), dtype=torch.uint8), *packer.large]


def unpack(parcel: Parcel) -> Any:
    """The value that was packed; its large tensors share memory with the parcel."""
    content, *large = parcel
    return _Unpacker(io.BytesIO(content.numpy().data), large).load()


class _Packer(pickle.Pickler):
    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        self.large: list[Tensor] = []
        super().__init__(self.buffer, protocol=pickle.HIGHEST_PROTOCOL)

    def persistent_id(self, obj: object) -> Any:
        if type(obj) is Tensor and obj.nbytes >= _SHARED_FROM_BYTES:
            self.large.append(obj)
            return len(self.large) - 1
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, tv_tensors.BoundingBoxes):
            return _wrap_boxes, (obj.as_subclass(Tensor), obj.format.value, obj.canvas_size)
        if isinstance(obj, tv_tensors.Mask):
            return tv_tensors.Mask, (obj.as_subclass(Tensor),)
        if isinstance(obj, tv_tensors.Image):
            return tv_tensors.Image, (obj.as_subclass(Tensor),)
        if type(obj) is Tensor:
            return _to_tensor, (obj.contiguous().numpy(),)
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, large: list[Tensor]) -> None:
        super().__init__(buffer)
        self._large = large

    def persistent_load(self, pid: Any) -> Tensor:
        return self._large[pid]


def _to_tensor(array: NDArray) -> Tensor:
    return torch.from_numpy(np.array(array))


def _wrap_boxes(data: Tensor, box_format: str, canvas_size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(data, format=tv_tensors.BoundingBoxFormat(box_format), canvas_size=canvas_size)
