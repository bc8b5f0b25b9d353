"""The detection head of ViSFT: a detection transformer on the last map of a plain backbone.

Boxes of the network are centre and size relative to the picture that stands in the network input, without its padding.
Source: ViSFT, 2024; End-to-End Object Detection with Transformers, ECCV 2020; facts in docs/visft.md.

Shape legend: B images, H W map, C backbone width, Q queries, L decoder layers, K logits, G ground truths of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from saccade.errors import ConfigError, DataError
from saccade.layers.boxes import generalized_iou
from saccade.layers.detr import DETR, DETRConfig, ReLUMLP
from saccade.layers.distributed import mean_over_ranks
from saccade.layers.matching import assign
from saccade.layers.positions import padded_cells
from saccade.mapping import Rule
from saccade.models.classes import KnownClasses
from saccade.models.visft.terms import class_entropy, require_classes, weigh_by_layer
from saccade.results import Instances
from saccade.samples import Batch
from saccade.tokens.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

_BOX_LAYERS = 3


@dataclass(kw_only=True, frozen=True)
class DetectionHeadConfig:
    """The head; the defaults are the published sizes.

    Attributes:
        detr: The transformer.
        queries: Learned queries Q: the boxes of a picture.
        num_classes: Classes.
        classes: Names of the classes, in order; empty = unnamed.
        category_ids: The data set's own ids of the classes; empty = 0, 1, 2, ...
        layout: Logit of a class: ``ours`` its number 0, 1, 2, ...; ``official`` its category id, so that ids which
            the data set leaves out have logits that nothing trains (COCO: 91 for 80 classes).
        no_object_weight: Weight of the class "no object" in the cross entropy.
        costs: What class, box (L1) and overlap (generalised IoU) weigh in the assignment.
        weights: What they weigh in the loss.
    """

    detr: DETRConfig = field(default_factory=DETRConfig)
    queries: int = 100
    num_classes: int = 80
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    layout: Literal["ours", "official"] = "ours"
    no_object_weight: float = 0.1
    costs: tuple[float, float, float] = (1.0, 5.0, 2.0)
    weights: tuple[float, float, float] = (1.0, 5.0, 2.0)

    def __post_init__(self) -> None:
        require_classes(self.num_classes, self.classes, self.category_ids, where="detection")
        if self.layout == "official" and not self.category_ids:
            raise ConfigError("the official layout needs the category ids", where="detection.category_ids")

    @property
    def logit_of_class(self) -> tuple[int, ...]:
        """The logit of every class, in their order."""
        return self.category_ids if self.layout == "official" else tuple(range(self.num_classes))

    @property
    def logits(self) -> int:
        """Logits K; the last is that of "no object"."""
        return max(self.logit_of_class) + 2


@dataclass(frozen=True)
class DetectionOutput:
    """What every decoder layer says.

    Attributes:
        logits_LBQK: Class logits, "no object" last.
        boxes_LBQ4: Centre and size, 0..1 of the picture.
    """

    logits_LBQK: Tensor
    boxes_LBQ4: Tensor


class DetectionHead(nn.Module):
    """The head.

    Args:
        config: Sizes, classes and weights.
        in_width: Channels C of the backbone.
    """

    def __init__(self, config: DetectionHeadConfig, in_width: int) -> None:
        super().__init__()
        self.config = config
        width = config.detr.decoder_width
        self.input_proj = nn.Conv2d(in_width, config.detr.encoder_width, 1)
        self.transformer = DETR(config.detr)
        self.query_embed = nn.Embedding(config.queries, width)
        self.class_logits = nn.Linear(width, config.logits)
        self.box_mlp = ReLUMLP(*[width] * _BOX_LAYERS, 4)

    def forward(self, map_BHWC: Tensor, padding_BHW: Tensor | None = None) -> DetectionOutput:
        """Classes and boxes of every decoder layer.

        Args:
            map_BHWC: The last map of the backbone.
            padding_BHW: Bool, True where a cell is padding; None = nowhere.
        """
        source_BHWE = self.input_proj(map_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        states_LBQD = self.transformer(source_BHWE, self.query_embed.weight, padding_BHW)
        return DetectionOutput(self.class_logits(states_LBQD), self.box_mlp(states_LBQD).sigmoid())

    def loss(self, map_BHWC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of every layer; their sum is the loss.

        Args:
            map_BHWC: The last map of the backbone.
            batch: Network inputs with boxes and classes; crowds are left out.

        Returns:
            ``loss_ce``, ``loss_bbox`` and ``loss_giou`` of the last layer, and the same with ``_0``, ``_1``, ... of
            the layers before it.

        Raises:
            DataError: A sample has no boxes, or a class that the head does not know.
        """
        truths = [self._truths(batch, index) for index in range(len(batch))]
        out = self(map_BHWC, _padding(map_BHWC, batch))
        return set_loss(out, truths, self.config)

    def predict(self, map_BHWC: Tensor, batch: Batch) -> list[Instances]:
        """The boxes of all queries in the frame of the original images, the best first, cut at the border.

        Every query has the best of the known classes; nothing is suppressed or filtered by score.
        """
        out = self(map_BHWC, _padding(map_BHWC, batch))
        logit_of = torch.tensor(self.config.logit_of_class, device=map_BHWC.device)
        classes, places = self._known.wanted(batch.classes)
        results = []
        for logits_QK, boxes_Q4, origin in zip(out.logits_LBQK[-1], out.boxes_LBQ4[-1], batch.origins, strict=True):
            scores, class_ids, boxes = decode(logits_QK, boxes_Q4, logit_of, origin.size_hw)
            if places is not None:
                class_ids = places.to(class_ids.device)[class_ids]
            order = scores.argsort(descending=True, stable=True)
            order = order[class_ids[order] >= 0]
            height, width = origin.size_hw
            limit = boxes.new_tensor([width, height, width, height])
            results.append(
                Instances(
                    boxes_xyxy=boxes[order].clamp(min=0).minimum(limit).cpu(),
                    scores=scores[order].cpu(),
                    class_ids=class_ids[order].cpu(),
                    classes=classes,
                    size_hw=origin.size_hw,
                )
            )
        return results

    @property
    def _known(self) -> KnownClasses:
        return KnownClasses(self.config.classes, self.config.category_ids, self.config.num_classes)

    def _truths(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """Logit ``[G]`` and relative box ``[G, 4]`` of the objects of an image."""
        target = batch.targets[index]
        if target.boxes is None or target.class_ids is None:
            origin = batch.origins[index]
            raise DataError("a training sample has no boxes", where=origin.path or origin.image_id)
        class_ids, boxes = self._known.own_ids(batch, target.class_ids), target.boxes.as_subclass(Tensor).float()
        if target.is_crowd is not None:
            class_ids, boxes = class_ids[~target.is_crowd], boxes[~target.is_crowd]
        height, width = batch.input_sizes_hw[index]
        logit_of = torch.tensor(self.config.logit_of_class, device=class_ids.device)
        return logit_of[class_ids], xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height]))


def _padding(map_BHWC: Tensor, batch: Batch) -> Tensor | None:
    height, width = batch.images.shape[-2:]
    return padded_cells(batch.input_sizes_hw, (height, width), (map_BHWC.shape[1], map_BHWC.shape[2]), map_BHWC.device)


def match_costs(
    logits: Tensor, boxes: Tensor, labels_G: Tensor, truths_G4: Tensor, weights: tuple[float, float, float]
) -> Tensor:
    """What it costs to let a query answer for an object, ``[..., Q, G]``.

    Args:
        logits: ``[..., Q, K]``.
        boxes: ``[..., Q, 4]`` relative centre and size.
        labels_G: Logit of every object.
        truths_G4: Its relative box.
        weights: Of class, L1 and generalised IoU.
    """
    class_cost = -logits.softmax(-1)[..., labels_G]
    box_cost = (boxes[..., :, None, :] - truths_G4).abs().sum(-1)
    overlap = generalized_iou(cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(truths_G4))
    by_class, by_box, by_overlap = weights
    return by_box * box_cost + by_class * class_cost - by_overlap * overlap


def match(
    out: DetectionOutput, truths: list[tuple[Tensor, Tensor]], config: DetectionHeadConfig
) -> list[list[tuple[Tensor, Tensor]]]:
    """The queries that answer for objects, and the object of each, by layer and image.

    Args:
        out: What the layers say.
        truths: Logits ``[G]`` and relative boxes ``[G, 4]`` of every image.
        config: The costs.
    """
    with torch.no_grad():
        logits, boxes = out.logits_LBQK.float(), out.boxes_LBQ4.float()
        tables = [
            match_costs(logits[:, image], boxes[:, image], labels, truth, config.costs)
            for image, (labels, truth) in enumerate(truths)
        ]
        pairs = assign([table for tables_Q in zip(*tables, strict=True) for table in tables_Q])
    images = len(truths)
    return [pairs[begin : begin + images] for begin in range(0, len(pairs), images)]


def set_loss(
    out: DetectionOutput, truths: list[tuple[Tensor, Tensor]], config: DetectionHeadConfig
) -> dict[str, Tensor]:
    """The weighted terms of every layer; see :meth:`DetectionHead.loss`.

    Box terms are divided by the number of objects of the batch (its mean over all processes, at least 1), the cross
    entropy by the weights of what the queries should say.

    Args:
        out: What the layers say.
        truths: Logits ``[G]`` and relative boxes ``[G, 4]`` of every image.
        config: Weights and costs.
    """
    logits, boxes = out.logits_LBQK.float(), out.boxes_LBQ4.float()
    layers, no_object = len(logits), logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:3], no_object, device=logits.device)
    places: list[Tensor] = []
    goals: list[Tensor] = []
    for layer, pairs in enumerate(match(out, truths, config)):
        for image, ((queries, objects), (labels, truth)) in enumerate(zip(pairs, truths, strict=True)):
            wanted[layer, image, queries] = labels[objects]
            places.append(torch.stack([torch.full_like(queries, layer), torch.full_like(queries, image), queries]))
            goals.append(truth[objects])
    layer_P, image_P, query_P = torch.cat(places, dim=1)
    said, goal = boxes[layer_P, image_P, query_P], torch.cat(goals)
    objects = mean_over_ranks(float(sum(len(labels) for labels, _ in truths)), logits).clamp(min=1)

    def per_layer(error_P: Tensor) -> Tensor:
        return error_P.new_zeros(layers).index_add(0, layer_P, error_P) / objects

    overlap = generalized_iou(cxcywh_to_xyxy(said), cxcywh_to_xyxy(goal))
    terms = {
        "loss_ce": class_entropy(logits, wanted, config.no_object_weight),
        "loss_bbox": per_layer((said - goal).abs().sum(-1)),
        "loss_giou": per_layer(1 - overlap),
    }
    return weigh_by_layer(terms, config.weights)


def decode(
    logits_QK: Tensor, boxes_Q4: Tensor, logit_of_class: Tensor, size_hw: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Score, class id and box of every query of one image.

    Args:
        logits_QK: Class logits.
        boxes_Q4: Relative centre and size.
        logit_of_class: Logit of every class.
        size_hw: The picture.

    Returns:
        Scores ``[Q]``, class ids ``[Q]`` and boxes ``[Q, 4]``, XYXY pixels of the picture, not cut at its border.
    """
    scores, class_ids = logits_QK.float().softmax(-1)[:, logit_of_class].max(-1)
    height, width = size_hw
    boxes = cxcywh_to_xyxy(boxes_Q4.float())
    return scores, class_ids, boxes * boxes.new_tensor([width, height, width, height])


def head_keys(prefix: str) -> tuple[Rule, ...]:
    """Official names on the left, ours on the right.

    Args:
        prefix: Of our names, e.g. ``"detection."``.
    """
    decoder = "visft_heads.transformer.decoders.detection.detection_coco."
    layer, ours = f"{decoder}layers.{{i}}.", f"{prefix}transformer.decoder.{{i}}."
    encoder, our_encoder = "visft_heads.transformer.encoder.layers.{i}.", f"{prefix}transformer.encoder.{{i}}."
    return (
        (f"{encoder}self_attn.", f"{our_encoder}attn."),
        (f"{encoder}linear1.", f"{our_encoder}mlp.layers.0."),
        (f"{encoder}linear2.", f"{our_encoder}mlp.layers.1."),
        (encoder, our_encoder),
        (f"{layer}self_attn.", f"{ours}attn."),
        (f"{layer}multihead_attn.", f"{ours}cross."),
        (f"{layer}linear1.", f"{ours}mlp.layers.0."),
        (f"{layer}linear2.", f"{ours}mlp.layers.1."),
        (layer, ours),
        (f"{decoder}norm.", f"{prefix}transformer.norm."),
        ("visft_heads.transformer.enc2dec_proj.", f"{prefix}transformer.memory_proj."),
        ("visft_heads.transformer.pos_embed_proj.", f"{prefix}transformer.position_proj."),
        ("visft_heads.transformer.task_embeddings_enc.", f"{prefix}transformer.task_embed."),
        ("visft_heads.query_embeds.detection.detection_coco.", f"{prefix}query_embed."),
        ("visft_heads.input_proj.", f"{prefix}input_proj."),
        ("visft_heads.class_embeds.", f"{prefix}class_logits."),
        ("visft_heads.bbox_embeds.", f"{prefix}box_mlp."),
    )
