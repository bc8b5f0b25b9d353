"""What GSVA is given: images twice (for CLIP and for SAM), and conversations about them as token ids.

Shape legend: B images, N conversations (one or more per image), L token ids, E expressions of an image.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from saccade.errors import DataError
from saccade.samples import Batch

Answering: TypeAlias = Literal["given", "own", "free"]
"""How a model is evaluated. ``given``: the true answer stands in the conversation, and it judges every slot after the
true beginning of the answer (as published); ``own``: it fills the slots itself, each after its own choices before;
``free``: it says the whole answer, word by word."""

IGNORED = -100
"""The label of positions that are not learned."""


@dataclass(kw_only=True)
class ConversationBatch(Batch):
    """Images and the conversations about them.

    Of :class:`saccade.samples.Batch`: ``images`` are what SAM sees (``[B, 3, S, S]``, normalised, zero-padded right and
    at the bottom), ``input_sizes_hw`` their size inside the padding, ``origins[i].size_hw`` the size of the original
    picture, in whose frame masks are given and answered.

    Attributes:
        images_clip: ``[B, 3, s, s]`` float32, what CLIP sees.
        input_ids: ``[N, L]`` int64, padded with 0 on the right; exactly one ``IMAGE_ID`` per row.
        attention_mask: ``[N, L]`` bool, False at the padding.
        conversation_to_image: ``[N]`` int64 in 0..B-1, not decreasing.
        labels: ``[N, L]`` int64, :data:`IGNORED` where nothing is learned; None = the conversations end where the model
            is to answer, and it answers freely.
        masks: Per image ``[E, H, W]`` (uint8, bool or float, 0 and 1) in the frame of the original: one row per [SEG]
            or [REJ] of its only conversation, or one row per conversation where there are several; ``[0, H, W]``
            where nothing is segmented. Empty list = no truth.
        expressions: Per conversation, the phrase of every [SEG] or [REJ] in their order; only for the answers' names.
        divided: Per image, whether its phrases are asked in several conversations because they are too many for one;
            empty = nobody knows.
        own_choices: Whatever stands in the slots of a given answer, the model fills them itself, one after the other,
            each after its own choices before: every phrase is answered, in the words of the answer.
        reevaluate: Masks of a given answer come from a second pass, in which every [REJ] is a [SEG]: one mask for every
            expression (the protocol of gRefCOCO and Ref-ZOM). False = masks of the given [SEG] alone.
    """

    images_clip: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    conversation_to_image: Tensor
    labels: Tensor | None = None
    masks: list[Tensor] = field(default_factory=list)
    expressions: list[tuple[str, ...]] = field(default_factory=list)
    divided: list[bool] = field(default_factory=list)
    own_choices: bool = False
    reevaluate: bool = False

    def __post_init__(self) -> None:
        rows = len(self.input_ids)
        if self.attention_mask.shape != self.input_ids.shape:
            raise DataError("ids and their attention mask have different shapes", where="attention_mask")
        if self.labels is not None and self.labels.shape != self.input_ids.shape:
            raise DataError("ids and their labels have different shapes", where="labels")
        if self.conversation_to_image.shape != (rows,):
            raise DataError(
                f"{rows} conversations, but {len(self.conversation_to_image)} images of conversations",
                where="conversation_to_image",
            )
        if self.masks and len(self.masks) != len(self.images):
            raise DataError(f"{len(self.images)} images, but masks of {len(self.masks)}", where="masks")
        if self.expressions and len(self.expressions) != rows:
            raise DataError(f"{rows} conversations, but expressions of {len(self.expressions)}", where="expressions")

    @property
    def original_sizes_hw(self) -> list[tuple[int, int]]:
        """Height and width of the original pictures."""
        return [origin.size_hw for origin in self.origins]

    def to(self, device: torch.device | str, **kwargs: Any) -> ConversationBatch:
        """Copies every tensor to the device."""
        moved = {
            name: value.to(device, **kwargs)
            for name in ("images", "images_clip", "input_ids", "attention_mask", "conversation_to_image", "labels")
            if (value := getattr(self, name)) is not None
        }
        masks = [mask.to(device, **kwargs) for mask in self.masks]
        targets = [target.to(device) for target in self.targets]
        return dataclasses.replace(self, masks=masks, targets=targets, **moved)

    def pin_memory(self) -> ConversationBatch:
        """Pins the images, so that the copy to a GPU can overlap (called by the DataLoader)."""
        return dataclasses.replace(self, images=self.images.pin_memory(), images_clip=self.images_clip.pin_memory())
