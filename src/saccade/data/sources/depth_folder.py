"""Images and depth maps in folders, paired by name."""

from __future__ import annotations

import re
from pathlib import Path

from saccade.data.sources.depth_maps import DEPTH_SUFFIXES, DepthSource
from saccade.data.sources.layout import data_root, divide, files_of, find_folder
from saccade.data.sources.spec import SourceSpec
from saccade.errors import UsageError

_IMAGE_FOLDERS = (
    "images/{}", "{}/images", "rgb/{}", "{}/rgb", "color/{}", "{}/color", "image/{}", "{}/image", "{}",
    "images", "rgb", "color", "image", ".",
)  # fmt: skip
_DEPTH_FOLDERS = ("depth/{}", "{}/depth", "depths/{}", "{}/depths", "depth", "depths")
_DEPTH_WORDS = frozenset({"depth", "depths", "depthmap"})
_WORDS = _DEPTH_WORDS | {"sync", "rgb", "color", "colour", "image", "img"}
_ARRAYS = frozenset({".npy", ".exr"})


def open_depth_folder(spec: SourceSpec) -> DepthSource:
    """Opens a folder of images and depth maps.

    Args:
        spec: ``images`` and ``annotations`` name the two folders relative to root, where they are not found; it may be
            one folder for both. ``depth_scale`` says how many units of a 16-bit map make a metre. The split is a split
            file, a subfolder, or, for a data set without either, ``train``, ``val`` or ``all``.

    Raises:
        UsageError: Folders or the split are not found, no image has a depth map, or another task than depth.
    """
    root = data_root(spec.root)
    layout = DepthLayout(spec, root)
    return DepthSource(
        task=spec.task,
        name=f"{root.name}/{spec.split}",
        pairs=[(image.stem, image, depth) for image, depth in layout.pairs],
        values_per_metre=spec.depth_scale,
        skipped=layout.skipped,
    )


class DepthLayout:
    """Which image belongs to which depth map.

    Names are compared without the words that tell the two apart: ``rgb_7.jpg`` and ``sync_depth_7.png``,
    ``frame-7.color.jpg`` and ``frame-7.depth.png``, ``7.jpg`` and ``7.npy`` are pairs. In a folder that holds both, the
    depth maps are the arrays, and the pictures with the word "depth" in their names.

    Args:
        spec: The data set.
        root: Its folder.
        must_exist: Raise where the split names an image that does not exist.

    Attributes:
        pairs: (image, depth map) of the split, sorted by name.
        unmatched_images: Images of the split without a depth map.
        unmatched_depths: Depth maps (of the folder) without an image.
        missing_images: Names of the split without an image file.
        undivided: The data set has no splits; this one was made from the names.
        skipped: Counts of both kinds without a partner.

    Raises:
        UsageError: Folders or the split are not found, no image has a depth map, or two files have the same name.
    """

    def __init__(self, spec: SourceSpec, root: Path, *, must_exist: bool = True) -> None:
        image_folder = find_folder(root, spec.split, spec.images, _IMAGE_FOLDERS, "images")
        depth_folder = _depth_folder(spec, root, image_folder)
        pictures, maps = files_of(image_folder), files_of(depth_folder, DEPTH_SUFFIXES)
        if depth_folder == image_folder:
            pictures = [path for path in pictures if not _is_depth(path)]
            maps = [path for path in maps if _is_depth(path)]
        images, depths = _by_key(pictures), _by_key(maps)
        if not images.keys() & depths.keys():
            raise UsageError(
                "no image has a depth map",
                where=depth_folder,
                why=f"images like {_example(pictures)}, depth maps like {_example(maps)}",
                fix="give both the same name, or name their folders (images=..., annotations=...)",
            )
        key_of = {path.stem: key for key, path in images.items()}
        part = divide(root, spec.split, list(key_of), image_folder, must_exist=must_exist)
        chosen = [key_of[stem] for stem in part.stems]
        self.missing_images, self.undivided = part.missing, part.undivided
        self.pairs = [(images[key], depths[key]) for key in chosen if key in depths]
        self.unmatched_images = [images[key] for key in chosen if key not in depths]
        self.unmatched_depths = [path for key, path in depths.items() if key not in images]
        counts = {
            "image without a depth map": len(self.unmatched_images),
            "depth map without an image": len(self.unmatched_depths),
        }
        self.skipped = {reason: count for reason, count in counts.items() if count}
        if not self.pairs and must_exist:
            raise UsageError(
                f"no image with a depth map in the split '{spec.split}'", where=root, why=str(self.skipped) or None
            )


def _depth_folder(spec: SourceSpec, root: Path, image_folder: Path) -> Path:
    """The folder of depth maps; where none has a usual name, that of the images."""
    try:
        return find_folder(root, spec.split, spec.annotations, _DEPTH_FOLDERS, "depth maps", exclude=image_folder)
    except UsageError:
        if spec.annotations:
            raise
        return image_folder


def _words(path: Path) -> list[str]:
    return re.split(r"[._\s-]+", path.stem)


def _is_depth(path: Path) -> bool:
    return path.suffix.lower() in _ARRAYS or any(word.lower() in _DEPTH_WORDS for word in _words(path))


def _by_key(paths: list[Path]) -> dict[str, Path]:
    """The files by what their names have in common with those of their partners."""
    found: dict[str, Path] = {}
    for path in paths:
        key = "_".join(word for word in _words(path) if word.lower() not in _WORDS)
        if key in found:
            raise UsageError(
                "two files of a folder could belong to the same partner",
                where=path.parent,
                why=f"{found[key].name} and {path.name}",
                fix="keep one of them, or put images and depth maps into folders of their own",
            )
        found[key] = path
    return found


def _example(paths: list[Path]) -> str:
    return paths[0].name if paths else "none"
