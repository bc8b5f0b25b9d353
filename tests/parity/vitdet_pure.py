"""ViTDet's functions against the originals': anchors, deltas, matching, suppression, pooling, losses, attention."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import batched_nms, nms, roi_align

from saccade.data.augment import ScaleJitterAugment
from saccade.data.sources.base import repeat_factors
from saccade.data.transforms import collate, preprocess
from saccade.layers.attention import Attention, decomposed_bias, relative_table
from saccade.layers.boxes import (
    area,
    best_per_class,
    box_iou,
    clip_boxes,
    decode_deltas,
    encode_deltas,
    paste_masks,
    soft_nms,
)
from saccade.layers.convolution import ConvPropagation
from saccade.layers.matching import match_boxes
from saccade.layers.roi import level_of, mask_targets
from saccade.layers.rpn import anchors
from saccade.layers.vit import Block, PlainViT, ViTConfig, resize_position
from saccade.metrics.detection import DetectionMetric
from saccade.models.vitdet.convert import from_backbone, our_key
from saccade.results import Instances, encode_masks
from saccade.samples import ClassList, Origin, Preprocess, Sample, Target
from saccade.tasks import Task

if TYPE_CHECKING:
    from check import Report

EXACT, FLOAT = 1e-6, 1e-4
ONES = (1.0, 1.0, 1.0, 1.0)
RCNN = (0.1, 0.1, 0.2, 0.2)


def encode(boxes: Tensor, targets: Tensor, stds: tuple[float, ...]) -> Tensor:
    """Deltas of plain tensors."""
    return encode_deltas(boxes, targets.as_subclass(Tensor), stds)


class File:
    """One file of tensors, and what is still to be compared."""

    def __init__(self, path: Path, report: Report) -> None:
        self.name = f"{path.parent.name}/{path.stem}"
        self.report = report
        self.tensors = load_file(path)
        report.expect(self.name, list(self.tensors))

    def __getitem__(self, name: str) -> Tensor:
        """An input: using it is all that can be done with it."""
        self.report.skip(f"{self.name}/{name}")
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def close(self, name: str, ours: Tensor, tolerance: float = FLOAT) -> None:
        self.report.close(f"{self.name}/{name}", ours, self.tensors[name], tolerance)

    def same(self, name: str, ours: Tensor, allowed: float = 0.0) -> None:
        self.report.same(f"{self.name}/{name}", ours, self.tensors[name], allowed=allowed)


def check(folder: Path, report: Report) -> None:
    """Every file of a folder of functions."""
    meta = json.loads((folder / "meta.json").read_text())
    if (folder / "io.safetensors").is_file():
        detectron2(File(folder / "io.safetensors", report), folder, meta, report)
        return
    checks: dict[str, Callable[[File, dict[str, Any]], None]] = {
        "anchors": check_anchors,
        "assigner": check_assigner,
        "attention": check_attention,
        "box_coder": check_deltas,
        "checkpoint_load": check_loading,
        "losses": check_losses,
        "mask_paste": check_paste,
        "mask_target": check_mask_targets,
        "nms": check_nms,
        "pipeline": check_pipeline,
        "roi_align": check_pooling,
    }
    for path in sorted(folder.glob("*.safetensors")):
        checks[path.stem](File(path, report), meta["notes"].get(path.stem, {}))
    if (folder / "coco_eval.json").is_file():
        check_coco(json.loads((folder / "coco_eval.json").read_text()), f"{folder.name}/coco_eval", report)


# ---------------------------------------------------------------------- the ViTAE repository


def check_anchors(file: File, notes: dict[str, Any]) -> None:
    for level, size_hw in enumerate(notes["feature_sizes"]):
        stride = 4 * 2**level
        file.close(f"base_{level}", anchors((1, 1), stride, 8.0, (0.5, 1.0, 2.0), torch.device("cpu")), EXACT)
        grid = anchors(tuple(size_hw), stride, 8.0, (0.5, 1.0, 2.0), torch.device("cpu"))
        file.close(f"grid_{level}", grid, EXACT)
        # Every anchor is eligible for us: the network input is always the padded picture.
        pad = notes["pad_shape"]
        valid = torch.zeros(*size_hw, 3, dtype=torch.bool)
        valid[: math.ceil(pad[0] / stride), : math.ceil(pad[1] / stride)] = True
        file.same(f"valid_{level}", valid.flatten())


def check_assigner(file: File, notes: dict[str, Any]) -> None:
    boxes, truths, classes = file["boxes"], file["gt_boxes"], file["gt_labels"]
    file.close("iou", box_iou(truths, boxes), EXACT)
    inside = box_iou(boxes[:10], truths)
    both = area(boxes[:10])[:, None] + area(truths)[None]
    shared = inside * both / (1 + inside)
    file.close("iof", shared / area(boxes[:10])[:, None], FLOAT)
    for name, positive, negative, low, floor in (
        ("rpn", 0.7, 0.3, "reassign", 0.3),
        ("rcnn", 0.5, 0.5, "reassign", 0.5),
        ("rcnn_nolq", 0.5, 0.5, "off", 0.5),
        ("zero_min", 0.5, 0.4, "reassign", 0.0),
    ):
        index, label = match_boxes(
            boxes, truths, positive=positive, negative=negative, low_quality=low, low_quality_floor=floor
        )
        file.same(f"{name}_gt_inds", torch.where(label == 1, index + 1, label))
        file.same(f"{name}_labels", torch.where(label == 1, classes[index], -1))
        file.close(f"{name}_max_overlaps", box_iou(truths, boxes).amax(0), EXACT)
    _, label = match_boxes(boxes, truths[:0], positive=0.5, negative=0.5)
    file.same("nogt_gt_inds", label)


def _attention(file: File, prefix: str, heads: int) -> Attention:
    tensors = {name.removeprefix(prefix): file[name] for name in file.tensors if name.startswith(prefix)}
    width, d = tensors["proj.bias"].shape[0], tensors["rel_pos_h"].shape[1]
    module = Attention(width=width, heads=heads, rel_pos_size=(len(tensors["rel_pos_h"]) + 1) // 2)
    for name in ("rel_pos_h", "rel_pos_w"):
        tensors[name] = tensors[name] / math.sqrt(d)
    module.load_state_dict(tensors)
    return module.eval()


def check_attention(file: File, notes: dict[str, Any]) -> None:
    for name, (h, w) in (("hw", (7, 5)), ("sq", (6, 6))):
        rows_w = file[f"{name}_rel_pos_w"][: 2 * w - 1]  # the official table of the width is sized by the height
        rel_h, rel_w = decomposed_bias(file[f"{name}_q"], file[f"{name}_rel_pos_h"], rows_w, (h, w))
        bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(3)
        file.close(f"{name}_out", file[f"{name}_attn"] + bias, EXACT)
    with torch.no_grad():
        x = file["globattn_x"]
        module = _attention(file, "globattn_w.", heads=3)
        table = module.rel_pos_w[: 2 * 7 - 1].clone()
        module.rel_pos_w = torch.nn.Parameter(table)
        file.close("globattn_out", module(x, (9, 7)))
        block = Block(ViTConfig(width=24, heads=3, mlp_width=8, window_size=14, global_blocks=(), image_size=224), 0)
        block.attn = _attention(file, "winattn_w.", heads=3)
        out = block.eval()._attend(file["winattn_x"].unflatten(1, (17, 15)))
        file.close("winattn_out", out.flatten(1, 2))


def check_deltas(file: File, notes: dict[str, Any]) -> None:
    boxes, truths, random = file["proposals"], file["gt"], file["rand_deltas"]
    for name, stds in (
        ("rpn", ONES),
        ("rcnn", RCNN),
        ("cascade2", (0.05, 0.05, 0.1, 0.1)),
        ("cascade3", (0.033, 0.033, 0.067, 0.067)),
    ):
        file.close(f"deltas_{name}", encode_deltas(boxes, truths, stds), EXACT * 10)
    file.close("decoded_noclip", decode_deltas(boxes, random, ONES, clamp_shrink=True), EXACT)
    size = (140, 180)
    file.close("decoded_clip", clip_boxes(decode_deltas(boxes, random, RCNN, clamp_shrink=True), size), EXACT)
    per_class = decode_deltas(boxes, file["class_deltas"].unflatten(1, (-1, 4)), RCNN, clamp_shrink=True)
    file.close("class_decoded", clip_boxes(per_class, size).flatten(1), EXACT)


def check_loading(file: File, notes: dict[str, Any]) -> None:
    mae = file["mae_pos_embed"]
    channels = mae.shape[2]
    wanted = {"backbone.pos_embed": (1, 6, 5, channels)}
    loaded, _ = from_backbone({"pos_embed": mae, "cls_token": mae[:, :1]}, wanted, head_dim=4)
    file.close("loaded_pos_embed", loaded["backbone.pos_embed"].flatten(1, 2), EXACT)
    biases = {
        "blocks.0.attn.q_bias": file["vitae_src_q_bias_0"],
        "blocks.0.attn.v_bias": file["vitae_src_v_bias_0"],
        "blocks.2.attn.q_bias": file["vitae_src_q_bias_2"],
        "blocks.2.attn.v_bias": torch.zeros_like(file["vitae_src_q_bias_2"]),
        "pos_embed": file["vitae_src_pos_embed"],
    }
    wanted = {f"backbone.blocks.{i}.attn.qkv.bias": (3 * channels,) for i in (0, 2)}
    wanted["backbone.pos_embed"] = (1, 4, 4, channels)
    loaded, report = from_backbone(biases, wanted, head_dim=4)
    report.check()
    file.close("vitae_loaded_qkv_bias_0", loaded["backbone.blocks.0.attn.qkv.bias"], EXACT)
    file.close("vitae_loaded_q_bias_2", loaded["backbone.blocks.2.attn.qkv.bias"][:channels], EXACT)
    # The original keeps its fresh table where the sizes agree, because it forgets the class token's row there (a
    # defect that loses the pre-trained positions); ours loads them. docs/vitdet.md.
    ours = loaded["backbone.pos_embed"].flatten(1, 2)
    file.report.equal(f"{file.name}/vitae_loaded_pos_embed", torch.equal(ours, biases["pos_embed"][:, 1:]), True)


def check_losses(file: File, notes: dict[str, Any]) -> None:
    wanted = (file["bce_labels"] < 1).float()
    each = F.binary_cross_entropy_with_logits(file["bce_logits"][:, 0], wanted, reduction="none")
    file.close("bce_loss", (each * file["bce_weights"]).sum() / 17, EXACT * 10)
    logits, labels, weights = file["ce_logits"], file["ce_labels"], file["ce_weights"]
    each = F.cross_entropy(logits, labels, reduction="none")
    file.close("ce_loss", (each * weights).sum() / (weights > 0).sum(), EXACT * 10)
    file.close("ce_acc", (logits.argmax(1) == labels).float().mean()[None] * 100, EXACT)
    said, goal, weight = file["l1_pred"], file["l1_target"], file["l1_weight"]
    file.close("l1_loss", (F.l1_loss(said, goal, reduction="none") * weight).sum() / 12, EXACT * 10)
    smooth = F.smooth_l1_loss(said, goal, reduction="none", beta=1.0)
    file.close("smoothl1_loss", (smooth * weight).sum() / 12, EXACT * 10)
    masks, classes = file["mask_logits"], file["mask_labels"]
    own = masks[torch.arange(len(masks)), classes]
    file.close(
        "mask_loss",
        F.binary_cross_entropy_with_logits(own, file["mask_targets"])[None].reshape(file.tensors["mask_loss"].shape),
        EXACT * 10,
    )


def check_paste(file: File, notes: dict[str, Any]) -> None:
    probs, boxes = file["mask_probs"][:, 0], file["boxes"]
    size = tuple(notes["image_hw"])
    file.same("pasted_cpu", paste_masks(probs, boxes, size))
    # The original's GPU path looks at every pixel; they differ only where a box has no width.
    whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    full = file["pasted_full"]
    file.report.same(f"{file.name}/pasted_full", paste_masks(probs, boxes, size)[whole], full[whole], allowed=1e-4)
    soft = file["pasted_full_prob"]
    count = len(soft)
    for threshold in (0.25, 0.5, 0.75):
        ours = paste_masks(probs[:count], boxes[:count], size, threshold=threshold)
        file.report.same(f"{file.name}/pasted_full_prob >= {threshold}", ours, soft >= threshold, allowed=1e-4)


def check_mask_targets(file: File, notes: dict[str, Any]) -> None:
    bitmaps, boxes, index = file["bitmaps"], file["proposals"], file["inds"]
    file.same("targets28", mask_targets(bitmaps, boxes, index, 28))
    regions = torch.cat([index[:, None].float(), clip_boxes(boxes, tuple(bitmaps.shape[1:]))], dim=1)
    soft = roi_align(bitmaps[:, None].float(), regions, 28, 1.0, 0, aligned=True)[:, 0]
    file.close("targets28_soft", soft[: len(file.tensors["targets28_soft"])], EXACT * 10)
    sample = _sample(torch.zeros(3, *bitmaps.shape[1:], dtype=torch.uint8), boxes[:0], bitmaps.bool())
    size = max(bitmaps.shape[1:])
    done = ScaleJitterAugment(scales=(1.0, 1.0), flip=0.0).build(size)(sample, np.random.default_rng(0))
    assert done.target.boxes is not None
    file.close("bboxes_from_masks", done.target.boxes.as_subclass(Tensor), EXACT)


def check_nms(file: File, notes: dict[str, Any]) -> None:
    boxes, scores, ids = file["boxes"], file["scores"], file["ids"]
    for threshold in (0.3, 0.5, 0.7):
        file.same(f"keep_{threshold}", nms(boxes, scores, threshold))
        keep = batched_nms(boxes, scores, ids, threshold)
        file.same(f"batched_keep_{threshold}", keep)
        file.close(f"batched_dets_{threshold}", torch.cat([boxes[keep], scores[keep, None]], dim=1), EXACT)
    file.same("batched_split_keep_0.5", batched_nms(boxes, scores, ids, 0.5))
    file.same("batched_agnostic_keep_0.5", batched_nms(boxes, scores, torch.zeros_like(ids), 0.5))
    per_class = file["mc_boxes"].unflatten(1, (-1, 4))
    chances = file["mc_scores"][:, :-1]
    kept, score, class_ids, rows = best_per_class(per_class, chances, min_score=0.05, iou=0.5, most=25)
    file.close("mc_dets", torch.cat([kept, score[:, None]], dim=1), EXACT)
    file.same("mc_labels", class_ids)
    file.same("mc_inds", rows * chances.shape[1] + class_ids)
    index, lowered = soft_nms(boxes, scores, torch.zeros_like(ids), iou=0.5, min_score=0.05)
    file.same("soft_linear_inds", index)
    file.close("soft_linear_dets", torch.cat([boxes[index], lowered[:, None]], dim=1), EXACT * 10)
    # The original's CPU kernel suppresses at the threshold itself, its CUDA kernel (and ours) only above it.
    tied, tied_scores = file["tie_boxes"], file["tie_scores"]
    file.same("tie_keep_cpu_0.5", nms(tied, tied_scores, float(np.nextafter(np.float32(0.5), np.float32(0)))))
    file.report.equal(f"{file.name}/tie above the threshold", len(nms(tied, tied_scores, 0.5)), len(tied))


class Recorded:
    """A generator that repeats draws of the original."""

    def __init__(self, randoms: list[float], integers: list[int]) -> None:
        self._randoms, self._integers = iter(randoms), iter(integers)

    def random(self) -> float:
        return next(self._randoms)

    def integers(self, *_: int) -> int:
        return next(self._integers)


def _sample(image: Tensor, boxes: Tensor, masks: Tensor) -> Sample:
    size_hw = (int(image.shape[1]), int(image.shape[2]))
    if not len(boxes):
        boxes = torch.tensor([[0.0, 0.0, size_hw[1], size_hw[0]]]).repeat(len(masks), 1)
    return Sample(
        image=tv_tensors.Image(image),
        task=Task.INSTANCE,
        origin=Origin(dataset="", image_id=0, path=None, size_hw=size_hw),
        target=Target(
            boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size_hw),
            class_ids=torch.arange(len(boxes)),
            masks=tv_tensors.Mask(masks),
            is_crowd=torch.zeros(len(boxes), dtype=torch.bool),
        ),
        classes=ClassList.from_names([f"class {n}" for n in range(len(boxes))]),
    )


def check_pipeline(file: File, notes: dict[str, Any]) -> None:
    size = notes["image_scale"][0]
    image = file["img_bgr"].flip(-1).permute(2, 0, 1).contiguous()
    masks, boxes = file["gt_masks"].bool(), file["gt_bboxes"]
    declared = Preprocess(size_hw=(size, size), keep_ratio=True, pad_multiple=size)
    for step, told in notes["steps"].items():
        if step == "test":
            continue
        scale = (told["scale"][0] + 0.5) / size
        for flipped in (False, bool(told["flip"])):
            rng = Recorded([(scale - 0.1) / 1.9, 0.0 if flipped else 1.0], list(told["crop_offset_yx"]))
            done = ScaleJitterAugment().build(size)(_sample(image, boxes, masks), rng)  # type: ignore[arg-type]
            assert done.target.boxes is not None and done.target.masks is not None and done.target.class_ids is not None
            own, kept = done.target.boxes.as_subclass(Tensor), done.target.class_ids
            if not flipped:
                crop = file[f"{step}_crop"].flip(-1).permute(2, 0, 1)
                file.report.same(f"{file.name}/{step}_crop", done.image.as_subclass(Tensor), crop)
                before = file[f"{step}_crop_boxes"]
                there = ((before[:, 2:] - before[:, :2]) > 0.01).all(1)
                file.report.close(f"{file.name}/{step}_crop_boxes", own, before[there], EXACT)
                file.report.same(f"{file.name}/{step}_crop_masks", done.target.masks, file[f"{step}_crop_masks"][there])
                file[f"{step}_crop_labels"]
            if flipped == bool(told["flip"]):
                batch = collate([done], declared)
                file.close(f"{step}_final", batch.images[0], EXACT)
                file.close(f"{step}_final_boxes", own, EXACT)
                file.same(
                    f"{step}_final_labels",
                    file["gt_labels"][kept] if "gt_labels" in file else file.tensors[f"{step}_final_labels"],
                )
                assert batch.targets[0].masks is not None
                file.same(f"{step}_final_masks", batch.targets[0].masks)
        # The crop that holds everything shows what the resize made.
        file[f"{step}_resized_boxes"]
        resized = file[f"{step}_resized"].flip(-1).permute(2, 0, 1)
        factor = (told["scale"][0] + 0.5) / 10**4
        done = ScaleJitterAugment(flip=0.0, scales=(factor, factor)).build(10**4)(
            _sample(image, boxes, masks),
            Recorded([0.0, 1.0], [0, 0]),  # type: ignore[arg-type]
        )
        file.report.same(f"{file.name}/{step}_resized", done.image.as_subclass(Tensor), resized)
        file.report.same(f"{file.name}/{step}_resized_masks", done.target.masks, file[f"{step}_resized_masks"])
    sample = preprocess(_sample(image, boxes, masks), declared)
    file.same("test_resized", sample.image.as_subclass(Tensor).permute(1, 2, 0).flip(-1))
    file.close("test_final", collate([sample], declared).images[0], EXACT)


def check_pooling(file: File, notes: dict[str, Any]) -> None:
    feat, rois = file["feat"], file["rois"]
    file.close("align7_aligned", roi_align(feat, rois, 7, 0.25, 0, aligned=True), EXACT)
    file.close("align14_aligned", roi_align(feat, rois[:8], 14, 0.25, 0, aligned=True), EXACT)
    file.close("align7_legacy", roi_align(feat, rois, 7, 0.25, 0, aligned=False), EXACT)
    file.close("align7_sr2", roi_align(feat, rois, 7, 0.25, 2, aligned=True), EXACT)
    file.same("level_ids", level_of(file["level_rois"][:, 1:], 4))


def check_coco(data: dict[str, Any], name: str, report: Report) -> None:
    """The standard statistics that both protocols share (AP, AP50, AP75, by size, AR at 100 by size)."""
    categories = sorted({a["category_id"] for a in (*data["gt"]["annotations"], *data["dt"])})
    classes = ClassList(names=tuple(f"class {c}" for c in categories), category_ids=tuple(categories))
    from pycocotools import mask as coco_mask

    for task, kind in ((Task.DETECTION, "bbox"), (Task.INSTANCE, "segm")):
        metric = DetectionMetric(classes, masks=task is Task.INSTANCE, engine="pycocotools")
        for image in data["gt"]["images"]:
            truths = [a for a in data["gt"]["annotations"] if a["image_id"] == image["id"]]
            found = [d for d in data["dt"] if d["image_id"] == image["id"]]
            found.sort(key=lambda d: -d["score"])
            size_hw = (image["height"], image["width"])

            def corners(items: list[dict[str, Any]]) -> Tensor:
                xywh = torch.tensor([i["bbox"] for i in items], dtype=torch.float64).reshape(-1, 4)
                return torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1).float()

            def dense(items: list[dict[str, Any]], size_hw: tuple[int, int] = size_hw) -> Tensor:
                decoded = [coco_mask.decode(i["segmentation"]).astype(bool) for i in items]
                return torch.from_numpy(np.stack(decoded)) if decoded else torch.zeros(0, *size_hw, dtype=torch.bool)

            target = Target(
                boxes=tv_tensors.BoundingBoxes(corners(truths), format="XYXY", canvas_size=size_hw),
                class_ids=torch.tensor([categories.index(a["category_id"]) for a in truths], dtype=torch.long),
                masks=tv_tensors.Mask(dense(truths)),
                is_crowd=torch.tensor([bool(a["iscrowd"]) for a in truths], dtype=torch.bool),
                areas=torch.tensor([a["area"] for a in truths], dtype=torch.float64),
            )
            sample = Sample(
                image=tv_tensors.Image(torch.zeros(3, *size_hw, dtype=torch.uint8)),
                task=task,
                origin=Origin(dataset="", image_id=image["id"], path=None, size_hw=size_hw),
                target=target,
                classes=classes,
            )
            metric.update(
                sample,
                Instances(
                    boxes_xyxy=corners(found),
                    scores=torch.tensor([d["score"] for d in found]),
                    class_ids=torch.tensor([categories.index(d["category_id"]) for d in found], dtype=torch.long),
                    classes=classes,
                    size_hw=size_hw,
                    masks=encode_masks(dense(found)),
                ),
            )
        computed = metric.compute()
        prefix = "mask_" if task is Task.INSTANCE else ""
        ours = [
            computed[f"{prefix}{key}"]
            for key in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "ARs", "ARm", "ARl")
        ]
        told = data["expected"][kind]
        wanted = [*told[:7], *told[9:]]
        ours = [-1.0 if math.isnan(value) else value for value in ours]
        report.close(f"{name}/{kind}", torch.tensor(ours), torch.tensor(wanted), FLOAT)


# ---------------------------------------------------------------------- detectron2


def detectron2(file: File, folder: Path, meta: dict[str, Any], report: Report) -> None:
    """Everything of the folder ``d2_functions``."""
    for name in [name for name in file.tensors if name.startswith("relpos_") and name.endswith("_table")]:
        base = name.removesuffix("_table")
        q, k = (int(part[1:]) for part in base.split("_")[1:3])
        table = file[name]
        if q == k:
            file.close(f"{base}_out", relative_table(table, q), EXACT)
        else:
            # Queries and keys of different grids never meet in ViTDet.
            file[f"{base}_out"]
    table = file["abspos_table"]
    side = math.isqrt(table.shape[1] - 1)
    for name in [name for name in file.tensors if name.startswith("abspos_") and "x" in name.split("_")[1]]:
        h, w = (int(part) for part in name.split("_")[1].split("x"))
        file.close(name, resize_position(table[:, 1:].unflatten(1, (side, side)), (h, w)), EXACT)
    rel_h, rel_w = file["adrp_rel_h"], file["adrp_rel_w"]
    size = ((len(rel_h) + 1) // 2, (len(rel_w) + 1) // 2)
    h, w = decomposed_bias(file["adrp_q"][:, None], rel_h, rel_w, size)
    file.close("adrp_out", file["adrp_attn"] + (h[..., :, None] + w[..., None, :]).flatten(3)[:, 0], EXACT)
    boxes = file["b2b_src"]
    file.close("b2b_deltas", encode_deltas(boxes, file["b2b_tgt"], RCNN), EXACT * 10)
    moved = decode_deltas(boxes, file["b2b_apply_in"].unflatten(1, (-1, 4)), RCNN, clamp_shrink=False)
    file.close("b2b_apply_out", moved.flatten(1), EXACT * 10)
    _detectron2_matching(file)
    sides = file["levels_sides"]
    zero = torch.zeros_like(sides)
    file.same("levels", level_of(torch.stack([zero, zero, sides, sides], dim=1), 4))
    _detectron2_federated(file)
    _detectron2_convolution(file, folder, meta, report)
    image = file["aug_image"].permute(2, 0, 1).contiguous()
    for name in [name for name in file.tensors if name.startswith("aug_resized_")]:
        factor = float(name.removeprefix("aug_resized_"))
        augment = ScaleJitterAugment(flip=0.0, scales=(factor / 16, factor / 16), rules="detectron2")
        sample = _sample(image, torch.zeros(0, 4), torch.ones(1, *image.shape[1:], dtype=torch.bool))
        done = augment.build(64 * 16)(sample, Recorded([1.0, 0.0, 0.0], []))  # type: ignore[arg-type]
        file.same(name, done.image.as_subclass(Tensor).permute(1, 2, 0))
    factors = repeat_factors([set(ids) for ids in meta["rfs_dataset"]], 0.3)
    file.close("rfs_factors", torch.as_tensor(factors), EXACT * 10)


def _detectron2_matching(file: File) -> None:
    """The rules are applied to a given table of overlaps, so that the boxes behind it are not needed."""
    import saccade.layers.matching as matching

    table = file["match_iou"]
    plain = matching.box_iou
    matching.box_iou = lambda truths, boxes: table  # the fixture has the overlaps alone
    try:
        nothing = torch.zeros(table.shape[1], 4)
        for name, settings in (
            ("rpn", {"positive": 0.7, "negative": 0.3, "low_quality": "keep"}),
            ("roi", {"positive": 0.5, "negative": 0.5, "low_quality": "off"}),
        ):
            index, label = match_boxes(nothing, torch.zeros(len(table), 4), **settings)
            file.same(f"match_{name}_idx", index)
            file.same(f"match_{name}_label", label)
    finally:
        matching.box_iou = plain


def _detectron2_federated(file: File) -> None:
    from saccade.layers.roi import RoIConfig, RoIHeads, federated_classes

    logits, classes, weights = file["fed_logits"], file["fed_gt"], file["fed_weights"]
    k = len(weights)
    kept = file["fed_classes"]
    drawn = set(kept.tolist())
    present = set(classes.unique().tolist())
    torch.manual_seed(5)
    ours = set(federated_classes(classes, k, len(kept), weights).tolist())
    file.report.equal(f"{file.name}/fed_classes", ours, drawn)
    file.report.equal(f"{file.name}/fed_classes hold the present ones", present <= ours, True)
    heads = RoIHeads(RoIConfig(num_classes=k, channels=4, conv_channels=4, hidden=4, sigmoid=True, mask="none"))
    file.close("sigmoid_ce_loss", heads._sigmoid_loss(logits, classes), EXACT * 10)
    heads.config.federated_classes = len(kept)
    heads.class_weights = weights
    torch.manual_seed(5)
    file.close("fed_loss", heads._sigmoid_loss(logits, classes), EXACT * 10)


def _detectron2_convolution(file: File, folder: Path, meta: dict[str, Any], report: Report) -> None:
    config = meta["vit_conv_config"]
    weights = File(folder / "vit_conv_weights.safetensors", report)
    vit = PlainViT(
        ViTConfig(
            width=config["embed"],
            depth=config["depth"],
            heads=config["heads"],
            mlp_width=4 * config["embed"],
            image_size=config["img_size"],
            position_size=config["pretrain_img_size"] // 16,
            window_size=config["window"],
            global_blocks=tuple(i for i in range(config["depth"]) if i not in config["window_block_indexes"]),
            conv_blocks=tuple(config["residual_block_indexes"]),
            drop_path=0.0,
        )
    ).eval()
    state = {}
    for name in weights.tensors:
        tensor = weights[name]
        ours = our_key(f"backbone.net.{name}", "detectron2")
        assert ours is not None
        if name == "pos_embed":
            side = math.isqrt(tensor.shape[1] - 1)
            tensor = tensor[:, 1:].unflatten(1, (side, side))
        state[ours.removeprefix("backbone.")] = tensor
    vit.load_state_dict(state)
    with torch.no_grad():
        file.close("vit_conv_out", vit(file["vit_conv_x"]).permute(0, 3, 1, 2))
        x = file["resblock_x"]
        block = ConvPropagation(x.shape[1], "bottleneck")
        own = {}
        for name in [name for name in file.tensors if name.startswith("w.blocks.")]:
            part, number, leaf = name.split(".")[-2][:-1], int(name.split(".")[-2][-1]) - 1, name.split(".")[-1]
            own[f"convs.{number}.{part}.{leaf}"] = file[name]
        block.load_state_dict(own)
        file.close("resblock_out", block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
