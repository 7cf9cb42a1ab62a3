"""The layers of a model: shapes, densities, empty channels and costs, as a table and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsefx._common.plain_tensors import plain_values
from sparsefx._common.table import Table, Tabular, format_count
from sparsefx.kernels.runtime.region import SparseRegion
from sparsefx.masking.masks import masked_weights
from sparsefx.masking.packing import unpack_all
from sparsefx.passes.graph.plain_graphs import plain, plain_graphs_of
from sparsefx.passes.manager.pipeline import RegionReport
from sparsefx.report.costs import layer_flops, layer_path, maskable_layers, regions


@dataclass(frozen=True)
class LayerReport:
    """One Linear or Conv layer.

    Attributes:
        name: its name in the model.
        shape: its weight's shape.
        density: fraction of the weight that is active (not 0, for a layer without a mask), in [0, 1].
        in_channels: input channels (features).
        out_channels: output channels (features).
        empty_inputs: input channels whose weights are all 0.
        empty_outputs: output channels whose weights are all 0.
        parameters: elements of weight and bias; for a layer in sparse kernels, the stored elements.
        nonzeros: elements of the weight that are not 0.
        flops_dense: operations for one sample, a multiply-add counted as 2; None without example inputs.
        flops_sparse: the same for the active weights alone.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    in_channels: int
    out_channels: int
    empty_inputs: int
    empty_outputs: int
    parameters: int
    nonzeros: int
    flops_dense: int | None
    flops_sparse: int | None


@dataclass(frozen=True)
class ModelReport(Tabular):
    """A model's layers and totals. ``print`` and notebooks show a table; :meth:`as_dict` gives plain data.

    Attributes:
        layers: one entry a layer.
        parameters: the number of all parameters of the model, including those of other layers.
        density: fraction of the masked weights that are active; if nothing is masked, of all Linear and
            Conv weights.
        density_of_all: fraction of all the parameters that are active.
        regions: of an accelerated model, the layers that sparse kernels train together, and those that they
            do not, each with the reason.
    """

    layers: tuple[LayerReport, ...]
    parameters: int
    density: float
    density_of_all: float
    regions: tuple[RegionReport, ...] = ()

    @property
    def active_zeros(self) -> int:
        """How many active weights are 0, such as those that a cycle has just grown."""
        return sum(
            max(0, round(layer.density * torch.Size(layer.shape).numel()) - layer.nonzeros)
            for layer in self.layers
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return asdict(self)

    def _table(self) -> Table:
        header = ["layer", "shape", "density", "empty in", "empty out"]
        header += ["parameters", "nonzeros", "FLOPs", "FLOPs sparse"]
        rows = [
            [
                layer.name,
                "x".join(map(str, layer.shape)),
                f"{layer.density:.4f}",
                f"{layer.empty_inputs}/{layer.in_channels}",
                f"{layer.empty_outputs}/{layer.out_channels}",
                format_count(layer.parameters),
                format_count(layer.nonzeros),
                format_count(layer.flops_dense),
                format_count(layer.flops_sparse),
            ]
            for layer in self.layers
        ]
        total = f"density {self.density:.4f} of masked weights, {self.density_of_all:.4f} of all parameters"
        notes = [f"{format_count(self.parameters)} parameters; {total}"]
        if self.active_zeros:
            notes.append(
                f"{format_count(self.active_zeros)} active weights are 0, as those that a cycle grew last "
                "and no step has trained since"
            )
        return Table(header, rows, [*notes, *_region_notes(self.regions)])


def _region_notes(regions: Sequence[RegionReport]) -> list[str]:
    if not regions:
        return []
    taken = [len(region.layers) for region in regions if region.taken]
    total = f"{sum(taken)} layers train by sparse kernels, in {len(taken)} region{'s' * (len(taken) != 1)}"
    return [total, *map(str, regions)]


def describe(model: nn.Module, example_inputs: Sequence[Any] | None = None) -> ModelReport:
    """The report of one model; see :func:`report`."""
    graphs = plain_graphs_of(model)
    model = plain(model)
    unpack_all(model)
    flops = layer_flops(model, example_inputs) if example_inputs is not None else {}
    masks = {id(masked.weight): masked.mask for masked in masked_weights(model)}
    modules = maskable_layers(model)
    described = {
        name: _describe_layer(name, layer, masks.get(id(layer.weight)), flops.get(name))
        for name, layer in modules.items()
    }
    functional = _functional_layers(model)
    sparse = _layers_of_kernels(model, flops)
    by_weight = {  # a tied weight counts once; one computed by a parametrisation is no parameter
        id(layer.weight): described[name]
        for name, layer in modules.items()
        if isinstance(layer.weight, nn.Parameter)
    }
    counted = [*by_weight.values(), *functional]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parameters += sum(layer.parameters for layer in sparse)
    masked = [layer for key, layer in by_weight.items() if key in masks] + functional
    inactive = _weights(counted) - _active(counted)
    weighed = masked or [*counted, *sparse]
    return ModelReport(
        (*described.values(), *functional, *sparse),
        parameters,
        _active(weighed) / max(1, _weights(weighed)),
        (parameters - inactive) / max(1, parameters),
        () if graphs is None else graphs.regions,
    )


def _weights(layers: Sequence[LayerReport]) -> int:
    return sum(torch.Size(layer.shape).numel() for layer in layers)


def _active(layers: Sequence[LayerReport]) -> float:
    return sum(layer.density * torch.Size(layer.shape).numel() for layer in layers)


def empty_channels(weight: Tensor, transposed: bool, groups: int) -> tuple[int, int]:
    """How many input and how many output channels of a weight have no value other than 0.

    Args:
        weight: (out, in / groups, ...) or, transposed, (in, out / groups, ...).
        transposed: whether it is a transposed convolution's.
        groups: its groups.
    """
    read = (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0
    by_group = read.view(groups, read.shape[0] // groups, read.shape[1])
    rows, columns = int((~by_group.any(2)).sum()), int((~by_group.any(1)).sum())
    return (rows, columns) if transposed else (columns, rows)


def _describe_layer(name: str, layer: nn.Module, mask: Tensor | None, flops: int | None) -> LayerReport:
    weight = plain_values(cast(Tensor, layer.weight), f"the weight of {name}")
    transposed = isinstance(layer, _ConvTransposeNd)
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    return _describe_weight(
        name, weight, mask, flops, transposed, groups, sum(p.numel() for p in layer.parameters(recurse=False))
    )


def _functional_layers(model: nn.Module) -> list[LayerReport]:
    """Masked parameters that no Linear or Conv layer holds."""
    held = {id(layer.weight) for layer in maskable_layers(model).values()}
    return [
        _describe_weight(m.name, m.weight.detach(), m.mask, None, False, 1, m.weight.numel())
        for m in masked_weights(model)
        if id(m.weight) not in held
    ]


def _layers_of_kernels(model: nn.Module, flops: Mapping[str, int]) -> list[LayerReport]:
    """The layers that sparse kernels compute; their parameters are those that are stored."""
    found = []
    for path, region in regions(model).items():
        for layer, weight, bias in cast(SparseRegion, region).weights():
            name = layer_path(path, layer.name)
            stored = int(weight.count_nonzero()) + bias.numel()
            found.append(_describe_weight(name, weight, None, flops.get(name), False, layer.groups, stored))
    return found


def _describe_weight(
    name: str,
    weight: Tensor,
    mask: Tensor | None,
    flops: int | None,
    transposed: bool,
    groups: int,
    parameters: int,
) -> LayerReport:
    nonzeros = int((weight != 0).sum())
    active = int(mask.sum()) if mask is not None else nonzeros
    density = active / max(1, weight.numel())
    matrix = weight if weight.dim() > 1 else weight[None]  # F.linear takes a vector too
    empty_inputs, empty_outputs = empty_channels(matrix, transposed, groups)
    channels = (matrix.shape[1] * groups, matrix.shape[0])
    in_channels, out_channels = (matrix.shape[0], matrix.shape[1] * groups) if transposed else channels
    return LayerReport(
        name=name,
        shape=tuple(weight.shape),
        density=density,
        in_channels=in_channels,
        out_channels=out_channels,
        empty_inputs=empty_inputs,
        empty_outputs=empty_outputs,
        parameters=parameters,
        nonzeros=nonzeros,
        flops_dense=flops,
        flops_sparse=None if flops is None else round(flops * density),
    )
