"""ViTDet and ViTAE against the originals: whole models of both families (functions: ``vitdet_pure``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import vitdet_pure
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import tv_tensors

from saccade.layers.boxes import paste_masks
from saccade.layers.pyramid import PyramidConfig
from saccade.layers.roi import Detections, Frame, RoIConfig, StageConfig, Trace, level_of, mask_targets, with_image
from saccade.layers.rpn import RPNConfig, RPNOutput
from saccade.layers.vit import ViTConfig, resize_position
from saccade.layers.vitae import CellConfig, Performer, ViTAEConfig
from saccade.models.vitdet.config import ViTDetConfig
from saccade.models.vitdet.convert import Family, from_official, to_official
from saccade.models.vitdet.model import ViTDet
from saccade.models.vitdet.presets import detectron2_roi, detectron2_rpn
from saccade.samples import Batch, ClassList, Origin, Target
from saccade.tasks import Task

if TYPE_CHECKING:
    from check import Report

FLOAT, LOSS, GRADIENT = 1e-4, 1e-4, 1e-3
MASK_SHARE = 1e-4
TIE = 1e-7  # one step of float32 below 1
WINDOW, INTERVAL = 14, 3


def check(folder: Path, report: Report) -> None:
    """Every folder of the layout, or one of them."""
    parts = [folder] if (folder / "meta.json").is_file() else sorted(p.parent for p in folder.glob("*/meta.json"))
    for part in parts:
        if (part / "config.json").is_file():
            ModelCheck(part, report).run()
        else:
            vitdet_pure.check(part, report)


def first(candidates: Tensor, number: int) -> Tensor:
    """The draw of the fixtures."""
    return candidates[:number]


def read_mmdet(config: dict[str, Any]) -> tuple[ViTDetConfig, tuple[int, int]]:
    """The official config of a fixture of the ViTAE repository as ours, and its patch grid."""
    model = config["model"]
    net, neck, rpn, roi = model["backbone"], model["neck"], model["rpn_head"], model["roi_head"]
    size = net["img_size"]
    height, width = size if isinstance(size, list) else (size, size)
    shared: dict[str, Any] = {
        "image_size": height,
        "window_size": WINDOW,
        "final_norm": True,
        "drop_path": 0.0,
        "drop_path_attention": True,
    }
    backbone: ViTConfig | ViTAEConfig
    if net["type"] == "ViTAE_S":
        tokens, embed = net["token_dims"], net["embed_dims"]
        cells = ((7, 4, (1, 2, 3, 4)), (3, 2, (1, 2, 3)), (3, 2, (1, 2)))
        backbone = ViTAEConfig(
            cells=tuple(
                CellConfig(kernel=k, stride=s, dilations=d, embed=embed[i], width=tokens[i], attention=i < 2)
                for i, (k, s, d) in enumerate(cells)
            ),
            blocks=ViTConfig(
                width=tokens[-1],
                depth=net["NC_depth"][-1],
                heads=net["NC_heads"][-1],
                mlp_width=int(tokens[-1] * net["mlp_ratio"]),
                global_blocks=tuple(net["globalBlock"]),
                parallel_conv="three",
                abs_pos=False,
                **shared,
            ),
        )
    else:
        backbone = ViTConfig(
            width=net["embed_dim"],
            depth=net["depth"],
            heads=net["num_heads"],
            mlp_width=net["embed_dim"] * net["mlp_ratio"],
            global_blocks=tuple(i for i in range(net["depth"]) if (i + 1) % INTERVAL == 0),
            parallel_conv="two" if net["type"] == "ViTAE" else "none",
            **shared,
        )
    heads = roi["bbox_head"] if isinstance(roi["bbox_head"], list) else [roi["bbox_head"]]
    train, test = model["train_cfg"], model["test_cfg"]
    stage_train = train["rcnn"] if isinstance(train["rcnn"], list) else [train["rcnn"]]
    weights = roi.get("stage_loss_weights", [1.0])
    loss_box = heads[0]["loss_bbox"]
    parsed = ViTDetConfig(
        classes=tuple(f"class {n}" for n in range(heads[0]["num_classes"])),
        backbone=backbone,
        pyramid=PyramidConfig(channels=neck["out_channels"], norm_eps=1e-5, shrink=False),
        rpn=RPNConfig(
            channels=rpn["in_channels"],
            convs=rpn["num_convs"],
            candidates=(train["rpn_proposal"]["nms_pre"], test["rpn"]["nms_pre"]),
            proposals=(train["rpn_proposal"]["max_per_img"], test["rpn"]["max_per_img"]),
            batch=train["rpn"]["sampler"]["num"],
        ),
        roi=RoIConfig(
            num_classes=heads[0]["num_classes"],
            channels=neck["out_channels"],
            conv_channels=heads[0]["conv_out_channels"],
            hidden=heads[0]["fc_out_channels"],
            stages=tuple(
                StageConfig(
                    iou=stage["assigner"]["pos_iou_thr"], stds=tuple(head["bbox_coder"]["target_stds"]), weight=weight
                )
                for stage, head, weight in zip(stage_train, heads, weights, strict=True)
            ),
            class_agnostic=heads[0]["reg_class_agnostic"],
            box_loss_beta=loss_box.get("beta", 0.0) if loss_box["type"] == "SmoothL1Loss" else 0.0,
            mask="per_stage" if len(heads) > 1 else "one",
            low_quality="reassign" if stage_train[0]["assigner"]["match_low_quality"] else "off",
            batch=stage_train[0]["sampler"]["num"],
            min_score=test["rcnn"]["score_thr"],
            nms_iou=test["rcnn"]["nms"]["iou_threshold"],
            max_detections=test["rcnn"]["max_per_img"],
        ),
        input_size=-(-max(height, width) // 16) * 16,
    )
    return parsed, (height // 16, width // 16)


def read_detectron2(config: dict[str, Any], weights: Mapping[str, Tensor]) -> ViTDetConfig:
    """The sizes of a detectron2 fixture as our config."""
    tables = {int(k.split(".")[3]): len(t) for k, t in weights.items() if k.endswith("attn.rel_pos_h")}
    position = int((weights["backbone.net.pos_embed"].shape[1] - 1) ** 0.5)
    stages = 3 if "roi_heads.box_head.1.fc1.weight" in weights else 1
    return ViTDetConfig(
        classes=tuple(f"class {n}" for n in range(config["nc"])),
        backbone=ViTConfig(
            width=config["embed"],
            depth=config["depth"],
            heads=config["heads"],
            mlp_width=4 * config["embed"],
            image_size=config["img"],
            position_size=position,
            window_size=config["win"],
            global_blocks=tuple(i for i, rows in sorted(tables.items()) if rows != 2 * config["win"] - 1),
            drop_path=0.0,
        ),
        pyramid=PyramidConfig(channels=config["ch"]),
        rpn=detectron2_rpn(
            channels=config["ch"],
            candidates=tuple(config["pre"]),
            proposals=tuple(config["post"]),
            batch=config["rb"],
        ),
        roi=detectron2_roi(
            stages=stages,
            num_classes=config["nc"],
            channels=config["ch"],
            conv_channels=config["ch"],
            hidden=config["fc"],
            batch=config["bb"],
            max_detections=config["top"],
        ),
        input_size=config["img"],
    )


def unpack(bits: Tensor, width: int) -> Tensor:
    """Masks from ``numpy.packbits`` over the width."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1, count=width).astype(bool))


class ModelCheck:
    """One fixture folder of a whole model."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder, self.report = folder, report
        self.config = json.loads((folder / "config.json").read_text())
        self.meta = json.loads((folder / "meta.json").read_text())
        self.family: Family = "vitae_repo" if "model" in self.config else "detectron2"
        weights = load_file(folder / "weights.safetensors")
        base = folder
        if (
            self.family == "vitae_repo"
            and "backbone.patch_embed.proj.weight" not in weights
            and not any(".RC." in key for key in weights)
        ):
            base = folder.parent / self.config["family"]
            weights = {**load_file(base / "weights.safetensors"), **weights}
            weights = {k: v for k, v in weights.items() if not self._replaced(k)}
        elif self.family == "detectron2" and not any(key.startswith("backbone.") for key in weights):
            base = folder.parent / "d2_vit"
            own = weights
            weights = {k: v for k, v in load_file(base / "weights.safetensors").items() if "roi_heads.box" not in k}
            weights |= own
        self.base = base
        self.rows_w: dict[str, int] = {}
        if self.family == "vitae_repo":
            self.ours, grid = read_mmdet(self.config)
        else:
            self.ours, grid = read_detectron2(self.config, weights), (0, 0)
        self.model = ViTDet(self.ours)
        self._load(weights, grid)
        self.tensors: dict[str, Tensor] = {}
        self.images, self.frames = self._inputs()

    @staticmethod
    def _replaced(key: str) -> bool:
        """Heads of the base model that a cascade has in numbered lists."""
        return key.startswith(("roi_head.bbox_head.", "roi_head.mask_head.")) and not key.split(".")[2].isdigit()

    # ------------------------------------------------------------------ loading

    def _load(self, weights: dict[str, Tensor], grid: tuple[int, int]) -> None:
        """Loads through the converter; tables of fixtures that are no squares are cut to what is used."""
        vit = self.ours.vit
        if self.family == "vitae_repo" and grid[0] != grid[1]:
            net = self.model.backbone
            if "backbone.pos_embed" in weights:
                weights["backbone.pos_embed"] = weights["backbone.pos_embed"].unflatten(1, grid)
                net.pos_embed = nn.Parameter(torch.zeros(1, *grid, vit.width))
            for index in vit.global_blocks:
                name = f"backbone.blocks.{index}.attn.rel_pos_w"
                self.rows_w[name] = len(weights[name])
                weights[name] = weights[name][: 2 * grid[1] - 1]
                list(net)[index].attn.rel_pos_w = nn.Parameter(torch.zeros_like(weights[name]))
        expected = {key: tuple(t.shape) for key, t in self.model.state_dict().items()}
        state, mapped = from_official(weights, expected, head_dim=vit.width // vit.heads, source=str(self.folder))
        mapped.check()
        self.model.load_state_dict(state)
        back = to_official(state, self.ours, self.family)
        for name, tensor in weights.items():
            if not name.endswith("backbone.net.pos_embed"):
                self.report.close(
                    f"{self.folder.name}/round trip of the weights", back[name].flatten(), tensor.flatten(), 1e-6
                )
        self.model.eval()

    def _inputs(self) -> tuple[Tensor, list[Frame]]:
        if self.family == "vitae_repo":
            metas = self.meta["img_metas"]
            frames = [
                Frame(
                    tuple(meta["img_shape"][:2]),
                    tuple(meta["ori_shape"][:2]),
                    (meta["scale_factor"][0], meta["scale_factor"][1]),
                )
                for meta in metas
            ]
            return load_file(self.base / "io_features.safetensors")["image"].float() / 32, frames
        sizes, originals = self.config["sizes"], self.config["ori"]
        frames = [
            Frame(tuple(size), tuple(own), (size[1] / own[1], size[0] / own[0]))
            for size, own in zip(sizes, originals, strict=True)
        ]
        images = torch.zeros(len(sizes), 3, max(s[0] for s in sizes), max(s[1] for s in sizes))
        io = load_file(self.base / "io_eval.safetensors")
        declared = self.model.preprocess(Task.DETECTION)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (declared.mean, declared.std))
        for index, size in enumerate(sizes):
            images[index, :, : size[0], : size[1]] = (io[f"image_{index}"].float() - mean) / std
        return images, frames

    # ------------------------------------------------------------------ comparing

    def run(self) -> None:
        with torch.no_grad():
            for file in sorted(self.folder.glob("io_*.safetensors")):
                if file.stem != "io_train":
                    self._file(file)
            if self.family == "vitae_repo":
                self._predict_mmdet()
            else:
                self._predict_detectron2()
            self._done()
        self._file(self.folder / "io_train.safetensors")
        self._train()
        self._done()

    def _file(self, path: Path) -> None:
        for name, tensor in load_file(path).items():
            self.tensors[name] = tensor
            self.report.expect(f"{self.folder.name}", [name])

    def _done(self) -> None:
        self.tensors.clear()

    def _close(self, name: str, ours: Tensor, tolerance: float = FLOAT) -> None:
        if name in self.tensors:
            self.report.close(f"{self.folder.name}/{name}", ours, self.tensors[name], tolerance)

    def _same(self, name: str, ours: Tensor, allowed: float = 0.0) -> None:
        if name in self.tensors:
            self.report.same(f"{self.folder.name}/{name}", ours, self.tensors[name], allowed=allowed)

    def _skip(self, *names: str) -> None:
        for name in names:
            self.report.skip(f"{self.folder.name}/{name}")

    def _hook(self, module: nn.Module, name: str, shape: Callable[[Tensor], Tensor]) -> Any:
        return module.register_forward_hook(lambda _m, _i, out: self._close(name, shape(out)))

    # ------------------------------------------------------------------ prediction

    def _features(self) -> list[Tensor]:
        """The pyramid, with every recorded layer compared on the way."""
        mmdet = self.family == "vitae_repo"
        hooks = []
        net = self.model.backbone

        def tokens(out: Tensor) -> Tensor:
            return out[:1].flatten(1, 2) if mmdet else out[:1]

        for index, block in enumerate(net):
            hooks += [self._hook(block, name, tokens) for name in (f"block_{index}_out", f"nc_2_{index}_out")]
            if block.parallel_conv is not None:
                names = (f"block_{index}_pcm_out", f"nc_2_{index}_pcm_out")
                hooks += [
                    self._hook(block.parallel_conv, name, lambda out: out[:1].permute(0, 3, 1, 2)) for name in names
                ]
            inner = block._attend

            def attend(x: Tensor, inner: Callable[[Tensor], Tensor] = inner, index: int = index) -> Tensor:
                out = inner(x)
                self._close(f"block_{index}_attn_out", tokens(out))
                return out

            object.__setattr__(block, "_attend", attend)
        if isinstance(self.ours.backbone, ViTAEConfig):
            for index, cell in enumerate(net.cells):
                hooks += [
                    self._hook(cell.reduce, f"rc_{index}_prm_out", lambda out: out[:1].flatten(2).mT),
                    self._hook(
                        cell,
                        f"rc_{index}_out",
                        lambda out, i=index: self._thin(out[:1].flatten(2).mT, f"rc_{i}_out", 2),
                    ),
                ]
                if cell.local is not None:
                    hooks.append(
                        self._hook(
                            cell.local,
                            f"rc_{index}_pcm_out",
                            lambda out, i=index: self._thin(out[:1], f"rc_{i}_pcm_out", 1),
                        )
                    )
        else:
            hooks.append(
                self._hook(
                    net.patch_embed,
                    "patch_embed_out",
                    lambda out: out[:1].flatten(2).mT if mmdet else out[:1].permute(0, 2, 3, 1),
                )
            )
            grid = (self.images.shape[2] // 16, self.images.shape[3] // 16)
            self._close("pos_embed_resized", resize_position(net.pos_embed, grid))
        if net.norm is not None:
            hooks.append(self._hook(net.norm, "norm_out", lambda out: out.flatten(1, 2)))
        levels = self.model.features(self.images)
        for hook in hooks:
            hook.remove()
        for block in net:
            object.__delattr__(block, "_attend")
        last = net(self.images).permute(0, 3, 1, 2)
        for index, scaled in enumerate(self.model.pyramid.scales([last])):
            self._close(f"backbone_out_{index}", scaled[:1])
            self._close(f"backbone_out_{index}_ch8", scaled[:1, ::8])
        for index, level in enumerate(levels):
            self._close(f"neck_out_{index}", level[:1])
            self._close(f"neck_out_{index}_ch4", level[:1, ::4])
            self._close(f"feat_p{index + 2}", level[:1])
        self._skip("image", "image_0", "image_1")
        return levels

    def _thin(self, out: Tensor, name: str, axis: int) -> Tensor:
        """Every n-th channel, where the fixture keeps only those."""
        if name not in self.tensors:
            return out
        kept = self.tensors[name].shape[axis]
        step = -(-out.shape[axis] // kept)
        return out[:, :, ::step] if axis == 2 else out[:, ::step]

    def _maps(self, values: Tensor, level: Tensor, per: int) -> Tensor:
        """``[B, A, ...]`` back to the official ``[1, per, h, w]`` of the first image."""
        h, w = level.shape[2:]
        return values[:1].reshape(1, h, w, per).permute(0, 3, 1, 2)

    def _rpn(self, levels: list[Tensor], names: tuple[str, str]) -> tuple[RPNOutput, list[Tensor]]:
        out = self.model.rpn(levels)
        for index, (logits, deltas, level) in enumerate(zip(out.logits, out.deltas, levels, strict=True)):
            ratios = len(self.ours.rpn.ratios)
            for name, maps in (
                (names[0], self._maps(logits, level, ratios)),
                (names[1], self._maps(deltas.flatten(1), level, 4 * ratios)),
            ):
                self._close(f"{name}_{index}", maps)
                self._close(f"{name}_{index}_sub2", maps[..., ::2, ::2])
        found = self.model.rpn.proposals(out, [frame.input_hw for frame in self.frames])
        for image, one in enumerate(found):
            scores = one.logits.sigmoid() if self.family == "vitae_repo" else one.logits
            self._proposals(f"proposals_{image}", one.boxes_xyxy, scores)
        return out, [one.boxes_xyxy for one in found]

    def _proposals(self, name: str, boxes: Tensor, scores: Tensor) -> None:
        """Boxes with scores; where the original's own scores tie, its order (of an unstable sort) is free."""
        ours = torch.cat([boxes, scores[:, None]], dim=1)
        reference = self.tensors.get(name)
        if reference is not None and ours.shape == reference.shape:
            for row in range(len(ours) - 1):
                tied = float(reference[row, 4] - reference[row + 1, 4]) <= TIE
                if tied and torch.allclose(ours[row, :4], reference[row + 1, :4], atol=1e-2):
                    ours[[row, row + 1]] = ours[[row + 1, row]]
        self._close(name, ours)

    def _predict_mmdet(self) -> None:
        levels = self._features()
        _, proposals = self._rpn(levels, ("rpn_cls", "rpn_reg"))
        trace = Trace()
        found = self._detect(levels, proposals, trace)
        values = trace.values
        if len(self.ours.roi.stages) > 1:
            logits = []
            for number in range(len(self.ours.roi.stages)):
                self._close(f"stage{number}_rois", with_image(values[f"rois_{number}"]))
                self._close(f"stage{number}_cls_score", values[f"logits_{number}"])
                self._close(f"stage{number}_bbox_pred", values[f"deltas_{number}"])
                logits.append(values[f"logits_{number}"])
            self._close("avg_cls_score", torch.stack(logits).mean(0))
        else:
            rois = with_image(proposals)
            self._close("rois", rois)
            self._same("roi_levels", level_of(rois[:, 1:], len(self.ours.roi.strides)))
            self._close("cls_score", values["logits_0"])
            self._close("bbox_pred", values["deltas_0"].flatten(1))
            if "roi_feat_index" in self.tensors:
                picked = self.tensors["roi_feat_index"]
                pooled = self.model.roi._pool(levels, proposals, 7)
                self._close("bbox_roi_feats", pooled[picked])
                self._same("roi_feat_index", picked)
        self._input_frame(levels, proposals)
        self._masks(levels, found)
        for image, (one, frame) in enumerate(zip(found, self.frames, strict=True)):
            full = torch.cat([one.original_xyxy, one.scores[:, None]], dim=1)
            self._close(f"det_bboxes_orig_{image}", full)
            self._same(f"det_labels_orig_{image}", one.class_ids)
            order = one.class_ids.sort(stable=True).indices
            self._close(f"result_bboxes_{image}", full[order])
            self._same(f"result_labels_{image}", one.class_ids[order])
            assert one.masks is not None
            pasted = paste_masks(one.masks[order], one.original_xyxy[order], frame.original_hw)
            self._packed(f"result_masks_packed_{image}", pasted)

    def _detect(self, levels: list[Tensor], proposals: list[Tensor], trace: Trace) -> list[Detections]:
        roi = self.model.roi
        scores, boxes = roi.score_boxes(levels, proposals, self.frames, trace=trace)
        found = [roi.select(*one) for one in zip(scores, boxes, self.frames, strict=True)]
        roi.add_masks(levels, found)
        whole = self.model.detect(self.images, self.frames, masks=True)
        for one, other in zip(found, whole, strict=True):
            self.report.close(f"{self.folder.name}/the road of predict", other.original_xyxy, one.original_xyxy, FLOAT)
            assert one.masks is not None and other.masks is not None
            self.report.close(f"{self.folder.name}/masks of predict", other.masks, one.masks, FLOAT)
        return found

    def _input_frame(self, levels: list[Tensor], proposals: list[Tensor]) -> None:
        """Detections as the original gives them without going back to the original picture."""
        scores, boxes = self.model.roi.score_boxes(levels, proposals, self.frames)
        for image, (score, box, frame) in enumerate(zip(scores, boxes, self.frames, strict=True)):
            inner = Frame(frame.input_hw, frame.input_hw, (1.0, 1.0))
            one = self.model.roi.select(score, box, inner)
            self._close(f"det_bboxes_input_{image}", torch.cat([one.boxes_xyxy, one.scores[:, None]], dim=1))
            self._same(f"det_labels_input_{image}", one.class_ids)

    def _masks(self, levels: list[Tensor], found: list[Detections]) -> None:
        boxes = [one.boxes_xyxy for one in found]
        self._close("mask_rois", with_image(boxes))
        pooled = self.model.roi._pool(levels, boxes, 14)
        self._close("mask_roi_feats", pooled[:4])
        classes = torch.cat([one.class_ids for one in found])
        self._close("mask_logits_selected", self.model.roi.mask_heads[0].of_classes(pooled, classes))

    def _packed(self, name: str, masks: Tensor) -> None:
        if name in self.tensors:
            width = masks.shape[-1]
            self.report.same(f"{self.folder.name}/{name}", masks, unpack(self.tensors[name], width), allowed=MASK_SHARE)

    def _predict_detectron2(self) -> None:
        levels = self._features()
        _, proposals = self._rpn(levels, ("rpn_logits", "rpn_deltas"))
        trace = Trace()
        found = self._detect(levels, proposals, trace)
        if "cls_logits" in self.tensors:
            self._close("cls_logits", trace.values["logits_0"])
            self._close("box_deltas", trace.values["deltas_0"].flatten(1))
            picked = self.tensors["box_roi_index"]
            self._close("box_roi_feats", self.model.roi._pool(levels, proposals, 7)[picked])
            self._same("box_roi_index", picked)
        for image, (one, frame) in enumerate(zip(found, self.frames, strict=True)):
            assert one.masks is not None
            self._close(f"det_boxes_{image}", one.boxes_xyxy)
            self._close(f"det_scores_{image}", one.scores)
            self._same(f"det_classes_{image}", one.class_ids)
            kept = self.tensors[f"det_mask_probs_{image}"].shape[0]
            self._close(f"det_mask_probs_{image}", one.masks[:kept, None])
            self._close(f"out_boxes_{image}", one.original_xyxy)
            self._close(f"out_scores_{image}", one.scores)
            self._same(f"out_classes_{image}", one.class_ids)
            pasted = paste_masks(one.masks, one.original_xyxy, frame.original_hw)
            self._packed(f"out_masks_packed_{image}", pasted)

    # ------------------------------------------------------------------ training

    def _batch(self) -> Batch:
        targets = []
        mmdet = self.family == "vitae_repo"
        names = ("gt_bboxes", "gt_labels") if mmdet else ("gt_boxes", "gt_classes")
        size_hw = (int(self.images.shape[2]), int(self.images.shape[3]))
        for image, frame in enumerate(self.frames):
            boxes, classes = (self.tensors[f"{name}_{image}"] for name in names)
            packed = self.tensors[f"gt_masks_packed_{image}"]
            masks = unpack(packed, size_hw[1] if mmdet else frame.input_hw[1])
            targets.append(
                Target(
                    boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size_hw),
                    class_ids=classes,
                    masks=tv_tensors.Mask(masks),
                )
            )
            self._skip(*[f"{name}_{image}" for name in names], f"gt_masks_packed_{image}")
        return Batch(
            images=self.images,
            task=Task.INSTANCE,
            origins=[
                Origin(dataset="", image_id=i, path=None, size_hw=f.original_hw) for i, f in enumerate(self.frames)
            ],
            input_sizes_hw=[frame.input_hw for frame in self.frames],
            targets=targets,
            classes=ClassList.from_names(self.ours.classes),
        )

    def _train(self) -> None:
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, Performer):
                module.dropout.p = 0.0
        batch = self._batch()
        kept: dict[str, Any] = {}
        rpn_loss, proposals, roi_loss = self.model.rpn.loss, self.model.rpn.proposals, self.model.roi.loss
        trace = Trace()

        def keep_rpn(out: RPNOutput, *args: Any, **kwargs: Any) -> Any:
            kept["rpn"] = out
            return rpn_loss(out, *args, **kwargs)

        def keep_proposals(*args: Any) -> Any:
            kept["proposals"] = proposals(*args)
            return kept["proposals"]

        def keep_roi(*args: Any, **kwargs: Any) -> Any:
            return roi_loss(*args, trace=trace, **kwargs)

        for owner, name, function in (
            (self.model.rpn, "loss", keep_rpn),
            (self.model.rpn, "proposals", keep_proposals),
            (self.model.roi, "loss", keep_roi),
        ):
            object.__setattr__(owner, name, function)
        losses = self.model.loss(batch, choose=first)
        total = sum(losses.values())
        assert isinstance(total, Tensor)
        total.backward()
        losses = {name.removeprefix("instance_segmentation_"): value.detach() for name, value in losses.items()}
        for image, one in enumerate(kept["proposals"]):
            scores = one.logits.sigmoid() if self.family == "vitae_repo" else one.logits
            self._proposals(f"train_proposals_{image}", one.boxes_xyxy, scores)
        (self._train_mmdet if self.family == "vitae_repo" else self._train_detectron2)(
            kept["rpn"], trace, losses, total.detach(), batch
        )
        self._gradients()

    def _train_mmdet(
        self, rpn: RPNOutput, trace: Trace, losses: dict[str, Tensor], total: Tensor, batch: Batch
    ) -> None:
        for image, target in enumerate(rpn.targets):
            assigned = torch.where(target.label == 1, target.index + 1, target.label)
            self._same(f"rpn_assign_gt_inds_{image}", assigned)
            self._same(f"rpn_pos_inds_{image}", target.positives)
            self._same(f"rpn_neg_inds_{image}", target.negatives)
        for ours, name in (("loss_rpn_cls", "loss.loss_rpn_cls"), ("loss_rpn_box", "loss.loss_rpn_bbox")):
            self.tensors[name] = self.tensors[name].sum()
            self._close(name, losses[ours], LOSS)
        cascade = len(self.ours.roi.stages) > 1
        for number, stage in enumerate(self.ours.roi.stages):
            prefix, loss, own = (f"s{number}", f"s{number}.", f"_{number}") if cascade else ("rcnn", "", "")
            self._close(f"loss.{loss}loss_cls", losses[f"loss_cls{own}"], LOSS)
            self._close(f"loss.{loss}loss_bbox", losses[f"loss_box{own}"], LOSS)
            self._close(f"loss.{loss}loss_mask", losses[f"loss_mask{own}"], LOSS)
            # The accuracy is a display of the original; it follows from logits and labels, both compared.
            self._skip(f"loss.{loss}acc")
            regions = trace.values[f"regions_{number}"]
            labels, goals, masks = [], [], []
            for image, (one, target) in enumerate(zip(regions, batch.targets, strict=True)):
                index, label = one.candidates
                self._same(f"{prefix}_assign_gt_inds_{image}", torch.where(label == 1, index + 1, label))
                count = int((one.label == 1).sum())
                positives, negatives = (
                    (label == 1).nonzero()[:count, 0],
                    (label == 0).nonzero()[: len(one.label) - count, 0],
                )
                self._same(f"{prefix}_pos_inds_{image}", positives)
                self._same(f"{prefix}_neg_inds_{image}", negatives)
                self._close(f"{prefix}_sampled_boxes_{image}", one.boxes_xyxy)
                classes = torch.full_like(one.index, self.ours.roi.num_classes)
                classes[:count] = target.class_ids[one.index[:count]]
                labels.append(classes)
                goal = torch.zeros(len(one.label), 4)
                goal[:count] = vitdet_pure.encode(one.boxes_xyxy[:count], target.boxes[one.index[:count]], stage.stds)
                goals.append(goal)
                masks.append(
                    mask_targets(target.masks.as_subclass(Tensor), one.boxes_xyxy[:count], one.index[:count], 28)
                )
            self._same(f"{prefix}_labels", torch.cat(labels))
            self._close(f"{prefix}_bbox_targets", torch.cat(goals))
            self._same(f"{prefix}_mask_targets_count", torch.tensor(sum(len(m) for m in masks)))
            name = f"{prefix}_mask_targets_packed"
            reference = unpack(self.tensors[name], 28)
            self.report.same(
                f"{self.folder.name}/{name}", torch.cat(masks)[: len(reference)], reference, allowed=MASK_SHARE
            )
        self._close("loss.total", total, LOSS)

    def _train_detectron2(
        self, rpn: RPNOutput, trace: Trace, losses: dict[str, Tensor], total: Tensor, batch: Batch
    ) -> None:
        for image, target in enumerate(rpn.targets):
            drawn = torch.full_like(target.label, -1)
            drawn[target.positives], drawn[target.negatives] = 1, 0
            self._same(f"rpn_labels_{image}", drawn)
            region = trace.values["regions_0"][image]
            self._close(f"roi_boxes_{image}", region.boxes_xyxy)
            truth = batch.targets[image].class_ids
            classes = torch.where(region.label == 1, truth[region.index], self.ours.roi.num_classes)
            self._same(f"roi_classes_{image}", classes)
        names = {"loss_rpn_cls": "loss_rpn_cls", "loss_rpn_loc": "loss_rpn_box", "loss_mask": "loss_mask"}
        cascade = len(self.ours.roi.stages) > 1
        for number in range(len(self.ours.roi.stages)):
            theirs, ours = (f"_stage{number}", f"_{number}") if cascade else ("", "")
            names |= {f"loss_cls{theirs}": f"loss_cls{ours}", f"loss_box_reg{theirs}": f"loss_box{ours}"}
        for theirs, ours in names.items():
            self._close(f"loss.{theirs}", losses[ours], LOSS)
        self._close("loss.total", total, LOSS)

    def _gradients(self) -> None:
        """Gradients under official names and in the official parametrisation."""
        vit = self.ours.vit
        grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.model.named_parameters()}
        official = to_official(grads, self.ours, self.family)
        for name, grad in official.items():
            if ".rel_pos_" in name and self.family == "vitae_repo":
                # Ours is theirs over sqrt(head_dim); to_official multiplied by it, the chain rule divides.
                grad = grad / (vit.width // vit.heads)
            if name in self.rows_w:
                grad = torch.cat([grad, grad.new_zeros(self.rows_w[name] - len(grad), grad.shape[1])])
            official[name] = grad
        norms = {name: norm for name, norm in self.meta["grad_norms"].items() if norm is not None}  # None: frozen
        floor = 1e-6 * max(norms.values())
        for name, norm in norms.items():
            own = float(official[name].norm())
            if max(norm, own) < floor:
                continue
            tolerance = self._allowed(name)
            self.report.close(f"{self.folder.name}/grad norm {name}", torch.tensor(own), torch.tensor(norm), tolerance)
        state = to_official(self.model.state_dict(), self.ours, self.family)
        for name in [name for name in self.tensors if name.startswith("after_train_step.")]:
            self._close(name, state[name.removeprefix("after_train_step.")])
        for name in [name for name in self.tensors if name.startswith("grad.")]:
            parameter = name.removeprefix("grad.")
            self._close(name, official[parameter].reshape(self.tensors[name].shape), self._allowed(parameter))

    def _allowed(self, parameter: str) -> float:
        """The rule's bound, or how far the original moves its own gradients of that part under 2e-6 weight noise."""
        file = "io_train.safetensors"
        moved = self.meta["sensitivity_to_2e-6_relative_weight_noise"]["values"].get(file, {})
        part = parameter.split(".")[0]
        shares = [
            change / self.meta["files"][file][name]["absmax"]
            for name, change in moved.items()
            if name.startswith(f"grad.{part}.")
        ]
        return max([GRADIENT, *shares])
