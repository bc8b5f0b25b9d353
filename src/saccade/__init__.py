"""Saccade: generalist vision on modern PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from saccade.predictor import Predictor

__version__ = "0.1.0"


def load(name_or_folder: str | Path, *, device: str = "auto", **options: Any) -> Predictor:
    """Loads a checkpoint for prediction: ``saccade.load("git-nano").predict("photo.jpg", task="detection")``.

    Args:
        name_or_folder: A name of the zoo (``saccade models list``) or a checkpoint folder.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        options: Further ones of :func:`saccade.predictor.load`, e.g. ``precision="bf16"``.

    Raises:
        UsageError: No such name or device.
        CheckpointError: The checkpoint is damaged.
    """
    from saccade import predictor  # torch is loaded when it is needed, not by `import saccade`

    return predictor.load(name_or_folder, device=device, **options)
