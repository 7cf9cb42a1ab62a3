"""Weights sharded over processes (DTensor: FSDP2, tensor parallel): their masks, and this process's blocks.

A mask is sharded like its weight. What decides over weights and what keeps inactive ones at 0 works on plain
local tensors and asks :class:`sparsefx.cycle.positions.block.Block` for what concerns the full layer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.cycle.positions.block import Block
from sparsefx.errors import ArgumentError

_PLAIN = (Tensor, nn.Parameter)  # asked at every step


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is a DTensor."""
    # Asked so, DTensor need not be imported, which takes a while.
    return type(tensor) not in _PLAIN and hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Any:
    """What this process holds of a tensor; itself if it is not sharded, or no tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full(tensor: Any) -> Tensor:
    """The full tensor, of the global shape. Collective for a sharded one: call on every rank."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def block_of(weight: Tensor) -> Block | None:
    """Which block of a weight of any shape this process holds; None for all of it.

    Raises:
        ArgumentError: the weight is sharded in another way than in rectangular blocks.
    """
    sharded: Any = weight
    if not is_sharded(weight) or all(placement.is_replicate() for placement in sharded.placements):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, part = sharded.device_mesh, local(weight)
    size, offset = compute_local_shape_and_global_offset(weight.shape, mesh, sharded.placements)
    if tuple(size) != tuple(part.shape):
        raise ArgumentError(
            f"a weight of shape {tuple(weight.shape)} is placed as {sharded.placements}, of which this "
            f"process holds {tuple(part.shape)} instead of {tuple(size)}; shard it in rectangular blocks"
        )
    groups = tuple(
        mesh.get_group(dimension)
        for dimension, placement in enumerate(sharded.placements)
        if not placement.is_replicate()  # FSDP over tensor parallel has shards of which is_shard() says no
    )
    return Block(weight.shape, part.shape, tuple(offset), groups, _device_for(mesh, part))


def full_or_block(weight: Tensor) -> Block:
    """The block of a weight of any shape that this process holds; it may be the full weight."""
    block = block_of(weight)
    if block is not None or not is_sharded(weight):
        return block or Block.full(weight)
    sharded: Any = weight
    return replace(Block.full(local(weight)), device=_device_for(sharded.device_mesh, local(weight)))


def local_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """This process's part of a tensor of a weight's shape, which may be sharded otherwise or not at all."""
    if placed_alike(tensor, weight):
        return local(tensor)  # type: ignore[no-any-return]
    block = block_of(weight)
    return full(tensor) if block is None else block.part_of(full(tensor))


def shard_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """A tensor of a weight's shape or of its local part's shape, sharded as the weight is."""
    if not is_sharded(weight) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor

    sharded: Any = weight
    return DTensor.from_local(
        tensor,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


def copy_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """A copy of a saved tensor of a weight's shape, on the weight's device and sharded as it is."""
    return shard_like(local_like(tensor.to(weight.device), weight).clone(), weight)


def count_true(mask: Tensor) -> int:
    """Number of True elements of a mask of any shape. Collective for a sharded one: call on every rank."""
    block = block_of(mask)
    number = local(mask).count_nonzero()
    return int(number if block is None else block.sum(number))


def gather_back(model: nn.Module) -> None:
    """Have FSDP put the sharded parameters back where an evaluation left the gathered ones."""
    for module in model.modules():
        reshard: Any = getattr(module, "reshard", None)
        if reshard is not None and hasattr(module, "unshard"):  # torch's FSDPModule
            reshard()


def check_not_flattened(model: nn.Module) -> None:
    """Refuse a model that torch's first FSDP has wrapped, whose weights have lost their shapes.

    Raises:
        ArgumentError: it has.
    """
    if any("_fsdp_wrapped_module" in module._modules for module in model.modules()):
        raise ArgumentError(
            "model is wrapped by FullyShardedDataParallel, which flattens weights so that masks do not fit "
            "them; use torch.distributed.fsdp.fully_shard instead"
        )


def placed_alike(one: Any, other: Any) -> bool:
    """Whether two tensors of one shape are sharded in the same way, or both not at all."""
    if not is_sharded(one) or not is_sharded(other):
        return is_sharded(one) == is_sharded(other)
    return (one.device_mesh, one.placements) == (other.device_mesh, other.placements)


def _device_for(mesh: Any, part: Tensor) -> torch.device:
    """Where this process's tensors for the mesh's processes are; weights offloaded to the CPU are not."""
    if part.device.type == mesh.device_type:
        return part.device
    kind = torch.get_device_module(mesh.device_type)
    return torch.device(mesh.device_type, kind.current_device())
