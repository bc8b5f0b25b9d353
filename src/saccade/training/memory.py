"""How much memory the activations of a recipe take, per task and image: counted in real forward passes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from saccade.data.large_scale_jitter import LargeScaleJitterAugment
from saccade.data.loader import SourceEntry, TrainLoader
from saccade.data.sources import SourceSpec, open_source
from saccade.errors import UsageError
from saccade.layers.precision import Precision, autocast
from saccade.models.git.config import GiTConfig
from saccade.models.systems import Model, build, extra_of, input_size, with_vit
from saccade.models.vitdet.config import ViTDetConfig
from saccade.samples import Batch
from saccade.tasks import Task
from saccade.training.config import SourceConfig, TrainConfig
from saccade.training.seeding import seed_everything
from saccade.training.start import vocabulary_of

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
        how: ``measured``: counted in a forward pass of the whole model. ``derived``: counted in models of one to three
            blocks, and multiplied.
    """

    task: Task
    input_hw: tuple[int, int]
    images: int
    gb_per_image: float
    checkpointed_gb_per_image: float
    how: Literal["measured", "derived"]


def measure_memory(config: TrainConfig, *, images: int = 1, derive: bool = False) -> list[MemoryRow]:
    """Runs forward passes of a recipe's tasks on drawn scenes and counts what autograd keeps for the backward pass.

    Every kept tensor is counted once and let go at once, so that the measurement itself needs little memory. Weights,
    gradients and optimiser state are not part of it (16 bytes per parameter with AdamW in float32); the bfloat16 copies
    of the weights that autocast keeps are.

    Args:
        config: The recipe; its model, vocabulary, precision and augmentation per task are used, its data is not read.
        images: Images per forward pass; more than one shows what batching shares.
        derive: Count in models of one to three blocks only: blocks of a kind keep the same, so that the whole follows.

    Returns:
        One row per task of the mixture, in its order.
    """
    first: dict[Task, SourceConfig] = {}
    for source in config.train:
        first.setdefault(source.task, source)
    kept = [
        (_derived if derive else _kept)(config, list(first.values()), images, checkpointing)
        for checkpointing in (False, True)
    ]
    return [
        MemoryRow(
            task=source.task,
            input_hw=(_side(config, source),) * 2,
            images=images,
            gb_per_image=plain,
            checkpointed_gb_per_image=checkpointed,
            how="derived" if derive else "measured",
        )
        for source, plain, checkpointed in zip(first.values(), *kept, strict=True)
    ]


def _side(config: TrainConfig, source: SourceConfig) -> int:
    """Side of what the model is trained on: that of the augmentation, where it has one of its own."""
    augment = source.augment
    own = augment.size if isinstance(augment, LargeScaleJitterAugment) else 0
    return own or input_size(config.model, source.task)


def _kept(config: TrainConfig, sources: list[SourceConfig], images: int, checkpointing: bool) -> list[float]:
    """GB per image that the configured model keeps, for each source."""
    seed_everything(config.seed)
    model = build(config.model, vocabulary_of(config)).train()
    model.set_activation_checkpointing(checkpointing)
    batches = (_batch(source, model, images, config.seed) for source in sources)
    return [kept_bytes(model, batch, config.precision) / images / 1e9 for batch in batches]


def _derived(config: TrainConfig, sources: list[SourceConfig], images: int, checkpointing: bool) -> list[float]:
    """The same, from one windowed block, what a second one adds, and what a global one adds."""
    whole = config.model
    if not isinstance(whole, GiTConfig | ViTDetConfig):
        raise UsageError("the memory of this model cannot be derived from its blocks", fix="measure it")

    def cut(depth: int, global_blocks: tuple[int, ...]) -> list[float]:
        vit = dataclasses.replace(whole.vit, depth=depth, global_blocks=global_blocks)
        model = with_vit(whole, vit)
        return _kept(dataclasses.replace(config, model=model), sources, images, checkpointing)

    vit = whole.vit
    all_global = len(vit.global_blocks)
    one, two = cut(1, ()), cut(2, ())
    # In the middle, as it stands in the model: the responses pass it by without a tensor of their own.
    three = cut(3, (1,)) if all_global else two
    return [
        first + (vit.depth - all_global - 1) * (second - first) + all_global * (third - second)
        for first, second, third in zip(one, two, three, strict=True)
    ]


def kept_bytes(model: Model, batch: Batch, precision: Precision = "float32") -> int:
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


def _batch(source: SourceConfig, model: Model, images: int, seed: int) -> Batch:
    declared = model.preprocess(source.task)
    side = min(max(*declared.size_hw, _SCENE_SIDES[0]), _SCENE_SIDES[1])
    drawn = open_source(SourceSpec(task=source.task, reader="scenes", size=side))
    entry = SourceEntry(
        source=drawn, preprocess=declared, augment=source.augment, batch_size=images, extra=extra_of(model)
    )
    batch: Batch = next(iter(TrainLoader([entry], seed=seed)))
    return batch.to(next(model.parameters()).device)
