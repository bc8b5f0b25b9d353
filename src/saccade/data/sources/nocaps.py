"""nocaps: captions of pictures with objects that COCO's captions never name (Agrawal et al., ICCV 2019)."""

from __future__ import annotations

from pathlib import Path

from saccade.data.sources.karpathy import KarpathySource
from saccade.data.sources.layout import data_root, find_file, list_of, read_json
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError
from saccade.samples import Sample

DOMAINS = ("in-domain", "near-domain", "out-domain")
"""Whether COCO's captions name the objects of a picture: all of them, some, none."""

_FILES = ("nocaps_val_4500_captions.json", "annotations/nocaps_val_4500_captions.json")


def nocaps_annotations(root: Path, given: str = "") -> str:
    """The caption file, relative to root: the given one, or where it usually is.

    Raises:
        UsageError: It is not found.
    """
    return find_file(root, given, _FILES, "the caption file of nocaps").relative_to(root).as_posix()


class NocapsSource:
    """The validation split, the only one whose captions are public; its file has the form of COCO's captions.

    Args:
        spec: ``root``, and ``images`` or ``annotations`` where they lie elsewhere.

    Attributes:
        domains: Image id to its domain; empty where the file does not say.

    Raises:
        UsageError: Another task or split, or files that are not found.
        DataError: The file is damaged, or names an unknown domain.
    """

    def __init__(self, spec: SourceSpec) -> None:
        if spec.split not in ("val", "validation"):
            raise UsageError(f"nocaps has public captions of 'val' only, not of '{spec.split}'", where=spec.root)
        root = data_root(spec.root)
        annotations = nocaps_annotations(root, spec.annotations)
        self._captioned = KarpathySource(
            task=spec.task,
            root=root,
            split=spec.split,
            images=spec.images,
            annotations=annotations,
            per_caption=spec.per_caption,
        )
        self.name, self.task, self.classes = self._captioned.name, self._captioned.task, None
        self.skipped = self._captioned.skipped
        listed = list_of(read_json(root / annotations), "images", root / annotations)
        self.domains: dict[int | str, str] = {entry["id"]: entry["domain"] for entry in listed if "domain" in entry}
        strange = sorted(set(self.domains.values()) - set(DOMAINS))
        if strange:
            raise DataError(
                f"'{strange[0]}' is no domain of nocaps", where=root / annotations, why=f"known: {', '.join(DOMAINS)}"
            )

    def __len__(self) -> int:
        return len(self._captioned)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image with its captions."""
        return self._captioned[index]
