"""Segmentation in polar coordinates: a wrapper that unrolls pictures around a centre for any segmenter.

An object that is roughly star-shaped around its centre is a band in the unrolled picture. In training the centre is
that of the truth, shifted a little now and then; elsewhere it is given, or found by another model.

Shape legend: B images, N views (one per centre), K classes, H W network input, whose unrolled form has W rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import tv_tensors

from saccade.errors import ConfigError, DataError, UsageError
from saccade.labels import background_of, centers_of, centroid, label_map, middle, number_regions, object_mask
from saccade.layers.polar import check_centers, from_polar, to_polar
from saccade.models.label_maps import answers
from saccade.models.polar.config import PolarConfig
from saccade.results import Centers, Prediction, SemanticMap
from saccade.samples import Batch, ClassList, Preprocess, Sample, Target
from saccade.tasks import Task, require_task


class ScoresPixels(Protocol):
    """A segmenter as the wrapper needs it: every model of the house that offers semantic segmentation is one."""

    def preprocess(self, task: Task) -> Preprocess:
        """What it declares about its input."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Training losses."""

    def class_scores(self, batch: Batch) -> Tensor:
        """Scores 0..1 of the classes of the batch, ``[B, K, H, W]`` in the frame of the input."""

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass, where it can."""


class Finds(Protocol):
    """What finds centres: a centre predictor, or a segmenter."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it offers."""

    def preprocess(self, task: Task) -> Preprocess:
        """What it declares about its input."""

    def predict(self, batch: Batch) -> list[Prediction]:
        """Centres, or label maps."""


class PolarSegmenter(nn.Module):
    """A segmenter in polar coordinates.

    Args:
        config: How pictures are unrolled.
        segmenter: What looks at the unrolled pictures (:class:`ScoresPixels`).
        finder: What finds centres (:class:`Finds`); it stands still. None = they are always given.

    Raises:
        ConfigError: The segmenter's input keeps the aspect ratio, so that its frame would hold padding.
    """

    system = "polar"

    def __init__(self, config: PolarConfig, segmenter: nn.Module, finder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.segmenter = segmenter
        self.finder = None if finder is None else finder.requires_grad_(False).eval()
        declared = self._scorer.preprocess(Task.SEMANTIC)
        if declared.keep_ratio or any(side % declared.pad_multiple for side in declared.size_hw):
            raise ConfigError("the input of the segmenter has padding, which cannot be unrolled", where="segmenter")

    # ------------------------------------------------------------------ the contract of every model

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Semantic segmentation."""
        return (Task.SEMANTIC,)

    def preprocess(self, task: Task) -> Preprocess:
        """As the segmenter declares it; pictures are unrolled behind it."""
        require_task(self.tasks, task)
        return self._scorer.preprocess(task)

    def train(self, mode: bool = True) -> PolarSegmenter:
        """Sets the mode; the finder stays in evaluation."""
        super().train(mode)
        if self.finder is not None:
            self.finder.eval()
        return self

    def loss(self, batch: Batch, *, centers_B2: Tensor | None = None) -> dict[str, Tensor]:
        """The losses of the segmenter on unrolled pictures.

        Args:
            batch: Network inputs with label maps.
            centers_B2: Centres (x, y) in the frame of the input; None takes those of the truth, with the shift of
                training. A picture without an object has its centre in the middle.

        Raises:
            DataError: A sample has no label map.
        """
        require_task(self.tasks, batch.task)
        labels, found = [], []
        for target, origin in zip(batch.targets, batch.origins, strict=True):
            one, center = self._choose(label_map(target, origin), batch)
            labels.append(one)
            found.append(center)
        centers = self._shifted(torch.stack(found), batch) if centers_B2 is None else centers_B2
        unrolled = self._unroll(batch, centers)
        # Beyond the picture is background: 0 of the labels that are one higher.
        shifted = to_polar(torch.stack(labels)[:, None] + 1, centers, mode="nearest")[:, 0] - 1
        shifted = torch.where(shifted < 0, background_of(batch.classes), shifted)
        targets = [Target(semantic=tv_tensors.Mask(one)) for one in shifted]
        return self._scorer.loss(dataclasses.replace(unrolled, targets=targets))

    def predict(self, batch: Batch, *, centers_xy: Sequence[Tensor] | None = None) -> list[Prediction]:
        """One label map per picture, in the frame of the original picture.

        Args:
            batch: Network inputs.
            centers_xy: Centres ``[N, 2]`` of every picture, in pixels of the original (those of :meth:`find`, of
                :meth:`true_centers`, or from elsewhere); a picture with none has its centre in the middle. They are not
                found here, because the finder looks at the original pictures, and a batch holds what was made of them.

        Raises:
            UsageError: None are given.
            DataError: A centre lies outside its picture.
        """
        require_task(self.tasks, batch.task)
        if centers_xy is None:
            raise _no_center()
        with torch.inference_mode():
            scores = self.class_scores(batch, centers_xy)
            return answers(scores, batch, _classes(batch))

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """As the segmenter does it."""
        self._scorer.set_activation_checkpointing(enabled)

    # ------------------------------------------------------------------ centres

    def finder_input(self) -> tuple[Task, Preprocess]:
        """What the finder is asked, and what it declares about its input, which is not the segmenter's.

        Raises:
            UsageError: There is no finder.
        """
        finder = self._finder
        task = Task.CENTER if Task.CENTER in finder.tasks else Task.SEMANTIC
        return task, finder.preprocess(task)

    def find(self, batch: Batch) -> list[Tensor]:
        """Centres ``[N, 2]`` of every picture in pixels of the original, as the finder sees them; N may be 0.

        Args:
            batch: Inputs of the finder (:meth:`finder_input`).

        Raises:
            UsageError: There is no finder.
        """
        return [self._centers(found) for found in self._finder.predict(batch)]

    @property
    def _finder(self) -> Finds:
        if self.finder is None:
            raise _no_center()
        return self.finder  # type: ignore[return-value]

    def true_centers(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Centres ``[N, 2]`` of the truth in pixels of the original.

        Raises:
            DataError: A sample has no label map.
        """
        masks = [object_mask(label_map(sample.target, sample.origin), sample.classes) for sample in samples]
        return [self._places(mask) for mask in masks]

    def _centers(self, found: Prediction) -> Tensor:
        if isinstance(found, Centers):
            return found.points_xy if self.config.objects == "each" else found.points_xy[:1]
        assert isinstance(found, SemanticMap)
        return self._places(object_mask(found.labels, found.classes))

    def _places(self, mask_HW: Tensor) -> Tensor:
        """Centres of the objects of a mask, ``[N, 2]``."""
        return centers_of(mask_HW, self.config.objects, self.config.least_region)

    def _choose(self, labels_HW: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """What a training picture is unrolled around: all objects, or one of them without the others."""
        mask = object_mask(labels_HW, batch.classes)
        if self.config.objects == "each":
            numbered, count = number_regions(mask, self.config.least_region)
            chosen = numbered == 1 + int(torch.randint(max(1, count), ()))
            if count:
                labels_HW = labels_HW.masked_fill(mask & ~chosen, background_of(batch.classes))
            mask = chosen  # without an object empty: the picture is unrolled around its middle
        center = centroid(mask)
        return labels_HW, middle((mask.shape[-2], mask.shape[-1])) if center is None else center

    def _shifted(self, centers_B2: Tensor, batch: Batch) -> Tensor:
        """The centres with the shift of training, kept inside the picture."""
        height, width = batch.images.shape[-2:]
        shift = (torch.rand(len(centers_B2), 2) * 2 - 1) * self.config.jitter * height
        hit = torch.rand(len(centers_B2), 1) < self.config.jitter_probability
        limit = torch.tensor([width - 1.0, height - 1.0])
        return (centers_B2 + shift * hit).clamp(min=torch.zeros(2), max=limit)

    # ------------------------------------------------------------------ unrolled pictures

    def class_scores(self, batch: Batch, centers_xy: Sequence[Tensor]) -> Tensor:
        """Scores 0..1 of the classes, ``[B, K, H, W]`` in the frame of the input.

        Every pixel takes the scores of the view in which it is least background; beyond the greatest radius of every
        view there is background alone.

        Args:
            batch: Network inputs.
            centers_xy: Centres ``[N, 2]`` of every picture, in pixels of the original.

        Raises:
            DataError: A centre lies outside its picture.
        """
        owners, views = [], []
        size_hw = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
        for number, (given, origin) in enumerate(zip(centers_xy, batch.origins, strict=True)):
            check_centers(given, origin.size_hw, where=origin.path or origin.image_id)
            inside = _to_frame(given, origin.size_hw, size_hw) if len(given) else middle(size_hw)[None]
            owners += [number] * len(inside)
            views.append(inside)
        centers_N2 = torch.cat(views)
        mode, background = self.config.interpolation, background_of(batch.classes)
        best: list[Tensor | None] = [None] * len(batch)
        # As many views at once as there are pictures: a picture with many objects does not need more memory.
        for places in torch.arange(len(owners)).split(len(batch)):
            index = torch.tensor([owners[place] for place in places.tolist()])
            centers = centers_N2[places]
            unrolled = self._unroll(_rows(batch, index), centers)
            scores = self._scorer.class_scores(unrolled).float()
            # What covers the picture is rolled up with the scores: their last channel.
            rolled = from_polar(F.pad(scores, (0, 0, 0, 0, 0, 1), value=1.0), centers, mode=mode)
            rolled, covered = rolled[:, :-1], rolled[:, -1]
            rolled[:, background] += 1 - covered
            for owner, view in zip(index.tolist(), rolled, strict=True):
                held = best[owner]
                best[owner] = view if held is None else torch.where(view[background] < held[background], view, held)
        return torch.stack([one for one in best if one is not None])

    @property
    def _scorer(self) -> ScoresPixels:
        return self.segmenter  # type: ignore[return-value]

    def _unroll(self, batch: Batch, centers_N2: Tensor) -> Batch:
        images = to_polar(batch.images, centers_N2, mode=self.config.interpolation)
        sizes = [(int(images.shape[-2]), int(images.shape[-1]))] * len(images)
        return dataclasses.replace(batch, images=images, input_sizes_hw=sizes, targets=[])


def _no_center() -> UsageError:
    return UsageError(
        "the model is not told where the object is",
        why="it looks at pictures that are unrolled around a centre, and has nothing that finds one",
        fix="give the centre (--center x,y), or a model that finds it (--centers MODEL)",
    )


def _classes(batch: Batch) -> ClassList:
    if batch.classes is None:
        raise DataError("a batch of semantic segmentation has no classes", where=batch.origins[0].dataset)
    return batch.classes


def _rows(batch: Batch, index: Tensor) -> Batch:
    """Some pictures of a batch, without their targets."""
    rows = index.tolist()
    return dataclasses.replace(
        batch,
        images=batch.images[index.to(batch.images.device)],
        targets=[],
        origins=[batch.origins[row] for row in rows],
        input_sizes_hw=[batch.input_sizes_hw[row] for row in rows],
    )


def _to_frame(points_N2: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Positions in a picture that is squeezed to another size; middles of pixels stay middles of shares."""
    scale = torch.tensor([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]])
    limit = torch.tensor([to_hw[1] - 1.0, to_hw[0] - 1.0])
    return ((points_N2.float().cpu() + 0.5) * scale - 0.5).clamp(min=torch.zeros(2), max=limit)
