"""Depth maps as files, and images that have one each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.data.images import read_grey
from saccade.data.sources.label_maps import load_pair
from saccade.data.sources.layout import Records
from saccade.errors import DataError, ImageError, UsageError, require
from saccade.samples import Sample, Target
from saccade.tasks import Task

DEPTH_SUFFIXES = frozenset({".png", ".pgm", ".tif", ".tiff", ".npy", ".exr"})
"""File name endings of depth maps, lower case."""

NO_MEASUREMENT = 65535
"""The greatest 16-bit number: sensors write it where they measured nothing, writers where the depth is too great."""

_EXR_CHANNELS = ("Z", "Y", "depth")


class DepthSource:
    """Images with a metric depth map each.

    Args:
        task: Depth.
        name: Name of the data set and split.
        pairs: Id, image file and depth file of every sample.
        values_per_metre: What the numbers of 16-bit maps are divided by.
        skipped: What the reader of the layout has left out already.

    Raises:
        UsageError: Another task, or a scale that is not positive.
    """

    classes = None

    def __init__(
        self,
        *,
        task: Task,
        name: str,
        pairs: Sequence[tuple[str, Path, Path]],
        values_per_metre: float,
        skipped: Mapping[str, int],
    ) -> None:
        if task is not Task.DEPTH:
            raise UsageError(f"depth maps serve depth, not {task}", where=name)
        if not 0 < values_per_metre < np.inf:
            raise UsageError(f"depth_scale must be a positive number, not {values_per_metre}", where=name)
        self.name, self.task, self.skipped = name, task, dict(skipped)
        self._values_per_metre = values_per_metre
        self._records = Records((image_id, str(image), str(depth)) for image_id, image, depth in pairs)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image and its depth, in the frame of the original image."""
        image_id, image_path, depth_path = self._records[index]
        image, origin, depth_m = load_pair(
            Path(image_path), Path(depth_path), self.name, self._read, image_id=image_id, what="depth map"
        )
        return Sample(image=image, task=self.task, origin=origin, target=Target(depth_m=torch.from_numpy(depth_m)))

    def _read(self, path: Path) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        depth_m = read_depth(path, self._values_per_metre)
        return depth_m, depth_m.shape


def read_depth(path: Path, values_per_metre: float = 1000.0) -> NDArray[np.float32]:
    """Reads a depth map.

    Pictures (PNG, PGM, TIFF) hold 16-bit numbers, 0 and 65535 where nothing was measured; so may arrays of whole
    numbers (NPY). Arrays of floating-point numbers (NPY, EXR) hold metres, and anything that is not a positive number
    where nothing was measured.

    Args:
        path: The file.
        values_per_metre: What whole numbers are divided by.

    Returns:
        ``[H, W]`` metres, 0 where unknown.

    Raises:
        ImageError: The file cannot be read.
        DataError: It holds something else than depth, e.g. a picture of 8 bits.
        MissingExtraError: It is an EXR file, and no reader is installed.
    """
    stored = stored_depth(path)
    if np.issubdtype(stored.dtype, np.integer):
        known = (stored > 0) & (stored != NO_MEASUREMENT)
        depth_m = stored.astype(np.float32) / np.float32(values_per_metre)
    else:
        depth_m = stored.astype(np.float32)
        known = np.isfinite(depth_m) & (depth_m > 0)
    return np.where(known, depth_m, np.float32(0))


def stored_depth(path: Path) -> NDArray:
    """The numbers of a depth file as they are, ``[H, W]`` of an integer (16 bits or more) or floating-point type.

    Raises:
        ImageError: The file cannot be read.
        DataError: It holds something else than depth.
        MissingExtraError: It is an EXR file, and no reader is installed.
    """
    suffix = path.suffix.lower()
    stored = _read_npy(path) if suffix == ".npy" else _read_exr(path) if suffix == ".exr" else read_grey(path)
    if stored.dtype.kind not in "iuf" or stored.dtype.itemsize == 1:
        raise DataError(
            f"a depth map holds numbers of type {stored.dtype}",
            where=path,
            why="8 bits are too few for depth" if stored.dtype.kind in "iu" else None,
            fix="export 16-bit numbers with a scale, or metres in floating point; is it a picture of the depth?",
        )
    return stored


def _read_npy(path: Path) -> NDArray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise ImageError("there is no such file", where=path) from error
    except (OSError, ValueError, EOFError) as error:
        raise ImageError("the file cannot be read as an array", where=path, why=str(error)) from error
    if not isinstance(array, np.ndarray):
        raise ImageError("the file holds several arrays", where=path, fix="store one array, with numpy.save")
    map_ = array.squeeze()
    if map_.ndim != 2 or not map_.size:
        raise DataError(
            "a depth map has the wrong shape", where=path, why=f"it is {list(array.shape)}, not height x width"
        )
    return map_


def _read_exr(path: Path) -> NDArray:
    exr = require("OpenEXR", extra="exr", purpose=f"reading {path.name}")
    if not path.is_file():
        raise ImageError("there is no such file", where=path)
    try:
        with exr.File(str(path), separate_channels=True) as file:
            channels = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except (RuntimeError, ValueError, OSError) as error:
        raise ImageError("the file cannot be read as EXR", where=path, why=str(error)) from error
    named = [name for name in _EXR_CHANNELS if name in channels] or list(channels)
    first = channels[named[0]]
    if len(named) > 1 and any((channels[name] != first).any() for name in named[1:]):
        raise DataError(
            "an EXR file has several channels that differ",
            where=path,
            why=", ".join(channels),
            fix=f"store the depth alone, or name its channel {_EXR_CHANNELS[0]}",
        )
    return first
