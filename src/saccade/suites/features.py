"""Features of many pictures, kept in shards so that a stopped run goes on.

::

    CACHE/KEY/about.json          what the key stands for
    CACHE/KEY/00000.safetensors   the first pictures; written whole or not at all
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saccade.errors import CheckpointError
from saccade.layers.precision import autocast
from saccade.suites.base import SuiteOptions
from saccade.suites.pictures import Fit, Pictures

SHARD = 512
"""Pictures per shard."""

_KEY_LENGTH = 16


class _Fitted(Dataset[Tensor]):
    """The network inputs of some pictures."""

    def __init__(self, pictures: Pictures, fit: Fit, indices: range) -> None:
        self._pictures, self._fit, self._indices = pictures, fit, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> Tensor:
        return self._fit(self._pictures[self._indices[position]])


def extract(
    compute: Callable[[Tensor], Tensor],
    pictures: Pictures,
    fit: Fit,
    *,
    options: SuiteOptions,
    device: torch.device,
    about: dict[str, Any],
    what: str = "features",
) -> Tensor:
    """The features of all pictures, in their order.

    Args:
        compute: Network inputs ``[B, 3, H, W]`` on the device to features ``[B, ...]``.
        pictures: The pictures.
        fit: How they become network inputs.
        options: Batch size, precision, cache, progress.
        device: Where the tower is.
        about: What the features depend on besides pictures, order and precision: tower, updates, data set, layer.
            Plain values.
        what: For the progress.

    Returns:
        ``[N, ...]`` float32 on the CPU.

    Raises:
        CheckpointError: A shard of the cache is damaged.
    """
    folder = shard_folder(options, about | {"pictures": len(pictures), "fit": repr(fit)})
    shards = []
    for number, start in enumerate(range(0, len(pictures), SHARD)):
        indices = range(start, min(start + SHARD, len(pictures)))
        make = partial(_compute, compute, _Fitted(pictures, fit, indices), options, device)
        shards.append(shard(folder, number, make)["features"])
        options.progress(what, indices.stop, len(pictures))
    return torch.cat(shards) if shards else torch.empty(0)


def _compute(
    compute: Callable[[Tensor], Tensor], dataset: Dataset[Tensor], options: SuiteOptions, device: torch.device
) -> dict[str, Tensor]:
    parts = []
    for images in DataLoader(dataset, batch_size=options.batch_size, num_workers=options.workers):
        with torch.no_grad(), autocast(options.precision, device):
            parts.append(compute(images.to(device)).float().cpu())
    return {"features": torch.cat(parts)}


def shard_folder(options: SuiteOptions, about: dict[str, Any]) -> Path | None:
    """The folder of the shards of some features; None where none are kept.

    Args:
        options: Name the cache and the precision.
        about: All else that the features depend on. Plain values.
    """
    if options.cache is None:
        return None
    text = json.dumps(about | {"precision": options.precision}, indent=2, sort_keys=True)
    folder = options.cache / hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").write_text(text + "\n", encoding="utf-8")
    return folder


def shard(folder: Path | None, number: int, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """One shard: read where it is kept; made, and kept where anything is, where it is not.

    Raises:
        CheckpointError: It is damaged.
    """
    if folder is None:
        return make()
    path = folder / f"{number:05d}.safetensors"
    if path.is_file():
        try:
            kept: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                "kept features cannot be read", where=path, why=str(error), fix="delete the file: it is made anew"
            ) from error
        return kept
    made = make()
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, temporary)
    temporary.replace(path)
    return made
