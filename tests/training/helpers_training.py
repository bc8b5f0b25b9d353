"""The smallest GiT that runs every task on scenes, and the smallest run of it; also imported by child processes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from saccade.data.augment import CaptionAugment, DetectionAugment, GroundingAugment, SemanticAugment
from saccade.data.scenes import VOCABULARY
from saccade.layers.vit import ViTConfig
from saccade.models.git.config import (
    GIT_TASKS,
    CaptionConfig,
    DetectionConfig,
    GiTConfig,
    GroundingConfig,
    SemanticConfig,
)
from saccade.tasks import Task
from saccade.training.config import OptimConfig, SourceConfig, TrainConfig
from saccade.training.logs import read_lines
from saccade.training.trainer import Trainer

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SIGNS = "0123456789abcdefghijklmnopqrstuvwxyz"
PIECES = tuple(dict.fromkeys((*_SPECIAL, *_SIGNS, *(f"##{sign}" for sign in _SIGNS), "_", "caption", *VOCABULARY)))


def write_vocabulary(folder: Path) -> Path:
    """Writes a vocabulary that can spell everything in the scenes."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


def tiny_model() -> GiTConfig:
    """Width 32, three blocks, 64 px."""
    detection = {"input_size": 64, "grid_per_window": (3, 3), "train_points_per_window": 5, "num_bins": 128}
    return GiTConfig(
        vit=ViTConfig(
            width=32,
            depth=3,
            heads=2,
            mlp_width=64,
            patch_size=8,
            image_size=64,
            window_size=4,
            global_blocks=(1,),
            drop_path=0.2,
        ),
        vocab_size=len(PIECES) + 2,
        max_positions=64,
        concept_heads=2,
        text_dropout=0.1,
        detection=DetectionConfig(**detection, max_detections=20),
        instance_segmentation=DetectionConfig(**detection, max_detections=20, num_rays=8),
        semantic_segmentation=SemanticConfig(input_size=64, train_points_per_window=8),
        caption=CaptionConfig(input_size=32, max_length=12),
        grounding=GroundingConfig(input_size=32, num_bins=64, max_text_length=24),
    )


AUGMENTS = {
    Task.DETECTION: DetectionAugment(short_sides=(48, 64, 80), crop_range=(40, 60)),
    Task.INSTANCE: DetectionAugment(short_sides=(48, 64, 80), crop_range=(40, 60), contour_rays=8),
    Task.SEMANTIC: SemanticAugment(),
    Task.CAPTION: CaptionAugment(),
    Task.GROUNDING: GroundingAugment(),
}


def scenes(task: Task, *, split: str = "train", batch_size: int = 2, **changes: Any) -> SourceConfig:
    """A source of drawn scenes of 64 px with the task's own augmentation (none outside ``train``)."""
    changes.setdefault("augment", AUGMENTS[task] if split == "train" else None)
    return SourceConfig(task=task, reader="scenes", split=split, size=64, batch_size=batch_size, **changes)


def tiny_run(folder: Path, **changes: Any) -> TrainConfig:
    """All five tasks for 12 steps, with everything on that a resume could lose."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "out": str(folder / "runs"),
        "vocabulary": str(write_vocabulary(folder)),
        "model": tiny_model(),
        "train": tuple(scenes(task) for task in GIT_TASKS),
        "steps": 12,
        "optim": OptimConfig(lr=1e-3, clip_norm=1.0, warmup_steps=3, min_lr=1e-5),
        "ema_decay": 0.9,
        "workers": 0,
        "threads": 1,
        "log_every": 4,
        "save_every": 4,
        "keep": 10,
        "device": "cpu",
    }
    return TrainConfig(**{**settings, **changes})


def state_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint: the saved model, and the training state."""
    model = {f"saved/{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    return model | load_file(folder / "trainer.safetensors")


def assert_same_state(found: Path, expected: Path) -> None:
    """Tensor for tensor, bit for bit."""
    a, b = state_of(found), state_of(expected)
    assert a.keys() == b.keys()
    assert {key.split("/", 1)[0] for key in a} == {"saved", "model", "optim", "ema"}
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, e.g. {different[:3]}"


def losses_of(run: Path) -> list[dict[str, float]]:
    """The train lines of a run without what depends on the machine."""
    machine = ("images_per_s", "data_wait", "memory_gb")
    return [
        {key: value for key, value in line.items() if key not in machine}
        for line in read_lines(run)
        if line["kind"] == "train"
    ]


GOLDEN = Path(__file__).parent / "golden_tiny_losses.json"

if __name__ == "__main__":  # writes the golden losses anew, after a change that is meant to change them
    with tempfile.TemporaryDirectory() as scratch:
        run = Trainer(tiny_run(Path(scratch))).fit()
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(line) for line in losses_of(run.folder)) + "\n]\n")
