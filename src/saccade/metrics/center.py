"""How far the centres that are said lie from those of the truth (the polar paper's centre error)."""

from __future__ import annotations

import math

from saccade.errors import DataError, UsageError
from saccade.labels import centroid, object_mask
from saccade.metrics.base import ImageRecords, Key, image_key, mean_rows
from saccade.results import Centers, Prediction
from saccade.samples import Sample

SCORE_NAMES = ("mse_px", "distance_px", "within")

_NEAR = 0.05  # of the height of the picture: the greatest shift that the polar training allows for

PROTOCOL = "squared and plain distance of the surest centre in pixels, and the share within 5 % of the height"


class CenterMetric(ImageRecords[Key, tuple[float, float, bool] | None]):
    """Distances between the surest centre and the centre of mass of all objects, means over pictures.

    Pictures without an object have no centre: they are not scored, and counted in the notes.
    """

    @property
    def notes(self) -> list[str]:
        """See :class:`saccade.metrics.base.Metric`."""
        empty = sum(found is None for found in self.images.values())
        left_out = [f"{empty} of {len(self.images)} images have no object; they are not scored"] if empty else []
        return [*left_out, *super().notes]

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
            dx, dy = (prediction.points_xy[0].cpu() - truth).tolist()
            squared = dx * dx + dy * dy
            distance = math.sqrt(squared)
            found = (squared, distance, distance / target.size_hw[0] <= _NEAR)
        self.keep(key, found)

    def compute(self) -> dict[str, float]:
        """The means by :data:`SCORE_NAMES`; NaN where no image has an object."""
        return mean_rows([found for found in self.images.values() if found is not None], SCORE_NAMES)
