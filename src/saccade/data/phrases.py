"""Which of an image's phrases a training sample asks about."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torchvision import tv_tensors

from saccade.data.geometry import boxes_tensor
from saccade.data.pipeline import Redraw, Transform
from saccade.draws import Draws, GeneratorDraws
from saccade.samples import Sample


@dataclass(kw_only=True, frozen=True)
class PhraseAugment:
    """Draws phrases of an image; the picture stays as it is (specs/gsva.md 7.3).

    An image of which all drawn phrases have no target is drawn again: a conversation of rejections alone teaches no
    mask.

    Attributes:
        count: Phrases per image.
    """

    count: int = 5

    def build(self, size: int) -> Transform:
        """A function from a sample and a generator to a sample with fewer phrases.

        Args:
            size: Has no meaning here: the model brings the picture to its size.
        """
        del size

        def transform(sample: Sample, rng: np.random.Generator) -> Sample:
            return draw_phrases(sample, self.count, GeneratorDraws(rng))

        return transform


def draw_phrases(sample: Sample, count: int, draws: Draws) -> Sample:
    """``count`` phrases of a sample in the order drawn, with masks and boxes; fewer are all taken, in their order.

    A part (``chair:back``) gets one of the two names that it is asked by.

    Args:
        sample: A sample of referring segmentation; one with a dialogue stays as it is.
        count: Phrases to draw.
        draws: What they are drawn from.

    Raises:
        Redraw: None of the drawn phrases has a target, or there is no phrase.
    """
    if sample.dialogue:
        return sample
    total = len(sample.phrases)
    if not total:
        raise Redraw("image without phrases")
    chosen = draws.subset(total, count) if total >= count else list(range(total))
    phrases = tuple(sample.phrases[k] for k in chosen)
    if sample.wording == "part":
        phrases = tuple(name_part(phrase, draws) for phrase in phrases)
    target, masks = dataclasses.replace(sample.target), sample.target.masks
    if masks is not None:
        kept = masks.as_subclass(torch.Tensor)[chosen]
        if sample.wording == "expression" and not kept.any():
            raise Redraw("no drawn phrase has a target")
        target.masks = tv_tensors.Mask(kept)
    if target.boxes is not None and target.phrase_ids is not None:
        place = {phrase: k for k, phrase in enumerate(chosen)}
        rows = [row for row, phrase in enumerate(target.phrase_ids.tolist()) if phrase in place]
        boxes = target.boxes.as_subclass(torch.Tensor).numpy()[rows]
        target.phrase_ids = torch.tensor([place[int(target.phrase_ids[row])] for row in rows], dtype=torch.int64)
        target.boxes = boxes_tensor(boxes, sample.size_hw)
    return dataclasses.replace(sample, phrases=phrases, target=target)


def name_part(phrase: str, draws: Draws) -> str:
    """``chair back`` or ``the back of the chair`` for ``chair:back``; an object keeps its name (and takes no draw)."""
    thing, _, part = phrase.partition(":")
    if not part:
        return phrase
    return f"{thing} {part}" if draws.share() < 0.5 else f"the {part} of the {thing}"
