"""Every damaged or hostile picture gives a right result or one clear error that names the file."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.images import from_pil, image_size, read_image, read_labels
from saccade.errors import ImageError

COLOURS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
SMOOTH = np.stack(np.meshgrid(np.arange(0, 240, 12), np.arange(0, 240, 20)), -1).astype(np.uint8)  # 12 x 20 x 2
SMOOTH = np.concatenate([SMOOTH, np.full((12, 20, 1), 90, np.uint8)], axis=2)


def _hwc(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.dtype == torch.uint8 and tensor.shape[0] == 3
    return tensor.permute(1, 2, 0).numpy()


def _save(path: Path, array: np.ndarray = COLOURS, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def test_plain_png_and_bytes_are_read_exactly(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png")
    assert np.array_equal(_hwc(read_image(path)), COLOURS)
    assert np.array_equal(_hwc(read_image(str(path))), COLOURS)
    assert np.array_equal(_hwc(read_image(path.read_bytes())), COLOURS)
    assert np.array_equal(_hwc(from_pil(Image.fromarray(COLOURS))), COLOURS)
    assert read_image(path).is_contiguous()
    read_image(path).add_(1)  # writable


def test_one_pixel(tmp_path: Path) -> None:
    assert read_image(_save(tmp_path / "dot.png", COLOURS[:1, :1])).shape == (3, 1, 1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tiff", "gif", "ppm"])
def test_lossless_formats(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    grey = np.repeat(COLOURS[:, :, :1], 3, axis=2)
    path = _save(tmp_path / f"a.{suffix}", grey, **options)
    assert np.array_equal(_hwc(read_image(path)), grey)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(SMOOTH).save(path, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    # EXIF 2.3: where row 0 and column 0 of the stored picture belong.
    upright = {
        1: SMOOTH,
        2: SMOOTH[:, ::-1],
        3: SMOOTH[::-1, ::-1],
        4: SMOOTH[::-1],
        5: SMOOTH.swapaxes(0, 1),
        6: np.rot90(SMOOTH, -1),
        7: np.rot90(SMOOTH, 2).swapaxes(0, 1),
        8: np.rot90(SMOOTH, 1),
    }[orientation]
    result = _hwc(read_image(path)).astype(int)
    assert result.shape == upright.shape
    assert np.abs(result - upright).mean() < 3
    assert image_size(path) == upright.shape[:2]


def test_damaged_exif_is_no_orientation(tmp_path: Path) -> None:
    path = tmp_path / "camera.jpg"
    Image.fromarray(SMOOTH).save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage", quality=95)
    assert read_image(path).shape == (3, 12, 20)


def test_sixteen_bit_is_scaled_by_its_full_range(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535], [128, 129, 32896]], np.uint16)
    for suffix in ("png", "tiff"):
        path = _save(tmp_path / f"deep.{suffix}", values)
        assert read_image(path)[0].tolist() == [[0, 1, 255], [0, 1, 128]]
        assert read_labels(path).tolist() == values.tolist()


def test_float_images_have_a_range_or_an_error(tmp_path: Path) -> None:
    assert read_image(_save(tmp_path / "unit.tiff", np.array([[0.0, 0.5, 1.0]], np.float32)))[0].tolist() == [
        [0, 128, 255]
    ]
    assert read_image(_save(tmp_path / "grey.tiff", np.array([[0.0, 99.6, 255.0]], np.float32)))[0].tolist() == [
        [0, 100, 255]
    ]
    for name, bad in (("depth", 4000.0), ("nan", np.nan), ("below", -3.0)):
        path = _save(tmp_path / f"{name}.tiff", np.array([[0.0, bad]], np.float32))
        with pytest.raises(ImageError, match=f"{name}.tiff"):
            read_image(path)


def test_cmyk_jpeg_looks_like_its_rgb(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.fromarray(SMOOTH).convert("CMYK").save(path, quality=100, subsampling=0)
    assert np.abs(_hwc(read_image(path)).astype(int) - SMOOTH).mean() < 4


def test_grey_and_bilevel(tmp_path: Path) -> None:
    grey = read_image(_save(tmp_path / "g.png", COLOURS[:, :, 0]))
    assert np.array_equal(_hwc(grey), np.repeat(COLOURS[:, :, :1], 3, axis=2))
    Image.fromarray(COLOURS[:, :, 0] > 127).save(tmp_path / "b.png")
    assert set(read_image(tmp_path / "b.png").unique().tolist()) == {0, 255}


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (255, 0, 128)
    expected = [[200, 255, 227], [0, 255, 127], [0, 255, 127]]
    result = read_image(_save(tmp_path / "alpha.png", rgba))[:, 0]
    assert (result.int() - torch.tensor(expected)).abs().max() <= 1
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode=None)
    palette = palette.convert("P")
    palette.putdata([0, 1, 2])
    palette.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    palette.save(tmp_path / "palette.png", transparency=bytes([255, 0, 255]))
    assert read_image(tmp_path / "palette.png")[:, 0].tolist() == [[200, 255, 0], [0, 255, 0], [0, 255, 50]]
    grey_alpha = np.array([[[10, 255], [10, 0]]], np.uint8)
    assert read_image(_save(tmp_path / "la.png", grey_alpha))[0].tolist() == [[10, 255]]


def test_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    rgba = np.concatenate([COLOURS, np.full((12, 20, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(_hwc(read_image(_save(tmp_path / "o.png", rgba))), COLOURS)


def _bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [30_000, 8_000])
def test_header_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_bomb(side, side))
    for read in (read_image, image_size, read_labels):
        with pytest.raises(ImageError, match=r"too large[\s\S]*bomb\.png[\s\S]*limit"):
            read(path)
    with pytest.raises(ImageError, match="too large"):
        read_image(_bomb(side, side))


def test_the_limit_can_be_changed(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png")
    assert read_image(path, max_pixels=240).shape == (3, 12, 20)
    with pytest.raises(ImageError, match="20 x 12"):
        read_image(path, max_pixels=239)


def test_truncated_jpeg(tmp_path: Path) -> None:
    path = _save(tmp_path / "cut.jpg", np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    whole = path.read_bytes()
    for share in (0.9, 0.5, 0.2):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match=r"cut\.jpg"):
            read_image(path)


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tiff", "bmp", "jpg"])
def test_any_cut_or_flipped_byte_is_an_image_error_or_a_picture(tmp_path: Path, suffix: str) -> None:
    path = _save(tmp_path / f"a.{suffix}")
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for trial in range(60):
        data = bytearray(whole)
        if trial % 2:
            data = data[: int(rng.integers(1, len(data)))]
        else:
            for _ in range(3):
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            assert read_image(bytes(data)).dtype == torch.uint8
        except ImageError as error:
            assert "bytes in memory" in str(error)


def test_nothing_text_documents_and_folders(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello, this is not a picture at all")
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "doc.jpg").write_bytes(b"%PDF-1.7 ....")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (tmp_path / "folder.jpg").mkdir()
    for name, words in {
        "empty.jpg": "0 bytes",
        "text.jpg": "begins like text",
        "page.jpg": "begins like text",
        "doc.jpg": "PDF",
        "drawing.eps": "not a picture",
        "folder.jpg": "a folder",
    }.items():
        with pytest.raises(ImageError, match=words) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ImageError, match="0 bytes"):
        read_image(b"")


def test_missing_file_offers_the_nearest(tmp_path: Path) -> None:
    _save(tmp_path / "image_001.png")
    with pytest.raises(ImageError, match=r"no such file[\s\S]*image_01\.png[\s\S]*did you mean 'image_001\.png'"):
        read_image(tmp_path / "image_01.png")
    with pytest.raises(ImageError, match="does not exist either"):
        read_image(tmp_path / "nowhere" / "a.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = _save(tmp_path / "secret.png")
    path.chmod(0)
    with pytest.raises(ImageError, match=r"may not be read[\s\S]*secret\.png"):
        read_image(path)


def test_permission_error_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(tmp_path / "secret.png")

    def refuse(self: Path, *arguments: object) -> io.BytesIO:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"may not be read[\s\S]*secret\.png"):
        read_image(path)


def test_label_maps_give_numbers_not_colours(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 2], [254, 255, 7]], np.uint8)
    palette = Image.fromarray(numbers).convert("P")
    palette.putdata(numbers.ravel().tolist())
    palette.putpalette([value for k in range(256) for value in (255 - k, k, 3)])
    palette.save(tmp_path / "p.png")
    _save(tmp_path / "l.png", numbers)
    _save(tmp_path / "rgb.png", np.repeat(numbers[:, :, None], 3, axis=2))
    for name in ("p.png", "l.png", "rgb.png"):
        labels = read_labels(tmp_path / name)
        assert labels.dtype == np.int32 and labels.tolist() == numbers.tolist()
    with pytest.raises(ImageError, match=r"colours[\s\S]*c\.png"):
        read_labels(_save(tmp_path / "c.png"))
    Image.fromarray(numbers > 1).save(tmp_path / "one.png")
    assert read_labels(tmp_path / "one.png").tolist() == [[0, 0, 1], [1, 1, 1]]
