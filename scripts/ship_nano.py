"""Puts a trained checkpoint into the package as the bundled git-nano: python scripts/ship_nano.py RUN_FOLDER.

The weights are stored in float16 (under 8 MB); the training log goes with them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from saccade.hub.checkpoint import save_model
from saccade.hub.resolve import load_model

ASSETS = Path(__file__).parents[1] / "src" / "saccade" / "assets" / "git-nano"
README = """# git-nano

GiT with 8 blocks of width 192 for five tasks at 224 px, trained from fresh weights on drawn scenes only
(`saccade.data.scenes`), in this repository. Licence: Apache-2.0, as the code.

Reproduce: `saccade train recipe=git.nano_scenes name=git-nano`, then `python scripts/ship_nano.py runs/git-nano`.
The log of the run that made these weights is `training_log.csv`; measured quality: docs/results.md.
"""


def main() -> None:
    """Converts and copies."""
    run = Path(sys.argv[1])
    loaded = load_model(run / "checkpoints" / "last")
    provenance = {**loaded.card.provenance, "recipe": "git.nano_scenes", "licence": "Apache-2.0"}
    save_model(
        loaded.model,
        ASSETS,
        classes=loaded.classes,
        provenance=provenance,
        dtype=torch.float16,
        texts={"README.md": README},
    )
    shutil.copy(run / "log.csv", ASSETS / "training_log.csv")
    size = (ASSETS / "model.safetensors").stat().st_size
    if size > 8e6:
        raise SystemExit(f"the weights take {size / 1e6:.2f} MB, more than 8 MB")
    sys.stdout.write(f"{ASSETS}: {size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main()
