"""What models that label every pixel share: truths as their own classes, scores in the order asked for, and answers.

Shape legend: B images, K classes, H W network input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import DataError, UsageError
from saccade.labels import label_map
from saccade.models.classes import KnownClasses
from saccade.results import Prediction, SemanticMap
from saccade.samples import IGNORE_LABEL, Batch, ClassList


def require_known(labels: Tensor, count: int) -> None:
    """Refuses labels that are neither one of so many classes nor :data:`IGNORE_LABEL`, any shape.

    Raises:
        DataError: There is one.
    """
    wrong = (labels != IGNORE_LABEL) & ((labels < 0) | (labels >= count))
    if bool(wrong.any()):
        raise DataError(
            f"a label map holds label {int(labels[wrong][0])} but there are {count} classes",
            fix="run `saccade data check` on the data set",
        )


def own_labels(known: KnownClasses, batch: Batch) -> Tensor:
    """The label maps of a batch as the model's own class ids, ``[B, H, W]`` int64; ignored pixels stay ignored.

    Raises:
        DataError: A sample has no label map, or a label without a class, or the data set has a class that the model
            does not.
    """
    pairs = zip(batch.targets, batch.origins, strict=True)
    labels = torch.stack([label_map(target, origin) for target, origin in pairs])
    require_known(labels, known.count if batch.classes is None else len(batch.classes))
    if batch.classes is None or batch.classes.names == known.names:
        return labels
    ignored = labels == IGNORE_LABEL
    return known.own_ids(batch, labels.masked_fill(ignored, 0)).masked_fill(ignored, IGNORE_LABEL)


def as_asked(known: KnownClasses, scores_BKHW: Tensor, asked: ClassList | None) -> Tensor:
    """Scores of the model's own classes in the order of those that are asked for.

    Raises:
        UsageError: Not all classes of the model are asked for.
    """
    classes, places = known.wanted(asked)
    if len(classes) != known.count:
        raise UsageError(
            f"this model tells all of {', '.join(known.listed.names)} apart",
            why=f"only {', '.join(classes.names)} is asked for",
            fix="leave out the classes",
        )
    return scores_BKHW if places is None else scores_BKHW[:, places.argsort()]


def resize_scores(scores_KHW: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Scores ``[K, h, w]`` at another size, bilinearly (align_corners False)."""
    return F.interpolate(scores_KHW[None], size=size_hw, mode="bilinear", align_corners=False)[0]


def answers(scores_BKHW: Tensor, batch: Batch, classes: ClassList) -> list[Prediction]:
    """The best class of every pixel of the original pictures, one label map per picture.

    Args:
        scores_BKHW: Scores of ``classes`` at any size; they are resized.
        batch: Where the pictures came from.
        classes: What is answered with.
    """
    return [
        SemanticMap(labels=resize_scores(one, origin.size_hw).argmax(0).cpu(), classes=classes)
        for one, origin in zip(scores_BKHW, batch.origins, strict=True)
    ]
