"""One object per picture, as the polar paper scores it: means over pictures, and in polar space.

The conventions are the paper's code's (docs/polar.md) and differ from those of the lesion challenges: where truth and
answer are both empty, the Dice score is 0 and the IoU 1; a truth of at most 5 pixels has precision and recall 1 where
the answer has at most 5, too, else 0; any other truth has 0 where the answer has at most 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.labels import centroid, middle, object_mask
from saccade.layers.polar import to_polar
from saccade.metrics.base import ImageRecords, Key, image_key, label_maps, mean_rows
from saccade.results import Prediction
from saccade.samples import IGNORE_LABEL, ClassList, Sample

_SPACES = ("mean", "polar")
_SCORES = ("Dice", "IoU", "Precision", "Recall")
SCORE_NAMES = tuple(f"{space}_{score}" for space in _SPACES for score in _SCORES)

PROTOCOL = (
    "means over images by the conventions of the polar paper (both empty: Dice 0, IoU 1; up to 5 pixels count as empty "
    "for precision and recall), at the original size and, as polar_*, unrolled around the centre of the truth"
)

_SPECK = 5  # pixels


def lesion_scores(said: Tensor, truth: Tensor) -> tuple[float, float, float, float]:
    """Dice, IoU, precision and recall of two bool masks of the same shape."""
    both = int((said & truth).sum())
    predicted, wanted = int(said.sum()), int(truth.sum())
    dice = 2 * both / (predicted + wanted) if predicted + wanted else 0.0
    union = predicted + wanted - both
    iou = both / union if union else 1.0
    if wanted <= _SPECK:
        alike = float(predicted <= _SPECK)
        return dice, iou, alike, alike
    if predicted <= _SPECK:
        return dice, iou, 0.0, 0.0
    return dice, iou, both / predicted, both / wanted


class LesionMetric(ImageRecords[Key, tuple[float, ...]]):
    """Scores of the objects of label maps, picture by picture.

    Every class but the background is the object; pixels of the ignored label belong to neither map.

    Args:
        classes: The classes.
    """

    def __init__(self, classes: ClassList) -> None:
        super().__init__()
        self.classes = classes

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one image.

        Raises:
            DataError: The maps have different sizes or classes, or the target has none.
            UsageError: The prediction is of another task.
        """
        labels, predicted = label_maps(target, prediction, self.classes)
        truth = object_mask(labels, self.classes)
        said = object_mask(predicted, self.classes) & (labels != IGNORE_LABEL)
        center = centroid(truth)
        around = (middle((truth.shape[0], truth.shape[1])) if center is None else center)[None]
        polar_said, polar_truth = to_polar(torch.stack([said, truth])[None], around, mode="nearest")[0]
        scores = (*lesion_scores(said, truth), *lesion_scores(polar_said, polar_truth))
        self.keep(image_key(target), scores)

    def compute(self) -> dict[str, float]:
        """The means over the images by :data:`SCORE_NAMES`; NaN without an image."""
        return mean_rows(list(self.images.values()), SCORE_NAMES)
