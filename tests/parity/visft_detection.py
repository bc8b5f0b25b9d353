"""ViSFT's detection head against the original (``io_detection``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from visft_parts import GRADIENT, Tensors, load_weights

from saccade.layers.detr import DETRConfig
from saccade.layers.positions import padded_cells, sine_positions
from saccade.models.visft.detection import (
    DetectionHead,
    DetectionHeadConfig,
    DetectionOutput,
    decode,
    head_keys,
    match,
    match_costs,
    set_loss,
)

if TYPE_CHECKING:
    from check import Report

FILE = "io_detection.safetensors"


def read_config(config: dict[str, Any]) -> DetectionHeadConfig:
    """The head of a fixture."""
    sizes, weights = config["detection"], config["loss_weights"]["detection"]
    return DetectionHeadConfig(
        detr=DETRConfig(
            encoder_width=sizes["encoder_hidden_dim"],
            decoder_width=sizes["decoder_hidden_dim"],
            heads=sizes["nheads"],
            mlp_width=sizes["dim_feedforward"],
            encoder_layers=sizes["enc_layers"],
            decoder_layers=sizes["dec_layers"],
            dropout=0.0,
        ),
        queries=sizes["num_queries"],
        num_classes=sizes["num_classes"],
        no_object_weight=weights["eos_coef"],
        costs=(weights["cost_class"], weights["cost_bbox"], weights["cost_giou"]),
        weights=(weights["ce"], weights["bbox"], weights["giou"]),
    )


def compare_detection(report: Report, folder: Path, backbone: Callable[[Tensor], Tensor]) -> None:
    """Every tensor of ``io_detection``.

    Args:
        report: Where rows go.
        folder: The fixture.
        backbone: Images ``[B, 3, H, W]`` to the last map ``[B, H, W, C]``, without LoRA.
    """
    DetectionCheck(report, folder, backbone).run()


class DetectionCheck:
    """One fixture folder."""

    def __init__(self, report: Report, folder: Path, backbone: Callable[[Tensor], Tensor]) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.backbone = backbone
        self.head = load_weights(
            DetectionHead(read_config(config), config["backbone"]["embed_dim"]), head_keys(""), folder
        )
        self.tensors = Tensors(report, folder / FILE)
        self.outputs: dict[str, DetectionOutput] = {}

    def run(self) -> None:
        """All groups."""
        for group in ("single", "padded"):
            self._group(group)
        self._empty()
        self._postprocess()

    def _truths(self, group: str, images: int) -> list[tuple[Tensor, Tensor]]:
        truths = []
        for image in range(images):
            name = f"{group}/target{image}"
            truths.append((self.tensors.read(f"{name}/labels"), self.tensors.read(f"{name}/boxes")))
        return truths

    def _group(self, group: str) -> None:
        features = self.tensors.read(f"{group}/features").clone().requires_grad_()
        images = [self.tensors.read(f"{group}/image{image}") for image in range(len(features))]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        largest = (max(size[0] for size in sizes), max(size[1] for size in sizes))
        padded = [F.pad(x, (0, largest[1] - x.shape[2], 0, largest[0] - x.shape[1])) for x in images]
        self.tensors.close(f"{group}/features", self.backbone(torch.stack(padded)).permute(0, 3, 1, 2))
        height, width = features.shape[-2:]
        padding = padded_cells(sizes, largest, (height, width), features.device)
        mask = torch.zeros(len(features), height, width, dtype=torch.bool) if padding is None else padding
        self.tensors.same(f"{group}/mask", mask)
        head, detr = self.head, self.head.transformer
        self.tensors.close(f"{group}/pos", sine_positions(~mask, detr.config.encoder_width // 2).permute(0, 3, 1, 2))
        source = head.input_proj(features)
        self.tensors.close(f"{group}/input_proj", source)
        x_BHWE = source.permute(0, 2, 3, 1)
        self.tensors.close(f"{group}/memory", detr.encode(x_BHWE, padding)[0].mT)
        self.tensors.close(f"{group}/hs", detr(x_BHWE, head.query_embed.weight, padding))
        out = head(features.permute(0, 2, 3, 1), padding)
        self.outputs[group] = out
        layers = len(out.logits_LBQK)
        names = [f"aux{layer}" for layer in range(layers - 1)] + ["final"]
        for layer, name in enumerate(names):
            place = group if name == "final" else f"{group}/{name}"
            self.tensors.close(f"{place}/pred_logits", out.logits_LBQK[layer])
            self.tensors.close(f"{place}/pred_boxes", out.boxes_LBQ4[layer])
        truths = self._truths(group, len(images))
        labels, boxes = (torch.cat(part) for part in zip(*truths, strict=True))
        matched = match(out, truths, head.config)
        for layer, name in enumerate(names):
            costs = match_costs(out.logits_LBQK[layer], out.boxes_LBQ4[layer], labels, boxes, head.config.costs)
            self.tensors.close(f"{group}/match/{name}/cost", costs)
            for image, (queries, objects) in enumerate(matched[layer]):
                self.tensors.same(f"{group}/match/{name}/src{image}", queries)
                self.tensors.same(f"{group}/match/{name}/tgt{image}", objects)
        losses = set_loss(out, truths, head.config)
        weights = dict(zip(("loss_ce", "loss_bbox", "loss_giou"), head.config.weights, strict=True))
        for name, value in losses.items():
            self.tensors.close(f"{group}/loss/{name}", value)
            raw = value / weights[name.rstrip("0123456789").removesuffix("_")]
            self.tensors.close(f"{group}/loss_raw/{name}", raw)
        for layer, name in enumerate(names):
            suffix = "" if name == "final" else f"_{layer}"
            no_object = out.logits_LBQK.shape[-1] - 1
            said = (out.logits_LBQK[layer].argmax(-1) != no_object).sum(1)
            number = torch.tensor([len(own) for own, _ in truths])
            self.tensors.close(f"{group}/loss_raw/cardinality_error{suffix}", (said - number).abs().float().mean())
        total = torch.stack(list(losses.values())).sum()
        self.tensors.close(f"{group}/loss_total", total)
        (gradient,) = torch.autograd.grad(total, features)
        self.tensors.close(f"{group}/grad_features", gradient, GRADIENT)

    def _empty(self) -> None:
        """The picture has no stored features: the backbone makes them."""
        out = self.head(self.backbone(self.tensors.read("empty/image")[None]))
        losses = set_loss(out, [(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))], self.head.config)
        for name, value in losses.items():
            self.tensors.close(f"empty/loss/{name}", value)
        self.tensors.close("empty/loss_total", torch.stack(list(losses.values())).sum())

    def _postprocess(self) -> None:
        out, logit_of = self.outputs["padded"], torch.tensor(self.head.config.logit_of_class)
        for image, size in enumerate(self.tensors.read("postprocess/orig_size").tolist()):
            scores, labels, boxes = decode(
                out.logits_LBQK[-1][image], out.boxes_LBQ4[-1][image], logit_of, (size[0], size[1])
            )
            self.tensors.close(f"postprocess/scores{image}", scores)
            self.tensors.same(f"postprocess/labels{image}", labels)
            self.tensors.close(f"postprocess/boxes{image}", boxes)
