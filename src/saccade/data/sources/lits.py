"""LiTS: slices of CT volumes with the liver, read from NIfTI files (extra ``medical``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from saccade.data.sources.layout import data_root, hash_split, per_split
from saccade.data.sources.object_masks import ObjectMaskSource, Picture, object_name
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, MissingDataError, require
from saccade.samples import Origin

WINDOW_HU = (0.0, 200.0)
"""Hounsfield units that become black and white: the window of the polar paper."""

_FOLDERS = ("{}", "scans/{}")
_ENDINGS = (".nii", ".nii.gz")


def open_lits(spec: SourceSpec) -> ObjectMaskSource:
    """LiTS, every axial slice a picture: ``volume-N.nii`` and ``segmentation-N.nii``, anywhere below root.

    Pictures are grey, black and white at :data:`WINDOW_HU`, and stand as radiologists look at them: front at the top,
    the patient's right on the left. Liver and tumours are the object. Folders named after the splits are respected;
    without them one volume in five, chosen by its name, is validation: slices of a patient stay together.

    Args:
        spec: With ``drop_empty`` slices without liver are left out (the paper does so; all masks are read once).

    Raises:
        UsageError: No volume, or the split is not found.
        MissingExtraError: nibabel is not installed.
        DataError: A volume cannot be read, or is not stored slice by slice.
    """
    root = data_root(spec.root)
    records: list[tuple[str, str, int]] = []
    skipped: dict[str, int] = {}
    for volume, mask in lits_pairs(spec, root):
        for number in range(_slices(volume, mask)):
            if spec.drop_empty and not _read_slice(str(mask), number).any():
                skipped["slice without liver"] = skipped.get("slice without liver", 0) + 1
            else:
                records.append((str(volume), str(mask), number))
    return ObjectMaskSource(
        task=spec.task,
        name=f"{root.name}/{spec.split}",
        records=records,
        read=read_ct_slice,
        object_name=object_name(spec, "liver"),
        skipped=skipped,
    )


def lits_pairs(spec: SourceSpec, root: Path) -> list[tuple[Path, Path]]:
    """Volumes of a split and their masks, sorted by name.

    Raises:
        UsageError: There are none.
    """
    named = next((root / name for name in per_split(_FOLDERS, spec.split) if (root / name).is_dir()), None)
    volumes = [path for path in sorted((named or root).rglob("volume-*")) if path.name.endswith(_ENDINGS)]
    if not volumes:
        raise MissingDataError(
            "no volume is found",
            where=named or root,
            why=f"looked for volume-*{' or volume-*'.join(_ENDINGS)}",
            fix="name the folder that holds them as root",
        )
    if named is None:
        stems = [path.name.split(".")[0] for path in volumes]
        volumes = [volumes[index] for index in hash_split(stems, spec.split, root)]
    pairs = []
    for volume in volumes:
        mask = volume.with_name(volume.name.replace("volume-", "segmentation-", 1))
        if not mask.is_file():
            raise MissingDataError("a volume has no segmentation", where=volume, fix=f"put {mask.name} beside it")
        pairs.append((volume, mask))
    return pairs


def read_ct_slice(record: tuple[str, str, int], dataset: str) -> Picture:
    """A slice as a grey picture, and the liver in it."""
    volume, mask, number = record
    units = _read_slice(volume, number)
    low, high = WINDOW_HU
    grey = np.rint((units.clip(low, high) - low) / (high - low) * 255).astype(np.uint8)
    image = tv_tensors.Image(torch.from_numpy(grey).expand(3, -1, -1).contiguous())
    size_hw = (int(grey.shape[0]), int(grey.shape[1]))
    name = f"{Path(volume).name.split('.')[0]}-{number}"
    return image, Origin(dataset=dataset, image_id=name, path=None, size_hw=size_hw), _read_slice(mask, number) > 0


def _slices(volume: Path, mask: Path) -> int:
    """Number of slices of a volume and its mask.

    Raises:
        DataError: They differ in size.
    """
    shapes = [_open(str(path)).shape for path in (volume, mask)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3:
        raise DataError("a volume and its segmentation differ in size", where=mask, why=f"{shapes[1]} and {shapes[0]}")
    return int(shapes[0][2])


def _read_slice(path: str, number: int) -> NDArray[np.float32]:
    """An axial slice ``[H, W]``, upright."""
    nib = _nibabel()
    image = _open(path)
    axes = nib.orientations.io_orientation(image.affine)
    if axes[2, 0] != 2:
        raise DataError(
            "the third axis of a volume does not run along the body",
            where=path,
            fix="store it so that every step of the third axis is an axial slice",
        )
    try:
        plane = np.asarray(image.dataobj[..., number], np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise DataError("a volume cannot be read", where=path, why=str(error), fix="fetch it again") from error
    for axis in (0, 1):
        if axes[axis, 1] < 0:
            plane = np.flip(plane, axis)
    if axes[0, 0] == 1:
        plane = plane.T
    # Now the first axis runs to the patient's right and the second to the front.
    return np.ascontiguousarray(plane[::-1, ::-1].T)


def _open(path: str) -> Any:
    nib = _nibabel()
    try:
        return nib.load(path)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise DataError("a volume cannot be read", where=path, why=str(error), fix="fetch it again") from error


def _nibabel() -> Any:
    return require("nibabel", extra="medical", purpose="reading NIfTI volumes")
