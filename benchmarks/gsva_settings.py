"""Memory and time of GSVA per setting: python benchmarks/gsva_settings.py [--measure FOLDER].

Derived rows count the weights of the published sizes without making them. Measured rows load a checkpoint and ask it
five phrases about one picture, on this machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

import saccade
from saccade.layers.offload import weight_bytes
from saccade.models.gsva.model import GSVA
from saccade.models.gsva.presets import PRESETS

PUBLISHED = ("gsva-7b", "gsva-13b")
_GROUP_BYTES = 4 / 64  # scale and zero point of 64 weights of 4 bits, in bfloat16
_H100_GB_PER_S = 3350
_PHRASES = ("the red ball", "all boxes", "the biggest object", "the cyan star", "a dog")
_REPEATS = 5


def derived(preset: str) -> list[tuple[str, float, float, float]]:
    """Setting, GB of all weights, GB of those of the language model, and GB that must stay on the GPU."""
    with torch.device("meta"):
        model = GSVA(PRESETS[preset]())
    whole = sum(parameter.numel() for parameter in model.parameters())
    blocks = sum(parameter.numel() for block in model.blocks for parameter in block.parameters())
    linear = sum(
        module.weight.numel()
        for name, module in model.language.model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    )
    speaking = sum(parameter.numel() for parameter in model.language.parameters())
    rows = []
    for setting, each, packed in (
        ("float32", 4.0, 4.0),
        ("bf16", 2.0, 2.0),
        ("bf16, int8", 2.0, 1.0),
        ("bf16, int4", 2.0, 0.5 + _GROUP_BYTES),
    ):
        saved = linear * (each - packed)
        rows.append(
            (setting, (whole * each - saved) / 1e9, (speaking * each - saved) / 1e9, (whole - blocks) * each / 1e9)
        )
    return rows


def measured(folder: str, setting: str) -> tuple[float, float, float]:
    """MB of weights, ms of a look at a picture, and ms of five phrases about it."""
    options = {
        "precision": "bf16" if "bf16" in setting else "float32",
        "quantize": "int8" if "int8" in setting else "none",
    }
    predictor = saccade.load(folder, **options)
    held = weight_bytes(predictor.model)
    picture = torch.randint(0, 255, (3, 480, 640), dtype=torch.uint8)
    looks, answers = [], []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        dialogue = predictor.encode(picture)
        seen = time.perf_counter()
        dialogue.find(*_PHRASES)
        looks.append(seen - start)
        answers.append(time.perf_counter() - seen)
    return held / 1e6, 1e3 * min(looks), 1e3 * min(answers)


def main() -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=Path, help="a checkpoint folder of GSVA")
    folder = parser.parse_args().measure
    print(
        "| preset | setting | weights, GB | of the language model, GB | must stay on the GPU, GB | least ms per token |"
    )
    print("|---|---|---|---|---|---|")
    for preset in PUBLISHED:
        for setting, whole, speaking, least in derived(preset):
            floor = 1e3 * speaking / _H100_GB_PER_S
            print(f"| {preset} | {setting} | {whole:.1f} | {speaking:.1f} | {least:.1f} | {floor:.1f} |")
    if folder is not None:
        print("\n| setting | weights, MB | look, ms | five phrases, ms |\n|---|---|---|---|")
        settings = ("float32", "bf16", "bf16, int8")[: 3 if find_spec("torchao") else 2]
        for setting in settings:
            print("| {} | {:.2f} | {:.0f} | {:.0f} |".format(setting, *measured(str(folder), setting)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
