"""COCO captions: Karpathy's split in its three usual forms, and the plain COCO captions file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

from saccade.data.sources.layout import (
    Records,
    data_root,
    find_file,
    find_images,
    load_image,
    read_json,
    split_names,
)
from saccade.errors import DataError, MissingDataError, UsageError
from saccade.samples import Sample, Target
from saccade.tasks import Task

Captioned: TypeAlias = tuple[str, int | str, list[str]]
"""File relative to the image folder, image id, captions."""

_KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "validation": ("val",), "test": ("test",)}


class KarpathySource:
    """Images with captions.

    Understood are the files of BLIP (``coco_karpathy_train.json``: one entry per caption; ``..._val``, ``..._test``:
    one per image), Karpathy's own ``dataset_coco.json`` (training takes ``train`` and ``restval``), and COCO's
    ``captions_<split>.json``.

    Args:
        task: Caption.
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``.
        images: Image folder relative to root; empty = looked for.
        annotations: JSON file relative to root; empty = looked for.
        per_caption: One sample per caption (training) instead of one per image with all its captions (evaluation).

    Attributes:
        skipped: Blank captions, images without one, captions of images that are not listed.

    Raises:
        UsageError: Files are not found.
        DataError: The file is damaged or has another form.
    """

    def __init__(
        self,
        *,
        task: Task,
        root: str | Path,
        split: str = "train",
        images: str = "",
        annotations: str = "",
        per_caption: bool = False,
    ) -> None:
        if task is not Task.CAPTION:
            raise UsageError(f"captions serve the task caption, not {task}", where=str(root))
        folder = data_root(root)
        self.name, self.task, self.classes = f"{folder.name}/{split}", task, None
        path = find_captions(folder, split, annotations)
        skipped: Counter[str] = Counter()
        listed = read_captions(path, split, skipped)
        if not listed:
            left_out = {reason: count for reason, count in skipped.items() if count}
            kind = DataError if left_out else MissingDataError  # a file of all splits may lack this one
            raise kind(f"no captioned image of the split '{split}'", where=path, why=str(left_out or "") or None)
        self._images = find_images(folder, [file for file, _, _ in listed], images, caption_image_folders(split))
        if per_caption:
            listed = [(file, image_id, [caption]) for file, image_id, captions in listed for caption in captions]
        self._records = Records(listed)
        self.skipped: dict[str, int] = dict(skipped)

    def __len__(self) -> int:
        return len(self._records)

    def captions_of(self, index: int) -> tuple[str, ...]:
        """The captions of a sample, without its image."""
        return tuple(self._records[index][2])

    def __getitem__(self, index: int) -> Sample:
        """Reads one image with its captions."""
        file, image_id, captions = self._records[index]
        image, origin = load_image(self._images / file, self.name, image_id, None)
        return Sample(image=image, task=self.task, origin=origin, target=Target(captions=tuple(captions)))


def find_captions(root: Path, split: str, annotations: str = "") -> Path:
    """The caption file of a split.

    Raises:
        UsageError: It is not found.
    """
    patterns = ("captions_{}.json", "captions_{}2017.json", "captions_{}2014.json", "coco_karpathy_{}.json")
    candidates = [
        place + pattern.format(name)
        for name in split_names(split)
        for pattern in patterns
        for place in ("annotations/", "")
    ]
    whole = ["annotations/dataset_coco.json", "dataset_coco.json", "dataset.json"]
    return find_file(root, annotations, [*candidates, *whole], f"the caption file of the split '{split}'")


def holds_all_splits(path: str | Path) -> bool:
    """Whether this is Karpathy's own file (``dataset_coco.json``): every image names its split."""
    return Path(path).name.startswith("dataset")


def caption_image_folders(split: str) -> list[str]:
    """Where captioned images usually are, relative to root."""
    per_split = [
        pattern.format(name) for name in split_names(split) for pattern in ("{}2017", "{}2014", "images/{}", "{}")
    ]
    return [".", *per_split, "images", "val2014", "train2014"]


def read_captions(path: Path, split: str, skipped: Counter[str]) -> list[Captioned]:
    """Every captioned image of a split, in the order of the file.

    Raises:
        DataError: The file has none of the known forms.
    """
    content = read_json(path)
    try:
        if isinstance(content, list):
            pairs = [_from_blip(entry) for entry in content]
        elif "annotations" in content:
            pairs = _from_coco(content, skipped)
        else:
            pairs = [
                (str(Path(entry.get("filepath", "")) / entry["filename"]), entry.get("cocoid", entry.get("imgid")), raw)
                for entry in content["images"]
                if entry["split"] in _KARPATHY_SPLITS.get(split, (split,))
                for raw in ([sentence["raw"] for sentence in entry["sentences"]],)
            ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "the caption file has none of the known forms",
            where=path,
            why=repr(error),
            fix="COCO captions, dataset_coco.json or BLIP's coco_karpathy_*.json",
        ) from error
    merged: dict[tuple[str, int | str], list[str]] = {}
    for file, image_id, captions in pairs:
        merged.setdefault((file, image_id), []).extend(captions)
    kept = []
    for (file, image_id), captions in merged.items():
        spoken = [caption for caption in captions if isinstance(caption, str) and caption.strip()]
        skipped["blank caption"] += len(captions) - len(spoken)
        if spoken:
            kept.append((file, image_id, spoken))
        else:
            skipped["image without a caption"] += 1
    for key in [key for key, count in skipped.items() if not count]:
        del skipped[key]
    return kept


def _from_blip(entry: dict[str, Any]) -> Captioned:
    file, captions = str(entry["image"]), entry["caption"]
    # COCO_val2014_000000391895.jpg: the number is the image id that the metric files use.
    tail = Path(file).stem.rpartition("_")[2]
    image_id: int | str = int(tail) if tail.isdigit() else Path(file).stem
    return file, image_id, [captions] if isinstance(captions, str) else list(captions)


def _from_coco(content: dict[str, Any], skipped: Counter[str]) -> list[Captioned]:
    listed: dict[int | str, Captioned] = {
        image["id"]: (str(image["file_name"]), image["id"], []) for image in content["images"]
    }
    for annotation in content["annotations"]:
        if annotation["image_id"] in listed:
            listed[annotation["image_id"]][2].append(annotation["caption"])
        else:
            skipped["caption of an image that is not listed"] += 1
    return list(listed.values())
