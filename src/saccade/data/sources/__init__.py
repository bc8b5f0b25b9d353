"""Readers of data set formats. Each gives samples in the frame of the original image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from saccade.data.sources.base import Source, balance_classes, select_range
from saccade.data.sources.bdd100k import open_bdd100k
from saccade.data.sources.caption_hdf5 import CaptionHdf5Source
from saccade.data.sources.cityscapes import open_cityscapes
from saccade.data.sources.class_phrases import ClassPhrases, open_coco_stuff, open_mapillary
from saccade.data.sources.coco import open_coco
from saccade.data.sources.coco_layouts import LVIS, OBJECTS365, V3DET, LvisSource
from saccade.data.sources.crowdhuman import open_crowdhuman
from saccade.data.sources.depth_folder import open_depth_folder
from saccade.data.sources.karpathy import KarpathySource, holds_all_splits
from saccade.data.sources.lits import open_lits
from saccade.data.sources.llava import LlavaInstructSource
from saccade.data.sources.mask_crops import MaskCropsSource
from saccade.data.sources.mask_folder import MaskFolderSource, ade20k_source
from saccade.data.sources.nocaps import NocapsSource
from saccade.data.sources.nuimages import open_nuimages
from saccade.data.sources.nyu import open_nyu
from saccade.data.sources.object_masks import open_cvc_clinicdb, open_isic2018
from saccade.data.sources.openimages import OpenImagesSource
from saccade.data.sources.panoptic import PanopticSource
from saccade.data.sources.parts import PACO, PASCAL_PART, PartsSource
from saccade.data.sources.reasonseg import ReasonSegSource
from saccade.data.sources.refcoco import GREFCOCO_PATTERNS, PATTERNS, REFZOM_PATTERNS, RefCocoSource
from saccade.data.sources.referring import ReferringSource
from saccade.data.sources.scenes import ScenesSource
from saccade.data.sources.spec import SourceSpec
from saccade.data.sources.voc import VocSource
from saccade.data.sources.wider_face import open_wider_face
from saccade.errors import UsageError, nearest
from saccade.tasks import Task

__all__ = ["DRAWN", "READERS", "Source", "SourceSpec", "names_one_split", "open_source"]


def _open_scenes(spec: SourceSpec, *, dialogue: bool = False) -> Source:
    for name in ("root", "images", "annotations", "classes"):
        if getattr(spec, name):
            raise UsageError(f"scenes are drawn: '{name}' has no meaning for them", fix=f"leave out {name}")
    if dialogue and spec.task is not Task.REFERRING:
        raise UsageError(f"dialogues serve the trainings of referring segmentation, not {spec.task}", where="scenes")
    return ScenesSource(
        task=spec.task, split=spec.split, size=spec.size, seed=spec.seed, style=spec.style, dialogue=dialogue
    )


def _open_voc(spec: SourceSpec) -> Source:
    return VocSource(
        task=spec.task,
        root=spec.root,
        split=spec.split,
        classes=spec.classes,
        drop_empty=spec.drop_empty,
        min_side=spec.min_side,
        min_box=spec.min_box,
    )


def _open_mask_folder(spec: SourceSpec) -> Source:
    return MaskFolderSource(
        task=spec.task,
        root=spec.root,
        split=spec.split,
        images=spec.images,
        masks=spec.annotations,
        suffix=spec.mask_suffix,
        classes=spec.classes,
        ignore_labels=spec.ignore_labels,
        reduce_zero_label=spec.reduce_zero_label,
    )


def _open_ade20k(spec: SourceSpec) -> Source:
    if spec.task is not Task.REFERRING:
        return ade20k_source(task=spec.task, root=spec.root, split=spec.split, classes=spec.classes)
    return ClassPhrases(ade20k_source(task=Task.SEMANTIC, root=spec.root, split=spec.split, classes=spec.classes))


def _open_karpathy(spec: SourceSpec) -> Source:
    return KarpathySource(
        task=spec.task,
        root=spec.root,
        split=spec.split,
        images=spec.images,
        annotations=spec.annotations,
        per_caption=spec.per_caption,
    )


def _open_references(spec: SourceSpec, *, patterns: tuple[str, ...]) -> Source:
    kind = ReferringSource if spec.task is Task.REFERRING else RefCocoSource
    return kind(spec, patterns=patterns)


READERS: dict[str, Callable[[SourceSpec], Source]] = {
    "scenes": _open_scenes,
    "scene_dialogues": partial(_open_scenes, dialogue=True),
    "coco": open_coco,
    "voc": _open_voc,
    "mask_folder": _open_mask_folder,
    "ade20k": _open_ade20k,
    "karpathy": _open_karpathy,
    "caption_hdf5": CaptionHdf5Source,
    "nocaps": NocapsSource,
    "refcoco": partial(_open_references, patterns=PATTERNS),
    "grefcoco": partial(_open_references, patterns=GREFCOCO_PATTERNS),
    "refzom": partial(_open_references, patterns=REFZOM_PATTERNS),
    "reasonseg": ReasonSegSource,
    "coco_stuff": open_coco_stuff,
    "mapillary": open_mapillary,
    "paco": partial(PartsSource, layout=PACO),
    "pascal_part": partial(PartsSource, layout=PASCAL_PART),
    "llava_instruct": LlavaInstructSource,
    "lvis": partial(open_coco, layout=LVIS, source=LvisSource),
    "objects365": partial(open_coco, layout=OBJECTS365),
    "openimages": OpenImagesSource,
    "v3det": partial(open_coco, layout=V3DET),
    "crowdhuman": partial(open_crowdhuman, extent="full"),
    "crowdhuman_visible": partial(open_crowdhuman, extent="visible"),
    "wider_face": open_wider_face,
    "bdd100k": open_bdd100k,
    "nuimages": open_nuimages,
    "cityscapes": open_cityscapes,
    "panoptic": PanopticSource,
    "nyu": open_nyu,
    "depth_folder": open_depth_folder,
    "mask_crops": MaskCropsSource,
    "isic2018": open_isic2018,
    "cvc_clinicdb": open_cvc_clinicdb,
    "lits": open_lits,
}
"""Reader name -> function that opens a data set."""

DRAWN = frozenset({"scenes", "scene_dialogues"})
"""Readers that draw what they give: nothing on disk."""

WITHOUT_EMPTY = frozenset({"lits"})
"""Readers of data sets whose papers leave out pictures without an object, in training and in scoring: they are opened
with ``drop_empty``."""

_ONE_SPLIT_FILES = frozenset(READERS) - DRAWN - {
    "voc", "mask_folder", "ade20k", "refcoco", "grefcoco", "refzom", "reasonseg",
    "coco_stuff", "mapillary", "depth_folder", "mask_crops", "caption_hdf5",
    "isic2018", "cvc_clinicdb", "lits",
}  # fmt: skip


def names_one_split(reader: str, annotations: str) -> bool:
    """Whether the annotations that are named are the file of a single split."""
    return (
        bool(annotations)
        and reader in _ONE_SPLIT_FILES
        and not (reader == "karpathy" and holds_all_splits(annotations))
    )


def open_source(spec: SourceSpec) -> Source:
    """Opens a data set: its reader, the range of samples, and the repetition of rare classes.

    Args:
        spec: What to open (:class:`saccade.training.config.SourceConfig` is one).

    Raises:
        UsageError: No such reader, or a choice that the data set does not have.
        DataError: The annotations are damaged or contradict themselves.
    """
    if spec.reader not in READERS:
        raise UsageError(f"unknown reader '{spec.reader}'", fix=nearest(spec.reader, READERS))
    source = select_range(READERS[spec.reader](spec), offset=spec.offset, limit=spec.limit)
    return balance_classes(source, spec.repeat_threshold, spec.repeat_rounding)
