"""How much memory the activations of a recipe take, per task and image: measured by running it, not estimated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from saccade.data.loader import SourceEntry, TrainLoader
from saccade.data.sources import SourceSpec, open_source
from saccade.models.git.model import GiT
from saccade.samples import Batch
from saccade.tasks import Task
from saccade.training.config import Precision, SourceConfig, TrainConfig
from saccade.training.engine import autocast
from saccade.training.seeding import seed_everything
from saccade.training.start import build_model

_SCENE_SIDES = (64, 1120)  # what the drawn world offers, in pixels


@dataclass(kw_only=True)
class MemoryRow:
    """Activation memory of one task.

    Attributes:
        task: The task.
        input_hw: Network input in pixels.
        images: Images of the batch that was run.
        gb_per_image: Activations that wait for the backward pass, in GB (10^9 bytes) per image.
        checkpointed_gb_per_image: The same with activation checkpointing; while a block is recomputed, about
            ``gb_per_image / depth`` comes on top.
        how: ``measured``: counted in a real forward pass, ``derived``: computed from measured rows.
    """

    task: Task
    input_hw: tuple[int, int]
    images: int
    gb_per_image: float
    checkpointed_gb_per_image: float
    how: str = "measured"


def measure_memory(config: TrainConfig, *, images: int = 1) -> list[MemoryRow]:
    """Runs one forward pass per task of a recipe on drawn scenes and counts what autograd keeps for the backward pass.

    Every kept tensor is counted once and let go at once, so that the measurement itself needs little memory. Weights,
    gradients and optimiser state are not part of it (16 bytes per parameter with AdamW in float32).

    Args:
        config: The recipe; its model, augmentation per task, precision and starting weights are used, its data is not
            read.
        images: Images per forward pass; more than one shows what batching shares.

    Returns:
        One row per task of the mixture, in its order.
    """
    seed_everything(config.seed)
    model, _ = build_model(config)
    model.train()
    first: dict[Task, SourceConfig] = {}
    for source in config.train:
        first.setdefault(source.task, source)
    rows = []
    for task, source in first.items():
        batch = _batch(source, model, images, config.seed)
        kept = []
        for checkpointing in (False, True):
            model.set_activation_checkpointing(checkpointing)
            kept.append(kept_bytes(model, batch, config.precision) / images / 1e9)
        rows.append(
            MemoryRow(
                task=task,
                input_hw=model.preprocess(task).size_hw,
                images=images,
                gb_per_image=kept[0],
                checkpointed_gb_per_image=kept[1],
            )
        )
    return rows


def kept_bytes(model: GiT, batch: Batch, precision: Precision = "float32") -> int:
    """Bytes that one forward pass keeps for the backward pass, the weights themselves left out.

    Args:
        model: In training mode.
        batch: Network inputs with targets.
        precision: Arithmetic of the forward pass.
    """
    count = _KeptStorages(model)
    device = next(model.parameters()).device
    with saved_tensors_hooks(count.pack, count.unpack), autocast(precision, device):
        model.loss(batch)
    return count.total


class _KeptStorages:
    """Counts the storages that autograd saves, each once however many views of it are saved."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._seen: dict[int, StorageWeakRef] = {}

    def pack(self, tensor: Tensor) -> None:
        """Counts a saved tensor and lets go of it."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        known = self._seen.get(address)
        # An address whose storage is gone is a new tensor in old memory.
        if address not in self._weights and (known is None or known.expired()):
            self._seen[address] = StorageWeakRef(storage)
            self.total += storage.nbytes()

    def unpack(self, saved: None) -> Tensor:
        """Never reached: no backward pass is run."""
        raise AssertionError(f"a backward pass cannot follow a measurement ({saved})")


def _batch(source: SourceConfig, model: GiT, images: int, seed: int) -> Batch:
    declared = model.preprocess(source.task)
    side = min(max(*declared.size_hw, _SCENE_SIDES[0]), _SCENE_SIDES[1])
    drawn = open_source(SourceSpec(task=source.task, reader="scenes", size=side))
    entry = SourceEntry(source=drawn, preprocess=declared, augment=source.augment, batch_size=images)
    batch: Batch = next(iter(TrainLoader([entry], seed=seed)))
    return dataclasses.replace(batch, images=batch.images.to(next(model.parameters()).device))
