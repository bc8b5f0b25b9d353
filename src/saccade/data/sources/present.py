"""A mixture of which some data sets may be missing: what is there is opened, the rest is named with where to get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from saccade.data.sources import open_source
from saccade.data.sources.base import Source
from saccade.data.sources.spec import SourceSpec
from saccade.errors import MissingDataError

S = TypeVar("S", bound=SourceSpec)

DOWNLOADS: dict[str, str] = {
    "refcoco": "RefCOCO, RefCOCO+, RefCOCOg, RefCLEF: github.com/lichengunc/refer; images: COCO train2014, SAIAPR",
    "grefcoco": "gRefCOCO: github.com/henghuiding/gRefCOCO; images: COCO train2014",
    "refzom": "Ref-ZOM: github.com/toggle1995/RIS-DMMI; images: COCO train2014",
    "reasonseg": "ReasonSeg: github.com/dvlab-research/LISA",
    "ade20k": "ADE20K: ADEChallengeData2016.zip at data.csail.mit.edu/places/ADEchallenge",
    "coco_stuff": "stuffthingmaps_trainval2017.zip: github.com/nightrome/cocostuff; images: COCO train2017",
    "mapillary": "Mapillary Vistas 2.0: mapillary.com/dataset/vistas",
    "paco": "PACO-LVIS: github.com/facebookresearch/paco; images: COCO train2017",
    "pascal_part": "PASCAL-Part in COCO form: github.com/facebookresearch/VLPart; images: VOC 2010",
    "llava_instruct": "LLaVA-Instruct-150K: huggingface.co/datasets/liuhaotian; images: COCO train2017",
}
"""Reader to what has to be downloaded, and where it is."""


def open_present(specs: Sequence[S]) -> tuple[list[tuple[S, Source]], list[str]]:
    """Opens the data sets that are there.

    Args:
        specs: All that are named.

    Returns:
        Those that are there, in their order; and a warning for each that is not. Anything else that is wrong with one,
        as a damaged file or an unknown split, raises.
    """
    found: list[tuple[S, Source]] = []
    warnings: list[str] = []
    for spec in specs:
        try:
            found.append((spec, open_source(spec)))
        except MissingDataError as error:
            get = DOWNLOADS.get(spec.reader, f"the data of the reader '{spec.reader}'")
            warnings.append(
                f"{spec.reader} is left out of {spec.split}: {error.what} ({error.where}). To use it, download {get}"
            )
    return found, warnings
