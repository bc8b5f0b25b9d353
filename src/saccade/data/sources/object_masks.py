"""Pictures with a mask of what is sought: the form that medical data sets share, and two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from saccade.data.geometry import mask_tensor
from saccade.data.images import read_labels
from saccade.data.sources.binary_masks import object_of
from saccade.data.sources.label_maps import FoundPairs, load_pair, region_target
from saccade.data.sources.layout import Records, data_root, files_of, split_names
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, MissingDataError, UsageError, nearest
from saccade.labels import BACKGROUND
from saccade.samples import ClassList, Origin, Sample, Target
from saccade.tasks import Task

_TASKS = (Task.SEMANTIC, Task.DETECTION, Task.INSTANCE, Task.CENTER)
ISIC_PAIRS, CVC_PAIRS = 2594 + 100, 612
"""Of how many pairs the published splits are drawn; of any other number they become other splits."""

_TENTH = 0.1
_ISIC_SEED = _CVC_SEED = 42
_ISIC_PARTS = {"train": "Training", "val": "Validation", "test": "Test"}
_OFFICIAL = "official_"
_CVC_FOLDERS = tuple((f"{kind}Original", f"{kind}Ground Truth") for kind in ("", "PNG/", "TIF/"))

Picture = tuple[tv_tensors.Image, Origin, NDArray[np.bool_]]
"""What is read of a record: the picture, where it came from, and its mask ``[H, W]``."""


class ObjectMaskSource:
    """Pictures with a binary mask each: as label maps of two classes, or with every connected region as an object.

    Args:
        task: Semantic segmentation, centres, detection or instance segmentation.
        name: Name of the data set and split.
        records: What ``read`` reads, picklable.
        read: Reads a record (a function of a module: it is sent to loader processes).
        object_name: What the masks show.
        skipped: What the reader of the layout has left out already.

    Raises:
        UsageError: Another task.
        DataError: There is no record.
    """

    def __init__(
        self,
        *,
        task: Task,
        name: str,
        records: Sequence[Any],
        read: Callable[[Any, str], Picture],
        object_name: str,
        skipped: Mapping[str, int],
    ) -> None:
        if task not in _TASKS:
            raise UsageError(f"masks serve segmentation, centres and detection, not {task}", where=name)
        if not records:
            raise DataError("no image is left", where=name, why=str(dict(skipped)) or None)
        self.name, self.task, self.skipped = name, task, dict(skipped)
        self.classes = ClassList.from_names((BACKGROUND, object_name))
        if task in (Task.DETECTION, Task.INSTANCE):
            self.classes = ClassList(names=(object_name,), category_ids=(1,))
        self._read = read
        self._records = Records(records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one picture and its mask, in the frame of the original picture."""
        image, origin, mask = self._read(self._records[index], self.name)
        labels = mask.astype(np.int64)
        if self.task in (Task.SEMANTIC, Task.CENTER):
            target = Target(semantic=mask_tensor(labels))
        else:
            target = region_target(labels, (1,), masks=self.task is Task.INSTANCE)
        return Sample(image=image, task=self.task, origin=origin, target=target, classes=self.classes)


def read_mask_pair(record: tuple[str, str], dataset: str) -> Picture:
    """A picture and a mask file."""
    image_path, mask_path = (Path(text) for text in record)
    return load_pair(image_path, mask_path, dataset, _read_mask)


def _read_mask(path: Path) -> tuple[NDArray[np.bool_], tuple[int, ...]]:
    mask = object_of(read_labels(path))
    return mask, mask.shape


def object_name(spec: SourceSpec, official: str) -> str:
    """The object's name: the official one, or another one that is asked for.

    Raises:
        UsageError: More names than one besides the background.
    """
    asked = [name for name in spec.classes if name.lower() != BACKGROUND]
    if len(asked) > 1:
        raise UsageError(
            f"the masks show one class, and {len(asked)} are named", where=spec.root, fix="name it, or leave it out"
        )
    return asked[0] if asked else official


def _of_pairs(spec: SourceSpec, found: FoundPairs, *, official: str) -> ObjectMaskSource:
    return ObjectMaskSource(
        task=spec.task,
        name=f"{data_root(spec.root).name}/{spec.split}",
        records=[(str(image), str(mask)) for image, mask in found.pairs],
        read=read_mask_pair,
        object_name=object_name(spec, official),
        skipped=found.skipped,
    )


# --- ISIC 2018 -------------------------------------------------------------------------------------------------------


def open_isic2018(spec: SourceSpec) -> ObjectMaskSource:
    """ISIC 2018 Task 1, skin lesions, in the official folders.

    The splits ``train``, ``val`` and ``test`` are those of the polar paper: the pictures of the official validation and
    training folders, each in the order of their names, shuffled by numpy's legacy generator with the seed 42; 80, 10
    and 10 % of them. ``official_train``, ``official_val`` and ``official_test`` are the folders as they are.

    Args:
        spec: ``root`` holds ``ISIC2018_Task1-2_Training_Input`` and the like.

    Raises:
        UsageError: A folder or the split is not found.
    """
    return _of_pairs(spec, isic2018_pairs(spec), official="lesion")


def isic2018_pairs(spec: SourceSpec) -> FoundPairs:
    """Pictures and masks of a split, and the files without a partner of all folders that it is drawn from."""
    root = data_root(spec.root)
    split, official = spec.split, spec.split.startswith(_OFFICIAL)
    part = next((name for name in split_names(split.removeprefix(_OFFICIAL)) if name in _ISIC_PARTS), None)
    if part is None and split != "all":
        known = [*_ISIC_PARTS, *(f"{_OFFICIAL}{name}" for name in _ISIC_PARTS), "all"]
        raise UsageError(f"there is no split '{split}'", where=root, fix=nearest(split, known))
    parts = [part] if official and part else ["val", "train"]
    folders = [_isic_folder(root, _ISIC_PARTS[name]) for name in parts]
    found = FoundPairs(
        pairs=[pair for folder in folders for pair in folder.pairs],
        unmatched_images=[path for folder in folders for path in folder.unmatched_images],
        unmatched_maps=[path for folder in folders for path in folder.unmatched_maps],
    )
    if not official and split != "all":
        # The legacy generator, because the published split was drawn by it.
        order = np.random.RandomState(_ISIC_SEED).permutation(len(found.pairs))
        found.pairs = [found.pairs[index] for index in tenths(order.tolist())[part or "train"]]
    return found


def tenths(order: Sequence[int]) -> dict[str, Sequence[int]]:
    """A shuffled order cut into training, validation and test, the last two a tenth each, rounded down."""
    tenth = int(_TENTH * len(order))
    kept = len(order) - 2 * tenth
    return {"train": order[:kept], "val": order[kept : kept + tenth], "test": order[kept + tenth :]}


def _isic_folder(root: Path, part: str) -> FoundPairs:
    folders = [root / f"ISIC2018_Task1-2_{part}_Input", root / f"ISIC2018_Task1_{part}_GroundTruth"]
    for folder in folders:
        if not folder.is_dir():
            raise MissingDataError(
                f"the folder {folder.name} of ISIC 2018 is not found",
                where=root,
                why="the splits train, val and test are drawn from the official training and validation folders",
                fix="put the official folders side by side; one alone is read with split=official_train and the like",
            )
    masks = {path.stem.removesuffix("_segmentation"): path for path in files_of(folders[1])}
    return matched(files_of(folders[0]), masks)


def matched(images: Sequence[Path], masks: Mapping[str, Path]) -> FoundPairs:
    """Pictures and their masks by name."""
    stems = {image.stem for image in images}
    return FoundPairs(
        pairs=[(image, masks[image.stem]) for image in images if image.stem in masks],
        unmatched_images=[image for image in images if image.stem not in masks],
        unmatched_maps=[mask for stem, mask in masks.items() if stem not in stems],
    )


# --- CVC-ClinicDB ----------------------------------------------------------------------------------------------------


def open_cvc_clinicdb(spec: SourceSpec) -> ObjectMaskSource:
    """CVC-ClinicDB, polyps: ``Original`` and ``Ground Truth`` (also in ``PNG`` or ``TIF``).

    The splits ``train``, ``val`` and ``test`` are those of the polar paper: the names in the order of text (1, 10, 100,
    101, ...), permuted by torch's generator with the seed 42; first the training pictures, then a tenth to test on,
    then a tenth to validate on.

    Args:
        spec: ``root`` holds the folders.

    Raises:
        UsageError: A folder or the split is not found.
    """
    return _of_pairs(spec, cvc_clinicdb_pairs(spec), official="polyp")


def cvc_clinicdb_pairs(spec: SourceSpec) -> FoundPairs:
    """Pictures and masks of a split, and the files of the folders without a partner."""
    root = data_root(spec.root)
    folders = next((pair for pair in _CVC_FOLDERS if all((root / name).is_dir() for name in pair)), None)
    if folders is None:
        raise MissingDataError(
            "the folders of CVC-ClinicDB are not found",
            where=root,
            why=f"looked for {', '.join(' and '.join(pair) for pair in _CVC_FOLDERS)}",
            fix="name the folder that holds them as root",
        )
    found = matched(files_of(root / folders[0]), {path.stem: path for path in files_of(root / folders[1])})
    if spec.split == "all":
        return found
    part = next((name for name in split_names(spec.split) if name in ("train", "val", "test")), None)
    if part is None:
        raise UsageError(
            f"there is no split '{spec.split}'", where=root, fix=nearest(spec.split, ("train", "val", "test", "all"))
        )
    order = torch.randperm(len(found.pairs), generator=torch.Generator().manual_seed(_CVC_SEED)).tolist()
    parts = tenths(order)
    # In this data set the test part stands before the validation part.
    own = parts[{"val": "test", "test": "val"}.get(part, part)]
    found.pairs = [found.pairs[index] for index in own]
    return found
