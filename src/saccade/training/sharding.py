"""Weights that are spread over processes (FSDP2): each holds a part of every tensor, and whole blocks only in passing.

A language model of 7 billion weights is 31 GB in float32. Spread over eight processes that is 4 GB for each; a block is
gathered where it is used and let go behind it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from saccade.models.gsva.model import GSVA
from saccade.models.systems import Model
from saccade.training.distributed import World


def shard(model: Model, world: World) -> None:
    """Spreads the weights of a model over all processes, in place, and moves them to the device.

    Args:
        model: On every process the same, with the same weights.
        world: At least two processes.
    """
    assert isinstance(model, GSVA)  # validated
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    # Whatever asks for the weights between two passes sees the parts.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for method in ("loss", "predict"):
        register_fsdp_forward_method(model, method)
    model.in_step = True


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was done to a model: its processes must then run it equally often."""
    return isinstance(next(model.parameters()), DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor that the parts of all processes make; every process must ask for it at the same point."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, spread as another one is; the tensor itself where that is whole."""
    if not isinstance(like, DTensor):
        return tensor
    # Every process read the same file: none has to send it.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
