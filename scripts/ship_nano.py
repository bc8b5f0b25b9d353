"""Puts a trained checkpoint into the package as the bundled git-nano: python scripts/ship_nano.py RUN_FOLDER...

The weights of the last run are stored in float16 (under 8 MB); the training logs of all runs go with them.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch

from saccade.hub.checkpoint import save_model
from saccade.hub.resolve import load_model

ASSETS = Path(__file__).parents[1] / "src" / "saccade" / "assets" / "git-nano"
README = """# git-nano

GiT with 8 blocks of width 192 for five tasks at 224 px, trained from fresh weights on drawn scenes only
(`saccade.data.scenes`), in this repository. Licence: Apache-2.0, as the code.

Reproduce, in three stages (each starts from the weights of the one before, with a new schedule; the third
is mostly about phrases, which are learned last):

    saccade train recipe=git.nano_scenes name=git-nano
    saccade train recipe=git.nano_scenes name=git-nano-2 weights=runs/git-nano/checkpoints/last seed=1
    saccade train recipe=git.nano_scenes name=git-nano-3 weights=runs/git-nano-2/checkpoints/last seed=2 steps=12000 \\
        train.0.weight=1.2 train.1.weight=1.2 train.2.weight=1.0 train.3.weight=0.3 train.4.weight=7 \\
        train.4.batch_size=16
    python scripts/ship_nano.py runs/git-nano runs/git-nano-2 runs/git-nano-3

The logs of the runs that made these weights are `training_log_1.csv` and so on; measured quality: docs/results.md.
"""


def main() -> None:
    """Converts and copies."""
    runs = [Path(word) for word in sys.argv[1:]]
    loaded = load_model(runs[-1] / "checkpoints" / "last")
    provenance = {**loaded.card.provenance, "recipe": "git.nano_scenes", "licence": "Apache-2.0"}
    with tempfile.TemporaryDirectory() as folder:
        made = save_model(
            loaded.model,
            Path(folder) / "git-nano",
            classes=loaded.classes,
            provenance=provenance,
            dtype=torch.float16,
            texts={"README.md": README},
        )
        size = (made / "model.safetensors").stat().st_size
        if size > 8e6:
            raise SystemExit(f"the weights take {size / 1e6:.2f} MB, more than 8 MB")
        shutil.copytree(made, ASSETS, dirs_exist_ok=True)
    for old in ASSETS.glob("training_log*.csv"):
        old.unlink()
    for number, run in enumerate(runs, start=1):
        shutil.copy(run / "log.csv", ASSETS / f"training_log_{number}.csv")
    sys.stdout.write(f"{ASSETS}: {size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main()
