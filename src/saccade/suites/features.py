"""Features of many pictures, kept in shards so that a stopped run goes on.

::

    CACHE/KEY/about.json          what the key stands for
    CACHE/KEY/00000.safetensors   the first 512 pictures; written whole or not at all
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

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
        about: What the features depend on besides pictures and order: tower, updates, data set, layer. Plain values.
        what: For the progress.

    Returns:
        ``[N, ...]`` float32 on the CPU.

    Raises:
        CheckpointError: A shard of the cache is damaged.
    """
    folder = _folder(options.cache, about | {"pictures": len(pictures), "fit": repr(fit)})
    shards = []
    for number, start in enumerate(range(0, len(pictures), SHARD)):
        indices = range(start, min(start + SHARD, len(pictures)))
        path = None if folder is None else folder / f"{number:05d}.safetensors"
        if path is not None and path.is_file():
            shards.append(_read(path, len(indices)))
        else:
            shards.append(_compute(compute, _Fitted(pictures, fit, indices), options, device))
            if path is not None:
                _write(path, shards[-1])
        options.progress(what, indices.stop, len(pictures))
    return torch.cat(shards) if shards else torch.empty(0)


def _compute(
    compute: Callable[[Tensor], Tensor], dataset: Dataset[Tensor], options: SuiteOptions, device: torch.device
) -> Tensor:
    parts = []
    for images in DataLoader(dataset, batch_size=options.batch_size, num_workers=options.workers):
        with torch.no_grad(), autocast(options.precision, device):
            parts.append(compute(images.to(device)).float().cpu())
    return torch.cat(parts)


def _folder(cache: Path | None, about: dict[str, Any]) -> Path | None:
    if cache is None:
        return None
    text = json.dumps(about, indent=2, sort_keys=True)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").write_text(text + "\n", encoding="utf-8")
    return folder


def _read(path: Path, count: int) -> Tensor:
    try:
        kept = load_file(path)["features"]
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(
            "kept features cannot be read", where=path, why=str(error), fix="delete the file: it is made anew"
        ) from error
    if len(kept) != count:
        raise CheckpointError(f"{len(kept)} kept features of {count} pictures", where=path, fix="delete the file")
    return cast(Tensor, kept)


def _write(path: Path, features: Tensor) -> None:
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    save_file({"features": features.contiguous()}, temporary)
    temporary.replace(path)
