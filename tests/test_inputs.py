"""Inputs: every kind of thing that people hand over, and every way in which it can be wrong."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.errors import ImageError, SaccadeError, UsageError
from saccade.inputs import find_inputs

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path)
    return path


def test_every_kind_of_input_gives_the_same_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    kinds = [
        path,
        str(path),
        path.read_bytes(),
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS[::-1][::-1],  # not contiguous
        torch.from_numpy(PIXELS).permute(2, 0, 1),
    ]
    want = torch.from_numpy(PIXELS).permute(2, 0, 1)
    for kind in kinds:
        found = find_inputs(kind)
        assert found.single and len(found.items) == 1
        picture = found.items[0].read()
        assert picture.dtype == torch.uint8 and torch.equal(torch.as_tensor(picture), want)
    listed = find_inputs(kinds)
    assert not listed.single and len(listed.items) == len(kinds)
    assert len({item.stem for item in listed.items}) == len(kinds)


def test_grey_arrays_become_rgb() -> None:
    grey = PIXELS[..., 0]
    for kind in (grey, torch.from_numpy(grey)[None]):
        picture = find_inputs(kind).items[0].read()
        assert torch.equal(picture, torch.from_numpy(grey).expand(3, -1, -1))


@pytest.mark.parametrize(
    "wrong",
    [
        PIXELS.astype(np.float32),
        PIXELS[None],
        PIXELS[..., :2],
        np.zeros((0, 5, 3), dtype=np.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    ],
    ids=lambda wrong: f"{type(wrong).__name__}-{tuple(wrong.shape)}-{wrong.dtype}",
)
def test_arrays_that_are_no_pictures(wrong: np.ndarray | torch.Tensor) -> None:
    with pytest.raises(UsageError, match="is no picture"):
        find_inputs(wrong).items[0].read()


def test_folder_is_walked_in_order_with_unique_stems(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "a.jpg", "sub/000139.JPEG", ".hidden/x.jpg", ".thumb.jpg"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    found = find_inputs(tmp_path)
    assert [(item.stem, item.image_id) for item in found.items] == [
        ("a_jpg", "a"),
        ("a_png", "a"),
        ("b", "b"),
        ("sub/000139", 139),
    ]
    assert sorted(Path(path).name for path in found.passed_over) == [".thumb.jpg", "notes.txt"]
    assert not found.single


def test_stems_stay_unique_whatever_the_names(tmp_path: Path) -> None:
    names = ("x/a.jpg", "y/a.jpg", "y/a_jpg.png", "z/a.png")
    stems = [item.stem for item in find_inputs([write(tmp_path / name) for name in names]).items]
    assert stems == ["a_jpg_2", "a_jpg_3", "a_jpg", "a_png"]


def test_pattern(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "y/b.jpg", "y/c.png", "odd[1].jpg"):
        write(tmp_path / name)
    found = find_inputs(str(tmp_path / "*" / "*.jpg"))
    assert [item.stem for item in found.items] == ["x/a", "y/b"] and not found.single
    assert [item.stem for item in find_inputs(str(tmp_path / "**" / "c.png")).items] == ["c"]
    assert find_inputs(str(tmp_path / "odd[1].jpg")).single, "a file may have wildcards in its name"
    with pytest.raises(UsageError, match=r"no file fits the pattern(.|\n)*\*\.webp"):
        find_inputs(str(tmp_path / "*.webp"))


def test_what_is_refused_at_once(tmp_path: Path) -> None:
    for url in ("http://example.org/a.jpg", "s3://bucket/a.jpg", "file:///etc/passwd"):
        with pytest.raises(UsageError, match=r"not fetched from the network"):
            find_inputs(url)
    with pytest.raises(UsageError, match="it is empty"):
        find_inputs(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="none of its 1 files"):
        find_inputs(tmp_path)
    with pytest.raises(UsageError, match="no images were given"):
        find_inputs([])
    with pytest.raises(UsageError, match="from a int"):
        find_inputs([3])  # type: ignore[list-item]


def test_damaged_files_are_found_and_fail_when_read(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:200])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    outcomes = {}
    for item in [*find_inputs(tmp_path).items, *find_inputs([tmp_path / "missing.jpg", b"nonsense"]).items]:
        try:
            outcomes[item.stem] = tuple(item.read().shape)
        except ImageError as error:
            outcomes[item.stem] = "named" if item.path is None or item.path in str(error) else str(error)
    assert outcomes.pop("good") == (3, 12, 17)
    assert set(outcomes) == {"cut", "empty", "text", "missing", "image_00001"} and set(outcomes.values()) == {"named"}


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jpg")
    locked = write(tmp_path / "locked" / "b.jpg").parent
    really = os.scandir

    def scandir(folder: str) -> object:  # the tests may run as a user who may read everything
        if Path(folder) == locked:
            raise PermissionError(13, "Permission denied", str(folder))
        return really(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    items = find_inputs(tmp_path).items
    assert [item.stem for item in items] == ["a", "locked"]
    with pytest.raises(ImageError, match=r"subfolder cannot be read(.|\n)*locked(.|\n)*Permission denied"):
        items[1].read()
    with pytest.raises(ImageError, match=r"folder cannot be read(.|\n)*locked"):
        find_inputs(locked)


def test_pillow_images_of_other_modes() -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "I;16", "1"):
        image = Image.new(mode, (9, 5))
        assert find_inputs(image).items[0].read().shape == (3, 5, 9), mode
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    Image.fromarray(PIXELS).save(buffer, format="PNG", exif=exif)
    turned = find_inputs(Image.open(io.BytesIO(buffer.getvalue()))).items[0].read()
    assert turned.shape == (3, 17, 12)
    assert issubclass(ImageError, SaccadeError)
