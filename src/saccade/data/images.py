"""Reads pictures safely: one function for every format, one clear error for every damaged or hostile file.

Rules:

- the header is looked at first: a picture of more than ``max_pixels`` is refused before anything is decoded;
- EXIF orientation is applied (damaged EXIF data counts as none);
- grey, palette, CMYK and other colour spaces become RGB; transparency is laid on white;
- 16-bit samples are scaled to 8 bit by their full range (65535 becomes 255);
- of an animation or a multi-page file the first picture is read.
"""

from __future__ import annotations

import io
import os
import re
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from saccade.errors import ImageError, nearest

Readable: TypeAlias = "str | os.PathLike[str] | bytes"

MAX_PIXELS = 50_000_000
"""Pictures larger than this are refused unless the caller raises the limit."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif"}
)
"""File name endings, lower case, that a folder is searched for."""

# Vector and document formats are left out on purpose: some of them start other programs.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


def read_image(source: Readable, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Reads a picture.

    Args:
        source: A path, or the encoded bytes.
        max_pixels: Greatest width times height.

    Returns:
        ``[3, H, W]`` uint8, RGB, upright.

    Raises:
        ImageError: Missing, empty, unreadable, not a picture, damaged, or too large; the message names the file.
    """
    with _open(source, max_pixels) as picture:
        return from_pil(picture, where=_name(source), max_pixels=max_pixels)


def from_pil(picture: Image.Image, *, where: str = "a Pillow image", max_pixels: int = MAX_PIXELS) -> Tensor:
    """Converts a Pillow image, decoding it if that has not happened yet.

    Args:
        picture: Any mode.
        where: What an error calls it.
        max_pixels: Greatest width times height.

    Returns:
        ``[3, H, W]`` uint8, RGB, upright.

    Raises:
        ImageError: Damaged, too large, or of a mode without a defined range of grey levels.
    """
    _check_size(picture, where, max_pixels)
    _decode(picture, where)
    turn = _TURNS.get(_orientation(picture))
    array = _to_rgb(picture, where)
    if turn is not None:
        array = np.asarray(Image.fromarray(array).transpose(turn))
    return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))


def image_size(source: Readable, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture after EXIF orientation, from its header alone.

    Raises:
        ImageError: As :func:`read_image`, except for damage behind the header.
    """
    with _open(source, max_pixels) as picture:
        _check_size(picture, _name(source), max_pixels)
        width, height = picture.size
        return (width, height) if _orientation(picture) in _SIDEWAYS else (height, width)


def read_labels(source: Readable, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Reads a mask or label map: the stored numbers, not their colours.

    Palette images give their indices, 16-bit images their full values; of a colour image whose channels are equal
    one channel is taken.

    Returns:
        ``[H, W]`` int32.

    Raises:
        ImageError: As :func:`read_image`, or the file holds colours instead of numbers, or nothing but transparency.
    """
    where = _name(source)
    with _open(source, max_pixels) as picture:
        _check_size(picture, where, max_pixels)
        _decode(picture, where)
        if picture.mode in ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N"):
            labels = np.array(picture, np.int32)
            if labels.min() < 0 or labels.max() > 65535:
                raise ImageError("a label map with values beyond 0..65535", where=where)
            return labels
        if picture.mode in ("RGB", "RGBA", "LA", "PA"):
            channels = np.asarray(picture.convert("RGB"), np.int32)
            see_through = picture.mode != "RGB" and np.asarray(picture.getchannel("A")).std() > 0
            if see_through and (channels == channels[:1, :1]).all():
                raise ImageError(
                    "a mask or label map that is drawn in transparency",
                    where=where,
                    why="its colour is the same everywhere, only the alpha channel differs",
                    fix="save it without an alpha channel: a grey PNG, white on black or class numbers",
                )
            if (channels == channels[:, :, :1]).all():
                return np.ascontiguousarray(channels[:, :, 0])
        raise ImageError(
            "a label map that holds colours",
            where=where,
            why=f"its mode is {picture.mode}, and the channels differ",
            fix="store class numbers: a grey or palette PNG",
        )


def read_grey(source: Readable, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Reads the stored numbers of a grey picture in the width of the file (depth maps).

    Returns:
        ``[H, W]`` uint8 or uint16.

    Raises:
        ImageError: As :func:`read_image`, or the file holds colours, or numbers that 16 bits do not hold.
    """
    where = _name(source)
    with _open(source, max_pixels) as picture:
        _check_size(picture, where, max_pixels)
        most = _greatest_grey(source)
        _decode(picture, where)
        if picture.mode in ("L", "P", "1"):
            return np.array(picture, np.uint8)
        if not picture.mode.startswith("I"):
            raise ImageError(
                "a map that holds no whole numbers",
                where=where,
                why=f"its mode is {picture.mode}",
                fix="store 16-bit grey",
            )
        numbers = np.array(picture, np.int64)
        if numbers.min() < 0 or numbers.max() > 65535:
            raise ImageError("a map with values beyond 0..65535", where=where)
        if most != 65535:  # Pillow stretches the grey levels of PGM files
            numbers = np.rint(numbers * (most / 65535)).astype(np.int64)
        return numbers.astype(np.uint16)


def read_rgba(source: Readable, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Reads the four stored channels of a picture that holds numbers, not colours (BDD100K's bit masks).

    Returns:
        ``[H, W, 4]`` uint8.

    Raises:
        ImageError: As :func:`read_image`, or the file has other channels.
    """
    where = _name(source)
    with _open(source, max_pixels) as picture:
        _check_size(picture, where, max_pixels)
        _decode(picture, where)
        if picture.mode != "RGBA":
            raise ImageError(
                "a bit mask without its four channels", where=where, why=f"its mode is {picture.mode}, not RGBA"
            )
        return np.array(picture)


def _greatest_grey(source: Readable) -> int:
    """What a PGM file stores white as; 65535 for all other files."""
    if isinstance(source, bytes):
        head = source[:1024]
    else:
        with Path(source).open("rb") as file:
            head = file.read(1024)
    if head[:2] not in (b"P2", b"P5"):
        return 65535
    return int(re.sub(rb"#[^\n]*", b"", head).split(maxsplit=4)[3])


def _name(source: Readable) -> str:
    return f"{len(source)} bytes in memory" if isinstance(source, bytes) else os.fspath(source)


@cache
def _formats() -> tuple[str, ...]:
    """The allowed formats that this Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(source: Readable, max_pixels: int) -> Image.Image:
    """Reads the header."""
    where = _name(source)
    try:
        if isinstance(source, bytes):
            head, stream = source[:16], io.BytesIO(source)
            return Image.open(stream, formats=_formats()) if source else _fail_empty(where)
        path = Path(source)
        with path.open("rb") as file:
            head = file.read(16)
        if not head:
            return _fail_empty(where)
        return Image.open(path, formats=_formats())
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("there is no such file", where=where, fix=_hint(Path(where))) from error
    except IsADirectoryError as error:
        raise ImageError("a folder, not a picture", where=where, fix="name a file in it") from error
    except PermissionError as error:
        raise ImageError(
            "the file may not be read", where=where, why=error.strerror, fix="change its permissions (chmod u+r)"
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(where, str(error), max_pixels) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "this is not a picture in a known format",
            where=where,
            why=_looks_like(head),
            fix=f"formats: {', '.join(_formats())}",
        ) from error
    except Exception as error:  # parsers raise nearly anything on hostile headers
        raise ImageError("the file cannot be opened as a picture", where=where, why=_reason(error)) from error


def _fail_empty(where: str) -> Image.Image:
    raise ImageError("the file is empty (0 bytes)", where=where, fix="fetch or export it again")


def _hint(path: Path) -> str:
    folder = path.parent
    if path.is_symlink():
        return f"it is a link to {path.readlink()}, which does not exist"
    try:
        beside = [entry.name for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES]
    except OSError:
        return f"the folder {folder} does not exist either, or cannot be read"
    return nearest(path.name, beside) if beside else f"{folder} holds no pictures"


def _looks_like(head: bytes) -> str:
    if head[:4] == b"%PDF":
        return "it is a PDF document"
    if head[:1] in (b"<", b"{", b"[") or (head.isascii() and head.decode().isprintable()):
        return f"it begins like text: {head.decode('ascii', 'replace')!r}"
    return f"it begins with the bytes {head[:8].hex(' ')}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _too_large(where: str, why: str, max_pixels: int) -> ImageError:
    return ImageError(
        "the picture is too large to be opened safely",
        where=where,
        why=why,
        fix=f"the limit is {max_pixels:,} pixels (max_pixels); scale the picture down or raise the limit",
    )


def _check_size(picture: Image.Image, where: str, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise _too_large(where, f"its header says {width} x {height} pixels", max_pixels)
    if not width or not height:
        raise ImageError("the picture has no pixels", where=where, why=f"its header says {width} x {height}")


def _decode(picture: Image.Image, where: str) -> None:
    try:
        picture.load()
    except Exception as error:  # decoders raise nearly anything on damaged data
        raise ImageError(
            "the picture is damaged", where=where, why=_reason(error), fix="fetch or export it again"
        ) from error


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF blocks are damaged in as many ways as cameras exist; the pixels are sound
        return 1


def _to_rgb(picture: Image.Image, where: str) -> NDArray[np.uint8]:
    """``[H, W, 3]`` uint8."""
    mode = picture.mode
    if mode == "RGB":
        return np.asarray(picture)
    if mode.startswith("I") or mode == "F":
        grey = _grey8(np.asarray(picture), mode, where)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        return _on_white(picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"))


def _on_white(picture: Image.Image) -> NDArray[np.uint8]:
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def _grey8(values: NDArray, mode: str, where: str) -> NDArray[np.uint8]:
    """Grey levels of more than 8 bits, scaled by the full range of their type."""
    least, most = float(values.min()), float(values.max())
    if mode.startswith("I") and least >= 0 and most <= 65535:
        return np.rint(values.astype(np.float32) / 257.0).astype(np.uint8)
    if mode == "F" and least >= 0 and most <= 1.0:
        return np.rint(values * 255.0).astype(np.uint8)
    if mode == "F" and least >= 0 and most <= 255.0:
        return np.rint(values).astype(np.uint8)
    raise ImageError(
        "grey levels without a defined range",
        where=where,
        why=f"mode {mode}, values {least:g} to {most:g}",
        fix="export 8 or 16 bits per sample",
    )
