"""One optimiser step: forward, backward, clip, check, update. No data, no files, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from saccade.errors import CheckpointError, TrainingError
from saccade.layers.precision import autocast
from saccade.samples import Batch
from saccade.training.config import TrainConfig
from saccade.training.distributed import World
from saccade.training.ema import WeightAverage
from saccade.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from saccade.training.schedule import learning_rate
from saccade.training.seeding import seed_everything
from saccade.training.sharding import part_of, shard, whole

_SHOWN_SAMPLES = 16


@dataclass(kw_only=True)
class StepReport:
    """What one optimiser step did on this rank.

    Attributes:
        losses: One entry per batch: its task and its named losses, ``total`` included.
        images: Images of this rank.
        grad_norm: L2 norm of all gradients before clipping (after averaging over ranks).
        lr: Learning rate of the groups with multiplier 1.
    """

    losses: list[tuple[str, dict[str, float]]]
    images: int
    grad_norm: float
    lr: float


@runtime_checkable
class CountsTargets(Protocol):
    """A model whose loss is a mean over targets, and which can count them without looking at the pictures."""

    def count_targets(self, batch: Batch) -> int:
        """The targets that the loss of the batch is a mean over; more than 0."""
        ...


class _LossOf(nn.Module):
    """Gives ``model.loss`` the name ``forward``, which is what DistributedDataParallel hooks into."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.model.loss(batch)
        return losses


class Engine:
    """A model and everything that changes when it learns: weights, optimiser, averaged weights.

    Gradients are the mean over the batches of a step and over the ranks. In a mixture of sources ``together`` they are
    means over the batches of each task, added over the tasks. So two ranks with one batch each take the same step as
    one process that accumulates the same two batches, where the loss is a mean over images. Where it is one over
    targets, of which a batch may have many or few, the model has to count them (:class:`CountsTargets`): its batches
    then weigh by their targets, so that the step is the mean over the targets of all batches of a task. Without that
    every batch weighs the same, and accumulation is not quite a larger batch.

    A parameter that no batch of any rank used keeps ``grad = None`` and is skipped by AdamW (no decay either), with one
    process and with many.

    Args:
        model: The model, on ``world.device``.
        config: Steps, optimiser, precision, averaging, seed.
        world: This process among all.
    """

    def __init__(self, model: Any, config: TrainConfig, world: World) -> None:
        self.model, self.config, self.world = model, config, world
        sharded = config.parallel == "shard" and world.size > 1
        if sharded:
            shard(model, world)
        self.optimizer = build_optimizer(model, config.optim)
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay > 0 else None
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._replica: nn.Module = _LossOf(model)
        if world.size > 1 and not sharded:
            # One task per batch uses a part of the parameters: DDP has to look which ones. Buffers are constants, or a
            # codebook, which keeps itself alike in all processes.
            self._replica = DistributedDataParallel(self._replica, find_unused_parameters=True, broadcast_buffers=False)

    def step(self, index: int, batches: Sequence[Batch]) -> StepReport:
        """Takes one optimiser step.

        Args:
            index: 0-based number of the step in the run; decides learning rate, dropout and averaging.
            batches: The step's batches of this rank, already on the device.

        Raises:
            TrainingError: A loss or a gradient is not finite. Weights, optimiser and average are then untouched by this
                step.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        divisors = self._divisors(batches)
        losses = [self._backward(index, number, batches, divisors[number]) for number in range(len(batches))]
        gradients = [parameter.grad for parameter in self._trainable if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        reports, grad_norm = self._to_host(batches, losses, norm)
        self._require_finite(index, batches, reports, grad_norm)
        if self.config.optim.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._trainable, self.config.optim.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(index, group["multiplier"])
        self.optimizer.step()
        if self.average is not None:
            self.average.update(index)
        return StepReport(
            losses=reports,
            images=sum(len(batch) for batch in batches),
            grad_norm=grad_norm,
            lr=self._rate(index, 1.0),
        )

    def _rate(self, index: int, multiplier: float) -> float:
        return learning_rate(index, steps=self.config.steps, optim=self.config.optim, multiplier=multiplier)

    def _divisors(self, batches: Sequence[Batch]) -> list[float]:
        """What the loss of every batch is divided by: 1 over its share of the step."""
        counts = [1] * len(batches)
        if isinstance(self.model, CountsTargets) and len(batches) > 1:
            own = [self.model.count_targets(batch) for batch in batches]
            counts = [sum(ranks) for ranks in zip(*self.world.gather(own), strict=True)]
        divisors = []
        for batch, count in zip(batches, counts, strict=True):
            alike = [other for other, of in zip(counts, batches, strict=True) if of.task is batch.task]
            # In a drawn mixture a task has as large a part of the step as it has batches.
            parts, own_parts = (1, 1) if self.config.mixture == "together" else (len(batches), len(alike))
            divisors.append(parts * sum(alike) / (own_parts * count))
        return divisors

    def _backward(self, index: int, number: int, batches: Sequence[Batch], divisor: float) -> dict[str, Tensor]:
        """Forward and backward of one batch; returns its detached losses."""
        world = self.world
        seed_everything(self.config.seed, index, number * world.size + world.rank)
        last = number == len(batches) - 1
        # Only the last backward pass talks to the other ranks.
        hold = isinstance(self._replica, DistributedDataParallel) and not last
        with self._replica.no_sync() if hold else nullcontext():  # type: ignore[operator]
            with autocast(self.config.precision, world.device):
                losses: dict[str, Tensor] = self._replica(batches[number])
                total = torch.stack([loss.float() for loss in losses.values()]).sum()
            torch.autograd.backward(total / divisor)
        return {**{name: loss.detach() for name, loss in losses.items()}, "total": total.detach()}

    @staticmethod
    def _to_host(
        batches: Sequence[Batch], losses: Sequence[dict[str, Tensor]], norm: Tensor
    ) -> tuple[list[tuple[str, dict[str, float]]], float]:
        """Brings all numbers of the step to the host in one copy."""
        flat = torch.stack([value.float() for named in losses for value in named.values()] + [norm.float()]).tolist()
        numbers = iter(flat)
        reports = [
            (str(batch.task), {name: next(numbers) for name in named})
            for batch, named in zip(batches, losses, strict=True)
        ]
        return reports, flat[-1]

    def _require_finite(
        self, index: int, batches: Sequence[Batch], reports: list[tuple[str, dict[str, float]]], grad_norm: float
    ) -> None:
        complaints = [
            _describe(batch, losses, self.world.rank)
            for batch, (_, losses) in zip(batches, reports, strict=True)
            if not all(math.isfinite(value) for value in losses.values())
        ]
        if not self.world.any([bool(complaints) or not math.isfinite(grad_norm)])[0]:
            return
        everywhere = [complaint for rank in self.world.gather(complaints) for complaint in rank]
        self.optimizer.zero_grad(set_to_none=True)
        kind = "the loss" if everywhere else "a gradient"
        if not everywhere:
            rows = [_describe(b, losses, self.world.rank) for b, (_, losses) in zip(batches, reports, strict=True)]
            everywhere = [row for rank in self.world.gather(rows) for row in rank]
        raise TrainingError(
            f"{kind} is not finite at step {index + 1}",
            where="; ".join(everywhere),
            why=f"gradient norm {grad_norm}",
            fix="look at the samples named above (saccade data check); if they are sound, lower optim.lr, "
            "add optim.warmup_steps or use precision=float32. Nothing of this step was kept: "
            "the last checkpoint is whole and the run can be resumed from it",
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that learning changed, under ``model/``, ``optim/`` and ``ema/``.

        Frozen weights are not among it: they are those of the model. Every rank must ask at the same point; where
        weights are spread over processes, only the main one is given something.
        """
        state = {f"model/{name}": value for name, value in _changing(self.model).items()}
        state |= {f"optim/{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if self.average is not None:
            state |= {f"ema/{name}": value for name, value in self.average.tensors().items()}
        return self._gathered(state)

    def weights(self) -> dict[str, Tensor]:
        """The whole state of the model as it is to be used, averaged weights where averaging is on.

        Every rank must ask at the same point, as for :meth:`tensors`.
        """
        with self.weights_to_use():
            return self._gathered(self.model.state_dict())

    def _gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if not any(isinstance(value, DTensor) for value in tensors.values()):
            return tensors
        gathered = {}
        for name, value in tensors.items():
            tensor = whole(value)
            if self.world.is_main:
                gathered[name] = tensor.cpu()
        return gathered

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what :meth:`tensors` gave.

        Raises:
            CheckpointError: The tensors are of another model.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optim": {}, "ema": {}}
        for key, value in tensors.items():
            part, name = key.split("/", 1)
            parts[part][name] = value
        weights, given = _weights(self.model), parts["model"]
        odd = sorted((set(_changing(self.model)) - set(given)) | (set(given) - set(weights)))
        odd += [name for name in given if name not in odd and weights[name].shape != given[name].shape]
        if odd:
            raise CheckpointError("the training state is of another model", where=odd[:5])
        for name, value in given.items():
            weights[name].copy_(part_of(value, weights[name]))
        load_optimizer_tensors(self.optimizer, parts["optim"])
        if self.average is not None:
            self.average.load(parts["ema"])

    def weights_to_use(self) -> AbstractContextManager[None]:
        """Within the context the model holds the weights that are evaluated and saved: the average where it is on."""
        return self.average.swapped_in() if self.average is not None else nullcontext()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (shared ones once) and persistent buffers."""
    persistent = model.state_dict(keep_vars=True)
    buffers = {name: value for name, value in model.named_buffers() if name in persistent}
    return {name: value.detach() for name, value in (dict(model.named_parameters()) | buffers).items()}


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """What a step may change: trained parameters and buffers."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in _weights(model).items() if name not in frozen}


def _describe(batch: Batch, losses: dict[str, float], rank: int) -> str:
    shown = ", ".join(f"{name}={value:.4g}" for name, value in losses.items())
    sets = "/".join(sorted({origin.dataset for origin in batch.origins}))
    ids = ", ".join(str(origin.image_id) for origin in batch.origins[:_SHOWN_SAMPLES])
    more = len(batch.origins) - _SHOWN_SAMPLES
    return (
        f"rank {rank}, {batch.task} from {sets}, samples {ids}"
        + (f" and {more} more" if more > 0 else "")
        + f" ({shown})"
    )
