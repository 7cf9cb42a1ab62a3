"""What a cycle did and what the model is like after it, as one flat dict for whatever logs numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim import Optimizer

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import MaskedWeight, masked_weights
from sparsefx.masking.sharding import full
from sparsefx.optim.sparse_optimizer import SparseOptimizer
from sparsefx.report.model_report import empty_channels

Write = Callable[[Mapping[str, float], int], object]
"""Takes metrics and the number of optimizer steps done."""


def cycle_metrics(optimizer: Optimizer, *, layers: bool = True) -> dict[str, float]:
    """The last cycle and the model as it is now, under names that stay the same from cycle to cycle.

    Collective for a sharded model: ask on every rank.

    Args:
        optimizer: a :class:`SparseOptimizer`, also inside the wrapper of Accelerate or Lightning.
        layers: whether there are entries for each masked layer, too.

    Returns:
        ``sparse/cycle`` (its number, 0 before the first), ``sparse/prune_rate`` (fraction of the active
        weights that it set out to remove), ``sparse/density`` (fraction of the masked weights that are
        active), ``sparse/pruned`` and ``sparse/grown`` (weights), ``sparse/empty_inputs`` and
        ``sparse/empty_outputs`` (channels without an active weight). With ``layers``, the last five for each
        layer: ``density/<layer>`` and so on.

    Raises:
        ArgumentError: it is not such an optimizer.

    Example:
        >>> import torch, sparsefx
        >>> model = sparsefx.sparsify(torch.nn.Sequential(torch.nn.Linear(8, 8)), density=0.25)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = sparsefx.SparseMomentum(sgd, model, cycles=10, every=1)
        >>> model(torch.ones(1, 8)).sum().backward()
        >>> optimizer.step()
        >>> metrics = cycle_metrics(optimizer)
        >>> metrics["sparse/pruned"], metrics["density/0"]
        (8, 0.25)
    """
    optimizer = sparse_inside(optimizer)
    masked = {layer.name: layer for layer in masked_weights(optimizer.model)}
    last = optimizer.history[-1] if optimizer.history else None
    records = {} if last is None else {record.name: record for record in last.layers}
    looks = {name: _look(layer) for name, layer in masked.items()}
    sizes = {name: layer.mask.numel() for name, layer in masked.items()}
    each: dict[str, dict[str, float]] = {
        "density": {name: active / sizes[name] for name, (active, _, _) in looks.items()},
        "pruned": {name: records[name].pruned if name in records else 0 for name in masked},
        "grown": {name: records[name].grown if name in records else 0 for name in masked},
        "empty_inputs": {name: inputs for name, (_, inputs, _) in looks.items()},
        "empty_outputs": {name: outputs for name, (_, _, outputs) in looks.items()},
    }
    metrics: dict[str, float] = {
        "sparse/cycle": 0 if last is None else last.cycle,
        "sparse/prune_rate": 0.0 if last is None else last.prune_rate,
        **{f"sparse/{what}": sum(values.values()) for what, values in each.items()},
        "sparse/density": sum(active for active, _, _ in looks.values()) / sum(sizes.values()),
    }
    if layers:
        metrics |= {
            f"{what}/{name}": value for what, values in each.items() for name, value in values.items()
        }
    return metrics


class CycleLog:
    """Writes :func:`cycle_metrics` once for every cycle.

    Args:
        optimizer: a :class:`SparseOptimizer`, also inside the wrapper of Accelerate or Lightning.
        write: called with the metrics and the number of optimizer steps done.
        layers: whether there are metrics for each masked layer, too.

    Raises:
        ArgumentError: ``optimizer`` is not such an optimizer.
    """

    def __init__(self, optimizer: Optimizer, write: Write, *, layers: bool = True) -> None:
        self._optimizer, self._write, self._layers = sparse_inside(optimizer), write, layers
        self._told = self._cycle
        # What a checkpoint brings was written by the run that saved it.
        self._optimizer.register_load_state_dict_post_hook(self._skip_to_now)

    def update(self) -> None:
        """Write, if there was a cycle since the last call, since this object was made or a checkpoint loaded.

        Collective for a sharded model: call it on every rank.
        """
        if self._cycle != self._told:
            self._told = self._cycle
            self._write(cycle_metrics(self._optimizer, layers=self._layers), self._optimizer.steps_done)

    def _skip_to_now(self, _: Optimizer) -> None:
        self._told = self._cycle

    @property
    def _cycle(self) -> int:
        history = self._optimizer.history
        return history[-1].cycle if history else 0


def sparse_inside(optimizer: object) -> SparseOptimizer:
    """The sparse optimizer in the wrappers that frameworks put around it.

    Raises:
        ArgumentError: there is none.
    """
    inside = optimizer
    while not isinstance(inside, SparseOptimizer):
        inside = getattr(inside, "optimizer", None)
        if inside is None:
            raise ArgumentError(
                f"optimizer is a {type(optimizer).__name__} without a SparseOptimizer inside; wrap it: "
                "sparsefx.SparseMomentum(optimizer, model, cycles=...)"
            )
    return inside


def _look(masked: MaskedWeight) -> tuple[int, int, int]:
    """Active weights, and input and output channels without one; a weight that just grew is active and 0."""
    layer, _, _ = masked.holders[0]
    mask = full(masked.mask)
    matrix = mask if mask.dim() > 1 else mask[None]  # F.linear takes a vector too
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    return int(mask.sum()), *empty_channels(matrix, isinstance(layer, _ConvTransposeNd), groups)
