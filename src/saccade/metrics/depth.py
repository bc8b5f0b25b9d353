"""Monocular depth: errors of every image against a metric truth, averaged over the images (protocol of NYU Depth v2).

The numbers are those of the evaluation that AiT, and the depth models before it, report: no scaling by medians, no
limit on the prediction, the pixels of the Eigen crop whose truth lies between 1 mm and 10 m.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saccade.errors import DataError, UsageError, nearest
from saccade.metrics.base import ImageRecords, Key, check_size, image_key, mean_rows
from saccade.results import DepthMap, Prediction
from saccade.samples import Sample

SCORE_NAMES = ("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog")
"""Shares of pixels within a factor of 1.25, 1.25**2 and 1.25**3 of the truth (more is better); errors (less is better):
relative, squared relative in metres, root mean square in metres and of natural logarithms, of decimal logarithms, and
scale-invariant logarithmic."""

DRAWN_SCENES = "crop=none,max_m=80"
"""How depth of drawn scenes is scored: the whole picture, and no truth of theirs lies farther away."""

EIGEN_SIZE_HW = (480, 640)
"""Height and width of the pictures that the Eigen crop is defined for."""

EIGEN_CROP = (slice(45, 471), slice(41, 601))
"""Rows and columns of the Eigen crop."""


@dataclass(kw_only=True, frozen=True)
class DepthProtocol:
    """Which pixels count. The defaults are the official protocol of NYU Depth v2.

    Attributes:
        crop: ``"eigen"``: rows 45..470 and columns 41..600 of 480 x 640 pixels, the whole picture at any other size;
            ``"none"``: always the whole picture.
        min_m: The truth must be greater than this, in metres; a NaN of the prediction counts as this.
        max_m: The truth must be less than this, in metres; an infinity of the prediction counts as this.

    Raises:
        UsageError: Limits that no depth lies between.
    """

    crop: Literal["eigen", "none"] = "eigen"
    min_m: float = 1e-3
    max_m: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_m < self.max_m < math.inf:
            raise UsageError(
                f"no depth lies between {self.min_m:g} and {self.max_m:g} m", where="the protocol of depth"
            )

    def __str__(self) -> str:
        limits = f"{self.min_m:g} m < truth < {self.max_m:g} m"
        crop = "Eigen crop of 480x640" if self.crop == "eigen" else "whole picture"
        official = DepthProtocol()
        changed = [
            f"{field.name} is {getattr(self, field.name)}, not {getattr(official, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(official, field.name)
        ]
        line = f"NYU depth: {crop}, {limits}, no scaling, mean over images"
        return f"{line}; not the official protocol: {', '.join(changed)}" if changed else line


def depth_protocol(asked: str = "") -> DepthProtocol:
    """Reads a protocol as it is named on the command line: ``nyu``, or what deviates, e.g. ``crop=none,max_m=80``.

    Args:
        asked: Empty and ``nyu`` are the official protocol.

    Raises:
        UsageError: An unknown name, or a value that is none.
    """
    if asked in ("", "nyu"):
        return DepthProtocol()
    values: dict[str, Any] = {}
    for part in asked.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name == "crop":
            if value not in ("eigen", "none"):
                raise UsageError(f"there is no crop '{value}'", where=asked, fix="crop=eigen or crop=none")
            values[name] = value
        elif name in ("min_m", "max_m"):
            try:
                values[name] = float(value)
            except ValueError:
                raise UsageError(f"'{value}' is no number of metres", where=asked, fix=f"e.g. {name}=80") from None
        else:
            raise UsageError(
                f"the protocol of depth has no choice '{name}'",
                where=asked,
                fix=nearest(name, ("nyu", "crop", "min_m", "max_m")),
            )
    return DepthProtocol(**values)


def valid_pixels(truth_m: NDArray[np.float32], protocol: DepthProtocol) -> NDArray[np.bool_]:
    """The pixels that count, ``[H, W]`` bool.

    Args:
        truth_m: ``[H, W]`` metres, 0 where unknown.
        protocol: Limits and crop; the crop is cut at any size.
    """
    valid = (truth_m > protocol.min_m) & (truth_m < protocol.max_m)
    if protocol.crop == "none":
        return valid
    inside = np.zeros_like(valid)
    inside[EIGEN_CROP] = valid[EIGEN_CROP]
    return inside


def finite(prediction_m: NDArray[np.float32], protocol: DepthProtocol) -> NDArray[np.float32]:
    """The prediction with the greatest depth in place of infinities, and the least in place of NaN."""
    least, most = np.float32(protocol.min_m), np.float32(protocol.max_m)
    filled = np.where(np.isinf(prediction_m), most, prediction_m)
    return np.where(np.isnan(prediction_m), least, filled)


def depth_errors(prediction_m: NDArray[np.float32], truth_m: NDArray[np.float32]) -> dict[str, float]:
    """The scores over some pixels, all counted alike.

    Args:
        prediction_m: ``[N]`` metres, finite. Where one is not positive, the logarithmic scores are infinite or NaN.
        truth_m: ``[N]`` metres, greater than 0.

    Returns:
        By :data:`SCORE_NAMES`; NaN where there is no pixel.
    """
    if not len(truth_m):
        return dict.fromkeys(SCORE_NAMES, math.nan)

    def mean(values: NDArray[np.float32]) -> float:
        return float(values.mean(dtype=np.float64))

    # Single precision up to the sums, as the original computes: whether a ratio passes 1.25 is decided by its last bit.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.maximum(prediction_m / truth_m, truth_m / prediction_m)
        squared = np.square(prediction_m - truth_m)
        apart = np.log(prediction_m) - np.log(truth_m)
        decades = np.abs(np.log10(prediction_m) - np.log10(truth_m))
        spread = mean(np.square(apart)) - 0.5 * mean(apart) ** 2
    ratio[prediction_m <= 0] = np.inf  # both quotients are negative, and so below any limit, yet nothing is right
    return {
        **{f"d{power}": float(np.count_nonzero(ratio < 1.25**power) / len(ratio)) for power in (1, 2, 3)},
        "abs_rel": mean(np.abs(prediction_m - truth_m) / truth_m),
        "sq_rel": mean(squared / truth_m),
        "rmse": math.sqrt(mean(squared)),
        "rmse_log": math.sqrt(mean(np.square(apart))),
        "log10": mean(decades),
        "silog": math.sqrt(spread) if spread >= 0 else math.nan,
    }


@dataclass(kw_only=True, frozen=True)
class ImageErrors:
    """The scores of one image.

    Attributes:
        pixels: How many pixels counted.
        errors: By :data:`SCORE_NAMES`; NaN where no pixel counted.
        uncropped: The Eigen crop was asked for, and the image has another size.
        replaced: Predictions that were infinite or NaN, among these pixels.
        not_positive: Predictions of 0 m or less, among these pixels.
    """

    pixels: int
    errors: tuple[float, ...]
    uncropped: bool
    replaced: int
    not_positive: int

    @classmethod
    def of(cls, predicted_m: NDArray[np.float32], truth_m: NDArray[np.float32], rules: DepthProtocol) -> ImageErrors:
        """Scores one image.

        Args:
            predicted_m: ``[H, W]`` metres.
            truth_m: ``[H, W]`` metres, 0 where unknown.
            rules: Which pixels count.
        """
        uncropped = rules.crop == "eigen" and truth_m.shape != EIGEN_SIZE_HW
        valid = valid_pixels(truth_m, dataclasses.replace(rules, crop="none") if uncropped else rules)
        found = predicted_m[valid]
        chosen = finite(found, rules)
        return cls(
            pixels=len(chosen),
            errors=tuple(depth_errors(chosen, truth_m[valid]).values()),
            uncropped=uncropped,
            replaced=int(np.count_nonzero(~np.isfinite(found))),
            not_positive=int(np.count_nonzero(chosen <= 0)),
        )


class DepthMetric(ImageRecords[Key, ImageErrors]):
    """Depth errors: those of each image, then the mean over the images.

    Images without a pixel that counts are not averaged; how many there were stands in the notes.

    Args:
        protocol: Which pixels count; the official protocol of NYU Depth v2 unless another one is given.
    """

    def __init__(self, protocol: DepthProtocol | None = None) -> None:
        super().__init__()
        self.rules = protocol or DepthProtocol()

    @property
    def protocol(self) -> str:
        """How the images so far were scored, every deviation from the official protocol included."""
        whole = sum(image.uncropped for image in self.images.values())
        line = str(self.rules)
        if not whole:
            return line
        return f"{line}; {whole} of {len(self.images)} images whole, because they are not of 480x640 pixels"

    @property
    def notes(self) -> list[str]:
        """See :class:`saccade.metrics.base.Metric`."""
        images = list(self.images.values())
        counts = {
            "have no pixel whose true depth counts; they are not averaged": [not image.pixels for image in images],
            "are not of 480x640 pixels and were scored without the Eigen crop": [image.uncropped for image in images],
            "have predictions that are infinite or NaN; the limits were taken for them": [
                bool(image.replaced) for image in images
            ],
            "have predictions of 0 m or less, so that logarithmic errors are undefined": [
                bool(image.not_positive) for image in images
            ],
        }
        found = {text: sum(flags) for text, flags in counts.items()}
        return [
            *(f"{count} of {len(images)} images {text}" for text, count in found.items() if count),
            *super().notes,
        ]

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one image.

        Raises:
            DataError: The target has no depth, or the two maps differ in size.
            UsageError: The prediction is of another task.
        """
        key = image_key(target)
        if not isinstance(prediction, DepthMap):
            raise UsageError(f"depth is scored on DepthMap, not on {type(prediction).__name__}", where=key)
        if target.target.depth_m is None:
            raise DataError("the target has no depth map", where=key)
        truth = target.target.depth_m.cpu().float().numpy()
        predicted = prediction.depth_m.detach().cpu().float().numpy()
        check_size(predicted.shape, truth.shape, where=key)
        self.keep(key, ImageErrors.of(predicted, truth, self.rules))

    def compute(self) -> dict[str, float]:
        """The means over the images by :data:`SCORE_NAMES`; NaN where no image counts."""
        return mean_rows([image.errors for image in self.images.values() if image.pixels], SCORE_NAMES)
