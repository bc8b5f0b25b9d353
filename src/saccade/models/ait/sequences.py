"""Objects as flat sequences: what the decoder of AiT reads and says in training (docs/ait.md).

Shape legend: G ground truths, M noise objects, O objects of a sequence, m mask codes of an object, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import DataError
from saccade.layers.boxes import clip_boxes
from saccade.tokens.boxes import quantize

IGNORED = -100
_JITTER = 0.1


class Draws:
    """The random draws of a sequence, in the order of the original; a test replays recorded ones instead."""

    def integer(self, high: int) -> int:
        """A number 0..high, both included."""
        return int(torch.randint(high + 1, ()))

    def permutation(self, count: int) -> Tensor:
        """``[count]`` int64."""
        return torch.randperm(count)

    def uniform(self, *shape: int) -> Tensor:
        """0..1."""
        return torch.rand(shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, cut at 2."""
        return nn.init.trunc_normal_(torch.empty(shape), a=-2, b=2)

    def classes(self, count: int, *shape: int) -> Tensor:
        """Class ids 0..count-1."""
        return torch.randint(count, shape)


@dataclass
class NoiseObjects:
    """Objects that are none.

    Attributes:
        boxes_xyxy: ``[M, 4]`` inside the image.
        source: ``[M]`` the ground truth that a jittered copy is of, -1 for the others.
    """

    boxes_xyxy: Tensor
    source: Tensor


def noise_objects(boxes_xyxy: Tensor, size_hw: tuple[int, int], count: int, draws: Draws) -> NoiseObjects:
    """Draws noise objects: boxes anywhere, shifted ground truths, and jittered ones (Pix2Seq's augmentation).

    Args:
        boxes_xyxy: ``[G, 4]`` ground truths in pixels.
        size_hw: The image without its padding.
        count: How many.
        draws: Random draws.
    """
    number = len(boxes_xyxy)
    copies = draws.integer(count)
    copies = copies if number else 0
    bad = count - copies
    height, width = size_hw
    sides = boxes_xyxy.new_tensor([width, height])
    owner = torch.arange(number).repeat(count // number + 1) if number else torch.arange(0)
    tiled = boxes_xyxy[owner]
    shifted = tiled[draws.permutation(len(tiled))[:bad]]
    half = (shifted[:, 2:] - shifted[:, :2]) / 2
    centre = draws.uniform(len(shifted), 2).to(sides) * sides
    shifted = torch.cat([centre - half, centre + half], dim=1)
    centre = draws.uniform(bad, 2).to(sides)
    half = draws.normal(bad, 2).to(sides).abs() / 4
    anywhere = torch.cat([centre - half, centre + half], dim=1) * sides.repeat(2)
    wrong = torch.cat([anywhere, shifted])
    wrong = wrong[draws.permutation(len(wrong))[:bad]]
    chosen = draws.permutation(len(tiled))[:copies]
    jittered = tiled[chosen]
    if copies:
        extent = (jittered[:, 2:] - jittered[:, :2]).repeat(1, 2)
        jittered = jittered + extent * (draws.normal(copies, 4).to(sides) / 2 * _JITTER)
    source = torch.cat([torch.full((bad,), -1), owner[chosen]])
    order = draws.permutation(count)
    return NoiseObjects(clip_boxes(torch.cat([wrong, jittered])[order], size_hw), source[order])


@dataclass(kw_only=True)
class Vocabulary:
    """Where the tokens of objects begin.

    Attributes:
        bins: Coordinates are tokens 0..bins.
        classes: First class token.
        num_classes: Classes.
        noise: The class token of noise objects.
        codes: First mask code.
        side: Side of the padded input in pixels, which the last coordinate stands for.
    """

    bins: int
    classes: int
    num_classes: int
    noise: int
    codes: int
    side: int


def object_tokens(boxes_xyxy: Tensor, classes_O: Tensor, codes_Om: Tensor | None, vocabulary: Vocabulary) -> Tensor:
    """``[O, 5 + m]``: corners, class token, mask codes.

    Args:
        boxes_xyxy: ``[O, 4]`` pixels of the padded input.
        classes_O: Class tokens.
        codes_Om: Codes 0.., or None.
        vocabulary: Where tokens begin.
    """
    parts = [quantize(boxes_xyxy / vocabulary.side, vocabulary.bins), classes_O[:, None]]
    if codes_Om is not None:
        parts.append(codes_Om + vocabulary.codes)
    return torch.cat(parts, dim=1)


def corrupt_classes(tokens_BOt: Tensor, vocabulary: Vocabulary, draws: Draws) -> Tensor:
    """What the decoder reads: half of the class tokens say noise, the other half a class at random."""
    b, o, _ = tokens_BOt.shape
    classes = draws.classes(vocabulary.num_classes, b, o).to(tokens_BOt.device) + vocabulary.classes
    chosen = torch.where(draws.uniform(b, o).to(tokens_BOt.device) < 0.5, classes, vocabulary.noise)
    return torch.cat([tokens_BOt[..., :4], chosen[..., None], tokens_BOt[..., 5:]], dim=-1)


def sequence_targets(tokens_BOt: Tensor, real_BO: Tensor) -> Tensor:
    """What the decoder should say, ``[B, O, t]``: of noise objects only that they are noise."""
    class_place = torch.arange(tokens_BOt.shape[-1], device=tokens_BOt.device) == 4
    return tokens_BOt.masked_fill(~(real_BO[..., None] | class_place), IGNORED)


def check_count(number: int, objects: int, where: object) -> None:
    """Refuses more ground truths than a sequence has room for.

    Raises:
        DataError: There are more.
    """
    if number > objects:
        raise DataError(
            f"{number} objects do not fit into a sequence of {objects}",
            where=str(where),
            fix="raise the model's objects, or leave out the smallest ones",
        )


def sequence_error(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy over the vocabulary, summed over what is not ignored."""
    return F.cross_entropy(
        logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )
