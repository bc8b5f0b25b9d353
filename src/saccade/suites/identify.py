"""Grounded object identification: what is the object in a given box?

A linear layer over the frozen features in the box. The form of the probe is ours; the numbers of boxes are those of
M3IT's task of that name, which was made from COCO. Shape legend: B pictures, H W map, K boxes, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from saccade.data.sources import Source, SourceSpec, open_source
from saccade.data.sources.coco import find_annotations
from saccade.data.sources.voc import find_voc_files
from saccade.errors import DataError
from saccade.layers.precision import autocast
from saccade.metrics.ranking import TopK
from saccade.samples import ClassList
from saccade.suites.base import SuiteOptions, SuiteResult
from saccade.suites.features import shard, shard_folder
from saccade.suites.pictures import Squash
from saccade.suites.probes import Schedule, about_probe, fit_probe, keep_probe, kept_probe, schedule, shuffled
from saccade.suites.towers import Tower
from saccade.tasks import Task

TRAIN_BOXES, TEST_BOXES = 30_000, 2_000
"""How many boxes M3IT took of COCO's train2017 and val2017."""

SIDE = 448
"""Side of the network input in pixels; a smaller tower (of a nominal input below 224) is shown its own size."""

_BINS = 7
_SHARD = 32  # pictures: few, for the last shard is made whole though not all of its boxes may be wanted
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
    """Accuracy over boxes of validation pictures, of a probe trained on boxes of training pictures.

    Args:
        tower: Any.
        options: The folder of COCO, or of other boxes in the layout of PASCAL VOC; ``limit`` and ``train_limit`` are
            numbers of boxes.
    """
    test = _open(options.root, "val")
    classes = test.classes
    if classes is None:
        raise DataError("the data set has no class list", where=options.root)
    most = options.limit or TEST_BOXES
    data = _identity(options.root, "val", options)
    found = box_features(tower, test, options, data=data, most=most, what="test boxes")
    probe = BoxProbe(tower.vit.config.width, len(classes)).to(tower.device)
    train_root = options.train_root or options.root
    about = about_probe(
        "boxes",
        tower.identity,
        options,
        train_root=train_root,
        train_limit=options.train_limit or TRAIN_BOXES,
        **linear_schedule(options),
        classes=list(classes.names),
    )
    commonest = float(torch.bincount(found.labels).max()) / len(found.labels)
    notes = [
        f"{len(found.labels)} boxes of {test.name}, pictures drawn with the seed {options.seed}, at {_side(tower)} px",
        f"the commonest class alone: top1 {commonest:.4f}, mean_class {1 / len(found.labels.unique()):.4f}",
    ]
    if not (note := kept_probe(options.probe, probe, about)):
        train = _open(train_root, "train", classes)
        data, most = _identity(train_root, "train", options), options.train_limit or TRAIN_BOXES
        known = box_features(tower, train, options, data=data, most=most, what="training boxes")
        steps = fit_linear(probe, known, options)
        note = f"a linear layer trained {steps} steps on {len(known.labels)} boxes of {train.name}"
        keep_probe(options.probe, probe.state_dict(), about, note)
    notes.append(note)
    metric = TopK(len(classes))
    with torch.inference_mode():
        metric.update(probe(found.features.to(tower.device)), found.labels)
    return SuiteResult(metrics=metric.compute(), items=len(found.labels), notes=notes, left_out=dict(test.skipped))


def box_features(tower: Tower, source: Source, options: SuiteOptions, *, data: str, most: int, what: str) -> Boxes:
    """Mean features of the tower's map in true boxes, crowds left out, of pictures drawn by the seed.

    Args:
        tower: Any.
        source: Of detection.
        options: Batch size, precision, cache, seed, progress.
        data: What tells the boxes and their classes from those of other data, for kept features.
        most: Greatest number of boxes.
        what: For the progress.

    Raises:
        DataError: There is no box.
    """
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(options.seed)).tolist()
    about = {"tower": tower.identity, "data": data, "what": "boxes", "pictures": len(order), "seed": options.seed}
    names = None if source.classes is None else source.classes.names  # a kept label is a place among them
    folder = shard_folder(options, about | {"side": _side(tower), "classes": names})
    parts: list[dict[str, Tensor]] = []
    done = 0
    for number, start in enumerate(range(0, len(order), _SHARD)):
        parts.append(shard(folder, number, partial(_look, tower, source, order[start : start + _SHARD], options)))
        done += len(parts[-1]["labels"])
        options.progress(what, min(done, most), most)
        if done >= most:
            break
    if not done:
        raise DataError("no box to identify", where=source.name)
    features, labels = (torch.cat([part[name] for part in parts])[:most] for name in ("features", "labels"))
    return Boxes(features=features, labels=labels)


def mean_in_boxes(map_BHWC: Tensor, boxes_xyxy: Sequence[Tensor], patch_size: int) -> Tensor:
    """Mean features of a map in boxes (RoIAlign), ``[K, C]``, one picture after the other.

    Args:
        map_BHWC: The map.
        boxes_xyxy: Of every picture, in pixels of the network input.
        patch_size: Pixels per cell.
    """
    pooled = roi_align(
        map_BHWC.float().permute(0, 3, 1, 2),
        [boxes.to(map_BHWC.device, torch.float32) for boxes in boxes_xyxy],
        output_size=_BINS,
        spatial_scale=1 / patch_size,
        sampling_ratio=2,
        aligned=True,
    )
    return pooled.mean((2, 3))


def _look(tower: Tower, source: Source, indices: Sequence[int], options: SuiteOptions) -> dict[str, Tensor]:
    """Features and classes of all boxes of some pictures, in order."""
    side, config = _side(tower), tower.vit.config
    fit = Squash(size_hw=(side, side), mean=tower.mean, std=tower.std)
    features, labels = [torch.empty(0, config.width)], [torch.empty(0, dtype=torch.int64)]
    for start in range(0, len(indices), options.batch_size):
        images, boxes = [], []
        for index in indices[start : start + options.batch_size]:
            sample = source[index]
            target = sample.target
            if target.boxes is None or target.class_ids is None:
                continue
            real = torch.ones(len(target.class_ids), dtype=torch.bool) if target.is_crowd is None else ~target.is_crowd
            if not real.any():
                continue
            height, width = sample.size_hw
            images.append(fit(sample.image.as_subclass(Tensor)))
            boxes.append(target.boxes.as_subclass(Tensor)[real] * torch.tensor([side / width, side / height] * 2))
            labels.append(target.class_ids[real])
        if not images:
            continue
        with torch.inference_mode(), autocast(options.precision, tower.device):
            map_BHWC = tower.vit(torch.stack(images).to(tower.device))
        features.append(mean_in_boxes(map_BHWC, boxes, config.patch_size).cpu())
    return {"features": torch.cat(features), "labels": torch.cat(labels)}


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
        for rows in shuffled(len(labels), _BATCH, torch.Generator().manual_seed(options.seed)):
            yield F.cross_entropy(probe(features[rows]), labels[rows])

    chosen = linear_schedule(options)
    fit_probe(probe, losses(), **chosen, weight_decay=_DECAY, progress=options.progress)
    return chosen["steps"]


def linear_schedule(options: SuiteOptions) -> Schedule:
    """That of :func:`fit_linear`."""
    return schedule(options, steps=_STEPS, learning_rate=_RATE)


def _side(tower: Tower) -> int:
    patch = tower.vit.config.patch_size
    return SIDE // patch * patch if tower.side >= SIDE // 2 else tower.side


def _open(root: Path, split: str, classes: ClassList | None = None) -> Source:
    spec = SourceSpec(
        task=Task.DETECTION,
        reader="voc" if _is_voc(root) else "coco",
        root=str(root),
        split=split,
        classes=() if classes is None else classes.names,
    )
    return open_source(spec)


def _is_voc(root: Path) -> bool:
    return any(True for pattern in ("ImageSets/Main", "VOC*/ImageSets/Main") for _ in root.glob(pattern))


def _identity(root: Path, split: str, options: SuiteOptions) -> str:
    """The folder and what its annotations say: kept labels and boxes are good for no others."""
    if options.cache is None:
        return ""
    digest = hashlib.sha256()
    for path in find_voc_files(root, split)[0] if _is_voc(root) else [find_annotations(root, split)[0]]:
        digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return f"{root.resolve()} {split} {digest.hexdigest()}"
