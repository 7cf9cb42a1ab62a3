"""Models that DistributedDataParallel keeps alike: masks are never sent, and found out if they differ.

They stay equal because what decides over them is: averaged gradients, and generators seeded alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsefx.errors import CycleError
from sparsefx.masks import MaskedWeight
from sparsefx.sharding import is_divided

_IGNORED = "_ddp_params_and_buffers_to_ignore"  # torch's name; its DDP reads it from the model it wraps
_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)


def leave_masks_out(model: nn.Module, masks: Sequence[str]) -> None:
    """Have DDP neither send nor overwrite these buffers of a model, which it would at every forward."""
    names = [*getattr(model, _IGNORED, ()), *masks]
    names += [f"_orig_mod.{name}" for name in masks]  # where torch.compile comes between
    setattr(model, _IGNORED, names)


def replicating_group(model: nn.Module) -> Any:
    """The processes among which DDP keeps this model alike; None if it is not, as far as the model tells."""
    inner: nn.Module | None = model
    while inner is not None:
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            return inner.process_group
        inner = inner._modules.get("_orig_mod")  # torch.compile's
    return None


@torch.no_grad()
def check_equal(layers: Sequence[MaskedWeight], group: Any) -> None:
    """Refuse to go on with masks that differ between processes. Every one of the group must ask.

    Each sends 8 bytes a layer.

    Raises:
        CycleError: they differ; it names layers and ranks.
    """
    whole = [layer for layer in layers if not is_divided(layer.mask)]
    if group is None or not whole:
        return
    own = torch.stack([_hash(layer.mask) for layer in whole])
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, own, group=group)
    different = [rank for rank, hashes in enumerate(found) if not torch.equal(hashes, found[0])]
    if not different:
        return
    unequal = torch.stack(found).ne(found[0]).any(0).tolist()
    names = [layer.name for layer, differs in zip(whole, unequal, strict=True) if differs]
    raise CycleError(
        f"masks differ between processes: those of {', '.join(names)} on rank "
        f"{', '.join(map(str, different))} from rank 0's. Build the model with the same seed everywhere, "
        "give every optimizer a generator seeded alike, load the same checkpoint, call cycle() on all ranks"
    )


def _hash(mask: Tensor) -> Tensor:
    """64 bits that any change of a mask very probably changes, int64 without dimensions."""
    flat = mask.flatten().view(torch.uint8)
    words = nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
    # Sums of words times odd numbers that depend on the place, modulo 2^64.
    places = torch.arange(1, len(words) + 1, device=mask.device) * _FACTOR
    places ^= (places >> 29) & ((1 << 35) - 1)
    return (words * (places | 1)).sum()
