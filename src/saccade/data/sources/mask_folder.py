"""Images and mask files side by side: binary lesions, label maps (CamVid, Cityscapes style), ADE20K."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saccade.data.class_names import CLASS_NAMES
from saccade.data.geometry import mask_tensor
from saccade.data.images import read_labels
from saccade.data.sources.binary_masks import MaskKind, are_binary, kind_of, object_of, values_in, white_of
from saccade.data.sources.label_maps import load_pair, region_target
from saccade.data.sources.layout import Records, data_root, divide, files_of, find_folder
from saccade.errors import DataError, UsageError
from saccade.labels import BACKGROUND
from saccade.samples import IGNORE_LABEL, ClassList, Sample, Target
from saccade.tasks import Task

_IMAGE_FOLDERS = ("images/{}", "{}/images", "{}", "images", "JPEGImages", "imgs", "leftImg8bit/{}")
_MASK_FOLDERS = (
    "masks/{}", "annotations/{}", "labels/{}", "{}/masks", "{}/labels", "{}annot", "{}_masks", "{}_labels",
    "{}_labelTrainIds", "masks", "labels", "annotations", "SegmentationClass", "gt", "mask",
)  # fmt: skip
_MASK_WORDS = ("segmentation", "mask", "masks", "gt", "label", "labels", "labelTrainIds", "labelIds", "seg")
_SUFFIXES = ("", *(f"{mark}{word}" for mark in "_-" for word in _MASK_WORDS))
_CLASS_FILES = ("classes.txt", "labels.txt", "class_names.txt")
_ENOUGH_MASKS = 200


ADE20K_CLASS_FILE = "objectInfo150.txt"
"""What tells ADE20K's layout from any other folder of images and label maps."""


class MaskFolderSource:
    """Images with a label map each; as instances, every connected region of a class counts as one object.

    Binary masks (0 and 255, or 0 and 1, each mask by itself; also 16 bits, and JPEG or resized ones with a few greys:
    :mod:`~saccade.data.sources.binary_masks`) have the classes ``background`` and one more. In label maps value k is
    class k; 255 and ``ignore_labels`` are neither learned nor scored.

    Args:
        task: Semantic segmentation or centres; detection or instance segmentation of connected regions.
        root: Folder of the data set.
        split: A split file (``splits/<split>.txt``, one name per line), a subfolder, or, for a data set without either,
            ``train``, ``val`` or ``all``.
        images: Image folder relative to root; empty = looked for.
        masks: Mask folder relative to root; empty = looked for.
        suffix: What mask files append to the stem of the image; empty = looked for.
        classes: Class names in the order of the values. One name means a binary mask of that class. Empty = from
            ``classes.txt``, else numbered by the values that occur (name them where splits have folders of their own,
            because a class may not occur in every split).
        ignore_labels: Further values to ignore. Where 255 is named, masks of 0 and 255 are label maps.
        reduce_zero_label: Value 0 is ignored and value k is class k - 1 (ADE20K).

    Attributes:
        skipped: Images without a mask, masks without an image, and files with the name of another one.

    Raises:
        UsageError: Folders, files or the split are not found.
        DataError: A mask has values beyond the classes.
    """

    def __init__(
        self,
        *,
        task: Task,
        root: str | Path,
        split: str = "train",
        images: str = "",
        masks: str = "",
        suffix: str = "",
        classes: Sequence[str] = (),
        ignore_labels: Sequence[int] = (),
        reduce_zero_label: bool = False,
    ) -> None:
        if task not in (Task.SEMANTIC, Task.DETECTION, Task.INSTANCE, Task.CENTER):
            raise UsageError(f"masks serve segmentation, centres and detection, not {task}", where=str(root))
        folder = data_root(root)
        self.name, self.task = f"{folder.name}/{split}", task
        layout = MaskLayout(folder, split, images=images, masks=masks, suffix=suffix)
        self.skipped: dict[str, int] = layout.skipped
        if not layout.pairs:
            raise UsageError(
                f"no image with a mask in the split '{split}'",
                where=folder,
                why=str(layout.skipped) if layout.skipped else None,
            )
        self._ignore = frozenset(ignore_labels) | {IGNORE_LABEL}
        self._reduce_zero = reduce_zero_label
        if reduce_zero_label and not classes:
            raise UsageError("reduce_zero_label needs the class names", where=folder, fix="classes=...")
        asked = tuple(classes) or class_file(folder)
        # Values tell a binary mask from a label map.
        values: set[int] = set()
        self._binary = False
        if len(asked) <= 2 and not reduce_zero_label:
            values, kinds = look_at(mask for _, mask in layout.every_pair())
            self._binary = IGNORE_LABEL not in ignore_labels and are_binary(kinds)
        names = self._names(asked, values, folder)
        self._labels = ClassList.from_names(names)
        self._things = [k for k, name in enumerate(names) if name.lower() != BACKGROUND]
        self.classes = self._labels
        if task in (Task.DETECTION, Task.INSTANCE):
            self.classes = ClassList(
                names=tuple(names[k] for k in self._things), category_ids=tuple(k for k in self._things)
            )
        self._records = Records((str(image), str(mask)) for image, mask in layout.pairs)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image and its mask, in the frame of the original image."""
        image_path, mask_path = (Path(text) for text in self._records[index])
        image, origin, labels = load_pair(image_path, mask_path, self.name, self._read)
        if self.task in (Task.SEMANTIC, Task.CENTER):
            target = Target(semantic=mask_tensor(labels))
        else:
            target = region_target(labels, self._things, masks=self.task is Task.INSTANCE)
        return Sample(image=image, task=self.task, origin=origin, target=target, classes=self.classes)

    def read_mask(self, path: Path) -> NDArray[np.int64]:
        """Class ids of a mask file, :data:`IGNORE_LABEL` where it is not labelled.

        Raises:
            DataError: A value is beyond the classes.
        """
        labels = read_labels(path)
        if self._binary:
            if kind_of(labels) == "map":
                raise DataError(
                    "a mask is not binary, though others of the data set are",
                    where=path,
                    why=f"values {np.unique(labels)[:10].tolist()}, expected 0 and {white_of(labels)}",
                    fix=f"make every mask binary, or every mask a label map (ignore_labels={IGNORE_LABEL})",
                )
            return object_of(labels).astype(np.int64)
        values = labels.astype(np.int64)
        ignored = np.isin(values, list(self._ignore))
        if self._reduce_zero:
            ignored |= values == 0
            values = values - 1
        beyond = np.unique(values[~ignored & ((values >= len(self._labels)) | (values < 0))])
        if len(beyond):
            raise DataError(
                f"a mask has values beyond the {len(self._labels)} classes",
                where=path,
                why=f"values {(beyond + self._reduce_zero)[:10].tolist()}",
                fix="name all classes (classes=...), or the values to leave out (ignore_labels=...)"
                + ("; masks of one object have 0 and 255, and few greys" if len(self._labels) <= 2 else ""),
            )
        return np.where(ignored, IGNORE_LABEL, values)

    def _read(self, path: Path) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        labels = self.read_mask(path)
        return labels, labels.shape

    def _names(self, asked: tuple[str, ...], values: set[int], root: Path) -> tuple[str, ...]:
        if len(asked) == 1 and (self._binary or values - self._ignore <= {0, 1}):
            return (BACKGROUND, *asked)
        if len(asked) == 1:
            raise DataError(
                "one class name, but the masks are not binary",
                where=root,
                why=f"values {sorted(values)[:10]}",
                fix="threshold the masks to 0 and 255, or name all classes (classes=...); run `saccade data check`",
            )
        if self._binary:
            return asked or (BACKGROUND, "foreground")
        if asked:
            return asked
        return tuple(f"class {value}" for value in range(max(values - self._ignore, default=0) + 1))


def ade20k_source(
    *, task: Task, root: str | Path, split: str = "training", classes: Sequence[str] = ()
) -> MaskFolderSource:
    """ADE20K as in ADEChallengeData2016: 150 classes, value 0 is unlabelled.

    Args:
        task: Semantic segmentation.
        root: The folder with ``images`` and ``annotations``.
        split: ``training`` or ``validation`` (``train`` and ``val`` are understood).
        classes: Other names; empty = :func:`ade20k_classes`.
    """
    official = {"train": "training", "val": "validation"}.get(split, split)
    return MaskFolderSource(
        task=task,
        root=root,
        split=official,
        images=f"images/{official}",
        masks=f"annotations/{official}",
        classes=tuple(classes) or ade20k_classes(root),
        reduce_zero_label=True,
    )


def ade20k_classes(root: str | Path) -> tuple[str, ...]:
    """The official 150 names, or those of an ``objectInfo150.txt`` that lists others (same layout, own classes)."""
    path = Path(root) / ADE20K_CLASS_FILE
    if not path.is_file():
        return CLASS_NAMES["ade20k"]
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t")[-1] for line in lines if line.strip()]
    names = tuple(row.split(",")[0].split(";")[0].strip() for row in rows)
    return CLASS_NAMES["ade20k"] if len(names) == len(CLASS_NAMES["ade20k"]) else names


class MaskLayout:
    """Which image belongs to which mask.

    Args:
        root: Folder of the data set.
        split: As :class:`MaskFolderSource` takes it.
        images: Image folder relative to root; empty = looked for.
        masks: Mask folder relative to root; empty = looked for.
        suffix: Suffix of mask stems; empty = looked for.
        must_exist: Raise where the split names an image that does not exist.

    Attributes:
        pairs: (image, mask) of the split, sorted by name.
        unmatched_images: Images of the split without a mask.
        unmatched_masks: Masks (of the folder) without an image.
        missing_images: Names of the split without an image file.
        undivided: The data set has no splits; this one was made from the names.
        same_names: Images of the split, and masks of the folder, that are not read, because another file has the same
            name with another ending.
        skipped: Counts of what has no partner, and of these.

    Raises:
        UsageError: Folders or the split are not found.
    """

    def __init__(
        self, root: Path, split: str, *, images: str, masks: str, suffix: str, must_exist: bool = True
    ) -> None:
        self._image_folder = find_folder(root, split, images, _IMAGE_FOLDERS, "images")
        self._mask_folder = find_folder(root, split, masks, _MASK_FOLDERS, "masks", exclude=self._image_folder)
        images_found, masks_found = files_of(self._image_folder), files_of(self._mask_folder)
        self._images = {path.stem: path for path in images_found}
        self._masks = {path.stem: path for path in masks_found}
        self._suffix = self._find_suffix(suffix)
        part = divide(root, split, list(self._images), self._image_folder, must_exist=must_exist)
        self.missing_images, self.undivided = part.missing, part.undivided
        stems = part.stems
        self.pairs = [
            (self._images[stem], self._masks[stem + self._suffix])
            for stem in stems
            if stem + self._suffix in self._masks
        ]
        self.unmatched_images = [self._images[stem] for stem in stems if stem + self._suffix not in self._masks]
        of_images = {stem + self._suffix for stem in self._images}
        self.unmatched_masks = [path for stem, path in self._masks.items() if stem not in of_images]
        chosen = set(stems)
        same_images = [path for path in images_found if path.stem in chosen and path != self._images[path.stem]]
        same_masks = [path for path in masks_found if path != self._masks[path.stem]]
        self.same_names = same_images + same_masks
        counts = {
            "image without a mask": len(self.unmatched_images),
            "mask without an image": len(self.unmatched_masks),
            "image with the name of another one": len(same_images),
            "mask with the name of another one": len(same_masks),
        }
        self.skipped = {reason: count for reason, count in counts.items() if count}

    def every_pair(self) -> list[tuple[Path, Path]]:
        """The pairs of all splits in the same folders."""
        return [
            (path, self._masks[stem + self._suffix])
            for stem, path in self._images.items()
            if stem + self._suffix in self._masks
        ]

    def _find_suffix(self, given: str) -> str:
        """The suffix that most masks have: the one that is given, also without its mark, or any usual one."""
        candidates = (given, *(f"{mark}{given}" for mark in "_-")) if given else _SUFFIXES
        shares = {suffix: sum(stem + suffix in self._masks for stem in self._images) for suffix in candidates}
        best = max(candidates, key=lambda suffix: shares[suffix])
        if not given and not shares[best]:
            raise UsageError(
                "no mask has the name of an image",
                where=self._mask_folder,
                why=f"images like {next(iter(self._images), None)}, masks like {next(iter(self._masks), None)}",
                fix="say what mask files append to the name of the image (mask_suffix=..., --mask-suffix)",
            )
        return best


def look_at(masks: Iterable[Path]) -> tuple[set[int], list[MaskKind]]:
    """Values that occur in mask files, and what each mask is; stops early where the first 200 are binary and alike."""
    values: set[int] = set()
    kinds: list[MaskKind] = []
    for number, mask in enumerate(masks):
        if number >= _ENOUGH_MASKS and (set(kinds) <= {"empty", "ones"} or set(kinds) <= {"empty", "white", "soft"}):
            break
        labels = read_labels(mask)
        values |= values_in(labels)
        kinds.append(kind_of(labels))
    return values, kinds


def class_file(root: Path) -> tuple[str, ...]:
    """Class names from ``classes.txt`` or the like, one per line; empty where there is none."""
    for name in _CLASS_FILES:
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return ()
