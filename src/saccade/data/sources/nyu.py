"""NYU Depth v2 as monocular depth estimation uses it (BTS, GLPDepth, AiT): lists of pairs in folders of rooms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saccade.data.sources.depth_maps import DepthSource
from saccade.data.sources.layout import data_root, find_images, read_rows
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError, nearest

_SPLITS = {"train": ("train_list.txt", (".", "sync")), "test": ("test_list.txt", ("official_splits/test", "."))}


@dataclass(kw_only=True)
class NyuPairs:
    """What a list names.

    Attributes:
        folder: What the names are relative to.
        names: Image and depth map of every line, relative to the folder.
    """

    folder: Path
    names: list[tuple[str, str]]


def open_nyu(spec: SourceSpec) -> DepthSource:
    """Opens NYU Depth v2: 24,231 pairs to train on and 654 to test on, 480 x 640 pixels, depth in millimetres.

    Args:
        spec: Root is ``nyu_depth_v2``, with ``train_list.txt`` and ``test_list.txt`` in it, the rooms to train on in it
            or in ``sync``, and those to test on below ``official_splits/test``. ``annotations`` names another list and
            ``images`` another folder of rooms. There is no ``val``.

    Raises:
        UsageError: The list or the rooms are not found, another split, or another task than depth.
        DataError: A line of the list is no pair.
    """
    root = data_root(spec.root)
    found = nyu_pairs(spec, root)
    return DepthSource(
        task=spec.task,
        name=f"{root.name}/{spec.split}",
        pairs=[
            (str(Path(image).with_suffix("")), found.folder / image, found.folder / depth)
            for image, depth in found.names
        ],
        values_per_metre=spec.depth_scale,
        skipped={},
    )


def nyu_pairs(spec: SourceSpec, root: Path) -> NyuPairs:
    """The pairs of a split; whether the files exist is not looked at.

    Raises:
        UsageError: The list or the rooms are not found, or another split.
        DataError: A line of the list is no pair, or there is none.
    """
    if spec.split not in _SPLITS:
        raise UsageError(f"NYU Depth v2 has no split '{spec.split}'", where=root, fix=nearest(spec.split, _SPLITS))
    usual, folders = _SPLITS[spec.split]
    listing = root / (spec.annotations or usual)
    if not listing.is_file():
        raise UsageError(
            "the list of the split does not exist",
            where=listing,
            fix="copy it there (the official repositories of AiT and GLPDepth have it), or name it (annotations=...)",
        )
    names = []
    for number, words in enumerate(read_rows(listing), start=1):
        if len(words) < 2:
            raise DataError(
                "a line names no pair of an image and a depth map", where=f"{listing}, entry {number}", why=words[0]
            )
        names.append((words[0].lstrip("/"), words[1].lstrip("/")))  # further words are focal lengths (BTS)
    if not names:
        raise DataError("the list is empty", where=listing)
    return NyuPairs(folder=find_images(root, [image for image, _ in names], spec.images, folders), names=names)
