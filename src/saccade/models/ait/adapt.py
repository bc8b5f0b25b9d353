"""A trained solver for fewer tasks and other classes: its vocabulary keeps what it knows, at new places."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from saccade.errors import ConfigError, DataError
from saccade.models.ait.config import AiTConfig, ObjectsConfig
from saccade.models.ait.model import AiT
from saccade.samples import ClassList
from saccade.tasks import Task

ROWS = ("transformer.token_embed", "transformer.token_bias")
"""Parameters with a row per word of the vocabulary."""

_ALIKE = ("bins", "mask_codes", "depth_codes", "spare_rows")


def for_depth(config: AiTConfig) -> AiTConfig:
    """Depth alone."""
    return dataclasses.replace(config, detection=None, instance=None)


def for_objects(config: AiTConfig, task: Task, classes: ClassList, most: int) -> AiTConfig:
    """Objects of a data set alone.

    Args:
        config: Of a model that offers the task.
        task: Detection or instance segmentation.
        classes: Of the data set.
        most: Objects of the picture that has most of them; a sequence has room for as many.

    Raises:
        DataError: There are more objects than the table of positions has room for.
    """
    objects = config.detection if task is Task.DETECTION else config.instance
    assert objects is not None
    room = config.transformer.length // objects.tokens_per_object
    if most > max(room, objects.objects):
        raise DataError(
            f"a picture has {most} objects, and the model has room for {room}",
            why=f"{objects.tokens_per_object} tokens for each, {config.transformer.length} positions",
            fix="leave out the smallest objects or cut the pictures into parts, or fine-tune a detector (vitdet-nano)",
        )
    fitting = dataclasses.replace(objects, objects=max(most, objects.objects))
    detection: ObjectsConfig | None = fitting if task is Task.DETECTION else None
    return dataclasses.replace(
        config,
        classes=classes.names,
        category_ids=classes.category_ids,
        num_classes=len(classes),
        detection=detection,
        instance=None if detection else fitting,
        depth=None,
    )


def adapted_state(loaded: AiT, model: AiT) -> dict[str, Tensor]:
    """The weights of one solver for another one with fewer tasks, or with other classes.

    Coordinates, noise and codes move to their new rows of the vocabulary, and so do classes that both know by name; the
    rows of other classes stay as fresh as ``model`` has them. VQ-VAEs that ``model`` has no use for are left out.

    Args:
        loaded: The trained solver.
        model: What its weights are for; it is not changed.

    Raises:
        ConfigError: The vocabularies differ in more than their classes.
    """
    odd = [name for name in _ALIKE if getattr(loaded.config, name) != getattr(model.config, name)]
    if odd:
        raise ConfigError(
            "the vocabularies of the two models differ in more than their classes",
            where=f"model.{odd[0]}",
            why=", ".join(f"{n} {getattr(loaded.config, n)} -> {getattr(model.config, n)}" for n in odd),
            fix="keep those of the trained model, or start from it with init_from",
        )
    state, own = loaded.state_dict(), model.state_dict()
    old, new = _moved(loaded, model)
    for key in ROWS:
        rows = own[key].clone()
        if rows.shape[1:] == state[key].shape[1:]:  # another width stays as it is, for the caller to refuse
            rows[new] = state[key][old]
            state[key] = rows
    return {key: tensor for key, tensor in state.items() if key in own or "vqvae." not in key}


def _moved(loaded: AiT, model: AiT) -> tuple[Tensor, Tensor]:
    """Rows of the vocabulary that both models have: where they stand in the one, and in the other."""
    before, after = loaded.config, model.config
    names = [name for name in model.classes.names if name in loaded.classes.names]
    rows = []
    for config, listed in ((before, loaded.classes.names), (after, model.classes.names)):
        classes = [config.class_tokens.start + listed.index(name) for name in names]
        rest = range(config.class_tokens.stop, config.vocabulary)  # a reserved row, noise, codes, spare rows
        rows.append(torch.tensor([*range(config.class_tokens.start), *classes, *rest]))
    return rows[0], rows[1]
