"""Puts a trained checkpoint into the package under its name: python scripts/ship_nano.py NAME RUN_FOLDER...

The weights of the last run are stored in float16; the training logs of all runs go with them.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from saccade.hub.checkpoint import save_model
from saccade.hub.resolve import load_model

ASSETS = Path(__file__).parents[1] / "src" / "saccade" / "assets"


@dataclass(frozen=True)
class Shipped:
    """A bundled checkpoint: the recipe that made it, its greatest size in bytes, and its page."""

    recipe: str
    size: float
    readme: str


SHIPPED = {
    "git-nano": Shipped(
        recipe="git.nano_scenes",
        size=8e6,
        readme="""# git-nano

GiT with 8 blocks of width 192 for five tasks at 224 px, trained from fresh weights on drawn scenes only
(`saccade.data.scenes`), in this repository. Licence: Apache-2.0, as the code.

Reproduce, in three stages (each starts from the weights of the one before, with a new schedule; the third
is mostly about phrases, which are learned last):

    saccade train recipe=git.nano_scenes name=git-nano
    saccade train recipe=git.nano_scenes name=git-nano-2 weights=runs/git-nano/checkpoints/last seed=1
    saccade train recipe=git.nano_scenes name=git-nano-3 weights=runs/git-nano-2/checkpoints/last seed=2 steps=12000 \\
        train.0.weight=1.2 train.1.weight=1.2 train.2.weight=1.0 train.3.weight=0.3 train.4.weight=7 \\
        train.4.batch_size=16
    python scripts/ship_nano.py git-nano runs/git-nano runs/git-nano-2 runs/git-nano-3

The logs of the runs that made these weights are `training_log_1.csv` and so on; measured quality: docs/results.md.
""",
    ),
    "vitdet-nano": Shipped(
        recipe="vitdet.nano_scenes",
        size=10e6,
        readme="""# vitdet-nano

ViTDet (Mask R-CNN, simple feature pyramid) on 8 blocks of width 192 at 224 px, trained from fresh weights on drawn
scenes only (`saccade.data.scenes`), in this repository. Licence: Apache-2.0, as the code.

Reproduce:

    saccade train recipe=vitdet.nano_scenes name=vitdet-nano
    python scripts/ship_nano.py vitdet-nano runs/vitdet-nano

The log of the run that made these weights is `training_log_1.csv`; measured quality: docs/results.md. That run had 256
hidden units in its box head, of which 59 never answered to anything; 56 of them were taken out (the outputs are the
same to the last bit), and the recipe has 200 since.
""",
    ),
    "ait-nano": Shipped(
        recipe="ait.nano_depth",
        size=6e6,
        readme="""# ait-nano

AiT for metric depth, one soft token after the other: a small SwinV2 at 192 px, an encoder of 2 and a decoder of 3
layers, and the VQ-VAE whose 144 codes it says, trained from fresh weights on drawn scenes only
(`saccade.data.scenes`), in this repository. Licence: Apache-2.0, as the code.

Reproduce:

    saccade train recipe=ait.nano_vqvae_depth
    saccade train recipe=ait.nano_depth depth_vqvae=runs/ait/nano_vqvae_depth/checkpoints/last name=ait-nano
    python scripts/ship_nano.py ait-nano runs/ait/nano_vqvae_depth runs/ait-nano

The logs of the two runs that made these weights are `training_log_1.csv` and `training_log_2.csv`; measured quality:
docs/results.md.
""",
    ),
}


def main() -> None:
    """Converts and copies."""
    name, runs = sys.argv[1], [Path(word) for word in sys.argv[2:]]
    about, target = SHIPPED[name], ASSETS / name
    loaded = load_model(runs[-1] / "checkpoints" / "last")
    provenance = {**loaded.card.provenance, "recipe": about.recipe, "licence": "Apache-2.0"}
    with tempfile.TemporaryDirectory() as folder:
        made = save_model(
            loaded.model,
            Path(folder) / name,
            classes=loaded.classes,
            provenance=provenance,
            dtype=torch.float16,
            texts={"README.md": about.readme},
        )
        size = (made / "model.safetensors").stat().st_size
        if size > about.size:
            raise SystemExit(f"the weights take {size / 1e6:.2f} MB, more than {about.size / 1e6:.0f} MB")
        shutil.copytree(made, target, dirs_exist_ok=True)
    for old in target.glob("training_log*.csv"):
        old.unlink()
    for number, run in enumerate(runs, start=1):
        shutil.copy(run / "log.csv", target / f"training_log_{number}.csv")
    sys.stdout.write(f"{target}: {size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main()
