"""A tiny GiT with random weights, saved as a checkpoint: for tests of what is built on top of models."""

from __future__ import annotations

import string
from pathlib import Path

import torch

from saccade.data.scenes import SEMANTIC_CLASSES, THING_CLASSES, VOCABULARY
from saccade.hub.checkpoint import save_model
from saccade.layers.vit import ViTConfig
from saccade.models.git.config import (
    GIT_TASKS,
    CaptionConfig,
    DetectionConfig,
    GiTConfig,
    GroundingConfig,
    SemanticConfig,
)
from saccade.models.git.model import GiT
from saccade.samples import ClassList
from saccade.tasks import Task
from saccade.tokens.vocabulary import TextVocabulary


def tiny_checkpoint(folder: Path, *, tasks: tuple[Task, ...] = GIT_TASKS) -> Path:
    """Writes a GiT of one window, width 16 and two blocks. Things have the category ids 3, 6, 9, ...

    Args:
        folder: Where to.
        tasks: What it offers.
    """
    folder.mkdir(parents=True)
    characters = string.ascii_lowercase + string.digits
    words = [*characters, *(f"##{c}" for c in characters), *(word for word in VOCABULARY if len(word) > 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    vocabulary_file = folder.parent / f"{folder.name}_vocab.txt"
    vocabulary_file.write_text("\n".join(pieces) + "\n")
    vocabulary = TextVocabulary(vocabulary_file)
    detection = DetectionConfig(input_size=224, grid_per_window=(4, 4), num_bins=32, max_detections=20)
    interfaces = {
        Task.DETECTION: detection,
        Task.INSTANCE: DetectionConfig(
            input_size=224, grid_per_window=(4, 4), num_bins=32, max_detections=20, num_rays=8
        ),
        Task.SEMANTIC: SemanticConfig(input_size=224, block=2),
        Task.CAPTION: CaptionConfig(max_length=6),
        Task.GROUNDING: GroundingConfig(num_bins=32, max_text_length=32),
    }
    torch.manual_seed(0)
    config = GiTConfig(
        vit=ViTConfig(
            width=16, depth=2, heads=2, mlp_width=32, image_size=224, window_size=14, global_blocks=(0,), drop_path=0.0
        ),
        vocab_size=len(vocabulary),
        max_positions=64,
        concept_heads=2,
        text_dropout=0.0,
        **{task.value: interface if task in tasks else None for task, interface in interfaces.items()},
    )
    model = GiT(config, vocabulary).eval()
    things = ClassList(names=THING_CLASSES, category_ids=tuple(3 * k for k in range(1, len(THING_CLASSES) + 1)))
    classes = {
        Task.DETECTION: things,
        Task.INSTANCE: things,
        Task.SEMANTIC: ClassList.from_names(SEMANTIC_CLASSES),
    }
    return save_model(
        model,
        folder,
        classes={task: listed for task, listed in classes.items() if task in tasks},
        provenance={"recipe": "tests"},
    )
