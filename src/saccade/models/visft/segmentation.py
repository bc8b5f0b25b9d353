"""The segmentation head of ViSFT: one-level Mask2Former on the last map of a plain backbone.

Every picture of a batch is read on its own part of the map (what its padding alone would have been), so that pictures
of different size share a backbone pass and have the masks and losses that they have alone.
Source: ViSFT, 2024; Masked-attention Mask Transformer, CVPR 2022; facts in docs/visft.md.

Shape legend: B images, H W map, C backbone width, Q queries, L predictions (one before the decoder layers, one after
each), K logits, G ground truths of an image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from pycocotools import mask as mask_api
from torch import Tensor, nn

from saccade.errors import ConfigError, DataError
from saccade.layers.distributed import mean_over_ranks
from saccade.layers.mask2former import MaskedDecoder, MaskedDecoderConfig, PixelDecoder, PixelDecoderConfig
from saccade.layers.matching import assign
from saccade.layers.point_losses import Draw, draw_known, draw_uniformly, mask_costs, point_errors, uncertain_points
from saccade.mapping import Rule
from saccade.models.classes import KnownClasses
from saccade.models.visft.terms import class_entropy, require_classes, weigh_by_layer
from saccade.results import Instances, encode_masks
from saccade.samples import Batch

_PIXELS_AT_ONCE = 2**24  # of masks in the frame of the original picture


@dataclass(kw_only=True, frozen=True)
class SegmentationHeadConfig:
    """The head; the defaults are the published sizes.

    Attributes:
        pixels: The pixel decoder.
        decoder: The decoder of the queries.
        num_classes: Classes.
        classes: Names of the classes, in order; empty = unnamed.
        category_ids: The data set's own ids of the classes; empty = 0, 1, 2, ...
        layout: Logit of a class: ``ours`` its number 0, 1, 2, ...; ``official`` its number and one, so that the first
            logit means nothing, and the last class is learned as "no object" (a mistake that the released weights
            have in them).
        no_object_weight: Weight of the class "no object" in the cross entropy.
        costs: What class, mask (cross entropy) and overlap (Dice) weigh in the assignment.
        weights: What they weigh in the loss.
        points: Points at which masks are compared.
        oversample: How many times as many are drawn to choose uncertain ones from.
        importance: Share of the points that is so chosen.
        stride: Pixels of the network input per cell of the map; a rest at the right and bottom has no cell.
        pad_multiple: Pictures are padded to a multiple of this. Such padding is seen as part of the picture, as in the
            original; what a larger picture of the batch adds to it is not seen.
    """

    pixels: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    decoder: MaskedDecoderConfig = field(default_factory=MaskedDecoderConfig)
    num_classes: int = 80
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    layout: Literal["ours", "official"] = "ours"
    no_object_weight: float = 0.1
    costs: tuple[float, float, float] = (2.0, 5.0, 5.0)
    weights: tuple[float, float, float] = (2.0, 5.0, 5.0)
    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    stride: int = 14
    pad_multiple: int = 32

    def __post_init__(self) -> None:
        require_classes(self.num_classes, self.classes, self.category_ids, where="segmentation")
        if self.oversample < self.importance or not 0 <= self.importance <= 1:
            raise ConfigError(
                f"{self.importance} of the points cannot be chosen from {self.oversample} times as many",
                where="segmentation.importance",
            )

    @property
    def first_logit(self) -> int:
        """Logit of the first class."""
        return int(self.layout == "official")


@dataclass(frozen=True)
class MaskOutput:
    """What the decoder says before its layers and after each.

    Attributes:
        logits_LBQK: Class logits, "no object" last.
        masks_LBQHW: Mask logits on the grid of the map.
    """

    logits_LBQK: Tensor
    masks_LBQHW: Tensor


@dataclass(frozen=True)
class ImageMasks:
    """The part of one image.

    Attributes:
        logits_LQK: Class logits.
        masks_LQhw: Mask logits on the cells of the image.
        padded_hw: What these cells cover (less the rest): the picture with its own padding, in pixels.
    """

    logits_LQK: Tensor
    masks_LQhw: Tensor
    padded_hw: tuple[int, int]


@dataclass(frozen=True)
class MaskTruths:
    """What is to be found in one image.

    Attributes:
        labels_G: Logit of every object.
        masks_GHW: Its mask, bool or 0..1, over the padded picture.
        known_HW: Where masks are compared, bool, over the same; None = everywhere.
    """

    labels_G: Tensor
    masks_GHW: Tensor
    known_HW: Tensor | None = None


class SegmentationHead(nn.Module):
    """The head.

    Args:
        config: Sizes, classes and weights.
        in_width: Channels C of the backbone.
    """

    def __init__(self, config: SegmentationHeadConfig, in_width: int) -> None:
        super().__init__()
        self.config = config
        self.pixel_decoder = PixelDecoder(config.pixels, in_width)
        self.decoder = MaskedDecoder(
            config.decoder,
            width=config.pixels.width,
            mask_width=config.pixels.mask_width,
            logits=config.num_classes + 1,
        )

    def forward(self, map_BHWC: Tensor) -> MaskOutput:
        """Classes and masks of a whole map."""
        return MaskOutput(*self.decoder(*self.pixel_decoder(map_BHWC)))

    def loss(self, map_BHWC: Tensor, batch: Batch, *, draw: Draw = draw_uniformly) -> dict[str, Tensor]:
        """The weighted terms of every prediction; their sum is the loss.

        Args:
            map_BHWC: The last map of the backbone.
            batch: Network inputs with masks and classes; crowds are left out.
            draw: Draws the points at which masks are compared.

        Returns:
            ``loss_ce``, ``loss_mask`` and ``loss_dice`` of the last prediction, and the same with ``_0``, ``_1``, ...
            of those before it.

        Raises:
            DataError: A sample has no masks, or a class that the head does not know.
        """
        truths = [self._truths(batch, index) for index in range(len(batch))]
        return set_loss(self.images(map_BHWC, batch), truths, self.config, draw=draw)

    def predict(self, map_BHWC: Tensor, batch: Batch) -> list[Instances]:
        """The masks of all queries in the frame of the original images, the best first.

        Every query has its best class; nothing is suppressed or filtered by score, except what has the first logit of
        the official layout, which stands for no class. Boxes are those of the masks.
        """
        classes, places = self._known.wanted(batch.classes)
        results = []
        sizes = zip(self.images(map_BHWC, batch), batch.input_sizes_hw, batch.origins, strict=True)
        for image, input_hw, origin in sizes:
            scores, labels = decode(image.logits_LQK[-1])
            class_ids = labels - self.config.first_logit
            order = scores.argsort(descending=True, stable=True)
            order = order[class_ids[order] >= 0]
            if places is not None:
                order = order[places.to(order.device)[class_ids[order]] >= 0]
                class_ids = places.to(order.device)[class_ids]
            found = []
            height, width = origin.size_hw
            for part in image.masks_LQhw[-1][order].split(max(1, _PIXELS_AT_ONCE // (height * width))):
                found += encode_masks(resize_masks(part, image.padded_hw, input_hw, origin.size_hw) > 0)
            boxes = torch.from_numpy(mask_api.toBbox(found)).float() if found else torch.zeros(0, 4)
            results.append(
                Instances(
                    boxes_xyxy=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
                    scores=scores[order].cpu(),
                    class_ids=class_ids[order].cpu(),
                    classes=classes,
                    size_hw=origin.size_hw,
                    masks=found,
                )
            )
        return results

    @property
    def _known(self) -> KnownClasses:
        return KnownClasses(self.config.classes, self.config.category_ids, self.config.num_classes)

    def images(self, map_BHWC: Tensor, batch: Batch) -> list[ImageMasks]:
        """What is said about every image; images with as many cells are read together."""
        together: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in range(len(batch)):
            together[self._padded(batch, index)].append(index)
        images: dict[int, ImageMasks] = {}
        for padded_hw, rows in together.items():
            part = map_BHWC if len(rows) == len(map_BHWC) else map_BHWC[rows]
            height, width = (max(1, side // self.config.stride) for side in padded_hw)
            out = self(part[:, :height, :width])
            for index, logits, masks in zip(rows, out.logits_LBQK.unbind(1), out.masks_LBQHW.unbind(1), strict=True):
                images[index] = ImageMasks(logits, masks, padded_hw)
        return [images[index] for index in range(len(batch))]

    def _padded(self, batch: Batch, index: int) -> tuple[int, int]:
        """The size that a picture would have been padded to alone."""
        step = self.config.pad_multiple
        height, width = (-(-side // step) * step for side in batch.input_sizes_hw[index])
        return min(height, batch.images.shape[-2]), min(width, batch.images.shape[-1])

    def _truths(self, batch: Batch, index: int) -> MaskTruths:
        target = batch.targets[index]
        if target.masks is None or target.class_ids is None:
            origin = batch.origins[index]
            raise DataError("a training sample has no masks", where=origin.path or origin.image_id)
        height, width = self._padded(batch, index)
        class_ids = self._known.own_ids(batch, target.class_ids)
        masks = target.masks.as_subclass(Tensor)[:, :height, :width]
        if target.is_crowd is not None:
            class_ids, masks = class_ids[~target.is_crowd], masks[~target.is_crowd]
        return MaskTruths(class_ids + self.config.first_logit, masks)


def match_costs(
    image: ImageMasks, truths: MaskTruths, config: SegmentationHeadConfig, *, draw: Draw = draw_uniformly
) -> Tensor:
    """What it costs to let a query answer for an object, ``[L, Q, G]``."""
    by_class, by_mask, by_dice = config.costs
    points = draw(len(image.masks_LQhw), config.points, image.masks_LQhw.device)
    entropy, dice = mask_costs(image.masks_LQhw, truths.masks_GHW, points)
    class_cost = -image.logits_LQK.float().softmax(-1)[..., truths.labels_G]
    return by_class * class_cost + by_mask * entropy + by_dice * dice


def set_loss(
    images: Sequence[ImageMasks],
    truths: Sequence[MaskTruths],
    config: SegmentationHeadConfig,
    *,
    draw: Draw = draw_uniformly,
) -> dict[str, Tensor]:
    """The weighted terms of every prediction; see :meth:`SegmentationHead.loss`.

    Mask terms are divided by the number of objects of the batch (its mean over all processes, at least 1), the cross
    entropy by the weights of what the queries should say.

    Args:
        images: What is said.
        truths: What is true.
        config: Weights and costs.
        draw: Draws points: of every image with objects those of the assignment (a row per prediction); then of every
            image and prediction those to choose from, and those that are added. Images of which not all is known have
            points among their known pixels instead.
    """
    draws = [draw if truth.known_HW is None else draw_known(truth.known_HW) for truth in truths]
    logits = torch.stack([image.logits_LQK for image in images], dim=1).float()
    layers, _, _, no_object = logits.shape
    no_object -= 1
    wanted = torch.full(logits.shape[:3], no_object, device=logits.device)
    with torch.no_grad():
        tables = [
            match_costs(image, truth, config, draw=one)
            if len(truth.labels_G)
            else logits.new_zeros(layers, logits.shape[2], 0)
            for image, truth, one in zip(images, truths, draws, strict=True)
        ]
        pairs = assign([table_QG for table in tables for table_QG in table])
    errors: list[list[Tensor]] = [[] for _ in range(layers)]
    for number, (image, truth, one) in enumerate(zip(images, truths, draws, strict=True)):
        for layer, (queries, objects) in enumerate(pairs[number * layers : (number + 1) * layers]):
            wanted[layer, number, queries] = truth.labels_G[objects]
            masks = image.masks_LQhw[layer, queries]
            if not len(queries):
                errors[layer].append(masks.sum().expand(2))  # 0, and yet every weight has a gradient
                continue
            points = uncertain_points(
                masks, config.points, oversample=config.oversample, importance=config.importance, draw=one
            )
            found = point_errors(masks, truth.masks_GHW, objects, points)
            errors[layer].append(torch.stack([error.sum() for error in found]))
    objects_in_all = mean_over_ranks(float(sum(len(truth.labels_G) for truth in truths)), logits).clamp(min=1)
    mask, dice = (torch.stack([torch.stack(parts).sum(0) for parts in errors]) / objects_in_all).unbind(1)
    terms = {
        "loss_ce": class_entropy(logits, wanted, config.no_object_weight),
        "loss_mask": mask,
        "loss_dice": dice,
    }
    return weigh_by_layer(terms, config.weights)


def decode(logits_QK: Tensor) -> tuple[Tensor, Tensor]:
    """Score and logit of the best class of every query, "no object" left out, each ``[Q]``."""
    scores, labels = logits_QK.float().softmax(-1)[:, :-1].max(-1)
    return scores, labels


def resize_masks(
    masks_Nhw: Tensor, padded_hw: tuple[int, int], input_hw: tuple[int, int], original_hw: tuple[int, int]
) -> Tensor:
    """Mask logits in the frame of the original picture, ``[N, H, W]`` float32.

    They are resized to the padded network input, cut to the picture and resized again, both bilinearly without
    antialiasing. Each axis is one product with both steps in it: the masks at the size of the network input, most of
    the work, are never made.

    Args:
        masks_Nhw: Logits on the cells of an image.
        padded_hw: Size of the padded network input.
        input_hw: Size of the picture inside it.
        original_hw: Size of the original picture.
    """
    masks = masks_Nhw.float()
    steps = zip(masks.shape[1:], padded_hw, input_hw, original_hw, strict=True)
    rows, columns = (_axis_weights(*sizes, masks.device) for sizes in steps)
    return rows.T @ (masks @ columns)


def _axis_weights(cells: int, padded: int, cut: int, original: int, device: torch.device) -> Tensor:
    """What every cell of an axis gives to every pixel of the original, ``[cells, original]``."""
    unit = torch.eye(cells, device=device)[None]
    seen = F.interpolate(unit, size=padded, mode="linear", align_corners=False)[..., :cut]
    return F.interpolate(seen, size=original, mode="linear", align_corners=False)[0]


def head_keys(prefix: str) -> tuple[Rule, ...]:
    """Official names on the left, ours on the right.

    Args:
        prefix: Of our names, e.g. ``"segmentation."``.
    """
    pixels, ours = "visft_heads.segment_pixel_decoder.", f"{prefix}pixel_decoder."
    layer, our_layer = f"{pixels}transformer.encoder.layers.{{i}}.", f"{ours}layers.{{i}}."
    decoder, our_decoder = "visft_heads.segment_predictor.", f"{prefix}decoder."
    cross, own, mlp = (
        f"{decoder}transformer_{part}_layers.{{i}}." for part in ("cross_attention", "self_attention", "ffn")
    )
    return (
        (f"{pixels}input_proj.0.", f"{ours}input_proj."),
        (f"{pixels}transformer.level_embed", f"{ours}level_embed"),
        (f"{layer}self_attn.sampling_offsets.", f"{our_layer}attn.offsets."),
        (f"{layer}self_attn.attention_weights.", f"{our_layer}attn.weights."),
        (f"{layer}self_attn.value_proj.", f"{our_layer}attn.value."),
        (f"{layer}self_attn.output_proj.", f"{our_layer}attn.proj."),
        (f"{layer}linear1.", f"{our_layer}mlp.layers.0."),
        (f"{layer}linear2.", f"{our_layer}mlp.layers.1."),
        (layer, our_layer),
        (f"{pixels}adapter_1.norm.", f"{ours}lateral.1."),
        (f"{pixels}adapter_1.", f"{ours}lateral.0."),
        (f"{pixels}layer_1.norm.", f"{ours}fuse.1."),
        (f"{pixels}layer_1.", f"{ours}fuse.0."),
        (f"{pixels}mask_features.", f"{ours}mask_proj."),
        (f"{cross}multihead_attn.", f"{our_decoder}layers.{{i}}.cross."),
        (f"{cross}norm.", f"{our_decoder}layers.{{i}}.norm1."),
        (f"{own}self_attn.", f"{our_decoder}layers.{{i}}.attn."),
        (f"{own}norm.", f"{our_decoder}layers.{{i}}.norm2."),
        (f"{mlp}linear1.", f"{our_decoder}layers.{{i}}.mlp.layers.0."),
        (f"{mlp}linear2.", f"{our_decoder}layers.{{i}}.mlp.layers.1."),
        (f"{mlp}norm.", f"{our_decoder}layers.{{i}}.norm3."),
        (f"{decoder}decoder_norm.", f"{our_decoder}norm."),
        (f"{decoder}class_embed.", f"{our_decoder}class_logits."),
        (f"{decoder}mask_embed.", f"{our_decoder}mask_mlp."),
        (decoder, our_decoder),
    )
