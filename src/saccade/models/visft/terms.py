"""What the losses of the two heads with queries share.

Shape legend: B images, Q queries, L predictions (layers), K logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from saccade.errors import ConfigError


def require_classes(count: int, names: Sequence[str], category_ids: Sequence[int], *, where: str) -> None:
    """Refuses lists of another length than the head has classes.

    Args:
        count: Classes of the head.
        names: Their names; empty = unnamed.
        category_ids: The data set's own ids; empty = 0, 1, 2, ...
        where: The head.

    Raises:
        ConfigError: A list has another length.
    """
    for what, listed in (("class names", names), ("category ids", category_ids)):
        if listed and len(listed) != count:
            raise ConfigError(f"{len(listed)} {what} for a head of {count} classes", where=f"{where}.num_classes")


def class_entropy(logits_LBQK: Tensor, wanted_LBQ: Tensor, no_object_weight: float) -> Tensor:
    """Cross entropy of every layer, ``[L]``, divided by the weights of what the queries should say.

    Args:
        logits_LBQK: Class logits, "no object" last.
        wanted_LBQ: The logit that each query should have.
        no_object_weight: Weight of "no object"; that of the classes is 1.
    """
    layers = len(logits_LBQK)
    weights = logits_LBQK.new_ones(logits_LBQK.shape[-1])
    weights[-1] = no_object_weight
    entropy = F.cross_entropy(logits_LBQK.flatten(0, 2), wanted_LBQ.flatten(), weights, reduction="none")
    return entropy.view(layers, -1).sum(1) / weights[wanted_LBQ].view(layers, -1).sum(1)


def weigh_by_layer(terms: Mapping[str, Tensor], weights: Sequence[float]) -> dict[str, Tensor]:
    """Terms ``[L]`` times their weights, under official names: the last layer's has none but its own, the others' end
    with ``_0``, ``_1``, ..."""
    last = len(next(iter(terms.values()))) - 1
    return {
        name + suffix: term[layer] * weight
        for suffix, layer in [("", last), *((f"_{layer}", layer) for layer in range(last))]
        for (name, term), weight in zip(terms.items(), weights, strict=True)
    }
