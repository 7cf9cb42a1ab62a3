"""Models that DistributedDataParallel keeps alike: masks are never sent, and found out if they differ.

They stay equal because what decides over them is: averaged gradients, and generators seeded alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsefx._common.hashing import hash_of
from sparsefx._common.seeds import all_ranks
from sparsefx.cycle.positions.block import Block
from sparsefx.errors import ArgumentError, CycleError
from sparsefx.masking.mask_record import mask_names
from sparsefx.masking.masks import MaskedWeight
from sparsefx.masking.packing import packings
from sparsefx.masking.sharding import full_or_block, is_sharded, local

_IGNORED = "_ddp_params_and_buffers_to_ignore"  # torch's name; its DDP reads it from the model it wraps


def leave_out(model: nn.Module, names: Sequence[str]) -> None:
    """Have DDP neither send nor overwrite these buffers and parameters of a model.

    Buffers it would at every forward pass; gradients of parameters it would average.
    """
    compiled = [f"_orig_mod.{name}" for name in names]  # where torch.compile comes between
    setattr(model, _IGNORED, list(dict.fromkeys([*getattr(model, _IGNORED, ()), *names, *compiled])))


def leave_packed_out(model: nn.Module) -> None:
    """Have DDP leave out the packed weights and the masks of a model that is accelerated, or has such parts.

    DDP refuses a model of which it would have no parameter; then it gets the smallest, which stays dense.
    """
    packed = {id(packing.parameter): packing.parameter for packing in packings(model)}
    if not packed:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained and all(id(parameter) in packed for parameter in trained):
        del packed[id(min(trained, key=Tensor.numel))]
    named = model.named_parameters(remove_duplicate=False)
    leave_out(model, [name for name, parameter in named if id(parameter) in packed] + mask_names(model))


def replicating_group(model: nn.Module) -> Any:
    """The processes among which DDP keeps this model alike; None if it is not, as far as the model tells."""
    inner: nn.Module | None = model
    while inner is not None:
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            return inner.process_group
        inner = inner._modules.get("_orig_mod")  # torch.compile's
    return None


def training_groups(model: nn.Module, group: Any) -> list[Any]:
    """The groups, one after the other, whose ranks train this model: those given, known, or all there are."""
    group = replicating_group(model) if group is None else group
    if group is not None:
        return [group]
    sharded: Any = next(filter(is_sharded, model.parameters()), None)
    if sharded is None:
        return all_ranks()
    mesh = sharded.device_mesh
    return [mesh.get_group(dimension) for dimension in range(mesh.ndim)]


def check_group(group: Any) -> None:
    """Refuse what is no process group.

    Raises:
        ArgumentError: it is none.
    """
    if group is None or group == dist.GroupMember.NON_GROUP_MEMBER or isinstance(group, dist.ProcessGroup):
        return
    raise ArgumentError(
        f"group={group!r} is no process group; pass torch.distributed.group.WORLD or what "
        "torch.distributed.new_group returns"
    )


@torch.no_grad()
def check_equal(layers: Sequence[MaskedWeight], group: Any, generator: torch.Generator) -> None:
    """Refuse to go on where processes differ in masks or generators that should be alike.

    Full masks are compared in ``group``, sharded ones in their mesh: there all that hold the same model
    must agree, and every process finds the same, so that none is left waiting for another that raised.
    Every process must ask. Each sends 8 bytes a layer.

    Args:
        layers: whose masks are compared.
        group: the processes that keep the same full masks; None if nobody does.
        generator: what is random follows from it.

    Raises:
        CycleError: they differ; it names layers and ranks.
    """
    for alike, blocks, groups in _by_groups(layers, group):
        hashes = torch.stack([hash_of(local(layer.mask)).to(blocks.device) for layer in alike])
        told = torch.tensor([dist.get_rank(), int(hash_of(generator.get_state()))], device=blocks.device)
        rows = _gather(torch.cat([told, blocks.sum(hashes)]), groups)
        different = rows[rows[:, 1:].ne(rows[0, 1:]).any(1)]
        if len(different):
            raise CycleError(_difference(rows[0], different, [layer.name for layer in alike]))


def _by_groups(
    layers: Sequence[MaskedWeight], group: Any
) -> list[tuple[list[MaskedWeight], Block, list[Any]]]:
    """Layers that are kept alike by the same groups, how they are sharded, and these groups."""
    found: dict[Any, tuple[list[MaskedWeight], Block, list[Any]]] = {}
    for layer in layers:
        mask: Any = layer.mask
        key: Any = None
        if is_sharded(mask):
            key = mask.device_mesh, tuple(placement.is_replicate() for placement in mask.placements)
            groups = [mask.device_mesh.get_group(dimension) for dimension in range(mask.device_mesh.ndim)]
        elif group is not None and dist.get_rank(group) >= 0:
            groups = [group]
        else:
            continue
        found.setdefault(key, ([], full_or_block(mask), groups))[0].append(layer)
    return list(found.values())


def _gather(own: Tensor, groups: Sequence[Any]) -> Tensor:
    """The rows of all processes of a mesh, whose dimensions are the groups; the same everywhere."""
    rows = own[None]
    for group in groups:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, rows, group=group)
        rows = torch.cat(parts)
    return rows


def _difference(first: Tensor, different: Tensor, names: Sequence[str]) -> str:
    """What is wrong. Rows are a rank, its generator's hash and the hashes of its masks."""
    ranks, others = ", ".join(map(str, sorted(different[:, 0].tolist()))), f"rank {int(first[0])}'s"
    unequal = different[:, 2:].ne(first[2:]).any(0).tolist()
    if not any(unequal):
        return (
            f"generators differ between processes: that on rank {ranks} from {others}. Seed generator= "
            "alike everywhere and use it for nothing else, load the same checkpoint, call step() and cycle() "
            "on all ranks"
        )
    layers = ", ".join(name for name, differs in zip(names, unequal, strict=True) if differs)
    return (
        f"masks differ between processes: those of {layers} on rank {ranks} from {others}. Build the model "
        "with the same seed everywhere, give every optimizer a generator seeded alike, load the same "
        "checkpoint, call cycle() on all ranks"
    )
