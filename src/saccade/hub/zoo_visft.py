"""Released files of ViSFT and the backbones that it starts from (specs/visft.md 2, 3 and 9)."""

from __future__ import annotations

from saccade.hub.zoo_entry import ZooEntry
from saccade.tasks import Task

# The files are linked on the project's page, without addresses of their own that are known.
_PAGE = "https://github.com/TencentARC/ViSFT"
_BACKBONES = {"g": "EVA-ViT-g", "e": "EVA-ViT-E"}
_STEPS = (5_000, 10_000, 15_000, 20_000, 50_000)
# Head: task, word in the file name, tensors; parameters of the two backbones.
_HEADS: dict[str, tuple[Task, str, int, dict[str, int]]] = {
    "detection": (Task.DETECTION, "detection", 199, {"g": 8_761_404, "e": 8_810_556}),
    "instance": (Task.INSTANCE, "segment", 568, {"g": 13_650_833, "e": 13_847_441}),
    "caption": (Task.CAPTION, "caption", 19, {"g": 12_956_691, "e": 14_136_723}),
}
_LORA = {"g": (80, 14_417_920), "e": (128, 29_360_128)}
_INPUTS = {Task.DETECTION: 672, Task.INSTANCE: 1024, Task.CAPTION: 256}


def _head(size: str, head: str) -> ZooEntry:
    task, word, tensors, parameters = _HEADS[head]
    return ZooEntry(
        name=f"visft-{size}-{head}-head",
        system="visft",
        kind="head",
        preset=f"eva-{size}",
        file=f"eva_{size}_{word}_heads.ckpt",
        page=_PAGE,
        tasks=(task,),
        parameters=parameters[size],
        tensors=tensors,
        input_sizes={task: _INPUTS[task]},
        recipe=f"visft.{head}_{size}",
        summary=f"{head} head on frozen {_BACKBONES[size]} ({head}_init)",
    )


def _lora(size: str, steps: int) -> ZooEntry:
    tensors, parameters = _LORA[size]
    return ZooEntry(
        name=f"visft-{size}-lora-{steps}",
        system="visft",
        kind="lora",
        preset=f"eva-{size}",
        file=f"eva_{size}_lora_{steps}.pt",
        page=_PAGE,
        parameters=parameters,
        tensors=tensors,
        recipe=f"visft.lora_{size}",
        summary=f"low-rank updates of {_BACKBONES[size]} after {steps:,} steps (saccade lora merge)",
    )


ENTRIES: tuple[ZooEntry, ...] = (
    ZooEntry(
        name="eva-vit-g",
        system="visft",
        kind="backbone",
        preset="eva-g",
        file="eva_vit_g.pth",
        url="https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth",
        parameters=1_012_588_928,
        tensors=528,
        summary="EVA-ViT-g of BLIP-2, half precision, that ViSFT starts from (init_from)",
    ),
    ZooEntry(
        name="eva-clip-e",
        system="visft",
        kind="backbone",
        preset="eva-e",
        file="EVA02_CLIP_E_psz14_plus_s9B.pt",
        repo="QuanSun/EVA-CLIP",
        summary="EVA-CLIP E/14+, whose image tower ViSFT starts from (init_from); whole, for zero-shot evaluation",
    ),
    *(_head(size, head) for size in _BACKBONES for head in _HEADS),
    *(_lora(size, steps) for size in _BACKBONES for steps in _STEPS),
)
"""The backbones, the six heads and the ten sets of updates."""
