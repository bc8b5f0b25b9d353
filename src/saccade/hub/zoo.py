"""The released weights: where they are, what they are, and what their authors published about them.

Only facts stand here. How an entry becomes a checkpoint folder is the business of :mod:`saccade.hub.resolve`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from saccade.errors import UsageError, nearest
from saccade.hub.zoo_ait import ENTRIES as AIT_ENTRIES
from saccade.hub.zoo_entry import Published, ZooEntry
from saccade.hub.zoo_gsva import ENTRIES as GSVA_ENTRIES
from saccade.hub.zoo_visft import ENTRIES as VISFT_ENTRIES
from saccade.hub.zoo_vitdet import ENTRIES as VITDET_ENTRIES
from saccade.tasks import Task

INPUT_SIZES = {Task.DETECTION: 1120, Task.INSTANCE: 1120, Task.SEMANTIC: 672, Task.CAPTION: 224, Task.GROUNDING: 224}
_GIT_REPO = "kanashi6/GiT"
# The GiT repository states Apache-2.0 for its code; the hub page of the weights was not seen.
_GIT_LICENCE = "not stated (code: Apache-2.0)"
_GIT_PARAMETERS = {"base": 158_647_808, "large": 420_358_400, "huge": 802_177_600}
_GIT_TENSORS = {"base": 265, "large": 433, "huge": 545}
_LETTER = {"base": "B", "large": "L", "huge": "H"}

_BENCHMARKS: dict[Task, tuple[str, str]] = {
    Task.DETECTION: ("COCO val2017", "box AP"),
    Task.INSTANCE: ("COCO val2017", "mask AP"),
    Task.SEMANTIC: ("ADE20K val", "mIoU"),
    Task.CAPTION: ("COCO Karpathy test", "BLEU-4"),
    Task.GROUNDING: ("RefCOCO val", "Acc@0.5"),
}
_ZERO_SHOT: tuple[tuple[Task, str, str, str], ...] = (
    (Task.DETECTION, "Cityscapes val", "box AP", ""),
    (Task.INSTANCE, "Cityscapes val", "mask AP", ""),
    (Task.SEMANTIC, "Cityscapes val", "mIoU", ""),
    (Task.SEMANTIC, "SUN RGB-D val", "mIoU", ""),
    (Task.CAPTION, "nocaps val", "SPICE", "the source does not name the metric; the magnitude fits SPICE"),
)
_FEW_SHOT: tuple[tuple[Task, str, str, str], ...] = (
    (Task.SEMANTIC, "DRIVE", "mIoU or mDice", "the source does not say which"),
    (Task.SEMANTIC, "LoveDA", "mIoU", ""),
    (Task.SEMANTIC, "Potsdam", "mIoU", ""),
    (Task.DETECTION, "WIDER FACE", "VOC mAP", ""),
    (Task.DETECTION, "DeepFashion in-shop", "box AP", ""),
)


def _five(setting: Literal["multi-task"], values: tuple[float, ...]) -> tuple[Published, ...]:
    return tuple(
        Published(task=task, data=data, metric=metric, value=value, setting=setting)
        for (task, (data, metric)), value in zip(_BENCHMARKS.items(), values, strict=True)
    )


def _table(
    setting: Literal["zero-shot", "few-shot"], rows: tuple[tuple[Task, str, str, str], ...], values: tuple[float, ...]
) -> tuple[Published, ...]:
    return tuple(
        Published(task=task, data=data, metric=metric, value=value, setting=setting, note=note)
        for (task, data, metric, note), value in zip(rows, values, strict=True)
    )


def _single(task: Task, stem: str, value: float, recipe: str) -> ZooEntry:
    data, metric = _BENCHMARKS[task]
    short = {Task.INSTANCE: "instance", Task.SEMANTIC: "semantic"}.get(task, str(task))
    return ZooEntry(
        name=f"git-base-{short}",
        system="git",
        kind="checkpoint",
        preset="base",
        file=f"{stem}_base.pth",
        repo=_GIT_REPO,
        tasks=(task,),
        parameters=_GIT_PARAMETERS["base"],
        tensors=_GIT_TENSORS["base"],
        input_sizes={task: INPUT_SIZES[task]},
        licence=_GIT_LICENCE,
        recipe=recipe,
        results=(Published(task=task, data=data, metric=metric, value=value, setting="single-task"),),
        summary=f"GiT-B trained on {str(task).replace('_', ' ')} alone",
    )


def _multi(size: str, five: tuple[float, ...], more: tuple[Published, ...] = ()) -> ZooEntry:
    return ZooEntry(
        name=f"git-{size}",
        system="git",
        kind="checkpoint",
        preset=size,
        file=f"multi_{size}.pth",
        repo=_GIT_REPO,
        tasks=tuple(INPUT_SIZES),
        parameters=_GIT_PARAMETERS[size],
        tensors=_GIT_TENSORS[size],
        input_sizes=dict(INPUT_SIZES),
        licence=_GIT_LICENCE,
        recipe=f"git.multi_fivetask_{size}",
        results=_five("multi-task", five) + more,
        summary=f"GiT-{_LETTER[size]} trained on five tasks together",
    )


def _universal(size: str, zero_shot: tuple[float, ...], few_shot: tuple[float, ...]) -> ZooEntry:
    return ZooEntry(
        name=f"git-universal-{size}",
        system="git",
        kind="checkpoint",
        preset=size,
        file=f"universal_{size}.pth",
        repo=_GIT_REPO,
        tasks=tuple(INPUT_SIZES),
        parameters=_GIT_PARAMETERS[size],
        tensors=_GIT_TENSORS[size],
        input_sizes=dict(INPUT_SIZES),
        licence=_GIT_LICENCE,
        recipe=f"git.universal_{size}",
        results=_table("zero-shot", _ZERO_SHOT, zero_shot) + _table("few-shot", _FEW_SHOT, few_shot),
        summary=f"GiT-{_LETTER[size]} trained on the universal mixture of 26 sources",
    )


def _text(size: str, file: str, width: int) -> ZooEntry:
    return ZooEntry(
        name=f"git-text-{size}",
        system="git",
        kind="text",
        preset=size,
        file=file,
        repo=_GIT_REPO,
        parameters=(30524 + 512 + 2) * width,
        tensors=5,
        licence=_GIT_LICENCE,
        summary=f"word table that GiT-{_LETTER[size]} training starts from (text_init)",
    )


def _sam_mmpretrain(size: str, digest: str, parameters: int, tensors: int) -> ZooEntry:
    file = f"vit-{size}-p16_sam-pre_3rdparty_sa1b-1024px_20230411-{digest}.pth"
    return ZooEntry(
        name=f"sam-vit-{size}",
        system="git",
        kind="backbone",
        preset=size,
        file=file,
        url=f"https://download.openmmlab.com/mmclassification/v1/vit_sam/{file}",
        sha256_prefix=digest,
        parameters=parameters,
        tensors=tensors,
        summary=f"SAM ViT-{_LETTER[size]} backbone that GiT training starts from (init_from), in mmpretrain's names",
    )


def _sam_original(size: str, digest: str) -> ZooEntry:
    file = f"sam_vit_{size[0]}_{digest}.pth"
    return ZooEntry(
        name=f"sam-{size}",
        system="git",
        kind="backbone",
        preset=size,
        file=file,
        url=f"https://dl.fbaipublicfiles.com/segment_anything/{file}",
        sha256_prefix=digest,
        summary=f"the whole SAM-{_LETTER[size]} in its own names; its ViT is the same as sam-vit-{size}",
    )


_ENTRIES: tuple[ZooEntry, ...] = (
    _single(Task.DETECTION, "det", 45.1, "git.single_detection_base"),
    _single(Task.INSTANCE, "insseg", 31.4, "git.single_instanceseg_base"),
    _single(Task.SEMANTIC, "semseg", 47.7, "git.single_semanticseg_base"),
    _single(Task.CAPTION, "caption", 33.7, "git.single_caption_base"),
    _single(Task.GROUNDING, "grounding", 83.3, "git.single_visualgrounding_base"),
    _multi(
        "base",
        (46.7, 31.9, 47.8, 35.3, 85.8),
        _table("zero-shot", _ZERO_SHOT, (21.8, 14.3, 34.4, 30.9, 9.2))
        + _table("few-shot", _FEW_SHOT, (34.3, 24.9, 19.1, 17.4, 23.0)),
    ),
    _multi("large", (51.3, 35.1, 50.6, 35.7, 88.4)),
    _multi("huge", (52.9, 35.8, 52.4, 36.2, 89.2)),
    _universal("base", (29.1, 17.9, 56.2, 37.5, 10.6), (51.1, 30.8, 30.6, 31.2, 38.3)),
    _universal("large", (32.3, 20.3, 58.0, 39.9, 11.6), (55.4, 34.1, 37.2, 33.4, 49.3)),
    _universal("huge", (34.1, 18.7, 61.8, 42.5, 12.6), (57.9, 35.1, 43.4, 34.0, 52.2)),
    _text("base", "bert_embed.pt", 768),
    _text("large", "bert_embed_large.pt", 1024),
    _text("huge", "bert_embed_huge.pt", 1280),
    # Parameters and tensors count the ViT with its channel reduction (two convolutions without bias, two norms).
    _sam_mmpretrain("base", "2320f9cc", 88_883_456 + 787_456, 177),
    _sam_mmpretrain("large", "595feafd", 307_425_280 + 852_992, 345),
    _sam_mmpretrain("huge", "3f13c653", 636_107_520 + 918_528, 457),
    _sam_original("base", "01ec64"),
    _sam_original("large", "0b3195"),
    _sam_original("huge", "4b8939"),
    *VITDET_ENTRIES,
    *AIT_ENTRIES,
    *GSVA_ENTRIES,
    *VISFT_ENTRIES,
)

ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in _ENTRIES}
"""Every released file by its name."""


def list_entries(system: str | None = None) -> list[ZooEntry]:
    """The entries of one system, or all.

    Raises:
        UsageError: No entry belongs to this system.
    """
    systems = {entry.system for entry in _ENTRIES}
    if system is not None and system not in systems:
        raise UsageError(f"no released weights of a system '{system}'", fix=nearest(system, systems))
    return [entry for entry in _ENTRIES if system in (None, entry.system)]


def get(name: str) -> ZooEntry:
    """One entry by its name.

    Raises:
        UsageError: No such entry; the message offers the nearest name.
    """
    if name not in ZOO:
        raise UsageError(f"there are no released weights called '{name}'", fix=nearest(name, ZOO))
    return ZOO[name]


def entry_of_file(file: str) -> ZooEntry | None:
    """The entry whose released file has this name (``det_base.pth``), or None.

    Without its ending it is the name of a folder that holds the file in pieces.
    """
    return next((entry for entry in _ENTRIES if file in (entry.file, Path(entry.file).stem)), None)
