"""The head of ViSFT for label maps: the segmentation head, to which every class of a map is one mask.

Source: MaskFormer, NeurIPS 2021, sections 3.3 and 3.4 (its semantic inference), as Mask2Former, CVPR 2022, has it.
ViSFT itself has no such head.

Shape legend: B images, H W network input, h w cells of the map, C backbone width, Q queries, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saccade.layers.precision import full_precision
from saccade.models.classes import KnownClasses
from saccade.models.label_maps import answers, as_asked, own_labels, resize_scores
from saccade.models.visft.segmentation import MaskTruths, SegmentationHead, SegmentationHeadConfig, set_loss
from saccade.results import Prediction
from saccade.samples import IGNORE_LABEL, Batch


class SemanticHead(nn.Module):
    """The head.

    Args:
        config: Sizes, classes and weights of the masks.
        in_width: Channels C of the backbone.
    """

    def __init__(self, config: SegmentationHeadConfig, in_width: int) -> None:
        super().__init__()
        self.masks = SegmentationHead(config, in_width)
        self.known = KnownClasses(config.classes, config.category_ids, config.num_classes)

    def loss(self, map_BHWC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The set loss of :class:`SegmentationHead`, of one mask for each class that a label map holds.

        Args:
            map_BHWC: The last map of the backbone.
            batch: Network inputs with label maps. Ignored pixels belong to no mask, and masks are not compared there.

        Raises:
            DataError: A sample has no label map, or a class that the head does not know.
        """
        truths = [class_masks(labels) for labels in own_labels(self.known, batch)]
        return set_loss(self.masks.images(map_BHWC, batch), truths, self.masks.config)

    def predict(self, map_BHWC: Tensor, batch: Batch) -> list[Prediction]:
        """One label map per picture, in the frame of the original picture."""
        return answers(self.class_scores(map_BHWC, batch), batch, batch.classes or self.known.listed)

    def class_scores(self, map_BHWC: Tensor, batch: Batch) -> Tensor:
        """Scores 0..1 of the classes that are asked for, in their order: ``[B, K, H, W]`` in the frame of the input.

        Raises:
            UsageError: Not all classes of the head are asked for.
        """
        scores = [
            class_shares(image.logits_LQK[-1], image.masks_LQhw[-1], image.padded_hw)
            for image in self.masks.images(map_BHWC, batch)
        ]
        return as_asked(self.known, torch.stack(scores), batch.classes)


def class_masks(labels_HW: Tensor) -> MaskTruths:
    """Every class of a label map as one mask."""
    known = labels_HW != IGNORE_LABEL
    present_G = labels_HW[known].unique()
    return MaskTruths(present_G, labels_HW == present_G[:, None, None], known)


def class_shares(logits_QK1: Tensor, masks_Qhw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """What the queries say about the classes of every pixel.

    A query gives to a class how likely it is of that class, times how likely the pixel is in its mask. The sums over
    the queries are divided by what all classes got, so that pictures with many queries at a place and with few (the
    views of the polar wrapper) can be compared; the best class stays the best.

    Args:
        logits_QK1: Class logits, "no object" last.
        masks_Qhw: Mask logits on the cells.
        size_hw: Size of the network input.

    Returns:
        ``[K, H, W]`` float32 that sums to 1.
    """
    with full_precision(logits_QK1.device):
        chances_QK = logits_QK1.float().softmax(-1)[:, :-1]
        inside_QHW = resize_scores(masks_Qhw.float(), size_hw).sigmoid()
        scores_KHW = torch.einsum("qk,qhw->khw", chances_QK, inside_QHW)
        return scores_KHW / scores_KHW.sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
