"""Written mask crops ("maskcoco" of AiT): small grey pictures of one instance each, in a folder per class."""

from __future__ import annotations

from pathlib import Path

from saccade.data.images import IMAGE_SUFFIXES
from saccade.data.sources.layout import Records, data_root, first_existing, load_image, per_split
from saccade.data.sources.spec import SourceSpec
from saccade.errors import UsageError
from saccade.samples import Sample
from saccade.tasks import Task

_FOLDERS = ("instances_{}2017", "instances_{}")


class MaskCropsSource:
    """Pictures of masks, without a target: :class:`saccade.data.mask_crops.MaskCropAugment` makes them the same size.

    Args:
        spec: Root holds ``instances_<split>2017`` (as :func:`saccade.data.mask_crops.write_mask_crops` writes it), or
            ``images`` names the folder. The folders in it are classes to the original; their names mean nothing here.

    Raises:
        UsageError: The folder is not found, holds no picture, or another task than instance segmentation.
    """

    classes = None

    def __init__(self, spec: SourceSpec) -> None:
        if spec.task is not Task.INSTANCE:
            raise UsageError(f"crops of masks serve instance segmentation, not {spec.task}", where=spec.root)
        root = data_root(spec.root)
        self._folder, files = crop_files(spec, root)
        self.name, self.task = f"{root.name}/{spec.split}", spec.task
        self.skipped: dict[str, int] = {}
        self._records = Records(str(path.relative_to(self._folder)) for path in files)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one crop."""
        name = Path(self._records[index])
        image, origin = load_image(self._folder / name, self.name, str(name.with_suffix("")), None)
        return Sample(image=image, task=self.task, origin=origin)


def crop_files(spec: SourceSpec, root: Path) -> tuple[Path, list[Path]]:
    """The folder of a split and its pictures, sorted.

    Raises:
        UsageError: The folder is not found, or holds no picture.
    """
    candidates = [spec.images] if spec.images else per_split(_FOLDERS, spec.split)
    folder = first_existing(root, candidates)
    if folder is None:
        raise UsageError(
            "the folder of the mask crops is not found",
            where=root,
            why=f"looked for {', '.join(candidates)}",
            fix="write it (`saccade data convert --to mask_crops`), or name it, relative to root (images=...)",
        )
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UsageError("there are no pictures", where=folder)
    return folder, files
