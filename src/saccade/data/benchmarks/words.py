"""Pictures of single words (scene-text recognition), as the owners of each set lay them out."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from saccade.data.sources.layout import data_root, find_file, first_existing
from saccade.errors import DataError, MissingDataError

Box = tuple[float, float, float, float]


@dataclass(kw_only=True, frozen=True)
class WordPicture:
    """A picture, or a part of one, that shows a word.

    Attributes:
        path: The file.
        word: What it says.
        box_xyxy: The part, in pixels of the upright picture; None = all of it.
    """

    path: Path
    word: str
    box_xyxy: Box | None = None


@dataclass(kw_only=True)
class WordSet:
    """Pictures of words.

    Attributes:
        name: Of the set.
        pictures: In the order of its list.
        skipped: What was left out by the protocol, and how often.
    """

    name: str
    pictures: list[WordPicture]
    skipped: dict[str, int] = field(default_factory=dict)


def open_iiit5k(root: str | Path, split: str = "test") -> WordSet:
    """IIIT5K: ``testdata.mat`` (``traindata.mat``), a table with the columns ``ImgName`` and ``GroundTruth``."""
    # scipy.io imports threadpoolctl, which sets a variable of the environment: not by importing saccade.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    folder = data_root(root)
    table = find_file(folder, "", [f"{split}data.mat", f"IIIT5K/{split}data.mat"], f"the table of the split '{split}'")
    try:
        rows = loadmat(table)[f"{split}data"].reshape(-1)
        listed = [(str(np.squeeze(row["ImgName"])), str(np.squeeze(row["GroundTruth"]))) for row in rows]
    except (MatReadError, KeyError, IndexError, TypeError, ValueError, OSError, NotImplementedError) as error:
        raise DataError("not a table of IIIT5K", where=table, why=str(error)) from error
    pictures = [WordPicture(path=table.parent / file, word=word) for file, word in listed]
    return _checked(WordSet(name="iiit5k", pictures=pictures), table)


def open_svt(root: str | Path, split: str = "test") -> WordSet:
    """Street View Text: ``test.xml`` (``train.xml``), words as rectangles in whole photographs."""
    folder = data_root(root)
    table = find_file(folder, "", [f"{split}.xml", f"svt1/{split}.xml"], f"the table of the split '{split}'")
    try:
        tree = ElementTree.parse(table).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise DataError("not valid XML", where=table, why=str(error)) from error
    pictures = []
    for image in tree.iter("image"):
        file = image.findtext("imageName", "").strip()
        for rectangle in image.iter("taggedRectangle"):
            try:
                x, y, width, height = (float(rectangle.attrib[key]) for key in ("x", "y", "width", "height"))
            except (KeyError, ValueError) as error:
                raise DataError("a rectangle lacks a number", where=table, why=f"{file}: {error!r}") from error
            word = rectangle.findtext("tag", "").strip()
            pictures.append(WordPicture(path=table.parent / file, word=word, box_xyxy=(x, y, x + width, y + height)))
    return _checked(WordSet(name="svt", pictures=pictures), table)


_ICDAR_LINE = re.compile(r'\s*(?P<file>[^,]+?)\s*,\s*"(?P<word>.*)"\s*$')


def open_ic13(root: str | Path, split: str = "test") -> WordSet:
    """ICDAR 2013, task 2.3: lines ``word_1.png, "Tiredness"``; words with other signs than letters and digits are out.

    That leaves the 1015 words that publications call IC13.
    """
    found = _open_icdar("ic13", root, split, "Challenge2")
    kept = [one for one in found.pictures if one.word.isascii() and one.word.isalnum()]
    if len(kept) < len(found.pictures):
        found.skipped["word with a sign that is neither letter nor digit"] = len(found.pictures) - len(kept)
    found.pictures = kept
    return found


def open_ic15(root: str | Path, split: str = "test") -> WordSet:
    """ICDAR 2015, task 4.3: the same form; all 2077 words."""
    return _open_icdar("ic15", root, split, "Challenge4")


def _open_icdar(name: str, root: str | Path, split: str, challenge: str) -> WordSet:
    folder = data_root(root)
    title = split.capitalize()
    number = challenge[-1]
    table = find_file(
        folder,
        "",
        [f"{challenge}_{title}_Task3_GT.txt", f"{split}/gt.txt", "gt.txt"],
        f"the list of words of the split '{split}'",
    )
    images = first_existing(
        folder,
        [f"{challenge}_{title}_Task3_Images", f"ch{number}_{split}_word_images_gt", f"{split}", "."],
    )
    assert images is not None  # "." is there
    pictures = []
    for line, text in enumerate(_text(table).splitlines(), start=1):
        if not text.strip():
            continue
        parts = _ICDAR_LINE.match(text)
        if parts is None:
            raise DataError('a line is not of the form: file, "word"', where=f"{table}, line {line}", why=text[:60])
        word = parts["word"].replace('\\"', '"').replace("\\\\", "\\")
        pictures.append(WordPicture(path=images / parts["file"], word=word))
    return _checked(WordSet(name=name, pictures=pictures), table)


def open_svtp(root: str | Path, split: str = "test") -> WordSet:
    """SVT-Perspective: ``imagelist.txt``, lines ``file word lexicon``."""
    return _open_list("svtp", root, split)


def open_cute(root: str | Path, split: str = "test") -> WordSet:
    """CUTE80, words cut out: ``label.txt``, lines ``file word``."""
    return _open_list("cute", root, split)


def _open_list(name: str, root: str | Path, split: str) -> WordSet:
    if split != "test":
        raise MissingDataError(f"{name} has a test split only", where=root)
    folder = data_root(root)
    table = find_file(folder, "", ["imagelist.txt", "label.txt", "gt.txt"], "the list of words")
    pictures = []
    for line, text in enumerate(_text(table).splitlines(), start=1):
        parts = text.split()
        if not parts:
            continue
        if len(parts) < 2:
            raise DataError("a line names no word", where=f"{table}, line {line}")
        pictures.append(WordPicture(path=folder / parts[0], word=parts[1]))
    return _checked(WordSet(name=name, pictures=pictures), table)


def open_mjsynth(root: str | Path, split: str = "train") -> WordSet:
    """MJSynth: ``annotation_train.txt``, lines ``./2425/1/115_Lube_45484.jpg 45484``; the file's name says the word."""
    folder = data_root(root)
    inner = first_existing(folder, ["mnt/ramdisk/max/90kDICT32px", "90kDICT32px"]) or folder
    table = find_file(inner, "", [f"annotation_{split}.txt"], f"the list of the split '{split}'")
    pictures = []
    for line, text in enumerate(_text(table).splitlines(), start=1):
        file = text.split(" ", maxsplit=1)[0]
        if not file:
            continue
        words = Path(file).stem.split("_")
        if len(words) != 3:
            raise DataError("a file's name says no word", where=f"{table}, line {line}", why=file)
        pictures.append(WordPicture(path=inner / file, word=words[1]))
    return _checked(WordSet(name="mjsynth", pictures=pictures), table)


def open_listed(root: str | Path, split: str = "train") -> WordSet:
    """Any pictures of words: ``train.tsv`` (``test.tsv``), a file and a word per line with a tab between them."""
    folder = data_root(root)
    table = find_file(folder, "", [f"{split}.tsv"], f"the list of the split '{split}'")
    pictures = []
    for line, row in enumerate(csv.reader(_text(table).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
        if len(row) != 2:
            raise DataError("a line is not: file, tab, word", where=f"{table}, line {line}")
        pictures.append(WordPicture(path=folder / row[0], word=row[1]))
    return _checked(WordSet(name=folder.name, pictures=pictures), table)


WORD_SETS: dict[str, Callable[[str | Path], WordSet]] = {
    "iiit5k": open_iiit5k,
    "svt": open_svt,
    "ic13": open_ic13,
    "ic15": open_ic15,
    "svtp": open_svtp,
    "cute": open_cute,
}
"""Test set, which is also the name of its folder, to what opens it."""


def open_training_words(root: str | Path) -> WordSet:
    """What a reader of words is trained on: MJSynth, or pictures listed in ``train.tsv``."""
    return open_listed(root) if (data_root(root) / "train.tsv").is_file() else open_mjsynth(root)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the list of words cannot be read", where=path, why=str(error)) from error


def _checked(found: WordSet, table: Path) -> WordSet:
    kept = [one for one in found.pictures if one.word]
    if len(kept) < len(found.pictures):
        found.skipped["picture without a word"] = len(found.pictures) - len(kept)
    found.pictures = kept
    if not kept:
        raise DataError(f"no word in the list of {found.name}", where=table)
    return found
