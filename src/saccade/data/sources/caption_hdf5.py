"""Captioned images in one HDF5 file per split, with captions as word ids and a WORDMAP: read and written.

Files: ``<SPLIT>_IMAGES_<name>.hdf5``, ``<SPLIT>_CAPTIONS_<name>.json``, ``<SPLIT>_CAPLENS_<name>.json`` for TRAIN, VAL
and TEST, and ``WORDMAP_<name>.json``. It is what a public tutorial of "Show, Attend and Tell" makes of COCO, and what
ViSFT is trained on; facts in docs/visft.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from saccade.data.resize import resize_pillow
from saccade.data.sources.base import KnowsCaptions, Source
from saccade.data.sources.karpathy import holds_all_splits
from saccade.data.sources.layout import Records, data_root, list_of, read_json
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, MissingDataError, UsageError, require
from saccade.samples import Origin, Sample, Target
from saccade.tasks import Task
from saccade.tokens.words import WordMap, split_words

_NAME = "coco_5_cap_per_img_5_min_word_freq"
_SEED = 123
_SPLITS = {"train": "TRAIN", "val": "VAL", "validation": "VAL", "test": "TEST"}


class CaptionHdf5Source:
    """Images with captions.

    Args:
        spec: ``annotations`` is the name that the files share, where the folder has several; ``per_caption`` gives one
            sample per caption (training) instead of one per image with all of its captions.

    Raises:
        UsageError: Files are not found, or the package h5py is not installed.
        DataError: The files contradict one another.
    """

    def __init__(self, spec: SourceSpec) -> None:
        if spec.task is not Task.CAPTION:
            raise UsageError(f"captions serve the task caption, not {spec.task}", where=spec.root)
        root = data_root(spec.root)
        self.name, self.task, self.classes = f"{root.name}/{spec.split}", spec.task, None
        self.skipped: dict[str, int] = {}
        name = spec.annotations or find_name(root)
        part = _SPLITS.get(spec.split, spec.split.upper())
        self._path = root / f"{part}_IMAGES_{name}.hdf5"
        if not self._path.is_file():
            raise MissingDataError(f"the images of the split '{spec.split}' are not found", where=self._path)
        self._handle: tuple[int, Any] | None = None
        words = WordMap.load(root / f"WORDMAP_{name}.json")
        captions, lengths = (read_json(root / f"{part}_{what}_{name}.json") for what in ("CAPTIONS", "CAPLENS"))
        images = self._images()
        each = int(images.file.attrs.get("captions_per_image", 0))
        if not each or not len(captions) == len(lengths) == len(images) * each:
            raise DataError(
                "images, captions and their lengths do not belong together",
                where=self._path,
                why=f"{len(images)} images of {each} captions, {len(captions)} captions, {len(lengths)} lengths",
                fix="fetch or write the files of the split again",
            )
        sentences = [_sentence(words, *pair, self._path) for pair in zip(captions, lengths, strict=True)]
        listed: list[tuple[int, tuple[str, ...]]]
        if spec.per_caption:
            listed = [(index // each, (sentence,)) for index, sentence in enumerate(sentences)]
        else:
            listed = [(image, tuple(sentences[image * each : (image + 1) * each])) for image in range(len(images))]
        self._records = Records(listed)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image with its captions."""
        image, captions = self._records[index]
        pixels = torch.from_numpy(np.ascontiguousarray(self._images()[image]))
        origin = Origin(dataset=self.name, image_id=image, path=None, size_hw=(pixels.shape[1], pixels.shape[2]))
        return Sample(image=tv_tensors.Image(pixels), task=self.task, origin=origin, target=Target(captions=captions))

    def captions_of(self, index: int) -> tuple[str, ...]:
        """The captions of a sample, without its image."""
        captions: tuple[str, ...] = self._records[index][1]
        return captions

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}

    def _images(self) -> Any:
        # An open file must not be shared with the processes of the loader.
        if self._handle is None or self._handle[0] != os.getpid():
            h5py = require("h5py", extra="hdf5", purpose="reading HDF5 files")
            try:
                self._handle = os.getpid(), h5py.File(self._path, "r")["images"]
            except (OSError, KeyError) as error:
                raise DataError("the images cannot be read", where=self._path, why=str(error)) from error
        return self._handle[1]


def find_name(root: Path) -> str:
    """The name that the files of a folder share, from its WORDMAP.

    Raises:
        UsageError: There is none, or more than one.
    """
    names = sorted(path.stem.removeprefix("WORDMAP_") for path in root.glob("WORDMAP_*.json"))
    if len(names) != 1:
        raise MissingDataError(
            "no WORDMAP_*.json is in the folder" if not names else "the folder has several data sets",
            where=root,
            why=", ".join(names) or None,
            fix="name one with annotations=..." if names else None,
        )
    return names[0]


def _sentence(words: WordMap, ids: list[int], length: int, where: Path) -> str:
    told = ids[:length]
    if len(told) < length or length < 2 or told[0] != words.start_id or told[-1] != words.end_id:
        raise DataError("a caption does not begin and end as its length says", where=where, why=f"{ids}, {length}")
    if not all(0 <= index < len(words) for index in told):
        raise DataError("a caption has ids that the WORDMAP lacks", where=where, why=str(told))
    return words.decode(told)


def read_words(path: Path) -> WordMap:
    """The map of words to write captions with.

    Args:
        path: A ``WORDMAP_*.json``; or Karpathy's ``dataset_coco.json``, whose words are counted in the order of the
            file, whatever the split: so the map of the released caption heads was made.

    Raises:
        CheckpointError: The file is missing or is no map of words.
        DataError: Karpathy's file has another form.
    """
    if holds_all_splits(path) and path.is_file():
        return WordMap.count(_karpathy_words(path))
    return WordMap.load(path)


def _karpathy_words(path: Path) -> Iterator[list[str]]:
    for image in list_of(read_json(path), "images", path):
        for sentence in list_of(image, "sentences", path):
            yield list_of(sentence, "tokens", path)


def write_caption_hdf5(
    sources: Mapping[str, Source],
    out: str | Path,
    *,
    words: WordMap | None = None,
    name: str = _NAME,
    captions_per_image: int = 5,
    most_words: int = 50,
    side: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Writes the files of all splits and the WORDMAP.

    As the tutorial does: pictures lose their aspect ratio; captions of more than ``most_words`` words are left out, and
    images without any other; of more captions some are drawn, of fewer some are repeated, by Python's generator.

    Args:
        sources: Captions with images by split (``train``, ``val``, ``test``), in the order they are written in.
        out: Folder; made where it is missing.
        words: The map; None counts the words of these sources that occur at least six times.
        name: What the files share.
        captions_per_image: Captions of every image.
        most_words: Greatest number of words of a caption.
        side: Side of the pictures in pixels.
        progress: Called with (samples done, samples in all).

    Returns:
        How many images and captions were written, and the words of the map.

    Raises:
        UsageError: No captions, a file exists already, or the package h5py is not installed.
    """
    h5py = require("h5py", extra="hdf5", purpose="writing HDF5 files")
    root = Path(out)
    root.mkdir(parents=True, exist_ok=True)
    wordmap = root / f"WORDMAP_{name}.json"
    if wordmap.exists():
        raise UsageError("the file exists already", where=wordmap, fix="remove it, or choose another folder")
    for split, source in sources.items():
        if source.task is not Task.CAPTION or split not in _SPLITS:
            raise UsageError(f"'{split}' of {source.name} cannot be written", why="captions of train, val or test are")
    if words is None:
        words = WordMap.count(
            split_words(caption)
            for source in sources.values()
            for index in range(len(source))
            for caption in _captions_of(source, index)
        )
    draw, done = Random(_SEED), 0
    counts = {"images": 0, "captions": 0, "words": len(words)}
    total = sum(len(source) for source in sources.values())
    for split, source in sources.items():
        captions, lengths, kept = [], [], 0
        partial = root / f"{_SPLITS[split]}_IMAGES_{name}.partial"
        with h5py.File(partial, "w") as file:
            file.attrs["captions_per_image"] = captions_per_image
            images = file.create_dataset(
                "images", (len(source), 3, side, side), "uint8", maxshape=(None, 3, side, side)
            )
            for index in range(len(source)):
                sample = source[index]
                said = [text for text in sample.target.captions if len(split_words(text)) <= most_words]
                if said:
                    images[kept] = resize_pillow(sample.image.as_subclass(torch.Tensor).numpy(), (side, side))
                    kept += 1
                    for caption in _draw(said, captions_per_image, draw):
                        ids = words.encode(caption, most=most_words)
                        lengths.append(len(ids))
                        captions.append(ids + [0] * (most_words + 2 - len(ids)))
                done += 1
                if progress is not None:
                    progress(done, total)
            images.resize(kept, axis=0)
        for what, content in (("CAPTIONS", captions), ("CAPLENS", lengths)):
            (root / f"{_SPLITS[split]}_{what}_{name}.json").write_text(json.dumps(content), encoding="utf-8")
        partial.rename(partial.with_suffix(".hdf5"))
        counts["images"] += kept
        counts["captions"] += len(captions)
    wordmap.write_text(json.dumps(words.ids), encoding="utf-8")
    return counts


def _captions_of(source: Source, index: int) -> tuple[str, ...]:
    """The captions of a sample; its image is read where the source cannot say them otherwise."""
    return source.captions_of(index) if isinstance(source, KnowsCaptions) else source[index].target.captions


def _draw(captions: list[str], number: int, draw: Random) -> list[str]:
    if len(captions) < number:
        return captions + [draw.choice(captions) for _ in range(number - len(captions))]
    return draw.sample(captions, k=number)
