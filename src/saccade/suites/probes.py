"""Training of small probes on frozen features, and the files that keep them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

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


def keep_probe(path: Path | None, state: Mapping[str, Tensor], about: str) -> None:
    """Writes a trained probe; does nothing without a path.

    Args:
        path: The file.
        state: Its weights.
        about: What it was trained on and for: another tower or other data are refused when it is read.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    save_file({key: value.contiguous().cpu() for key, value in state.items()}, temporary, metadata={"about": about})
    temporary.replace(path)


def kept_probe(path: Path | None, probe: nn.Module, about: str) -> bool:
    """Loads a probe that was kept; False where there is none.

    Raises:
        CheckpointError: The file is damaged, of another form, or was trained for another tower.
    """
    if path is None or not path.is_file():
        return False
    found = _about(path)
    if found != about:
        raise CheckpointError(
            "the probe was trained for something else",
            where=path,
            why=f"it says '{found}', wanted '{about}'",
            fix="name another file, and it is trained anew",
        )
    state = read_safetensors(path)
    own = probe.state_dict()
    strange = sorted(key for key in state if key not in own or own[key].shape != state[key].shape)
    if strange:
        raise CheckpointError("the probe has another form", where=path, why=", ".join(strange[:3]))
    probe.load_state_dict(own | state)
    probe.eval()
    return True


def _about(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("about", ""))
    except (SafetensorError, OSError) as error:
        raise CheckpointError("the probe cannot be read", where=path, why=str(error)) from error
