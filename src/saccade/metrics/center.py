"""How far the centres that are said lie from those of the truth (the polar paper's centre error)."""

from __future__ import annotations

import math
from typing import TypeAlias

from torch import Tensor

from saccade.errors import DataError, UsageError
from saccade.labels import centroid, middle, object_mask
from saccade.metrics.base import ImageRecords, Key, image_key, mean_rows
from saccade.results import Centers, Prediction
from saccade.samples import Sample

SCORE_NAMES = ("mse_px", "distance_px", "within")

_NEAR = 0.05  # of the height of the picture: the greatest shift that the polar training allows for

PROTOCOL = "squared and plain distance of the surest centre in pixels, and the share within 5 % of the height"


Distances: TypeAlias = tuple[float, float, bool]
"""Squared and plain distance in pixels, and whether it is near."""


class CenterMetric(ImageRecords[Key, tuple[Distances, Distances] | None]):
    """Distances between the surest centre and the centre of mass of all objects, means over pictures.

    Pictures without an object have no centre: they are not scored, and counted in the notes. The notes also say what
    the middle of every picture would score: photographers put the object there, so that it is the score to beat.
    """

    @property
    def notes(self) -> list[str]:
        """See :class:`saccade.metrics.base.Metric`."""
        empty = sum(found is None for found in self.images.values())
        left_out = [f"{empty} of {len(self.images)} images have no object; they are not scored"] if empty else []
        middles = mean_rows([found[1] for found in self.images.values() if found is not None], SCORE_NAMES)
        beaten = (
            f"the middle of every picture would score {middles['distance_px']:.1f} px, {middles['within']:.3f} within"
        )
        return [*left_out, *([beaten] if empty < len(self.images) else []), *super().notes]

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one image.

        Raises:
            DataError: The target has no label map, or the prediction no centre.
            UsageError: The prediction is of another task.
        """
        key = image_key(target)
        if not isinstance(prediction, Centers):
            raise UsageError(f"centres are scored on Centers, not on {type(prediction).__name__}", where=key)
        if target.target.semantic is None:
            raise DataError("the target has no label map", where=key)
        if not len(prediction):
            raise DataError("the prediction has no centre", where=key)
        truth = centroid(object_mask(target.target.semantic, target.classes))
        found = None
        if truth is not None:
            height, width = target.size_hw
            found = (
                _distances(prediction.points_xy[0].cpu(), truth, height),
                _distances(middle((height, width)), truth, height),
            )
        self.keep(key, found)

    def compute(self) -> dict[str, float]:
        """The means by :data:`SCORE_NAMES`; NaN where no image has an object."""
        return mean_rows([found[0] for found in self.images.values() if found is not None], SCORE_NAMES)


def _distances(found_xy: Tensor, true_xy: Tensor, height: int) -> Distances:
    dx, dy = (found_xy - true_xy).tolist()
    squared = dx * dx + dy * dy
    distance = math.sqrt(squared)
    return squared, distance, distance / height <= _NEAR
