"""Detection and instance segmentation as tokens: class, box, and with rays a mass centre and a polar contour.

Rows of the task vocabulary: bins 0..num_bins, then the classes, then background. Specs sections 5.1 and 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import DataError, UsageError
from saccade.layers.decoding import KVCache
from saccade.layers.distributed import mean_over_ranks
from saccade.models.git.config import DetectionConfig
from saccade.models.git.grid import PointGrid, ResponseLayout
from saccade.models.git.matching import assign_points, choose_points
from saccade.results import Instances, Prediction
from saccade.samples import Batch, ClassList, Target
from saccade.tasks import Task
from saccade.tokens.boxes import cxcywh_to_xyxy, decode_boxes, encode_boxes, quantize
from saccade.tokens.contours import decode_polygons, encode_contours, rasterize

if TYPE_CHECKING:
    from saccade.models.git.model import GiT, Observation


def vocabulary(model: GiT, task: Task, classes: Sequence[str]) -> Tensor:
    """Bins, classes and background, ``[num_bins + 1 + n + 1, C]``; background is minus the mean of the classes."""
    config = _config(model, task)
    bins = [str(value) for value in range(config.num_bins + 1)]
    rows = model.concepts([*bins, *classes])
    return torch.cat([rows, -rows[len(bins) :].mean(dim=0, keepdim=True)])


def class_names(batch: Batch) -> ClassList:
    """The class list of a batch.

    Raises:
        UsageError: The batch has none.
    """
    if batch.classes is None:
        raise UsageError(f"{batch.task} needs class names", fix='pass classes, e.g. --classes "cat,dog"')
    return batch.classes


# ---------------------------------------------------------------------- targets


def encode_target(
    target: Target, grid: PointGrid, size_hw: tuple[int, int], num_classes: int, config: DetectionConfig
) -> tuple[Tensor, Tensor]:
    """Target tokens of every grid point of one image.

    Args:
        target: Boxes, class ids and (with rays) contours or masks, in network-input pixels; crowd regions are left out.
        grid: The grid points.
        size_hw: Network input size.
        num_classes: Classes n.
        config: The interface.

    Returns:
        tokens ``[Q, L]`` int64 and matched ``[Q]`` bool. Unmatched points hold the background row in every place, but
        ``num_bins`` in the rays (the original clamps those).
    """
    if target.boxes is None or target.class_ids is None:
        raise DataError("a training sample has no boxes or no class ids", fix="use a detection or instance data set")
    boxes, class_ids = target.boxes.as_subclass(Tensor), target.class_ids
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    if target.is_crowd is not None:
        keep = ~target.is_crowd
    boxes, class_ids = boxes[keep], class_ids[keep]
    background = config.num_bins + 1 + num_classes
    tokens = torch.full((len(grid), config.length), background, dtype=torch.long, device=boxes.device)
    tokens[:, 7:] = config.num_bins
    points, objects = assign_points(grid, boxes, size_hw)
    reference = grid.points_xy[points]
    tokens[points, 0] = class_ids[objects] + config.num_bins + 1
    tokens[points, 1:5] = encode_boxes(boxes[objects], reference, size_hw, config.num_bins)
    if config.num_rays:
        contours = _contours(target, config.num_rays)[keep][objects]
        h, w = size_hw
        centre = contours[:, :2] / contours.new_tensor([w, h]) - reference + 0.5
        tokens[points, 5:7] = quantize(centre, config.num_bins)
        tokens[points, 7:] = quantize(contours[:, 2:] / w, config.num_bins)
    matched = torch.zeros(len(grid), dtype=torch.bool, device=boxes.device)
    matched[points] = True
    return tokens, matched


def _contours(target: Target, num_rays: int) -> Tensor:
    if target.contours is not None:
        return target.contours
    if target.masks is None:
        raise DataError("an instance segmentation sample has no masks", fix="use a data set with masks")
    return encode_contours(target.masks.as_subclass(Tensor), num_rays).to(target.masks.device)


def loss(model: GiT, batch: Batch, *, select: Tensor | None = None) -> dict[str, Tensor]:
    """Class, box and (with rays) polygon losses; see :meth:`GiT.loss`."""
    task, config = batch.task, _config(model, batch.task)
    classes = class_names(batch)
    size_hw = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    patch = model.config.vit.patch_size
    grid = model.grid(task, (size_hw[0] // patch, size_hw[1] // patch))
    coded = [encode_target(target, grid, size_hw, len(classes), config) for target in batch.targets]
    tokens = torch.stack([tokens for tokens, _ in coded])
    matched = torch.stack([matched for _, matched in coded])
    if select is None:
        select = choose_points(matched, grid, config.train_points_per_window)
    table = model.vocabulary_matrix(task, classes.names)
    kept_tokens = tokens.gather(1, select[..., None].expand(-1, -1, config.length))
    kept = matched.gather(1, select)
    states = model.training_states(batch, F.embedding(kept_tokens[..., :-1], table), select)

    def entropy(states: Tensor, first: int, last: int, wanted: Tensor) -> Tensor:
        return F.cross_entropy(
            (states @ table[first:last].T).float().flatten(0, -2), wanted.flatten() - first, reduction="sum"
        )

    bins = config.num_bins + 1
    shown = float(select.numel())
    positives = float(matched.sum())
    per_box = mean_over_ranks(shown + positives * 4, states).clamp(min=1)
    losses = {
        f"{task}_loss_cls": entropy(states[:, :, 0], bins, len(table), kept_tokens[:, :, 0]) / per_box,
        f"{task}_loss_reg": entropy(states[kept][:, 1:5], 0, bins, kept_tokens[kept][:, 1:5]) / per_box,
    }
    if config.num_rays:
        per_polygon = mean_over_ranks(shown + positives * (2 + config.num_rays), states).clamp(min=1)
        losses[f"{task}_loss_poly"] = entropy(states[kept][:, 5:], 0, bins, kept_tokens[kept][:, 5:]) / per_polygon
    return losses


# ---------------------------------------------------------------------- inference


def decode_points(
    model: GiT,
    seen: Observation,
    task: Task,
    tokens: Tensor,
    cache: KVCache,
    layout: ResponseLayout,
    table: Tensor,
    length: int,
) -> Tensor:
    """Greedy bins after the class token.

    Args:
        model: The model.
        seen: The observation.
        task: The task.
        tokens: ``[P]`` class token of every response.
        cache: Their keys and values so far.
        layout: Where they stand.
        table: The task vocabulary.
        length: Tokens in all, the class included.

    Returns:
        ``[P, length]`` int64.
    """
    config = _config(model, task)
    bins = table[: config.num_bins + 1]
    said = [tokens]
    for position in range(1, length):
        x = model.text_embed(table[said[-1]], torch.tensor(position, device=table.device))
        state = model.respond(seen, task, x[:, None], cache, layout)[:, 0]
        said.append((state @ bins.T).argmax(-1))
    return torch.stack(said, dim=-1)


def predict(model: GiT, batch: Batch, *, prune: bool = True) -> list[Prediction]:
    """Detections per image.

    Args:
        model: The model.
        batch: Network inputs.
        prune: Decode only the points that reach the top detections; False decodes every point, to the same result.
    """
    task, config = batch.task, _config(model, batch.task)
    classes = class_names(batch)
    table = model.vocabulary_matrix(task, classes.names)
    # Room for the grid and the task token only: most points end here.
    state, seen, cache, layout = model.begin(batch.images, task, 1)
    logits = state @ table[config.num_bins + 1 :].T
    scores = logits.float().softmax(-1)[:, :-1]
    class_tokens = logits.argmax(-1) + config.num_bins + 1
    b, per_image = len(batch), len(seen.grid)
    scores_BQK = scores.unflatten(0, (b, per_image))[:, seen.grid.row_major]
    top = min(config.max_detections, per_image * len(classes))
    best_scores, best = scores_BQK.flatten(1).topk(top, dim=-1)
    points_BD, labels_BD = best // len(classes), best % len(classes)
    if prune:
        rows_BD = seen.grid.row_major[points_BD] + torch.arange(b, device=best.device)[:, None] * per_image
        rows = rows_BD.unique()
        cache.select(rows, length=config.length + 1)
        seen, layout = seen.read_by(layout.window_of[rows])
        said = decode_points(model, seen, task, class_tokens[rows], cache, layout, table, config.length)
        tokens_BDL = said[torch.searchsorted(rows, rows_BD)]
    else:
        cache.select(torch.arange(len(class_tokens), device=best.device), length=config.length + 1)
        said = decode_points(model, seen, task, class_tokens, cache, layout, table, config.length)
        said = said.unflatten(0, (b, per_image))[:, seen.grid.row_major]
        tokens_BDL = said.gather(1, points_BD[..., None].expand(-1, -1, config.length))
    answers: list[Prediction] = []
    for index in range(b):
        points = seen.grid.points_xy[points_BD[index]]
        answers.append(
            decode_instances(
                tokens_BDL[index],
                points,
                best_scores[index],
                labels_BD[index],
                classes=classes,
                input_hw=batch.input_sizes_hw[index],
                network_hw=(int(batch.images.shape[-2]), int(batch.images.shape[-1])),
                original_hw=batch.origins[index].size_hw,
                config=config,
            )
        )
    return answers


def decode_instances(
    tokens: Tensor,
    points_xy: Tensor,
    scores: Tensor,
    class_ids: Tensor,
    *,
    classes: ClassList,
    input_hw: tuple[int, int],
    network_hw: tuple[int, int],
    original_hw: tuple[int, int],
    config: DetectionConfig,
) -> Instances:
    """Tokens of D detections to boxes and masks in the frame of the original image.

    Args:
        tokens: ``[D, L]``.
        points_xy: ``[D, 2]`` normalised grid points.
        scores: ``[D]``.
        class_ids: ``[D]``.
        classes: Their names.
        input_hw: Size of the image inside the network input.
        network_hw: Size of the network input.
        original_hw: Size of the original image.
        config: The interface.
    """
    h, w = network_hw
    size = points_xy.new_tensor([w, h])
    # The scale factor is (x, y); boxes and polygons are clamped to the network input first.
    back = points_xy.new_tensor([input_hw[1] / original_hw[1], input_hw[0] / original_hw[0]])
    corners = cxcywh_to_xyxy(decode_boxes(tokens[:, 1:5], points_xy, config.num_bins)).unflatten(-1, (2, 2))
    boxes = ((corners * size).clamp(min=0).minimum(size) / back).flatten(1)
    masks = None
    if config.num_rays:
        centres = (tokens[:, 5:7] / config.num_bins - 0.5 + points_xy) * size
        lengths = tokens[:, 7:] / config.num_bins * w
        polygons = decode_polygons(centres, lengths)
        polygons = polygons.clamp(min=0).minimum(size[:, None]) / back[:, None]
        masks = rasterize(polygons, original_hw)
    return Instances(
        boxes_xyxy=boxes.cpu(),
        scores=scores.cpu(),
        class_ids=class_ids.cpu(),
        classes=classes,
        size_hw=original_hw,
        masks=masks,
    )


def _config(model: GiT, task: Task) -> DetectionConfig:
    config = model.task_config(task)
    assert isinstance(config, DetectionConfig)
    return config
