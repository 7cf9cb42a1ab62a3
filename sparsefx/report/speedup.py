"""The paper's two estimates of how much faster a sparse network could run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparsefx._common.table import Table, Tabular
from sparsefx.errors import ArgumentError
from sparsefx.report.costs import arrivals, layer_flops, layer_seconds, maskable_layers
from sparsefx.report.model_report import LayerReport, describe


@dataclass(frozen=True)
class SpeedupEstimate(Tabular):
    """Estimated speed-ups over the dense convolutions (Dettmers & Zettlemoyer 2019, section 4.1).

    Attributes:
        sparse_by_time: convolution kernels that skip every inactive weight, weighted by run time.
        dense_by_time: dense convolutions that skip input channels without weights, by run time.
        sparse_by_flops: as ``sparse_by_time``, weighted by operations instead of run time.
        dense_by_flops: as ``dense_by_time``, weighted by operations.
        seconds: measured forward run time of each convolution for the batch.
    """

    sparse_by_time: float
    dense_by_time: float
    sparse_by_flops: float
    dense_by_flops: float
    seconds: dict[str, float]

    def _table(self) -> Table:
        sparse, dense = (self.sparse_by_time, self.sparse_by_flops), (self.dense_by_time, self.dense_by_flops)
        rows = [
            ["sparse convolution", *(f"{ratio:.2f}x" for ratio in sparse)],
            ["dense convolution, empty channels skipped", *(f"{ratio:.2f}x" for ratio in dense)],
        ]
        return Table(["estimate", "by run time", "by FLOPs"], rows)

    def as_dict(self) -> dict[str, Any]:
        """The estimates as plain data, ready for JSON."""
        return asdict(self)


def estimate_speedup(
    model: nn.Module, example_inputs: Sequence[Any], *, activations: bool = False, repeats: int = 5
) -> SpeedupEstimate:
    """Estimate what sparsity could gain, the way the paper does.

    With ``t`` the run time of a dense convolution, ``d`` its weight density and ``e`` its fraction of
    input channels without weights: ``sum t / sum t d`` for sparse and ``sum t / sum t (1 - e)`` for
    dense convolutions. These are estimates; to measure a real speed-up, time :func:`sparsefx.export`.

    Args:
        model: a model with convolutions; it runs in evaluation mode.
        example_inputs: its positional arguments, with a batch.
        activations: also scale by the nonzero fraction of a convolution's input (sparse) and by the
            fraction of its input maps that are not all zero (dense), as the paper's published code does.
        repeats: how often each convolution is timed; the median is used.

    Raises:
        ArgumentError: the model has no convolution.
    """
    layers = _convolutions(model)
    inputs: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    for name, _, source, _ in arrivals(model, example_inputs):
        inputs.setdefault(name, []).append(source)
    seconds = layer_seconds(model, example_inputs, repeats)
    flops = layer_flops(model, example_inputs)
    sparse, dense = {}, {}
    for layer in layers:
        sources = inputs[layer.name]
        sparse[layer.name] = layer.density
        dense[layer.name] = 1 - layer.empty_inputs / layer.in_channels
        if activations:
            sparse[layer.name] *= _mean(_nonzero, sources)
            dense[layer.name] *= _mean(_used_maps, sources)
    return SpeedupEstimate(
        _ratio(seconds, sparse),
        _ratio(seconds, dense),
        _ratio(flops, sparse),
        _ratio(flops, dense),
        {layer.name: seconds[layer.name] for layer in layers},
    )


def average_speedup(estimates: Sequence[SpeedupEstimate]) -> SpeedupEstimate:
    """The mean of estimates made over training, as the paper reports it (section 4.1).

    Args:
        estimates: of one model at different times, for example after every epoch.

    Raises:
        ArgumentError: ``estimates`` is empty.
    """
    if not estimates:
        raise ArgumentError("estimates is empty; pass at least one from estimate_speedup")
    return SpeedupEstimate(
        statistics.fmean(estimate.sparse_by_time for estimate in estimates),
        statistics.fmean(estimate.dense_by_time for estimate in estimates),
        statistics.fmean(estimate.sparse_by_flops for estimate in estimates),
        statistics.fmean(estimate.dense_by_flops for estimate in estimates),
        {
            name: statistics.fmean(estimate.seconds[name] for estimate in estimates)
            for name in estimates[0].seconds
        },
    )


def _convolutions(model: nn.Module) -> list[LayerReport]:
    names = {name for name, layer in maskable_layers(model).items() if isinstance(layer, _ConvNd)}
    if not names:
        raise ArgumentError(f"model {type(model).__name__} has no convolution to estimate a speed-up for")
    return [layer for layer in describe(model).layers if layer.name in names]


def _ratio(cost: dict[str, float] | dict[str, int], left: dict[str, float]) -> float:
    remaining = sum(cost[name] * fraction for name, fraction in left.items())
    return sum(cost[name] for name in left) / remaining if remaining else float("inf")


def _mean(fraction: Callable[[Tensor], float], sources: Sequence[Tensor]) -> float:
    """Over the calls of a convolution; 1 for one that the model does not call."""
    return statistics.fmean(map(fraction, sources)) if sources else 1.0


def _nonzero(source: Tensor) -> float:
    return float((source != 0).float().mean())


def _used_maps(source: Tensor) -> float:
    return float((source != 0).flatten(2).any(2).float().mean())
