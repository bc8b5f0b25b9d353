"""GiT's pure functions against the original's: ``io_pure`` and ``meta_pure.json``."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision import tv_tensors

from saccade.data.resize import resize_bicubic, resize_bilinear
from saccade.data.transforms import collate
from saccade.layers.attention import decomposed_bias, relative_table
from saccade.layers.vit import resize_position
from saccade.metrics.grounding import grounding_accuracy
from saccade.metrics.semantic import official_percentages
from saccade.models.git import caption, detection, semantic
from saccade.models.git.config import DetectionConfig
from saccade.models.git.convert import our_key, resize_table
from saccade.models.git.grid import point_grid
from saccade.models.git.matching import assign_points, point_costs
from saccade.models.label_maps import resize_scores
from saccade.samples import ClassList, Origin, Preprocess, Sample, Target
from saccade.tasks import Task
from saccade.tokens.boxes import decode_boxes
from saccade.tokens.contours import decode_polygons, encode_contours, rasterize, trace_contours
from saccade.tokens.vocabulary import TextVocabulary, clean_caption

if TYPE_CHECKING:
    from git_checks import Run

CPU = torch.device("cpu")


def numbered(run: Run, prefix: str) -> list[str]:
    return sorted({"/".join(name.split("/")[:2]) for name in run.tensors if name.startswith(prefix + "/")})


def check(run: Run) -> None:
    text = json.loads((run.folder / "meta_pure.json").read_text())["tensors"]
    for case in numbered(run, "grid"):
        rows, cols, window, per_window = run.take(f"{case}/cfg").tolist()
        grid = point_grid((rows, cols), window, (per_window, per_window), CPU)
        run.close(f"{case}/reference", grid.points_xy)
        run.same(f"{case}/window_members", grid.window_major.view(grid.windows, -1))
    check_tables(run)
    check_hungarian(run)
    check_boxes(run)
    check_masks(run)
    check_semantics(run)
    check_text(run, text)
    check_images(run)
    check_metrics(run, text)
    for name in [name for name in run.tensors if name.startswith("sam_load/src/")]:
        key = name.removeprefix("sam_load/src/")
        source, wanted = run.take(name), run.tensors[f"sam_load/dst/{key}"]
        ours = our_key(f"backbone.{key}")
        assert ours is not None
        resized = resize_table(ours, source, tuple(wanted.shape))
        assert resized is not None
        run.close(f"sam_load/dst/{key}", resized[0])


def check_tables(run: Run) -> None:
    source = run.take("interp/pos_embed_in")
    side = round(source.shape[1] ** 0.5)
    table = source.view(1, side, side, -1)
    rel = run.take("interp/rel_pos_in")
    for name in run.tensors:
        if name.startswith("interp/pos_embed_") and not name.endswith("_in"):
            h, w = map(int, name.rsplit("_", 1)[1].split("x"))
            run.close(name, resize_position(table, (h, w)).flatten(1, 2))
        if name.startswith("interp/rel_pos_size"):
            run.close(name, relative_table(rel, int(name.removeprefix("interp/rel_pos_size"))))
    q, rel_h, rel_w = run.take("relpos/q"), run.take("relpos/rel_h"), run.take("relpos/rel_w")
    h, w = (rel_h.shape[0] + 1) // 2, (rel_w.shape[0] + 1) // 2
    first, second = decomposed_bias(q[:, None], rel_h, rel_w, (h, w))
    bias = (first[..., :, None] + second[..., None, :]).flatten(3)[:, 0]
    run.close("relpos/attn_out", run.take("relpos/attn_in") + bias)


def check_hungarian(run: Run) -> None:
    for case in numbered(run, "hungarian"):
        h, w = run.take(f"{case}/img_shape").tolist()
        points, boxes = run.take(f"{case}/points"), run.take(f"{case}/gt_bboxes")
        run.take(f"{case}/gt_labels")
        run.close(f"{case}/cost", point_costs(points, boxes, (h, w)))
        side = round(len(points) ** 0.5)
        grid = point_grid((side, side), side, (side, side), CPU)
        grid = dataclasses.replace(grid, points_xy=points / torch.tensor([w, h]))
        rows, columns = assign_points(grid, boxes, (h, w))
        indices = torch.zeros(len(points), dtype=torch.long)
        indices[rows] = columns + 1
        run.same(f"{case}/gt_inds", indices)


def _grid_of(points: Tensor) -> Any:
    side = round(len(points) ** 0.5)
    return dataclasses.replace(point_grid((side, side), side, (side, side), CPU), points_xy=points)


def check_boxes(run: Run) -> None:
    num_bins, num_classes, h, w = run.take("box/cfg").tolist()
    points = run.take("box/reference")
    config = DetectionConfig(num_bins=num_bins)
    target = Target(
        boxes=tv_tensors.BoundingBoxes(run.take("box/gt_bboxes"), format="XYXY", canvas_size=(h, w)),
        class_ids=run.take("box/gt_labels"),
    )
    tokens, matched = detection.encode_target(target, _grid_of(points), (h, w), num_classes, config)
    run.same("box/input_tokens", tokens[:, :-1])
    run.same("box/target_tokens", tokens)
    weights = matched[:, None].float().repeat(1, tokens.shape[1])
    weights[:, 0] = 1
    run.close("box/weights", weights)
    run.same("box/pos_inds", matched.nonzero()[:, 0])
    run.same("box/neg_inds", (~matched).nonzero()[:, 0])
    decode_tokens = run.take("box/decode_tokens")[0]
    coords = decode_boxes(decode_tokens, points, num_bins)
    run.close("box/decode_coords", coords[None])
    scores = run.take("box/decode_scores")[0]
    top = len(run.tensors["box/result_scores"])
    best_scores, best = scores.flatten().topk(top)
    rows = best // scores.shape[1]
    factor = (1.75, 0.6)
    desc = json.loads((run.folder / "meta_pure.json").read_text())
    described = json.dumps(desc)
    if "scale_factor (w,h)=(" in described:
        factor = tuple(map(float, described.split("scale_factor (w,h)=(")[1].split(")")[0].split(",")))
    answer = detection.decode_instances(
        torch.cat([torch.zeros(top, 1, dtype=torch.long), decode_tokens[rows]], dim=1),
        points[rows],
        best_scores,
        best % scores.shape[1],
        classes=ClassList.from_names(map(str, range(scores.shape[1]))),
        input_hw=(h, w),
        network_hw=(h, w),
        original_hw=(h / factor[1], w / factor[0]),  # type: ignore[arg-type]
        config=config,
    )
    run.close("box/result_bboxes", answer.boxes_xyxy)
    run.close("box/result_scores", answer.scores)
    run.same("box/result_labels", answer.class_ids)


def check_masks(run: Run) -> None:
    h, w = run.take("mask/hw").tolist()

    def unpack(name: str) -> Tensor:
        packed = run.take(name).numpy()
        return torch.from_numpy(np.unpackbits(packed, axis=1)[:, : h * w].reshape(-1, h, w))

    masks = unpack("mask/masks_packed").bool()
    traced = [trace_contours(mask) for mask in masks]
    run.same("mask/contour_points", torch.cat([torch.cat(parts) for parts in traced]))
    run.same("mask/contour_lengths", torch.tensor([sum(map(len, parts)) for parts in traced]))
    largest = [max(parts, key=len) for parts in traced]
    run.same("mask/contour_points_largest_only", torch.cat(largest))
    run.same("mask/contour_lengths_largest_only", torch.tensor([len(points) for points in largest]))
    num_rays = run.tensors["mask/ray_distances"].shape[1]
    coded = encode_contours(masks, num_rays)
    run.same("mask/mass_centers", coded[:, :2])
    run.close("mask/ray_distances", coded[:, 2:])
    points = run.take("mask/reference")
    boxes, labels = run.take("mask/gt_bboxes"), run.take("mask/gt_labels")
    num_bins = int(run.tensors["mask/target_tokens"][:, -1].max())  # rays of unmatched points hold the highest bin
    background = int(run.tensors["mask/target_tokens"][:, 0].max())
    num_classes = background - num_bins - 1
    target = Target(
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(h, w)),
        class_ids=labels,
        masks=tv_tensors.Mask(masks),
    )
    config = DetectionConfig(num_bins=num_bins, num_rays=num_rays)
    tokens, matched = detection.encode_target(target, _grid_of(points), (h, w), num_classes, config)
    run.same("mask/input_tokens", tokens[:, :-1])
    run.same("mask/target_tokens", tokens)
    weights = matched[:, None].float().repeat(1, tokens.shape[1])
    weights[:, 0] = 1
    run.close("mask/weights", weights)
    run.same("mask/pos_inds", matched.nonzero()[:, 0])
    centers, lengths = run.take("mask/dec_centers"), run.take("mask/dec_distances")
    polygons = decode_polygons(centers, lengths)
    run.close("mask/dec_polygons", polygons)
    unit = decode_polygons(torch.zeros(1, 2), torch.ones(1, num_rays))[0]
    run.close(
        "mask/angles",
        torch.atan2(unit[0], unit[1])
        .remainder(2 * torch.pi)
        .where(unit[0].abs() > 1e-6, torch.atan2(unit[0], unit[1]).abs()),
    )
    clamped = polygons.clamp(min=0).minimum(torch.tensor([w, h])[:, None])
    for way in (polygons, clamped):
        drawn = np.stack([coco_mask.decode(rle) for rle in rasterize(way, (h, w))])
        theirs = unpack("mask/dec_masks_packed").numpy()
        if np.array_equal(drawn, theirs):
            break
    run.report.same(f"{run.file}/mask/dec_masks", torch.from_numpy(drawn), torch.from_numpy(theirs))
    run.same("mask/dec_mask_areas", torch.from_numpy(drawn.sum((1, 2), dtype=np.int64)))


def check_semantics(run: Run) -> None:
    for case in numbered(run, "sem"):
        labels = run.take(f"{case}/label")[0].long()
        scores = run.take(f"{case}/scores")
        block = round(scores.shape[2] ** 0.5)
        dense_shape = run.tensors[f"{case}/dense"].shape
        patches = (dense_shape[2] // block, dense_shape[3] // block)
        n = scores.shape[-1]
        tokens = semantic.encode_labels(labels, patches, block, n)
        run.same(f"{case}/target_tokens", tokens)
        counts = torch.tensor([int((tokens != n + 1).sum()), int((tokens == n + 1).sum())])
        run.same(f"{case}/num_pos_neg", counts)
        dense = scores.view(1, *patches, block, block, n).permute(0, 5, 1, 3, 2, 4).reshape(dense_shape)
        run.close(f"{case}/dense", dense)
        resized = resize_scores(dense[0], tuple(run.tensors[f"{case}/resized"].shape[1:]))
        run.close(f"{case}/resized", resized)
        run.same(f"{case}/pred", resized.argmax(0)[None])


def check_text(run: Run, text: dict[str, Any]) -> None:
    cleaned = next(value for value in text.values() if isinstance(value, dict) and "clean" in value)
    run.equal("clean", [clean_caption(raw) for raw in cleaned["raw"]], cleaned["clean"])
    # The ids of io_pure belong to the real bert-base-uncased vocabulary, of which the fixture records the pieces used.
    pieces: dict[int, str] = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    for index, tokens in enumerate(cleaned["tokens"]):
        pieces |= dict(zip(run.tensors[f"caption/{index}/input_tokens"][0].tolist(), tokens, strict=True))
    decoded = next(value for value in text.values() if isinstance(value, dict) and "ids" in value)
    for ids, words in zip(decoded["ids"], decoded["text"], strict=True):
        known = [number for number in ids if number not in (102, 30522)]
        missing = [number for number in known if number not in pieces]
        if missing:
            told = words.split()
            guess = [pieces.get(number) for number in known]
            if len(told) == len(guess):
                pieces.update({n: w for n, w in zip(known, told, strict=True) if n not in pieces})
    bos = next(number for number, piece in pieces.items() if piece == "[DEC]")
    lines = [pieces.get(number, f"[unused{number}]") for number in range(bos)]
    with tempfile.TemporaryDirectory(prefix="saccade-parity-") as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        vocabulary = TextVocabulary(path)
    for index, raw in enumerate(cleaned["raw"]):
        length = run.tensors[f"caption/{index}/input_tokens"].shape[1]
        inputs, wanted = caption.encode_captions([raw], vocabulary, length)
        run.same(f"caption/{index}/input_tokens", inputs)
        # The original's targets still hold the padding here; the loss leaves it out.
        targets = inputs.clone()
        targets[:, 0] = -100
        reference = run.tensors[f"caption/{index}/target_tokens"]
        run.same(f"caption/{index}/target_tokens", targets.where(reference != -100, torch.tensor(-100)))
        present = (inputs != 0).long()
        weights = torch.cat([present[:, 1:], torch.zeros_like(present[:, :1])], dim=1)
        run.same(f"caption/{index}/weights", weights)
        run.same(f"caption/{index}/num_pos", (wanted != -100).sum()[None])
    complete = [
        (ids, words)
        for ids, words in zip(decoded["ids"], decoded["text"], strict=True)
        if all(n in pieces for n in ids)
    ]
    run.equal("decode", [vocabulary.decode(ids) for ids, _ in complete], [words for _, words in complete])


def check_images(run: Run) -> None:
    bgr = run.take("image/bgr")
    image = bgr.permute(2, 0, 1)
    h, w = run.tensors["image/resize_bilinear_cv2"].shape[:2]
    array = np.ascontiguousarray(image.numpy())
    bilinear = torch.from_numpy(resize_bilinear(array, (h, w)))
    run.same("image/resize_bilinear_cv2", bilinear.permute(1, 2, 0))
    as_float = torch.from_numpy(resize_bilinear(array.astype(np.float32), (h, w)))
    run.close("image/resize_bilinear_cv2_float32", as_float.permute(1, 2, 0))
    run.same("image/resize_bicubic_pillow", torch.from_numpy(resize_bicubic(array, (h, w))).permute(1, 2, 0))
    samples = [
        Sample(
            image=tv_tensors.Image(part.flip(0)),
            task=Task.CAPTION,
            origin=Origin(dataset="fixture", image_id=i, path=None, size_hw=(part.shape[1], part.shape[2])),
        )
        for i, part in enumerate((bilinear, image))
    ]
    preprocess = Preprocess(size_hw=(h, w), pad_multiple=32)
    run.close("image/normalised_batch", collate(samples, preprocess).images)


def check_metrics(run: Run, text: dict[str, Any]) -> None:
    values = [value["value"] for value in text.values() if isinstance(value, dict) and "value" in value]
    semantic_values = next(value for value in values if "mIoU" in value)
    grounding_values = next(value for value in values if "miou" in value)
    predictions, labels = run.take("metric/iou_pred"), run.take("metric/iou_label")
    ours = official_percentages([p[0] for p in predictions], [t[0] for t in labels])
    for name, value in semantic_values.items():
        run.report.close(f"{run.file}/metric {name}", torch.tensor(ours[name]), torch.tensor(value), 1e-6)
    found = grounding_accuracy(run.take("metric/vg_pred"), run.take("metric/vg_gt"))
    for name, value in grounding_values.items():
        run.report.close(f"{run.file}/metric {name}", torch.tensor(found[name]), torch.tensor(value), 1e-5)
