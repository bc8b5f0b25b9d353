"""ReasonSeg: an image, what is asked about it (phrases, or whole sentences), and polygons."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.data.geometry import mask_tensor
from saccade.data.polygons import draw_polygon
from saccade.data.sources.layout import Records, data_root, files_of, find_folder, load_image, read_json
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, MissingDataError, UsageError
from saccade.samples import IGNORE_LABEL, Sample, Target
from saccade.tasks import Task

FOLDERS = ("reason_seg/ReasonSeg/{}", "ReasonSeg/{}", "{}")


@dataclass(kw_only=True, frozen=True)
class Asked:
    """What a file of ReasonSeg says.

    Attributes:
        texts: What is asked, as it is written.
        is_sentence: The texts are whole sentences.
        shapes: Name and corners (``[N, 2]`` x and y in pixels) of every polygon.
    """

    texts: tuple[str, ...]
    is_sentence: bool
    shapes: tuple[tuple[str, NDArray[np.float64]], ...]


class ReasonSegSource:
    """One sample per image. Training has all its texts, each with the same mask; evaluation the first one.

    Polygons named ``ignore...`` are neither target nor background (``target.ignored``), those named ``flag`` do not
    count; smaller polygons lie on top of larger ones. What ``explanatory/train.json`` says about an image is the
    explanation of its training sample.

    Args:
        spec: Task, root, split (``train``, ``val`` or ``test``), and ``images`` where the folder has another name.

    Attributes:
        skipped: Images without a file of texts.

    Raises:
        UsageError: Another task, or no such folder.
        DataError: A file is damaged.
    """

    classes = None

    def __init__(self, spec: SourceSpec) -> None:
        if spec.task is not Task.REFERRING:
            raise UsageError(f"ReasonSeg serves referring segmentation, not {spec.task}", where=spec.root)
        root = data_root(spec.root)
        pairs, alone = reasonseg_files(root, spec.split, spec.images)
        explained = _explanations(pairs[0][0].parent) if spec.split == "train" else {}
        self.name, self.task = f"ReasonSeg/{spec.split}", spec.task
        self.skipped = {"image without a file of texts": len(alone)} if alone else {}
        self._first_only = spec.split != "train"
        self._records = Records((str(image), str(text), explained.get(image.name, "")) for image, text in pairs)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image, its texts and their mask, in the frame of the original image."""
        image_path, text_path, explanation = self._records[index]
        image, origin = load_image(Path(image_path), self.name, Path(image_path).stem, None)
        asked = read_asked(Path(text_path))
        values = draw_labels(asked, origin.size_hw)
        phrases = asked.texts[:1] if self._first_only else asked.texts
        target = np.repeat((values == 1)[None], len(phrases), axis=0)
        return Sample(
            image=image,
            task=self.task,
            origin=origin,
            target=Target(
                masks=mask_tensor(target), ignored=mask_tensor(values == IGNORE_LABEL), explanation=explanation
            ),
            phrases=phrases,
            wording="sentence" if asked.is_sentence else "question",
        )


def reasonseg_files(root: Path, split: str, images: str = "") -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Images with their files of texts, sorted by name; and images without.

    Raises:
        UsageError: There is no such folder, or no image in it has a file of texts.
    """
    folder = find_folder(root, split, images, FOLDERS, "images")
    pictures = files_of(folder)
    pairs = [(path, path.with_suffix(".json")) for path in pictures if path.with_suffix(".json").is_file()]
    if not pairs:
        raise MissingDataError(
            "no image has a file of texts",
            where=folder,
            fix="ReasonSeg has one JSON file beside every image, of the same name",
        )
    paired = {path for path, _ in pairs}
    return pairs, [path for path in pictures if path not in paired]


def read_asked(path: Path) -> Asked:
    """Reads a file of texts and polygons.

    Raises:
        DataError: Damaged, or of another form.
    """
    content = _read(path)
    try:
        texts = tuple(str(text) for text in content["text"])
        shapes = tuple(
            (str(shape["label"]), np.asarray(shape["points"], np.float64).reshape(-1, 2)) for shape in content["shapes"]
        )
        asked = Asked(texts=texts, is_sentence=bool(content["is_sentence"]), shapes=shapes)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("a file of ReasonSeg lacks a field or has a wrong one", where=path, why=repr(error)) from error
    if not any(text.strip() for text in texts) or not all(np.isfinite(points).all() for _, points in shapes):
        raise DataError("a file of ReasonSeg without a text, or with a corner that is no number", where=path)
    return asked


def _read(path: Path) -> Any:
    """JSON in UTF-8, or in the encoding of the Windows machine that some of the files come from."""
    try:
        return read_json(path)
    except DataError:
        try:
            return json.loads(path.read_bytes().decode("cp1252"))
        except (OSError, ValueError):
            pass
        raise


def draw_labels(asked: Asked, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """``[H, W]``: 1 target, :data:`IGNORE_LABEL` ignored, 0 background.

    Args:
        asked: The polygons.
        size_hw: Height and width of the image.
    """
    drawn = [
        (name, draw_polygon(points, size_hw)) for name, points in asked.shapes if name.lower() != "flag" and len(points)
    ]
    order = np.argsort([int(mask.sum()) for _, mask in drawn], kind="stable")[::-1]
    values = np.zeros(size_hw, np.uint8)
    for index in order:
        name, mask = drawn[int(index)]
        values[mask] = IGNORE_LABEL if "ignore" in name.lower() else 1
    return values


def _explanations(folder: Path) -> dict[str, str]:
    """Explanation by file name of the image; empty where the data set has none."""
    path = folder.parent / "explanatory" / "train.json"
    if not path.is_file():
        return {}
    content = read_json(path)
    try:
        return {str(entry["image"]): str(entry["outputs"]) for entry in content}
    except (KeyError, TypeError) as error:
        raise DataError("an explanation lacks a field", where=path, why=repr(error)) from error
