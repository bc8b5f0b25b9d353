"""Referring segmentation: overlap of masks, and how well absent targets are told from present ones.

Protocols differ in what a rejection costs, in small constants, and in what is averaged (specs/gsva.md 12):

- GRES in GSVA's code and in ReLA's (:func:`gsva_scores`, :func:`rela_scores`);
- RES and reasoning segmentation, where every phrase has a target (:func:`overlap_scores`);
- GREC, which looks at boxes (:func:`grec_f1`).

``gIoU`` is the mean overlap of phrases, ``cIoU`` that of all pixels together; ``N_acc`` and ``T_acc`` are the shares of
absent and of present targets that are told to be so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchvision.ops import generalized_box_iou

from saccade.errors import DataError, UsageError, nearest
from saccade.metrics.base import ImageRecords, Key, image_key
from saccade.results import Prediction, Referral, decode_masks
from saccade.samples import Sample

REFERRING_PROTOCOLS: dict[str, str] = {
    "gsva": "GRES as GSVA: a rejected phrase with a target scores its mask, a false alarm adds its pixels to cIoU",
    "refzom": "GRES as GSVA on Ref-ZOM: a rejected phrase with a target scores its mask, a false alarm adds no pixels",
    "rela": "GRES as ReLA: a rejected phrase with a target has no overlap, a false alarm adds its pixels to cIoU",
    "res": "RES: overlap of every mask, rejected or not",
    "reasonseg": "reasoning segmentation as GSVA: overlap of every mask, ignored pixels count as target",
    "lisa": "reasoning segmentation as LISA: overlap of every mask, ignored pixels left out",
    "grec": "GREC: phrases with F1 of 1 at GIoU 0.5, scores from 0.7; boxes are those of the separate parts of a mask",
}
"""How referring segmentation can be scored."""

SCORE_NAMES = (
    "gIoU", "cIoU", "N_acc", "T_acc", "mIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9", "F1",
)  # fmt: skip
"""What the protocols report, each some of them."""

_OF_DATA = {"refzom": "refzom", "reasonseg": "reasonseg", "refcoco": "res", "refclef": "res"}
_ONE_TARGET = ("res", "reasonseg", "lisa")  # protocols for phrases that all have one
_GRES_THRESHOLDS = (0.7, 0.8, 0.9)
_RES_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_LEAST_GIOU, _LEAST_SCORE = 0.5, 0.7
_LEAST_PART = 0.1  # of the pixels of the largest part of a mask; smaller parts are crumbs


def referring_protocol(asked: str = "", data: str = "") -> str:
    """The protocol that is asked for; else the one by which a data set is scored.

    Args:
        asked: A key of :data:`REFERRING_PROTOCOLS`; empty = by the data set.
        data: Name of the data set.

    Raises:
        UsageError: No such protocol.
    """
    if asked and asked not in REFERRING_PROTOCOLS:
        raise UsageError(f"unknown protocol '{asked}'", fix=nearest(asked, REFERRING_PROTOCOLS))
    return asked or next((known for name, known in _OF_DATA.items() if data.lower().startswith(name)), "gsva")


@dataclass(kw_only=True, frozen=True)
class PhraseCounts:
    """What is counted of one phrase.

    Attributes:
        intersection: Pixels of both masks.
        union: Pixels of either mask.
        absent: The truth has no target.
        rejected: The model said so.
        f1: Of the boxes (GREC).
    """

    intersection: int
    union: int
    absent: bool
    rejected: bool
    f1: float = math.nan

    @property
    def iou(self) -> float:
        """0 where both masks are empty."""
        return self.intersection / self.union if self.union else 0.0


def rejection_scores(phrases: Sequence[PhraseCounts]) -> dict[str, float]:
    """``N_acc`` and ``T_acc``; NaN where there is no such phrase."""
    absent = [phrase.rejected for phrase in phrases if phrase.absent]
    present = [not phrase.rejected for phrase in phrases if not phrase.absent]
    return {"N_acc": _mean(absent), "T_acc": _mean(present)}


def gsva_scores(phrases: Sequence[PhraseCounts], *, count_false_alarms: bool = True) -> dict[str, float]:
    """``gIoU``, ``cIoU``, ``N_acc`` and ``T_acc`` as GSVA's ``eval_gres`` computes them.

    Args:
        phrases: All phrases.
        count_false_alarms: What is drawn for an absent target adds to the union of cIoU (gRefCOCO; not Ref-ZOM).
    """
    overlap, shared, joined = 0.0, 0, 0
    for phrase in phrases:
        if not phrase.absent:
            overlap += phrase.intersection / (phrase.union + 1e-8)
            shared, joined = shared + phrase.intersection, joined + phrase.union
        elif phrase.rejected:
            overlap += 1.0
        elif count_false_alarms:
            joined += phrase.union
    return {
        "gIoU": overlap / (len(phrases) + 1e-5),
        "cIoU": shared / (joined + 1e-10),
        **rejection_scores(phrases),
    }


def rela_scores(phrases: Sequence[PhraseCounts]) -> dict[str, float]:
    """``gIoU``, ``cIoU``, ``N_acc``, ``T_acc`` and ``Pr@0.7`` ... as ReLA's evaluator computes them."""
    overlaps, shared, joined = [], 0, 0
    for phrase in phrases:
        if phrase.absent:
            overlaps.append(float(phrase.rejected))
            joined += 0 if phrase.rejected else phrase.union
        else:
            overlaps.append(0.0 if phrase.rejected else phrase.iou)
            shared += 0 if phrase.rejected else phrase.intersection
            joined += phrase.union
    present = [overlap for overlap, phrase in zip(overlaps, phrases, strict=True) if not phrase.absent]
    return {
        "gIoU": _mean(overlaps),
        "cIoU": shared / joined if joined else math.nan,
        **rejection_scores(phrases),
        **{f"Pr@{least}": _mean([overlap >= least for overlap in present]) for least in _GRES_THRESHOLDS},
    }


def overlap_scores(phrases: Sequence[PhraseCounts]) -> dict[str, float]:
    """``gIoU`` and ``cIoU`` as GSVA's ``validate`` has them: rejections do not count, two empty masks are alike."""
    overlap = sum(1.0 if not phrase.union else phrase.intersection / (phrase.union + 1e-5) for phrase in phrases)
    shared, joined = sum(phrase.intersection for phrase in phrases), sum(phrase.union for phrase in phrases)
    return {"gIoU": overlap / (len(phrases) + 1e-5), "cIoU": shared / (joined + 1e-10)}


def res_scores(phrases: Sequence[PhraseCounts]) -> dict[str, float]:
    """Those of :func:`overlap_scores`, ``mIoU`` and ``Pr@0.5`` ... ``Pr@0.9``."""
    ious = [phrase.iou for phrase in phrases]
    return {
        **overlap_scores(phrases),
        "mIoU": _mean(ious),
        **{f"Pr@{least}": _mean([iou >= least for iou in ious]) for least in _RES_THRESHOLDS},
    }


def grec_f1(boxes_xyxy: Tensor, scores: Tensor, true_boxes_xyxy: Tensor) -> tuple[float, bool]:
    """F1 of the boxes of one phrase, as the evaluator of gRefCOCO computes it.

    Pairs are taken greedily by GIoU, down to 0.5.

    Args:
        boxes_xyxy: ``[N, 4]`` predicted, in pixels.
        scores: ``[N]``; boxes below 0.7 are left out.
        true_boxes_xyxy: ``[M, 4]``; none = the phrase has no target.

    Returns:
        F1; and whether nothing was predicted.
    """
    kept = boxes_xyxy[scores >= _LEAST_SCORE].float()
    predicted, true = len(kept), len(true_boxes_xyxy)
    if not predicted or not true:
        return float(predicted == true), not predicted
    overlap = generalized_box_iou(kept, true_boxes_xyxy.float())
    pairs = 0
    for _ in range(min(predicted, true)):
        best = int(overlap.argmax())
        if overlap.flatten()[best] < _LEAST_GIOU:
            break
        overlap[best // true], overlap[:, best % true] = 0.0, 0.0
        pairs += 1
    return 2 * pairs / (predicted + true), False


def grec_scores(phrases: Sequence[PhraseCounts]) -> dict[str, float]:
    """``F1`` (share of phrases whose F1 is 1), ``N_acc`` and ``T_acc``."""
    return {"F1": _mean([phrase.f1 >= 1.0 for phrase in phrases]), **rejection_scores(phrases)}


def boxes_of_parts(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Tight boxes ``[N, 4]`` of the separate parts of a mask, touching corners counted as touching.

    Parts of less than a tenth of the largest one are left out.
    """
    numbered, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return np.zeros((0, 4), np.float32)
    areas = np.bincount(numbered.ravel())[1:]
    places = [place for place, area in zip(ndimage.find_objects(numbered), areas, strict=True)
              if area >= _LEAST_PART * areas.max()]  # fmt: skip
    return np.array([[x.start, y.start, x.stop, y.stop] for y, x in places], np.float32)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


class ReferringMetric(ImageRecords[tuple[Key, tuple[str, ...]], list[PhraseCounts]]):
    """Scores of phrases by a protocol.

    Args:
        protocol: A key of :data:`REFERRING_PROTOCOLS`.
    """

    def __init__(self, protocol: str = "gsva") -> None:
        super().__init__()
        self.rules = referring_protocol(protocol)
        self.surplus = 0

    @property
    def protocol(self) -> str:
        """How the images were scored, in words."""
        return REFERRING_PROTOCOLS[self.rules]

    @property
    def scores_rejected(self) -> bool:
        """Whether masks of rejected phrases are looked at: the model is then to draw one for every phrase."""
        return self.rules not in _ONE_TARGET

    @property
    def phrases(self) -> list[PhraseCounts]:
        """All phrases so far."""
        return [phrase for phrases in self.images.values() for phrase in phrases]

    @property
    def notes(self) -> list[str]:
        """See :class:`saccade.metrics.base.Metric`."""
        phrases = self.phrases
        absent = sum(phrase.absent for phrase in phrases)
        counts = f"{len(phrases)} phrases, {absent} of them without a target"
        left_out = self.rules in _ONE_TARGET and absent
        return [
            counts + ("; this protocol is for phrases that have one" if left_out else ""),
            *([f"{self.surplus} masks or rejections more than were asked for, not scored"] if self.surplus else []),
            *super().notes,
        ]

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one image with all its phrases; what a talkative model says behind them is counted, and not scored.

        Raises:
            DataError: The target has no masks, or the two speak of other phrases or sizes.
            UsageError: The prediction is of another task.
        """
        key = image_key(target)
        if not isinstance(prediction, Referral):
            raise UsageError(
                f"referring segmentation is scored on Referral, not on {type(prediction).__name__}", where=key
            )
        masks = target.target.masks
        if masks is None or len(masks) != len(target.phrases):
            raise DataError(
                f"{len(target.phrases)} phrases, {0 if masks is None else len(masks)} true masks", where=key
            )
        asked = len(target.phrases)
        if prediction.phrases[:asked] != target.phrases:
            raise DataError(
                f"{len(prediction)} answers to {asked} phrases, or to other ones",
                where=key,
                why=f"asked {target.phrases[:3]}, answered {prediction.phrases[:3]}",
            )
        if prediction.size_hw != target.size_hw:
            raise DataError(
                f"the masks are of {prediction.size_hw}, the truth of {target.size_hw}",
                where=key,
                why="one of them is not in the frame of the original image",
            )
        self.surplus += len(prediction) - asked
        counted = [self._count(target, prediction, k) for k in range(asked)]
        self.keep((key, target.phrases), counted)

    def _count(self, target: Sample, prediction: Referral, k: int) -> PhraseCounts:
        assert target.target.masks is not None
        true = target.target.masks.as_subclass(Tensor)[k].cpu().bool().numpy()
        rle = prediction.masks[k]
        drawn = np.zeros(true.shape, bool) if rle is None else decode_masks([rle], prediction.size_hw)[0].numpy()
        if target.target.ignored is not None:
            ignored = target.target.ignored.as_subclass(Tensor).cpu().bool().numpy()
            if self.rules == "reasonseg":
                true = true | ignored
            else:
                true, drawn = true & ~ignored, drawn & ~ignored
        rejected = bool(prediction.rejected[k])
        f1 = math.nan
        if self.rules == "grec":
            parts = torch.from_numpy(boxes_of_parts(drawn if not rejected else np.zeros_like(drawn)))
            score = prediction.scores[k].expand(len(parts)).cpu()
            f1, rejected = grec_f1(parts, score, _true_boxes(target, k, true))
        return PhraseCounts(
            intersection=int(np.count_nonzero(true & drawn)),
            union=int(np.count_nonzero(true | drawn)),
            absent=not true.any(),
            rejected=rejected,
            f1=f1,
        )

    def compute(self) -> dict[str, float]:
        """The scores of the protocol, as fractions; all NaN without a phrase, and those of which no phrase counts."""
        scores = self._scores(self.phrases)
        return scores if self.phrases else dict.fromkeys(scores, math.nan)

    def _scores(self, phrases: Sequence[PhraseCounts]) -> dict[str, float]:
        match self.rules:
            case "gsva" | "refzom":
                return gsva_scores(phrases, count_false_alarms=self.rules == "gsva")
            case "rela":
                return rela_scores(phrases)
            case "res":
                return res_scores(phrases)
            case "grec":
                return grec_scores(phrases)
            case _:
                return overlap_scores(phrases)

    def state(self) -> Any:
        """See :class:`saccade.metrics.base.Metric`."""
        return self.images, self.repetitions, self.surplus

    def merge(self, states: Sequence[Any]) -> None:
        """See :class:`saccade.metrics.base.Metric`."""
        super().merge([state[:2] for state in states])
        self.surplus = sum(state[2] for state in states)


def _true_boxes(target: Sample, k: int, true: NDArray[np.bool_]) -> Tensor:
    """The boxes of a phrase's targets; of the parts of its mask, where the data set has none."""
    boxes, phrase_ids = target.target.boxes, target.target.phrase_ids
    if boxes is None or phrase_ids is None:
        return torch.from_numpy(boxes_of_parts(true))
    return boxes.as_subclass(Tensor)[phrase_ids == k].cpu().float()
