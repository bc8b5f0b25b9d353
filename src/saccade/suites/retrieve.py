"""Zero-shot retrieval between images and their captions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from saccade.data.sources.base import Source, select_range
from saccade.data.sources.karpathy import KarpathySource
from saccade.data.sources.layout import first_existing
from saccade.metrics.ranking import recall_at_k
from saccade.suites.base import SuiteOptions, SuiteResult
from saccade.suites.features import extract
from saccade.suites.pictures import CentreCrop
from saccade.suites.towers import Tower
from saccade.tasks import Task

Retrieval = Literal["flickr30k", "coco"]

CAPTIONS = 5
"""Captions of an image that count; a few images of COCO have more."""

_FLICKR = ("dataset_flickr30k.json", "annotations/dataset_flickr30k.json", "flickr30k_test.json")
_FLICKR_IMAGES = ("flickr30k-images", "flickr30k_images", "images")


class SourcePictures:
    """The pictures of a source.

    Args:
        source: Any.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Tensor:
        return self._source[index].image.as_subclass(Tensor)


def open_captioned(root: Path, which: Retrieval) -> KarpathySource:
    """Karpathy's test split of Flickr30k (1,000 images) or of COCO (5,000)."""
    if which == "coco":
        return KarpathySource(task=Task.CAPTION, root=root, split="test")
    annotations, images = first_existing(root, _FLICKR), first_existing(root, _FLICKR_IMAGES)
    return KarpathySource(
        task=Task.CAPTION,
        root=root,
        split="test",
        annotations="" if annotations is None else annotations.relative_to(root).as_posix(),
        images="" if images is None else images.relative_to(root).as_posix(),
    )


def retrieve(tower: Tower, options: SuiteOptions, *, which: Retrieval) -> SuiteResult:
    """Recall at 1, 5 and 10 in both directions.

    Args:
        tower: With its text tower.
        options: The folder of the set, and the rest.
        which: The set.
    """
    source = open_captioned(options.root, which)
    metrics = retrieval_of(tower, select_range(source, limit=options.limit), options)
    notes = [f"the first {CAPTIONS} captions of every image"]
    pictures = min(options.limit or len(source), len(source))
    return SuiteResult(metrics=metrics, pictures=pictures, notes=notes, left_out=source.skipped)


def retrieval_of(tower: Tower, source: Source, options: SuiteOptions) -> dict[str, float]:
    """Recall of any source of captioned images."""
    pair = tower.require_pair()
    captions: list[str] = []
    image_of: list[int] = []
    for index in range(len(source)):
        own = source[index].target.captions[:CAPTIONS]
        captions += own
        image_of += [index] * len(own)
    texts = []
    for start in range(0, len(captions), options.batch_size):
        with torch.inference_mode():
            texts.append(pair.encode_texts(captions[start : start + options.batch_size]).float().cpu())
        options.progress("captions", min(start + options.batch_size, len(captions)), len(captions))
    images = extract(
        pair.encode_images,
        SourcePictures(source),
        CentreCrop(side=tower.side, mean=tower.mean, std=tower.std),
        options=options,
        device=tower.device,
        about={"tower": tower.identity, "data": f"{source.name} {options.root.resolve()}", "what": "points"},
    )
    return recall_at_k(images, torch.cat(texts), torch.tensor(image_of))


RETRIEVAL = {"flickr30k": partial(retrieve, which="flickr30k"), "coco_retrieval": partial(retrieve, which="coco")}
"""Name of a suite to what runs it."""
