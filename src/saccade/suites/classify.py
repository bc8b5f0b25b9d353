"""Zero-shot classification: pictures against the mean of many prompts about each class (CLIP, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.data.benchmarks.imagenet import CLASSIFIED, imagenet_templates
from saccade.metrics.ranking import TopK
from saccade.models.visft.clip import CLIPPair
from saccade.suites.base import Progress, SuiteOptions, SuiteResult, silent
from saccade.suites.features import extract
from saccade.suites.pictures import CentreCrop, Files
from saccade.suites.towers import Tower

_BATCH = 512


def class_points(
    pair: CLIPPair,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 64,
    progress: Progress = silent,
) -> Tensor:
    """A point ``[K, J]`` of length 1 per class: the mean of its prompts' points.

    Args:
        pair: The towers.
        names: Of the classes.
        templates: With ``{}`` in the place of the name.
        batch_size: Prompts per forward pass.
        progress: Told how far it is.
    """
    points = []
    for done, name in enumerate(names, start=1):
        points.append(mean_point(pair, [template.format(name) for template in templates], batch_size=batch_size))
        progress("classes", done, len(names))
    return torch.stack(points)


def mean_point(pair: CLIPPair, texts: Sequence[str], *, batch_size: int) -> Tensor:
    """The mean of the points of sentences that mean the same, brought back to length 1: ``[J]`` on the CPU."""
    with torch.inference_mode():
        parts = [
            pair.encode_texts([*texts[start : start + batch_size]]).float()
            for start in range(0, len(texts), batch_size)
        ]
    return F.normalize(torch.cat(parts).mean(0), dim=0).cpu()


def classify(tower: Tower, options: SuiteOptions, *, which: str) -> SuiteResult:
    """Top-1 and top-5 accuracy of one of the sets that ask ImageNet's classes.

    Args:
        tower: With its text tower.
        options: The folder of the set, and the rest.
        which: One of :data:`saccade.data.benchmarks.imagenet.CLASSIFIED`.
    """
    pair = tower.require_pair()
    data = CLASSIFIED[which](options.root)
    # A part of a set that is sorted by class would be a few classes: take pictures from all over it.
    step = 1 if not options.limit else max(1, len(data.paths) // options.limit)
    chosen = range(0, len(data.paths), step)[: options.limit or None]
    classes = class_points(
        pair, data.class_names, imagenet_templates(), batch_size=options.batch_size, progress=options.progress
    )
    points = extract(
        pair.encode_images,
        Files(paths=[data.paths[index] for index in chosen], border=data.border),
        CentreCrop(side=tower.side, mean=tower.mean, std=tower.std),
        options=options,
        device=tower.device,
        about={"tower": tower.identity, "data": f"{which} {options.root.resolve()}", "what": "points"},
    )
    labels = torch.tensor([data.labels[index] for index in chosen])
    metric = TopK(len(data.class_names))
    for start in range(0, len(points), _BATCH):
        metric.update(points[start : start + _BATCH] @ classes.T, labels[start : start + _BATCH])
    notes = [f"{len(data.class_names)} classes, {len(imagenet_templates())} prompts each"]
    if len(chosen) < len(data.paths):
        notes.append(f"{len(chosen)} of {len(data.paths)} pictures, evenly spread")
    return SuiteResult(metrics=metric.compute(), items=len(points), notes=notes, left_out=data.skipped)


CLASSIFICATION = {name: partial(classify, which=name) for name in CLASSIFIED}
"""Name of a set to what measures it."""
