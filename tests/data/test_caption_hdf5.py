"""Captions in HDF5 with a WORDMAP: what is written is read, in the official layout; damaged files are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from random import Random

import pytest
import torch
from torchvision import tv_tensors

from saccade.data.check import check_dataset
from saccade.data.sources import SourceSpec, open_source
from saccade.data.sources.caption_hdf5 import read_words, write_caption_hdf5
from saccade.errors import CheckpointError, DataError, UsageError
from saccade.samples import Origin, Sample, Target
from saccade.tasks import Task
from saccade.tokens.words import WordMap

h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")

CAPTIONS = {
    "train": [
        ["A dog runs.", "a dog on grass", "the dog", "a brown dog", "one dog!", "dog"],
        ["A cat sits", " ".join(["cat"] * 9)],
        [" ".join(["long"] * 9)],
    ],
    "val": [["a cat on a red dog"]],
}


class Listed:
    """Pictures of one colour."""

    task, classes, skipped = Task.CAPTION, None, {}

    def __init__(self, name: str, captions: list[list[str]]) -> None:
        self.name, self._captions = name, captions

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, index: int) -> Sample:
        image = torch.full((3, 12, 9), 40 * index + 10, dtype=torch.uint8)
        return Sample(
            image=tv_tensors.Image(image),
            task=Task.CAPTION,
            origin=Origin(dataset=self.name, image_id=index, path=None, size_hw=(12, 9)),
            target=Target(captions=tuple(self._captions[index])),
        )


def write(folder: Path, **kwargs: object) -> dict[str, int]:
    sources = {split: Listed(split, captions) for split, captions in CAPTIONS.items()}
    words = WordMap.count((text.lower().strip(".!").split() for rows in CAPTIONS["train"] for text in rows), least=2)
    return write_caption_hdf5(sources, folder, words=words, most_words=8, side=16, name="tiny", **kwargs)  # type: ignore[arg-type]


def test_words_are_counted_without_the_pictures_where_the_source_can_say_them(tmp_path: Path) -> None:
    class Told(Listed):
        """Counts how often a picture is read."""

        read = 0

        def captions_of(self, index: int) -> tuple[str, ...]:
            return tuple(self._captions[index])

        def __getitem__(self, index: int) -> Sample:
            self.read += 1
            return super().__getitem__(index)

    told = Told("train", CAPTIONS["train"])
    for folder, source in (("told", told), ("read", Listed("train", CAPTIONS["train"]))):
        write_caption_hdf5({"train": source}, tmp_path / folder, most_words=8, side=16, name="tiny")
    assert told.read == len(told)
    assert len({(tmp_path / name / "WORDMAP_tiny.json").read_bytes() for name in ("told", "read")}) == 1


def test_the_files_have_the_official_layout(tmp_path: Path) -> None:
    counts = write(tmp_path)
    assert counts["images"] == 3 and counts["captions"] == 15
    words = json.loads((tmp_path / "WORDMAP_tiny.json").read_text())
    assert words["<pad>"] == 0 and words["a"] == 1 and words["dog"] == 2  # by first appearance
    assert [words[word] for word in ("<unk>", "<start>", "<end>")] == list(range(len(words) - 3, len(words)))
    captions = json.loads((tmp_path / "TRAIN_CAPTIONS_tiny.json").read_text())
    lengths = json.loads((tmp_path / "TRAIN_CAPLENS_tiny.json").read_text())
    assert {len(row) for row in captions} == {10} and len(captions) == len(lengths) == 10
    for row, length in zip(captions, lengths, strict=True):
        assert row[0] == words["<start>"] and row[length - 1] == words["<end>"] and not any(row[length:])
    # The draws are those of Python's generator, seeded once: the first picture has six captions, five are drawn.
    drawn = Random(123).sample(CAPTIONS["train"][0], k=5)
    lexicon = WordMap.load(tmp_path / "WORDMAP_tiny.json")
    assert [row[: len(lexicon.encode(text, most=8))] for row, text in zip(captions, drawn, strict=False)] == [
        lexicon.encode(text, most=8) for text in drawn
    ]
    with h5py.File(tmp_path / "TRAIN_IMAGES_tiny.hdf5") as file:
        assert file.attrs["captions_per_image"] == 5
        assert file["images"].shape == (2, 3, 16, 16) and file["images"].dtype == "uint8"
        assert (file["images"][1] == 50).all()  # the third picture has no caption that is short enough


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    spec = SourceSpec(task=Task.CAPTION, reader="caption_hdf5", root=str(tmp_path))
    source = open_source(spec)
    assert len(source) == 2
    assert source[1].target.captions == ("a cat <unk>",) * 5
    assert int(source[1].image.amin()) == 50 and source[1].origin.size_hw == (16, 16)
    words = WordMap.load(tmp_path / "WORDMAP_tiny.json")
    ids = json.loads((tmp_path / "TRAIN_CAPTIONS_tiny.json").read_text())
    again = pickle.loads(pickle.dumps(source))  # loaders may send it to other processes
    for image in range(2):
        for at, caption in enumerate(again[image].target.captions):
            encoded = words.encode(caption, most=8)
            assert ids[5 * image + at][: len(encoded)] == encoded
    single = open_source(SourceSpec(task=Task.CAPTION, reader="caption_hdf5", root=str(tmp_path), per_caption=True))
    assert len(single) == 10 and len(single[7].target.captions) == 1 and int(single[7].image.amin()) == 50
    assert len(open_source(SourceSpec(task=Task.CAPTION, reader="caption_hdf5", root=str(tmp_path), split="val"))) == 1


def test_bad_files_are_refused(tmp_path: Path) -> None:
    spec = SourceSpec(task=Task.CAPTION, reader="caption_hdf5", root=str(tmp_path))
    with pytest.raises(UsageError, match="WORDMAP"):
        open_source(spec)
    write(tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        write(tmp_path)
    with pytest.raises(UsageError, match="split 'test'"):
        open_source(SourceSpec(task=Task.CAPTION, reader="caption_hdf5", root=str(tmp_path), split="test"))
    lengths = tmp_path / "TRAIN_CAPLENS_tiny.json"
    kept = lengths.read_text()
    lengths.write_text(json.dumps(json.loads(kept)[:-1]))
    with pytest.raises(DataError, match="belong together"):
        open_source(spec)
    lengths.write_text(json.dumps([3, *json.loads(kept)[1:]]))
    with pytest.raises(DataError, match="begin and end"):
        open_source(spec)
    lengths.write_text(kept)
    (tmp_path / "WORDMAP_tiny.json").write_text('{"<pad>": 0, "<unk>": 1, "<start>": 2, "<end>": 5}')
    with pytest.raises(CheckpointError, match="ids must be"):
        open_source(spec)
    (tmp_path / "WORDMAP_tiny.json").write_text(json.dumps(WordMap.count([["dog"]], least=1).ids))
    with pytest.raises(DataError, match="begin and end"):
        open_source(spec)


def test_words_of_the_official_file_come_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "dataset_coco.json"
    images = [{"split": x, "sentences": [{"tokens": [x, "b"]}] * 6} for x in ("test", "train", "val")]
    images[0]["sentences"].append({"tokens": ["rare"]})
    path.write_text(json.dumps({"images": images}))
    assert list(read_words(path).ids) == ["<pad>", "test", "b", "train", "val", "<unk>", "<start>", "<end>"]
    path.write_text(json.dumps({"images": [{"sentences": [{"raw": "a"}]}]}))
    with pytest.raises(DataError, match="tokens"):
        read_words(path)


def test_the_files_can_be_checked(tmp_path: Path) -> None:
    write(tmp_path)
    spec = SourceSpec(task=Task.CAPTION, reader="caption_hdf5", root=str(tmp_path))
    report = check_dataset(spec)
    assert report.ok and report.counts == {"images": 2, "annotations": 10}
    (tmp_path / "TRAIN_CAPLENS_tiny.json").write_text("[]")
    assert [finding.kind for finding in check_dataset(spec).findings] == ["unreadable_annotations"]
