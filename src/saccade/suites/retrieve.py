"""Zero-shot retrieval between images and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from saccade.data.sources.base import Source, select_range
from saccade.data.sources.karpathy import KarpathySource
from saccade.data.sources.layout import find_file, first_existing
from saccade.metrics.ranking import recall_at_k
from saccade.models.visft.clip import CLIPPair
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
    annotations, images = find_file(root, "", _FLICKR, "the file of captions"), first_existing(root, _FLICKR_IMAGES)
    return KarpathySource(
        task=Task.CAPTION,
        root=root,
        split="test",
        annotations=annotations.relative_to(root).as_posix(),
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
    chosen = select_range(source, limit=options.limit)
    captions = [source.captions_of(index) for index in range(len(chosen))]
    pair = tower.require_pair()
    images_IJ = extract(
        pair.encode_images,
        SourcePictures(chosen),
        CentreCrop(side=tower.side, mean=tower.mean, std=tower.std),
        options=options,
        device=tower.device,
        about={"tower": tower.identity, "data": f"{source.name} {options.root.resolve()}", "what": "points"},
    )
    return SuiteResult(
        metrics=recall_at_k(images_IJ, *caption_points(pair, captions, options)),
        items=len(chosen),
        notes=[f"the first {CAPTIONS} captions of every image"],
        left_out=source.skipped,
    )


def caption_points(pair: CLIPPair, captions: Sequence[Sequence[str]], options: SuiteOptions) -> tuple[Tensor, Tensor]:
    """The points of captions ``[T, J]``, and which picture each is of ``[T]``.

    Args:
        pair: The towers.
        captions: Of each picture; the first five count.
        options: Batch size, progress.
    """
    texts = [text for own in captions for text in own[:CAPTIONS]]
    image_of = [index for index, own in enumerate(captions) for _ in own[:CAPTIONS]]
    points = []
    for start in range(0, len(texts), options.batch_size):
        with torch.inference_mode():
            points.append(pair.encode_texts(texts[start : start + options.batch_size]).float().cpu())
        options.progress("captions", min(start + options.batch_size, len(texts)), len(texts))
    return torch.cat(points), torch.tensor(image_of)


RETRIEVAL = {"flickr30k": partial(retrieve, which="flickr30k"), "coco_retrieval": partial(retrieve, which="coco")}
"""Name of a suite to what runs it."""
