"""Released solvers of AiT, and what their authors published about them (specs/ait.md 11 and 12)."""

from __future__ import annotations

from saccade.hub.zoo_entry import Published, Setting, ZooEntry
from saccade.tasks import Task

# The links in its README were signed and ran out on 2026-01-01: whoever has the files converts them by hand.
_PAGE = "https://github.com/SwinTransformer/AiT"
_METRICS = ("d1", "d2", "d3", "AbsRel", "RMSE", "log10")
# Preset: file, parameters, tensors, results on NYUv2.
_DEPTH: dict[str, tuple[str, int, int, tuple[float, ...]]] = {
    "depth-b": ("ait_depth_swinv2b_ar.pth", 109_251_084, 1_074, (0.934, 0.991, 0.998, 0.087, 0.305, 0.037)),
    "depth-b-hard": ("ait_depth_swinv2b_ar_wosoft.pth", 109_251_084, 1_074, (0.932, 0.991, 0.998, 0.089, 0.318, 0.038)),
    "depth-b-parallel": (
        "ait_depth_swinv2b_parallel.pth",
        109_251_340,
        1_076,
        (0.940, 0.992, 0.998, 0.085, 0.301, 0.036),
    ),
    "depth-l": ("ait_depth_swinv2l_ar.pth", 217_691_272, 1_074, (0.949, 0.993, 0.999, 0.079, 0.284, 0.034)),
    "depth-l-parallel": (
        "ait_depth_swinv2l_parallel.pth",
        217_691_528,
        1_076,
        (0.954, 0.994, 0.999, 0.076, 0.275, 0.033),
    ),
}
# Preset: file, parameters, tensors, box and mask AP, RMSE of depth.
_OBJECTS: dict[str, tuple[str, int, int, float, float, float | None]] = {
    "instance-b": ("ait_insseg_swinv2b.pth", 103_580_172, 1_346, 43.3, 34.2, None),
    "instance-b-hard": ("ait_insseg_swinv2b_wosoft.pth", 103_580_172, 1_346, 43.6, 31.1, None),
    "joint-b": ("ait_joint_swinv2b.pth", 111_269_373, 1_399, 42.2, 34.1, 0.310),
}


def _depth(preset: str) -> ZooEntry:
    file, parameters, tensors, values = _DEPTH[preset]
    return ZooEntry(
        name=f"ait-{preset}",
        system="ait",
        kind="checkpoint",
        preset=preset,
        file=file,
        page=_PAGE,
        tasks=(Task.DEPTH,),
        parameters=parameters,
        tensors=tensors,
        input_sizes={Task.DEPTH: 480},
        recipe=f"ait.{preset.replace('-', '_')}",
        results=tuple(_nyu(metric, value, "single-task") for metric, value in zip(_METRICS, values, strict=True)),
        summary=f"depth in metres as codes, {preset.removeprefix('depth-')}, NYUv2",
    )


def _objects(preset: str) -> ZooEntry:
    file, parameters, tensors, box, mask, rmse = _OBJECTS[preset]
    joint = rmse is not None
    setting: Setting = "multi-task" if joint else "single-task"
    results = (
        Published(task=Task.DETECTION, data="COCO val2017", metric="box AP", value=box, setting=setting),
        Published(task=Task.INSTANCE, data="COCO val2017", metric="mask AP", value=mask, setting=setting),
    )
    return ZooEntry(
        name=f"ait-{preset}",
        system="ait",
        kind="checkpoint",
        preset=preset,
        file=file,
        page=_PAGE,
        tasks=(Task.INSTANCE, Task.DEPTH) if joint else (Task.INSTANCE,),
        parameters=parameters,
        tensors=tensors,
        input_sizes={Task.INSTANCE: 640, **({Task.DEPTH: 480} if joint else {})},
        recipe=f"ait.{preset.replace('-', '_')}",
        results=(*results, *([_nyu("RMSE", rmse, setting)] if rmse is not None else [])),
        summary=f"boxes, masks{' and depth' if joint else ''} as codes, {preset}, COCO{' and NYUv2' if joint else ''}",
    )


def _nyu(metric: str, value: float, setting: Setting) -> Published:
    return Published(task=Task.DEPTH, data="NYUv2 test", metric=metric, value=value, setting=setting)


def _vqvae(task: Task, file: str, parameters: int, tensors: int) -> ZooEntry:
    kind = "depth" if task is Task.DEPTH else "masks"
    return ZooEntry(
        name=f"ait-vqvae-{kind}",
        system="vqvae",
        kind="checkpoint",
        preset=f"vqvae-{kind}",
        file=file,
        page=_PAGE,
        tasks=(task,),
        parameters=parameters,
        tensors=tensors,
        input_sizes={task: 480 if task is Task.DEPTH else 64},
        recipe=f"ait.vqvae_{kind}",
        summary=f"codes of {kind} that the solvers say ({'depth' if task is Task.DEPTH else 'mask'}_vqvae)",
    )


def _start(size: str) -> ZooEntry:
    file = f"swin_v2_{size}_densesimmim.pth"
    return ZooEntry(
        name=f"simmim-swin-v2-{size}",
        system="ait",
        kind="backbone",
        preset=f"depth-{size[0]}",
        file=file,
        page=_PAGE,
        summary=f"SwinV2-{size[0].upper()} by SimMIM that the training of AiT starts from (init_from)",
    )


_BOXES = ZooEntry(
    name="ait-detection-b",
    system="ait",
    kind="backbone",
    preset="detection-b",
    file="ait_det_swinv2b_wodec.pth",
    page=_PAGE,
    recipe="ait.detection_b",
    summary="part of a solver of boxes that the training of ait.instance_b starts from (init_from)",
)

ENTRIES: tuple[ZooEntry, ...] = (
    *(_depth(preset) for preset in _DEPTH),
    *(_objects(preset) for preset in _OBJECTS),
    _vqvae(Task.INSTANCE, "vqvae_insseg.pt", 1_985_393, 49),
    _vqvae(Task.DEPTH, "vqvae_depth.pt", 7_689_201, 53),
    *(_start(size) for size in ("base", "large")),
    _BOXES,
)
"""The released solvers, and the backbones that their training starts from."""
