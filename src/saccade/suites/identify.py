"""Grounded object identification: what is the object in a given box?

A linear layer over the frozen features in the box. The form of the probe is ours; the numbers of boxes are those of
M3IT's task of that name, which was made from COCO. Shape legend: B pictures, K boxes, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from saccade.data.sources import Source, SourceSpec, open_source
from saccade.errors import DataError
from saccade.layers.precision import autocast
from saccade.metrics.ranking import TopK
from saccade.samples import ClassList
from saccade.suites.base import SuiteOptions, SuiteResult
from saccade.suites.pictures import Squash
from saccade.suites.probes import fit_probe, keep_probe, kept_probe, shuffled
from saccade.suites.towers import Tower
from saccade.tasks import Task

TRAIN_BOXES, TEST_BOXES = 30_000, 2_000
"""How many boxes M3IT took of COCO's train2017 and val2017."""

SIDE = 448
"""Side of the network input in pixels; a smaller tower (of a nominal input below 224) is shown its own size."""

_BINS = 7
_STEPS, _RATE, _DECAY, _BATCH = 3_000, 1e-3, 1e-4, 256


class BoxProbe(nn.Module):
    """Features of a box to class logits.

    Args:
        in_width: Channels C.
        classes: Number of classes.
    """

    def __init__(self, in_width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_width)
        self.linear = nn.Linear(in_width, classes)

    def forward(self, features_KC: Tensor) -> Tensor:
        """``[K, classes]``."""
        return self.linear(self.norm(features_KC))


@dataclass(kw_only=True)
class Boxes:
    """Boxes with their features and classes.

    Attributes:
        features: ``[K, C]`` float32.
        labels: ``[K]`` int64.
    """

    features: Tensor
    labels: Tensor


def identify(tower: Tower, options: SuiteOptions) -> SuiteResult:
    """Accuracy over boxes of COCO's validation pictures, of a probe trained on boxes of its training pictures."""
    test = _open(options.root, "val")
    classes = test.classes
    if classes is None:
        raise DataError("the data set has no class list", where=options.root)
    found = box_features(tower, test, options, most=options.limit or TEST_BOXES, what="test boxes")
    probe = BoxProbe(tower.vit.config.width, len(classes)).to(tower.device)
    about = f"boxes, {len(classes)} classes, {tower.identity}"
    notes = [f"{len(found.labels)} boxes, drawn with the seed {options.seed}, at {_side(tower)} px"]
    if not kept_probe(options.probe, probe, about):
        train = _open(options.train_root or options.root, "train", classes)
        known = box_features(tower, train, options, most=options.train_limit or TRAIN_BOXES, what="training boxes")
        steps = fit_linear(probe, known, options)
        keep_probe(options.probe, probe.state_dict(), about)
        notes.append(f"a linear layer trained {steps} steps on {len(known.labels)} boxes")
    metric = TopK(len(classes))
    with torch.inference_mode():
        metric.update(probe(found.features.to(tower.device)), found.labels)
    return SuiteResult(metrics=metric.compute(), items=len(found.labels), notes=notes, left_out=dict(test.skipped))


def box_features(tower: Tower, source: Source, options: SuiteOptions, *, most: int, what: str) -> Boxes:
    """Mean features of the tower's map in true boxes, crowds left out, of pictures drawn by the seed."""
    generator = torch.Generator().manual_seed(options.seed)
    fit = Squash(size_hw=(_side(tower),) * 2, mean=tower.mean, std=tower.std)
    order = torch.randperm(len(source), generator=generator).tolist()
    features, labels, done = [], [], 0
    for index in order:
        if done >= most:
            break
        sample = source[index]
        target = sample.target
        if target.boxes is None or target.class_ids is None or not len(target.class_ids):
            continue
        real = torch.ones(len(target.class_ids), dtype=torch.bool) if target.is_crowd is None else ~target.is_crowd
        boxes, class_ids = target.boxes.as_subclass(Tensor)[real].float(), target.class_ids[real]
        if not len(class_ids):
            continue
        kept = torch.randperm(len(class_ids), generator=generator)[: most - done]
        height, width = sample.size_hw
        scale = torch.tensor([_side(tower) / width, _side(tower) / height] * 2)
        images = fit(sample.image.as_subclass(Tensor))[None].to(tower.device)
        with torch.inference_mode(), autocast(options.precision, tower.device):
            map_1HWC = tower.vit(images)
        pooled = roi_align(
            map_1HWC.float().permute(0, 3, 1, 2),
            [(boxes[kept] * scale).to(tower.device)],
            output_size=_BINS,
            spatial_scale=1 / tower.vit.config.patch_size,
            sampling_ratio=2,
            aligned=True,
        )
        features.append(pooled.mean((2, 3)).cpu())
        labels.append(class_ids[kept])
        done += len(kept)
        options.progress(what, min(done, most), most)
    if not features:
        raise DataError("no box to identify", where=source.name)
    return Boxes(features=torch.cat(features), labels=torch.cat(labels))


def fit_linear(probe: nn.Module, known: Boxes, options: SuiteOptions) -> int:
    """Trains a probe on features that are all there; returns the number of steps."""
    device = next(probe.parameters()).device
    features, labels = known.features.to(device), known.labels.to(device)
    torch.manual_seed(options.seed)
    for module in probe.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    def losses() -> Iterator[Tensor]:
        for chosen in shuffled(len(labels), _BATCH, torch.Generator().manual_seed(options.seed)):
            yield F.cross_entropy(probe(features[chosen]), labels[chosen])

    steps = options.steps or _STEPS
    fit_probe(
        probe,
        losses(),
        steps=steps,
        learning_rate=options.learning_rate or _RATE,
        weight_decay=_DECAY,
        progress=options.progress,
    )
    return steps


def _side(tower: Tower) -> int:
    patch = tower.vit.config.patch_size
    return SIDE // patch * patch if tower.side >= SIDE // 2 else tower.side


def _open(root: object, split: str, classes: ClassList | None = None) -> Source:
    names = () if classes is None else classes.names
    return open_source(SourceSpec(task=Task.DETECTION, reader="coco", root=str(root), split=split, classes=names))
