"""What a person hands over to be looked at: files, folders, patterns, bytes, images, arrays, tensors, lists of them.

Files are found here and read later, one by one, so that a damaged one does not stop the others.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from saccade.data.images import IMAGE_SUFFIXES, from_pil, read_image
from saccade.errors import ImageError, UsageError

OneInput: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | Tensor"
Inputs: TypeAlias = "OneInput | Sequence[OneInput]"
"""A path, folder or pattern (``"images/*.jpg"``), encoded bytes, a Pillow image, a uint8 ``[H, W, 3]`` or ``[H, W]``
array, a uint8 ``[3, H, W]`` or ``[1, H, W]`` tensor, or a list of these. Arrays and tensors are RGB."""

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(kw_only=True, frozen=True)
class Input:
    """One picture, not read yet.

    Attributes:
        stem: A name for output files, unique in the run; a folder's files keep their subfolders.
        image_id: The file name without suffix (as a number where it is one, as in COCO), or the position in the list.
        path: The file, or None for pictures in memory.
        read: Reads the picture: uint8 ``[3, H, W]``, RGB, upright.
    """

    stem: str
    image_id: int | str
    path: str | None
    read: Callable[[], Tensor]


@dataclass(kw_only=True)
class Found:
    """Everything that was handed over.

    Attributes:
        items: The pictures in order (a folder's sorted by path).
        single: Exactly one picture was named, not a folder, a pattern or a list.
        passed_over: Files in folders that do not have the suffix of an image.
    """

    items: list[Input] = field(default_factory=list)
    single: bool = False
    passed_over: list[str] = field(default_factory=list)


def find_inputs(inputs: Inputs) -> Found:
    """Lists the pictures behind what was handed over, without reading them.

    Args:
        inputs: See :data:`Inputs`.

    Raises:
        UsageError: An URL, nothing at all, a pattern or folder without images, or an object of another kind.
        ImageError: A folder cannot be read.
    """
    found = Found()
    if isinstance(inputs, list | tuple):
        for one in inputs:
            _add(found, one)
    else:
        _add(found, inputs)  # type: ignore[arg-type]
        found.single = len(found.items) == 1 and not _is_many(inputs)
    if not found.items:
        raise UsageError("no images were given", fix="name a file, a folder or a pattern such as 'images/*.jpg'")
    found.items = _unique(found.items)
    return found


def _is_many(one: object) -> bool:
    """Whether one argument may stand for several pictures."""
    return isinstance(one, str | os.PathLike) and (_is_folder(one) or _is_pattern(one))


def _is_pattern(path: str | os.PathLike[str]) -> bool:
    """A name with wildcards, unless a file has just this name."""
    return glob.has_magic(os.fspath(path)) and not os.path.lexists(path)


def _is_folder(path: str | os.PathLike[str]) -> bool:
    # Path.is_dir raises where a folder above may not be entered; the file's own error, when it is read, says more.
    return os.path.isdir(path)  # noqa: PTH112


def _add(found: Found, one: OneInput) -> None:
    number = len(found.items)
    memory = partial(Input, stem=f"image_{number:05d}", image_id=number, path=None)
    if isinstance(one, str | os.PathLike):
        _add_path(found, os.fspath(one))
    elif isinstance(one, bytes | bytearray):
        found.items.append(memory(read=partial(read_image, bytes(one))))
    elif isinstance(one, Image.Image):
        found.items.append(memory(read=partial(from_pil, one, where=f"input {number}")))
    elif isinstance(one, np.ndarray | Tensor):
        found.items.append(memory(read=partial(_from_array, one, f"input {number}")))
    else:
        raise UsageError(
            f"cannot read a picture from a {type(one).__name__}",
            where=f"input {number}",
            fix="give a path, bytes, a Pillow image, a uint8 array or tensor, or a list of these",
        )


def _add_path(found: Found, text: str) -> None:
    if _URL.match(text):
        raise UsageError(
            "pictures are not fetched from the network", where=text, fix="download the file and give its path"
        )
    path = Path(text)
    if _is_folder(path):
        _add_folder(found, path)
    elif _is_pattern(text):
        # Path.glob needs a folder to start from; a pattern as it is typed may begin anywhere.
        matches = sorted(match for match in glob.glob(text, recursive=True) if not _is_folder(match))  # noqa: PTH207
        if not matches:
            raise UsageError("no file fits the pattern", where=text)
        root = Path(os.path.commonpath([str(Path(match).parent) for match in matches]) or ".")
        found.items += [_file(Path(match), Path(match).relative_to(root)) for match in matches]
    else:
        found.items.append(_file(path, Path(path.name)))  # a missing file is told when it is read, by its name


def _add_folder(found: Found, root: Path) -> None:
    """Adds the images of a folder and its subfolders; hidden ones are passed over."""
    before = len(found.items)

    def cannot_list(error: OSError) -> None:
        if Path(error.filename) == root:
            raise ImageError("the folder cannot be read", where=root, why=error.strerror) from error
        below = Path(error.filename)
        lost = ImageError("a subfolder cannot be read", where=below, why=error.strerror)
        found.items.append(dataclasses.replace(_file(below, below.relative_to(root)), read=partial(_fail, lost)))

    for folder, subfolders, names in os.walk(root, onerror=cannot_list):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                found.items.append(_file(path, path.relative_to(root)))
            else:
                found.passed_over.append(str(path))
    if len(found.items) == before:
        raise UsageError(
            "the folder holds no images",
            where=root,
            why=f"none of its {len(found.passed_over)} files ends in {', '.join(sorted(IMAGE_SUFFIXES))}"
            if found.passed_over
            else "it is empty",
        )


def _fail(error: ImageError) -> Tensor:
    raise error


def _file(path: Path, relative: Path) -> Input:
    stem = relative.with_suffix("").as_posix()
    name = path.stem
    image_id = int(name) if name.isascii() and name.isdigit() else name
    return Input(stem=stem, image_id=image_id, path=str(path), read=partial(read_image, path))


def _unique(items: Sequence[Input]) -> list[Input]:
    """Makes the stems unique: ``a.jpg`` and ``a.png`` become ``a_jpg`` and ``a_png``, further ones get a number."""
    count = Counter(item.stem for item in items)
    taken: set[str] = {stem for stem, times in count.items() if times == 1}
    unique = []
    for item in items:
        stem = item.stem
        if count[stem] > 1:
            suffix = Path(item.path).suffix.lstrip(".") if item.path else ""
            base = f"{stem}_{suffix}" if suffix else stem
            stem, number = base, 2
            while stem in taken:
                stem, number = f"{base}_{number}", number + 1
            taken.add(stem)
        unique.append(dataclasses.replace(item, stem=stem))
    return unique


def _from_array(array: NDArray[np.uint8] | Tensor, name: str) -> Tensor:
    """uint8 ``[3, H, W]`` of an array ``[H, W, 3]`` or ``[H, W]``, or of a tensor ``[3, H, W]`` or ``[1, H, W]``.

    Raises:
        UsageError: Another shape or dtype.
    """
    if isinstance(array, Tensor):
        image, layout = array.detach().cpu(), "uint8 [3, H, W] or [1, H, W]"
    else:
        layout = "uint8 [H, W, 3] or [H, W]"
        image = torch.from_numpy(np.ascontiguousarray(array)) if array.dtype == np.uint8 else torch.zeros(0)
        if image.ndim == 2:
            image = image[None]
        elif image.ndim == 3:
            image = image.permute(2, 0, 1)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        kind = "tensor" if isinstance(array, Tensor) else "array"
        raise UsageError(
            f"a {kind} of shape {tuple(array.shape)} and type {array.dtype} is no picture",
            where=name,
            fix=f"give {layout}, RGB, 0 to 255",
        )
    return image.expand(3, -1, -1).contiguous()
