"""Recall at k of retrieval between images and captions, and top-k accuracy of classification.

Shape legend: I images, T captions, C joint channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.errors import DataError

_ROWS = 512  # images or captions ranked at once: the table of 5,000 x 25,000 scores is never whole


def recall_at_k(
    images_IC: Tensor, captions_TC: Tensor, image_of_T: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall in both directions, as published for Flickr30k and COCO.

    Image to text: an image counts if any of its captions is among its k best. Text to image: every caption counts by
    itself. Among equal scores the earlier one ranks first.

    Args:
        images_IC: Features, normalised.
        captions_TC: Features, normalised.
        image_of_T: ``[T]`` int64, the image that each caption describes.
        ks: The ranks.

    Returns:
        ``i2t/R@1`` ..., ``t2i/R@1`` ..., and ``rsum``, their sum in per cent.

    Raises:
        DataError: Sizes that contradict each other, or an image without a caption.
    """
    count = len(images_IC)
    if len(captions_TC) != len(image_of_T):
        raise DataError(f"{len(captions_TC)} captions, but the image of {len(image_of_T)} is given")
    if sorted(set(image_of_T.tolist())) != list(range(count)):
        raise DataError(
            f"the captions describe {len(set(image_of_T.tolist()))} images, not every one of {count}",
            why="an image without a caption can be neither found nor missed",
        )
    device = images_IC.device
    image_of_T = image_of_T.to(device)
    best = torch.full((count,), len(captions_TC), device=device)
    for start in range(0, count, _ROWS):
        scores = images_IC[start : start + _ROWS] @ captions_TC.T
        order = scores.argsort(dim=1, descending=True, stable=True)
        own = image_of_T[order] == torch.arange(start, start + len(scores), device=device)[:, None]
        best[start : start + _ROWS] = own.int().argmax(dim=1)
    ranks = []
    for start in range(0, len(captions_TC), _ROWS):
        scores = captions_TC[start : start + _ROWS] @ images_IC.T
        target = image_of_T[start : start + _ROWS, None]
        value = scores.gather(1, target)
        earlier = (scores == value) & (torch.arange(count, device=device) < target)
        ranks.append((scores > value).sum(1) + earlier.sum(1))
    found = {"i2t": best, "t2i": torch.cat(ranks)}
    recalls = {f"{way}/R@{k}": float((rank < k).double().mean()) for way, rank in found.items() for k in ks}
    return recalls | {"rsum": 100 * sum(recalls.values())}


class TopK:
    """Top-k accuracy over a set, and the mean over classes of the top-1 accuracy.

    Args:
        classes: Number of classes K.
        ks: The ranks; those above K are left out.
    """

    def __init__(self, classes: int, ks: Sequence[int] = (1, 5)) -> None:
        self.classes, self.ks = classes, tuple(k for k in ks if k <= classes)
        self._hits = dict.fromkeys(self.ks, 0)
        self._per_class = torch.zeros(2, classes, dtype=torch.int64)

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Adds a batch.

        Raises:
            DataError: A label outside 0..K-1.
        """
        labels = labels_B.cpu()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise DataError(f"labels {int(labels.min())} to {int(labels.max())} for {self.classes} classes")
        best = logits_BK.topk(max(self.ks), dim=1).indices.cpu()
        right = best == labels[:, None]
        for k in self.ks:
            self._hits[k] += int(right[:, :k].any(dim=1).sum())
        self._per_class[0] += torch.bincount(labels, minlength=self.classes)
        self._per_class[1] += torch.bincount(labels[right[:, 0]], minlength=self.classes)

    def compute(self) -> dict[str, float]:
        """``top1``, ``top5`` and ``mean_class`` (top-1, the classes that occur weighing the same), 0..1."""
        seen, right = self._per_class
        total = int(seen.sum())
        if not total:
            return dict.fromkeys([*(f"top{k}" for k in self.ks), "mean_class"], float("nan"))
        present = seen > 0
        scores = {f"top{k}": hits / total for k, hits in self._hits.items()}
        return scores | {"mean_class": float((right[present] / seen[present]).mean())}
