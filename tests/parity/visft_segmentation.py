"""ViSFT's segmentation head and deformable attention against the original (``io_segmentation``, ``io_msdeform``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from visft_parts import FLOAT, GRADIENT, Tensors, load_weights, recorded_draws

from saccade.layers.deform import DeformableAttention, deformable_sample
from saccade.layers.mask2former import MaskedDecoderConfig, PixelDecoderConfig, blocked_cells
from saccade.layers.matching import assign
from saccade.models.visft.segmentation import (
    ImageMasks,
    MaskTruths,
    SegmentationHead,
    SegmentationHeadConfig,
    decode,
    head_keys,
    match_costs,
    resize_masks,
    set_loss,
)

if TYPE_CHECKING:
    from check import Report

MASK_SHARE = 1e-4
SEGMENTATION, DEFORMABLE = "io_segmentation.safetensors", "io_msdeform.safetensors"


def read_config(config: dict[str, Any]) -> SegmentationHeadConfig:
    """The head of a fixture."""
    sizes, weights = config["segment"], config["loss_weights"]["segment"]
    return SegmentationHeadConfig(
        pixels=PixelDecoderConfig(
            width=sizes["conv_dim"],
            mask_width=sizes["mask_dim"],
            heads=sizes["pixel_nheads"],
            mlp_width=sizes["pixel_ffn"],
            layers=sizes["pixel_layers"],
        ),
        decoder=MaskedDecoderConfig(
            heads=sizes["nheads"],
            mlp_width=sizes["ffn"],
            layers=sizes["dec_layers"],
            queries=sizes["num_queries"],
        ),
        num_classes=sizes["num_classes"],
        layout="official",
        no_object_weight=weights["eos_coef"],
        costs=(weights["cost_class"], weights["cost_mask"], weights["cost_dice"]),
        weights=(weights["ce"], weights["mask"], weights["dice"]),
        points=sizes["num_points"],
        oversample=weights["oversample_ratio"],
        importance=weights["importance_sample_ratio"],
        stride=config["backbone"]["patch_size"],
    )


def compare_segmentation(report: Report, folder: Path, backbone: Callable[[Tensor], Tensor]) -> None:
    """Every tensor of ``io_segmentation``.

    Args:
        report: Where rows go.
        folder: The fixture.
        backbone: Images ``[B, 3, H, W]`` to the last map ``[B, H, W, C]``, without LoRA.
    """
    SegmentationCheck(report, folder, backbone).run()


class SegmentationCheck:
    """One fixture folder."""

    def __init__(self, report: Report, folder: Path, backbone: Callable[[Tensor], Tensor]) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.config, self.backbone = read_config(config), backbone
        self.head = load_weights(SegmentationHead(self.config, config["backbone"]["embed_dim"]), head_keys(""), folder)
        self.tensors = Tensors(report, folder / SEGMENTATION)
        # Predictions are called aux0, aux1, ... and final.
        self.names = [f"aux{layer}" for layer in range(self.config.decoder.layers)] + ["final"]

    def run(self) -> None:
        """Features, predictions, assignment, losses, gradient, post-processing."""
        image = self.tensors.read("image")
        size_hw = (image.shape[2], image.shape[3])
        with torch.no_grad():
            self.tensors.close("features", self.backbone(image).permute(0, 3, 1, 2))
        features = self.tensors.read("features").clone().requires_grad_()
        said = self._predictions(features, size_hw)
        truths = MaskTruths(self.tensors.read("gt_labels"), self.tensors.read("gt_masks"))
        self._matching(said, truths)
        losses = set_loss([said], [truths], self.config, draw=recorded_draws(self._points()))
        self._losses("loss", losses)
        total = torch.stack(list(losses.values())).sum()
        self.tensors.close("loss_total", total)
        (gradient,) = torch.autograd.grad(total, features)
        self.tensors.close("grad_features", gradient, GRADIENT)
        nothing = MaskTruths(truths.labels_G[:0], truths.masks_GHW[:0])
        self._losses("empty/loss", set_loss([said], [nothing], self.config))
        with torch.no_grad():
            self._postprocess(said)

    def _predictions(self, features: Tensor, size_hw: tuple[int, int]) -> ImageMasks:
        map_BHWC = features.permute(0, 2, 3, 1)
        memory, masks = self.head.pixel_decoder(map_BHWC)
        self.tensors.close("multi_scale_features0", memory.permute(0, 3, 1, 2))
        self.tensors.close("mask_features", masks.permute(0, 3, 1, 2))
        out = self.head(map_BHWC)
        for layer, (logits, masks) in enumerate(zip(out.logits_LBQK, out.masks_LBQHW, strict=True)):
            self.tensors.close(f"layer{layer}/pred_logits", logits)
            self.tensors.close(f"layer{layer}/pred_masks", masks)
            # The fixture has what is blocked before rows without anything free are opened.
            blocked = self.tensors.values[f"layer{layer}/attn_mask"]
            self.tensors.same(f"layer{layer}/attn_mask", masks.flatten(2) < 0)
            opened = blocked & ~blocked.all(-1, keepdim=True)
            self.tensors.equal(
                f"layer{layer}/attn_mask, opened", blocked_cells(masks.flatten(2)).tolist(), opened.tolist()
            )
        return ImageMasks(out.logits_LBQK[:, 0], out.masks_LBQHW[:, 0], size_hw)

    def _points(self) -> list[Tensor]:
        """In the order of the original's calls: the last prediction first."""
        parts = ("matcher", "oversampled", "random")
        return [
            self.tensors.read(f"points/{name}/{part}") for name in (self.names[-1], *self.names[:-1]) for part in parts
        ]

    def _matching(self, said: ImageMasks, truths: MaskTruths) -> None:
        with torch.no_grad():
            costs = match_costs(said, truths, self.config, draw=recorded_draws(self._points()))
        for name, cost, (queries, objects) in zip(self.names, costs, assign(list(costs)), strict=True):
            self.tensors.close(f"match/{name}/cost", cost)
            self.tensors.same(f"match/{name}/src", queries)
            self.tensors.same(f"match/{name}/tgt", objects)

    def _losses(self, group: str, losses: dict[str, Tensor]) -> None:
        wanted = {name.removeprefix(f"{group}/") for name in self.tensors if name.startswith(f"{group}/")}
        self.tensors.equal(f"{group} names", set(losses), wanted)
        for name, value in losses.items():
            self.tensors.close(f"{group}/{name}", value)

    def _postprocess(self, said: ImageMasks) -> None:
        sizes = [
            self.tensors.read(f"postprocess/{name}")[0].tolist() for name in ("final_size", "target_size", "orig_size")
        ]
        scores, labels = decode(said.logits_LQK[-1])
        self.tensors.close("postprocess/scores", scores)
        self.tensors.same("postprocess/labels", labels)
        masks = resize_masks(said.masks_LQhw[-1], *(tuple(size) for size in sizes)) > 0
        self.tensors.same("postprocess/masks", masks[:, None], allowed=MASK_SHARE)


def compare_deformable(report: Report, folder: Path) -> None:
    """Every tensor of ``io_msdeform``."""
    tensors = load_file(folder / DEFORMABLE)
    report.expect(DEFORMABLE, list(tensors))
    for group in sorted({name.split("/")[0] for name in tensors}):
        part = {name.removeprefix(f"{group}/"): t for name, t in tensors.items() if name.startswith(f"{group}/")}
        if group.startswith("core_"):
            _core(report, f"{DEFORMABLE}/{group}", part)
        else:  # the module has the heads of the core of the same name, which its own shapes do not show
            heads = tensors[f"core_{group.removeprefix('module_')}/value"].shape[2]
            _module(report, f"{DEFORMABLE}/{group}", part, heads)


def _sizes(tensors: dict[str, Tensor]) -> list[tuple[int, int]]:
    return [(height, width) for height, width in tensors["spatial_shapes"].tolist()]


def _core(report: Report, name: str, tensors: dict[str, Tensor]) -> None:
    names = ("value", "sampling_locations", "attention_weights")
    inputs = [tensors[key].clone().requires_grad_() for key in names]
    found = deformable_sample(inputs[0], _sizes(tensors), inputs[1], inputs[2])
    report.close(f"{name}/output", found, tensors["output"], FLOAT)
    for key, gradient in zip(names, torch.autograd.grad(found, inputs, tensors["grad_output"]), strict=True):
        report.close(f"{name}/grad_{key}", gradient, tensors[f"grad_{key}"], GRADIENT)
    for key in (*names, "spatial_shapes", "grad_output"):
        report.skip(f"{name}/{key}")


def _module(report: Report, name: str, tensors: dict[str, Tensor], heads: int) -> None:
    own = {"sampling_offsets": "offsets", "attention_weights": "weights", "value_proj": "value", "output_proj": "proj"}
    state = {key.removeprefix("weights/"): tensor for key, tensor in tensors.items() if key.startswith("weights/")}
    queries, memory, sizes = tensors["query"], tensors["input_flatten"], _sizes(tensors)
    points = len(state["attention_weights.bias"]) // (heads * len(sizes))
    attention = DeformableAttention(queries.shape[2], heads=heads, points=points, levels=len(sizes))
    attention.load_state_dict({f"{own[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in state.items()})
    with torch.no_grad():
        found = attention(queries, tensors["reference_points"], memory, sizes, tensors["padding_mask"])
        boxed = attention(queries, tensors["reference_boxes"], memory, sizes)
    report.close(f"{name}/output", found, tensors["output"], FLOAT)
    report.close(f"{name}/output_boxes", boxed, tensors["output_boxes"], FLOAT)
    inputs = ("query", "input_flatten", "reference_points", "reference_boxes", "padding_mask", "spatial_shapes")
    for key in (*inputs, *(f"weights/{key}" for key in state)):
        report.skip(f"{name}/{key}")
