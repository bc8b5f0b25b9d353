"""Where a polar segmenter is to look: its finder's answers about the original pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from saccade.data.transforms import collate, preprocess
from saccade.models.polar.model import PolarSegmenter
from saccade.models.systems import Model, fixed_classes
from saccade.samples import Sample


def find_centers(model: PolarSegmenter, samples: Sequence[Sample], device: torch.device) -> list[Tensor]:
    """Centres ``[N, 2]`` of every picture in its own pixels; N may be 0.

    The finder sees what it would see alone: the original picture as it declares its own input, never the input of the
    segmenter, which has another size and shape. One that knows its own classes alone is asked for these: only where an
    object is counts, not what it is called.

    Args:
        model: Its finder looks.
        samples: In the frame of the original pictures.
        device: Where the model is.

    Raises:
        UsageError: The model has no finder.
    """
    task, declared = model.finder_input()
    own = fixed_classes(cast(Model, model.finder))
    asked = [dataclasses.replace(sample, task=task, classes=own or sample.classes) for sample in samples]
    seen = [preprocess(sample, declared, with_target=False) for sample in asked]
    return model.find(collate(seen, declared).to(device))
