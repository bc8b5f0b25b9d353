"""Semantic segmentation as tokens: every patch says a small block of labels (specs section 5.3).

Rows of the task vocabulary: the classes, then three identical background rows; the first of them is a possible answer,
the second stands for an ignored pixel among the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.labels import label_map
from saccade.models.git.config import SemanticConfig
from saccade.models.git.detection import class_names
from saccade.models.git.matching import choose_points
from saccade.models.label_maps import answers, require_known
from saccade.results import Prediction
from saccade.samples import IGNORE_LABEL, Batch
from saccade.tasks import Task

if TYPE_CHECKING:
    from saccade.models.git.model import GiT


def vocabulary(model: GiT, task: Task, classes: Sequence[str]) -> Tensor:
    """Classes and three background rows, ``[n + 3, C]``; background is minus the mean of the classes."""
    rows = model.concepts(list(classes))
    return torch.cat([rows, -rows.mean(dim=0, keepdim=True).expand(3, -1)])


def encode_labels(labels: Tensor, patches_hw: tuple[int, int], block: int, num_classes: int) -> Tensor:
    """Label tokens of every patch.

    Args:
        labels: ``[H, W]`` int64 at network-input size, :data:`IGNORE_LABEL` where unlabelled.
        patches_hw: The patch map.
        block: Labels per patch side.
        num_classes: Classes n; ignored pixels become token n + 1.

    Returns:
        ``[Q, block * block]``, patches row-major, labels of a block row-major.

    Raises:
        DataError: A label is neither a class id nor the ignore label.
    """
    rows, cols = patches_hw
    step_y, step_x = labels.shape[0] // (rows * block), labels.shape[1] // (cols * block)
    small = labels[::step_y, ::step_x]
    require_known(small, num_classes)
    tokens = small.masked_fill(small == IGNORE_LABEL, num_classes + 1)
    return tokens.view(rows, block, cols, block).transpose(1, 2).reshape(rows * cols, block * block)


def loss(model: GiT, batch: Batch, *, select: Tensor | None = None) -> dict[str, Tensor]:
    """Cross-entropy of the kept patches over the labelled pixels of all patches; see :meth:`GiT.loss`."""
    task, config = batch.task, _config(model, batch.task)
    classes = class_names(batch)
    patch = model.config.vit.patch_size
    patches_hw = (int(batch.images.shape[-2]) // patch, int(batch.images.shape[-1]) // patch)
    grid = model.grid(task, patches_hw)
    pairs = zip(batch.targets, batch.origins, strict=True)
    maps = [label_map(target, origin) for target, origin in pairs]
    tokens = torch.stack([encode_labels(labels, patches_hw, config.block, len(classes)) for labels in maps])
    if select is None:
        positive = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        select = choose_points(positive, grid, config.train_points_per_window)
    table = model.vocabulary_matrix(task, classes.names)
    kept = tokens.gather(1, select[..., None].expand(-1, -1, tokens.shape[2]))
    states = model.training_states(batch, F.embedding(kept[..., :-1], table), select)
    ignore = len(classes) + 1
    logits = (states @ table[: len(classes) + 1].T).float()
    total = F.cross_entropy(logits.flatten(0, -2), kept.flatten(), ignore_index=ignore, reduction="sum")
    # The divisor counts the labelled tokens of all patches, kept or not, as the original does.
    return {f"{task}_loss_cls": total / (tokens != ignore).sum().clamp(min=1)}


def label_scores(model: GiT, batch: Batch) -> tuple[Tensor, Tensor]:
    """Greedy decoding of every patch.

    Returns:
        scores ``[B, n, rows * block, cols * block]`` (softmax without the background column, not renormalised) and
        tokens ``[B, Q, block * block]`` row-major.
    """
    task, config = batch.task, _config(model, batch.task)
    classes = class_names(batch)
    table = model.vocabulary_matrix(task, classes.names)
    answers = table[: len(classes) + 1]
    length = config.block**2
    state, seen, cache, layout = model.begin(batch.images, task, length)
    scores, said = [], []
    for position in range(1, length + 1):
        logits = state @ answers.T
        scores.append(logits.float().softmax(-1)[:, :-1])
        said.append(logits.argmax(-1))
        if position < length:
            x = model.text_embed(table[said[-1]], torch.tensor(position, device=table.device))
            state = model.respond(seen, task, x[:, None], cache, layout)[:, 0]
    b, (rows, cols), block = len(batch), seen.grid.shape, config.block
    order = seen.grid.row_major
    scores_BQLK = torch.stack(scores, dim=1).unflatten(0, (b, -1))[:, order]
    tokens_BQL = torch.stack(said, dim=1).unflatten(0, (b, -1))[:, order]
    dense = scores_BQLK.view(b, rows, cols, block, block, len(classes)).permute(0, 5, 1, 3, 2, 4)
    return dense.reshape(b, len(classes), rows * block, cols * block), tokens_BQL


def predict(model: GiT, batch: Batch) -> list[Prediction]:
    """One label map per image, in the frame of the original image."""
    classes = class_names(batch)
    scores, _ = label_scores(model, batch)
    return answers(scores, batch, classes)


def _config(model: GiT, task: Task) -> SemanticConfig:
    config = model.task_config(task)
    assert isinstance(config, SemanticConfig)
    return config
