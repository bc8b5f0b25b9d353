"""Training of small probes on frozen features, and the files that keep them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from saccade.errors import CheckpointError, TrainingError
from saccade.hub.unpickle import read_safetensors
from saccade.suites.base import Progress, SuiteOptions

_WARMUP = 0.05
_CLIP = 1.0
_SHOWN = 120  # signs of an entry in an error: class names may be a thousand


def fit_probe(
    probe: nn.Module,
    losses: Iterator[Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    progress: Progress,
    what: str = "probe",
) -> float:
    """Trains a probe with AdamW: 5 % of linear warm-up, then a cosine to 0; gradients clipped at norm 1.

    Args:
        probe: What of it wants gradients is trained; it is left in evaluation mode.
        losses: Endless: of one batch after the other, each computed when it is asked for.
        steps: Updates.
        learning_rate: Greatest rate.
        weight_decay: Of tensors with more than one axis.
        progress: Told how far it is.
        what: For the progress.

    Returns:
        The loss of the last batch.

    Raises:
        TrainingError: The loss is not finite.
    """
    trained = [parameter for parameter in probe.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    warmup = max(1, round(_WARMUP * steps))
    probe.train()
    last = math.nan
    for step in range(steps):
        done = (step - warmup) / max(1, steps - warmup)
        rate = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        loss = next(losses)
        last = float(loss.detach())
        if not math.isfinite(last):
            raise TrainingError(
                f"the loss of the {what} is {last}", where=f"step {step}", fix="a lower --learning-rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, _CLIP)
        optimizer.step()
        progress(what, step + 1, steps)
    probe.eval()
    return last


def shuffled(count: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless batches of indices: every pass in an order of its own, the rest of a pass left out."""
    size = min(batch_size, count)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def endless(
    item: Callable[[int], tuple[Tensor, str]], count: int, options: SuiteOptions
) -> Iterator[tuple[Tensor, list[str]]]:
    """Endless batches of network inputs and their texts, read by the loader processes of the options.

    Args:
        item: Index to network input and text.
        count: How many there are.
        options: Batch size, seed, workers.
    """
    order = shuffled(count, options.batch_size, torch.Generator().manual_seed(options.seed))
    loader = DataLoader(_Items(item, count), batch_sampler=order, num_workers=options.workers, collate_fn=_with_texts)
    yield from loader


class _Items(Dataset[tuple[Tensor, str]]):
    def __init__(self, item: Callable[[int], tuple[Tensor, str]], count: int) -> None:
        self._item, self._count = item, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return self._item(index)


def _with_texts(items: Sequence[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
    return torch.stack([image for image, _ in items]), [text for _, text in items]


class Schedule(TypedDict):
    """How long a probe is trained, and how fast at most."""

    steps: int
    learning_rate: float


def schedule(options: SuiteOptions, *, steps: int, learning_rate: float) -> Schedule:
    """What the options say, or where they say nothing, what is given."""
    return Schedule(steps=options.steps or steps, learning_rate=options.learning_rate or learning_rate)


def about_probe(
    kind: str,
    tower: str,
    options: SuiteOptions,
    *,
    train_root: Path | None,
    train_limit: int,
    steps: int,
    learning_rate: float,
    **more: object,
) -> dict[str, object]:
    """What a probe is trained on and how: what a kept one says of itself. Plain values.

    Args:
        kind: What the probe does.
        tower: Identity of the tower.
        options: The seed.
        train_root: Folder of the data; None where it is not said, or where the data are drawn.
        train_limit: Greatest number of samples (0 = all).
        steps: Updates.
        learning_rate: Greatest rate.
        more: What else it depends on; underscores become spaces.
    """
    return {
        "kind": kind,
        "tower": tower,
        "training folder": None if train_root is None else str(train_root.resolve()),
        "training limit": train_limit,
        "steps": steps,
        "learning rate": learning_rate,
        "seed": options.seed,
    } | {name.replace("_", " "): value for name, value in more.items()}


def keep_probe(path: Path | None, state: Mapping[str, Tensor], about: Mapping[str, object], note: str) -> None:
    """Writes a trained probe; does nothing without a path.

    Args:
        path: The file.
        state: Its weights.
        about: What it was trained on and how (:func:`about_probe`); where anything else is asked for, it is refused.
        note: The same for people, with what came out: how many steps on how many samples.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    metadata = {"about": json.dumps(about), "note": note}
    save_file({key: value.contiguous().cpu() for key, value in state.items()}, temporary, metadata=metadata)
    temporary.replace(path)


def kept_probe(path: Path | None, probe: nn.Module, about: Mapping[str, object]) -> str:
    """Loads a probe that was kept.

    Args:
        path: The file; None where none is kept.
        probe: Is filled.
        about: What would be trained now (:func:`about_probe`). An entry that is None is not compared.

    Returns:
        A note that says which probe was read and how it was trained; empty where there is none.

    Raises:
        CheckpointError: The file is damaged, of another form, or was trained for another tower, on other data or
            otherwise than asked for now; the message names every entry that differs.
    """
    if path is None or not path.is_file():
        return ""
    found, note = _said_of(path)
    differing = [
        f"{name}: {_show(found.get(name))}, now asked for: {_show(value)}"
        for name, value in about.items()
        if value is not None and found.get(name) != value
    ]
    if differing:
        raise CheckpointError(
            "the kept probe is not the one that is asked for",
            where=path,
            why="; ".join(differing),
            fix="delete the file or name another, and one is trained; or ask for what it was trained with",
        )
    state = read_safetensors(path)
    own = probe.state_dict()
    strange = sorted(key for key in state if key not in own or own[key].shape != state[key].shape)
    if strange:
        raise CheckpointError("the probe has another form", where=path, why=", ".join(strange[:3]))
    probe.load_state_dict(own | state)
    probe.eval()
    return f"the probe is the one kept in {path}: {note}"


def _said_of(path: Path) -> tuple[dict[str, Any], str]:
    """What a kept probe says of itself, and its note."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError("the probe cannot be read", where=path, why=str(error)) from error
    try:
        return dict(json.loads(metadata["about"])), metadata["note"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            "the file does not say how its probe was trained",
            where=path,
            why="it is no kept probe, or that of an earlier version",
            fix="delete the file or name another, and one is trained",
        ) from error


def _show(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shorten(text, _SHOWN, placeholder=" ...")
