"""Released ViTDet and ViTAE detectors, and what their authors published about them (specs/vitdet.md 1 and 14)."""

from __future__ import annotations

from saccade.hub.zoo_entry import Published, ZooEntry
from saccade.tasks import Task

_INPUTS = {Task.DETECTION: 1024, Task.INSTANCE: 1024}
_FILES = "https://dl.fbaipublicfiles.com/detectron2/ViTDet"
_SIZE_NAMES = {"b": "B", "l": "L", "h": "H"}
# Heads and data, size: file below _FILES, parameters, tensors, box AP, mask AP.
_DETECTRON2: dict[tuple[str, str], tuple[str, int, int, float, float]] = {
    ("", "b"): ("COCO/mask_rcnn_vitdet_b/f325346929/model_final_61ccd1.pkl", 110_895_792, 245, 51.6, 45.9),
    ("", "l"): ("COCO/mask_rcnn_vitdet_l/f325599698/model_final_6146ed.pkl", 330_684_656, 413, 55.5, 49.2),
    ("", "h"): ("COCO/mask_rcnn_vitdet_h/f329145471/model_final_7224f1.pkl", 661_203_760, 525, 56.7, 50.2),
    ("cascade-", "b"): (
        "COCO/cascade_mask_rcnn_vitdet_b/f325358525/model_final_435fa9.pkl",
        141_160_990,
        281,
        54.0,
        46.7,
    ),
    ("cascade-", "l"): (
        "COCO/cascade_mask_rcnn_vitdet_l/f328021305/model_final_1a9f28.pkl",
        360_949_854,
        449,
        57.6,
        50.0,
    ),
    ("cascade-", "h"): (
        "COCO/cascade_mask_rcnn_vitdet_h/f328730692/model_final_f05665.pkl",
        691_468_958,
        561,
        58.7,
        51.0,
    ),
    ("lvis-", "b"): ("LVIS/mask_rcnn_vitdet_b/329225748/model_final_5251c5.pkl", 116_939_778, 246, 40.2, 38.2),
    ("lvis-", "l"): ("LVIS/mask_rcnn_vitdet_l/329211570/model_final_021b3a.pkl", 336_728_642, 414, 46.1, 43.6),
    ("lvis-", "h"): ("LVIS/mask_rcnn_vitdet_h/332434656/model_final_866730.pkl", 667_247_746, 526, 49.1, 46.0),
    ("lvis-cascade-", "b"): (
        "LVIS/cascade_mask_rcnn_vitdet_b/329226874/model_final_df306f.pkl",
        144_902_826,
        284,
        43.0,
        38.9,
    ),
    ("lvis-cascade-", "l"): (
        "LVIS/cascade_mask_rcnn_vitdet_l/329042206/model_final_3e81c2.pkl",
        364_691_690,
        452,
        49.2,
        44.5,
    ),
    ("lvis-cascade-", "h"): (
        "LVIS/cascade_mask_rcnn_vitdet_h/332552778/model_final_11bbb7.pkl",
        695_210_794,
        564,
        51.5,
        46.6,
    ),
}
# Preset: file as we expect it to be called, link of the README, parameters, tensors, box and mask AP, recipe.
_VITAE_REPO: dict[str, tuple[str, str, int, int, float, float, str]] = {
    "vitae-repo-vit-b": (
        "ViT-Base-GPU.pth",
        "https://1drv.ms/u/s!AimBgYV7JjTlgRA7Y9s2rA5NC4wn?e=QfpKJf",
        118_563_824,
        249,
        51.1,
        45.4,
        "vitdet.vitae_repo_vit-b",
    ),
    "vitae-b": (
        "ViTAE-Base-GPU.pth",
        "https://1drv.ms/u/s!AimBgYV7JjTlgQ--Ez4mzEnO-G5Y?e=ACfLxC",
        121_334_768,
        361,
        51.6,
        45.8,
        "vitdet.vitae_repo_vitae-b",
    ),
    "vitae-s": (
        "ViTAE-S-GPU.pth",
        "https://1drv.ms/u/s!AimBgYV7JjTlgQ7PorGY53K6gIGd?e=lw81U5",
        47_722_768,
        564,
        45.6,
        40.1,
        "vitdet.vitae_repo_vitae-s",
    ),
}


def _results(data: str, box: float, mask: float) -> tuple[Published, ...]:
    return (
        Published(task=Task.DETECTION, data=data, metric="box AP", value=box, setting="single-task"),
        Published(task=Task.INSTANCE, data=data, metric="mask AP", value=mask, setting="single-task"),
    )


def _detectron2(form: str, size: str) -> ZooEntry:
    path, parameters, tensors, box, mask = _DETECTRON2[form, size]
    lvis, cascade = "lvis" in form, "cascade" in form
    name = f"vitdet-{form}{size}"
    return ZooEntry(
        name=name,
        system="vitdet",
        kind="checkpoint",
        preset=name,
        file=path.rsplit("/", 1)[1],
        url=f"{_FILES}/{path}",
        tasks=tuple(_INPUTS),
        parameters=parameters,
        tensors=tensors,
        input_sizes=dict(_INPUTS),
        licence="CC BY-SA 3.0 (detectron2's model zoo)",
        recipe=f"vitdet.{'lvis_' if lvis else ''}{'cascade' if cascade else 'mask'}_rcnn_vit_{size}",
        results=_results("LVIS v1 val" if lvis else "COCO val2017", box, mask),
        summary=f"{'Cascade' if cascade else 'Mask'} R-CNN on ViT-{_SIZE_NAMES[size]}, "
        f"{'LVIS' if lvis else 'COCO'}, by detectron2",
    )


def _vitae_repo(preset: str) -> ZooEntry:
    file, page, parameters, tensors, box, mask, recipe = _VITAE_REPO[preset]
    return ZooEntry(
        name=preset,
        system="vitdet",
        kind="checkpoint",
        preset=preset,
        file=file,
        page=page,
        tasks=tuple(_INPUTS),
        parameters=parameters,
        tensors=tensors,
        input_sizes=dict(_INPUTS),
        recipe=recipe,
        results=_results("COCO val2017", box, mask),
        summary=f"Mask R-CNN on {preset.removeprefix('vitae-repo-')}, COCO, by the ViTAE repository",
    )


def _mae(size: str, file: str, note: str = "") -> ZooEntry:
    return ZooEntry(
        name=file.removesuffix(".pth").replace("_pretrain", "").replace("_", "-"),
        system="vitdet",
        kind="backbone",
        preset=f"vitdet-{size}",
        file=file,
        url=f"https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MAE/{file}",
        summary=f"MAE ViT-{_SIZE_NAMES[size]} that the training of detectors starts from (init_from){note}",
    )


ENTRIES: tuple[ZooEntry, ...] = (
    *(_detectron2(form, size) for form, size in _DETECTRON2),
    *(_vitae_repo(preset) for preset in _VITAE_REPO),
    _mae("b", "mae_pretrain_vit_base.pth"),
    _mae("l", "mae_pretrain_vit_large.pth"),
    _mae("h", "mae_pretrain_vit_huge_p14to16.pth", ", patches resized to 16 pixels as published"),
    _mae("h", "mae_pretrain_vit_huge.pth", ", patches of 14 pixels, resized when it is loaded"),
)
"""The fifteen released detectors, and the backbones that their training starts from."""
