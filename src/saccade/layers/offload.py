"""Models larger than the memory of a GPU: blocks that wait in main memory, and visit the GPU when they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass, transform_subclass

from saccade.errors import UsageError


def place(model: nn.Module, device: torch.device, *, blocks: Sequence[nn.Module], room_bytes: int) -> int:
    """Puts a model on a device; blocks for which there is no room come when they run, and go again.

    Args:
        model: Not to be trained.
        device: Where it runs.
        blocks: Modules that are run as a whole (nothing asks for their weights elsewhere), those first that are to wait
            first.
        room_bytes: What weights may take on the device. Activations, and the two blocks that are on their way at a
            time, need room beside it.

    Returns:
        How many blocks wait in main memory.

    Raises:
        UsageError: What is no block does not fit by itself.
    """
    left = room_bytes - (weight_bytes(model) - sum(map(weight_bytes, blocks)))
    if left < 0:
        raise UsageError(
            f"{(room_bytes - left) / 1e9:.1f} GB must stay on the device, {room_bytes / 1e9:.1f} GB are allowed",
            where="gpu_memory_gb",
            fix="allow more, or use bf16",
        )
    staying: set[nn.Module] = set()
    for block in reversed(blocks):
        left -= weight_bytes(block)
        if left < 0:
            break
        staying.add(block)
    waiting = [block for block in blocks if block not in staying]
    for block in waiting:
        _visit(block, device)
    inside = {id(tensor) for block in waiting for tensor in (*block.parameters(), *block.buffers())}
    for held, name, tensor in _held(model):
        if id(tensor) not in inside:
            held[name] = _moved(tensor, device)
    return len(waiting)


def move(module: nn.Module, device: torch.device) -> None:
    """Puts every weight of a module on a device, packed ones, too. Nothing of it can be trained any more.

    Args:
        module: Changed in place.
        device: Where to.
    """
    for held, name, tensor in _held(module):
        held[name] = _moved(tensor, device)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all weights of a module, as they are held: packed ones, and their scales, as they are packed."""
    return sum(part.nbytes for _, _, tensor in _held(module) for part in _inner(tensor))


def _visit(block: nn.Module, device: torch.device) -> None:
    """The block's weights are on the device from before it runs until it has run."""
    homes = _held(block)
    if device.type == "cuda":
        homes = [(held, name, _pinned(tensor)) for held, name, tensor in homes]

    def come(_module: nn.Module, _inputs: object) -> None:
        for held, name, tensor in homes:
            held[name] = _moved(tensor, device)

    def go(_module: nn.Module, _inputs: object, _output: object) -> None:
        for held, name, tensor in homes:
            held[name] = tensor

    go(block, None, None)
    block.register_forward_pre_hook(come)
    block.register_forward_hook(go, always_call=True)


def _held(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Every tensor of a module, with the dictionary that holds it and its name there."""
    dictionaries: Iterator[dict[str, Any]] = (
        held for part in module.modules() for held in (part._parameters, part._buffers)
    )
    return [(held, name, tensor) for held in dictionaries for name, tensor in held.items() if tensor is not None]


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    moved = tensor.detach().to(device, non_blocking=True)
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved


def _pinned(tensor: Tensor) -> Tensor:
    pinned = _changed(tensor.detach(), lambda part: part.cpu().pin_memory())
    return nn.Parameter(pinned, requires_grad=False) if isinstance(tensor, nn.Parameter) else pinned


# A packed weight is a tensor around others, which has the shape and the type of what it stands for.
def _inner(tensor: Any) -> Iterator[Tensor]:
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _inner(getattr(tensor, name))


def _changed(tensor: Any, change: Callable[[Tensor], Tensor]) -> Tensor:
    if not is_traceable_wrapper_subclass(tensor):
        return change(tensor)
    return transform_subclass(tensor, lambda _name, part: _changed(part, change))
