"""Released weights of GSVA, and what their authors and others published about them (specs/gsva.md 11 and 13)."""

from __future__ import annotations

from saccade.hub.zoo_entry import Published, ZooEntry
from saccade.tasks import Task

# Share pages of OneDrive and Tsinghua Cloud are linked in its README: whoever has the files converts them by hand.
_PAGE = "https://github.com/LeapLabTHU/GSVA"
_LICENCE = "not stated (code: Apache-2.0; the language models have Meta's own terms)"
_PARAMETERS = {"gsva-7b": 7_708_950_064, "gsva-13b": 14_045_383_216, "gsva-llama2-13b": 14_045_383_216}
_TENSORS = {"gsva-7b": 1_410, "gsva-13b": 1_514, "gsva-llama2-13b": 1_514}
_GRES_SPLITS, _GRES_METRICS = ("val", "testA", "testB"), ("gIoU", "cIoU", "N-acc", "T-acc")
_RES = (
    ("RefCOCO", ("val", "testA", "testB")),
    ("RefCOCO+", ("val", "testA", "testB")),
    ("RefCOCOg", ("val", "test")),
)
_ELSEWHERE = "from tables of other papers"


def _gres(rows: tuple[tuple[float, ...], ...]) -> tuple[Published, ...]:
    return tuple(
        Published(
            task=Task.REFERRING,
            data=f"gRefCOCO {split}",
            metric=metric,
            value=value,
            setting="multi-task",
            note="float32",
        )
        for split, values in zip(_GRES_SPLITS, rows, strict=True)
        for metric, value in zip(_GRES_METRICS, values, strict=True)
    )


def _referring(metric: str, rows: tuple[tuple[float, ...], ...], note: str) -> tuple[Published, ...]:
    return tuple(
        Published(
            task=Task.REFERRING,
            data=f"{data} {split}",
            metric=metric,
            value=value,
            setting="multi-task",
            note=note,
        )
        for (data, splits), values in zip(_RES, rows, strict=True)
        for split, value in zip(splits, values, strict=True)
    )


def _entry(
    name: str, preset: str, file: str, summary: str, results: tuple[Published, ...] = (), *, recipe: str = ""
) -> ZooEntry:
    return ZooEntry(
        name=name,
        system="gsva",
        kind="checkpoint",
        preset=preset,
        file=file,
        page=_PAGE,
        tasks=(Task.REFERRING,),
        parameters=_PARAMETERS[preset],
        tensors=_TENSORS[preset],
        input_sizes={Task.REFERRING: 1024},
        licence=_LICENCE,
        recipe=recipe,
        results=results,
        summary=summary,
    )


ENTRIES: tuple[ZooEntry, ...] = (
    _entry(
        "gsva-7b-pt",
        "gsva-7b",
        "gsva-7b-pt.bin",
        "Vicuna-7B, pre-trained on all data sets",
        _gres(((63.47, 61.65, 56.98, 99.54), (69.99, 69.17, 63.39, 98.46), (61.34, 60.26, 58.68, 98.95)))
        + _referring("cIoU", ((76.4, 77.4, 72.8), (64.5, 67.7, 58.6), (71.1, 72.0)), _ELSEWHERE)
        + _referring("Acc@0.5 of boxes", ((86.3, 89.2, 83.8), (72.8, 78.8, 68.0), (81.6, 81.8)), _ELSEWHERE),
        recipe="gsva.pretrain_7b",
    ),
    _entry(
        "gsva-7b-ft-gres",
        "gsva-7b",
        "gsva-7b-ft-gres.bin",
        "Vicuna-7B, fine-tuned on gRefCOCO",
        _gres(((66.43, 63.19, 62.56, 99.62), (71.06, 69.87, 65.72, 98.69), (62.20, 60.35, 60.72, 99.10))),
        recipe="gsva.finetune_gres_7b",
    ),
    _entry(
        "gsva-7b-ft-res",
        "gsva-7b",
        "gsva-7b-ft-res.bin",
        "Vicuna-7B, fine-tuned on RefCOCO, RefCOCO+ and RefCOCOg",
        _referring("cIoU", ((77.2, 78.9, 73.5), (65.9, 69.6, 59.8), (72.7, 73.3)), _ELSEWHERE),
    ),
    _entry(
        "gsva-llama2-13b-ft-gres",
        "gsva-llama2-13b",
        "gsva-llama2-13b-ft-gres.bin",
        "Llama-2-13B, fine-tuned on gRefCOCO",
        recipe="gsva.finetune_gres_llama2_13b",
    ),
    _entry(
        "gsva-llama2-13b-ft-res",
        "gsva-llama2-13b",
        "gsva-llama2-13b-ft-res.bin",
        "Llama-2-13B, fine-tuned on RefCOCO, RefCOCO+ and RefCOCOg",
    ),
)
"""The released files whose names are known."""
