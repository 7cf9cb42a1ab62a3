"""Packed weights inside DistributedDataParallel: their gradients are averaged as they are.

DDP makes its buckets from the parameters' shapes when it wraps a model, and packed weights change their
shapes. So ``accelerate`` has DDP leave them out, and what it does for other parameters is done here: they
begin with the values of the first rank, and at the end of every backward pass that DDP averages in, all
their gradients are averaged, by one message. It has the size of the gradients, which is that of the active
weights except where gradients of inactive ones are wanted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsefx._common.hashing import hash_of
from sparsefx.errors import ArgumentError, CycleError

_known: Any = weakref.WeakKeyDictionary()
"""What averages beside each DistributedDataParallel."""


class AveragedGradients:
    """Averages the gradients of packed weights beside a DistributedDataParallel.

    All ranks make one in the same forward pass.

    Args:
        group: the process group.
        packings: of the weights that DDP leaves out, one or more, in the order of the model.

    Raises:
        CycleError: the ranks differ in where weights are active.
    """

    def __init__(self, group: Any, packings: Sequence[Any]) -> None:
        self._group, self._packings = group, packings
        self._is_due = self._is_done = self._is_queued = False
        self._watched: set[int] = set()
        self._check_positions()
        self._begin_alike()

    def has(self, packing: Any) -> bool:
        """Whether it averages the gradient of a weight."""
        return any(packing is one for one in self._packings)

    def follow(self, synchronises: bool) -> None:
        """Note a forward pass: the backward pass of one that synchronises averages, as in DDP.

        A backward pass may average in several parts, where it computes parts of the forward pass again. So
        it is over when another forward pass begins.

        Args:
            synchronises: whether DDP makes it, outside of ``no_sync()``.
        """
        if synchronises:
            self._is_due, self._is_done = True, False
        elif self._is_done:
            self._is_due = False

    def watch(self, parameter: Tensor) -> None:
        """Average in the backward passes in which a weight ``[active]`` or dense gets a gradient.

        It may be frozen for now.
        """
        if parameter.requires_grad and id(parameter) not in self._watched:
            self._watched.add(id(parameter))
            parameter.register_post_accumulate_grad_hook(self._queue)

    def _check_positions(self) -> None:
        hashes = torch.stack([hash_of(packing.positions) for packing in self._packings])
        rows = [torch.empty_like(hashes) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(rows, hashes, group=self._group)
        if any(not torch.equal(row, rows[0]) for row in rows):
            raise CycleError(
                "masks differ between processes; build the model with the same seed everywhere, or load the "
                "same checkpoint on all ranks"
            )

    @torch.no_grad()
    def _begin_alike(self) -> None:
        """Give all ranks the values of the first one, as DDP does at its construction."""
        flat = torch.cat([packing.values for packing in self._packings])
        dist.broadcast(flat, dist.get_global_rank(self._group, 0), group=self._group)
        parts = flat.split([len(packing.positions) for packing in self._packings])
        for packing, part in zip(self._packings, parts, strict=True):
            packing.set_values(part)

    def _queue(self, _: Tensor) -> None:
        """One gradient is there; average when the backward pass ends, when all are."""
        if self._is_due and not self._is_queued:
            self._is_queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._average)

    @torch.no_grad()
    def _average(self) -> None:
        """Average what there is. A weight without a gradient on any rank gets none, as in one process."""
        self._is_queued, self._is_done = False, True
        parameters = [packing.parameter for packing in self._packings if packing.parameter.requires_grad]
        gradients = [_gradient_or_zeros(parameter) for parameter in parameters]
        present = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device="cpu")
        flat = torch.cat([present, *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(flat, group=self._group)
        counts, *sums = flat.split([len(parameters), *(gradient.numel() for gradient in gradients)])
        for parameter, gradient, total, count in zip(parameters, gradients, sums, counts, strict=True):
            if count:
                mean = total.div_(dist.get_world_size(self._group))
                parameter.grad = gradient.copy_(mean.view(gradient.shape))


def _gradient_or_zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def ddp_in_forward() -> nn.parallel.DistributedDataParallel | None:
    """The DistributedDataParallel whose forward pass is going on, if gradients may follow it."""
    if not dist.is_available():
        return None
    ddp: Any = nn.parallel.DistributedDataParallel._get_active_ddp_module()
    return ddp if ddp is not None and (ddp.training or torch.is_grad_enabled()) else None


def averaged_gradients(
    ddp: nn.parallel.DistributedDataParallel, packings: Callable[[nn.Module], Sequence[Any]]
) -> AveragedGradients | None:
    """What averages beside a DistributedDataParallel; None if that leaves no packed weight out.

    Args:
        ddp: in its forward pass.
        packings: gives those of a model.

    Raises:
        ArgumentError: ranks may have different numbers of batches.
        CycleError: ranks differ in where weights are active.
    """
    if ddp not in _known:
        left_out = _left_out(ddp, packings(ddp.module))
        _known[ddp] = AveragedGradients(ddp.process_group, left_out) if left_out else None
    found: AveragedGradients | None = _known[ddp]
    if found is not None and ddp._join_config.enable:
        raise ArgumentError(
            "join() of DistributedDataParallel does not average packed weights; give all ranks the same "
            "number of batches"
        )
    return found


def _left_out(ddp: nn.parallel.DistributedDataParallel, packings: Sequence[Any]) -> list[Any]:
    named = ddp.module.named_parameters(remove_duplicate=False)
    ignored = {id(parameter) for name, parameter in named if name in ddp.parameters_to_ignore}
    return [packing for packing in packings if id(packing.parameter) in ignored]


def in_backward() -> bool:
    """Whether a backward pass is going on, which may compute a part of the forward pass again."""
    return torch._C._current_graph_task_id() != -1
