"""``report``: what a model's layers look like, and what an export changed, as tables and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsefx.costs import layer_flops, layer_path, maskable_layers, regions
from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.kernels.region import SparseRegion
from sparsefx.masks import check_undivided, masked_weights
from sparsefx.passes.parts import Compiled
from sparsefx.passes.pipeline import KeptChannels, PassReport, RegionReport
from sparsefx.table import Table, Tabular, format_count


@dataclass(frozen=True)
class LayerReport:
    """One Linear or Conv layer.

    Attributes:
        name: its name in the model.
        shape: its weight's shape.
        density: fraction of the weight that is active (of a layer without a mask: not 0), in [0, 1].
        in_channels: input channels (features).
        out_channels: output channels (features).
        empty_inputs: input channels whose weights are all 0.
        empty_outputs: output channels whose weights are all 0.
        parameters: elements of weight and bias; of a layer in sparse kernels, those that are stored.
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
    """A model's layers and totals; ``print`` and notebooks show the table, :meth:`as_dict` plain data.

    Attributes:
        layers: one entry a layer.
        parameters: all parameters of the model, those of other layers included.
        density: fraction of the masked weights that are active; where nothing is masked, of all Linear
            and Conv weights.
        density_of_all: fraction of all the parameters that are active.
    """

    layers: tuple[LayerReport, ...]
    parameters: int
    density: float
    density_of_all: float

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
        return Table(header, rows, [f"{format_count(self.parameters)} parameters; {total}"])


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after an export; ``None`` for a layer that is gone or was not there."""

    name: str
    before: LayerReport | None
    after: LayerReport | None


@dataclass(frozen=True)
class OpaqueModule:
    """A module whose forward stays Python (``""`` is the model itself), and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class AsInEvaluation:
    """A compiled module (``""`` is the model itself), and what of its forward in training is left out."""

    name: str
    what: str


@dataclass(frozen=True)
class ExportReport(Tabular):
    """What an export changed; ``print`` and notebooks show the table, :meth:`as_dict` plain data.

    Attributes:
        layers: each layer before and after.
        parameters_before: all parameters of the model.
        parameters_after: all parameters of the exported model.
        passes: what each pass did, in order, with what kept channels that nothing reads.
        graphs: the modules that were compiled, by name; ``""`` is the whole model.
        opaque: the modules that stay Python, with the reason.
        as_in_evaluation: the compiled modules that also in training do something that only evaluation did;
            none unless ``fold_batchnorm=False``.
    """

    layers: tuple[LayerChange, ...]
    parameters_before: int
    parameters_after: int
    passes: tuple[PassReport, ...] = ()
    graphs: tuple[str, ...] = ()
    opaque: tuple[OpaqueModule, ...] = ()
    as_in_evaluation: tuple[AsInEvaluation, ...] = ()

    @property
    def captured(self) -> str:
        """How the model was captured, ``"whole"``, ``"parts"`` of it, or ``"not"`` at all."""
        return "whole" if "" in self.graphs else "parts" if self.graphs else "not"

    @property
    def channels_before(self) -> int:
        """Output channels of all layers before."""
        return sum(change.before.out_channels for change in self.layers if change.before)

    @property
    def channels_after(self) -> int:
        """Output channels of all layers after."""
        return sum(change.after.out_channels for change in self.layers if change.after)

    @property
    def regions(self) -> tuple[RegionReport, ...]:
        """The parts that sparse kernels can compute, with the times measured; none of dense kernels."""
        return tuple(one for step in self.passes for one in step.regions)

    @property
    def kept(self) -> tuple[KeptChannels, ...]:
        """The empty channels that are still there, with the reason; not those of modules that stay Python."""
        return tuple(one for step in self.passes for one in step.kept)

    def why(self, layer: str) -> str:
        """Why a layer still has channels that are empty, in words.

        Args:
            layer: the layer's name.

        Raises:
            ArgumentError: there is no such layer.

        Example:
            >>> import torch, sparsefx
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> _ = net[2].weight.data[0].zero_()
            >>> print(sparsefx.export(net, (torch.randn(1, 4),)).report.why("2"))
            2 has 1 of 2 output channels empty: the model returns them
        """
        change = next((change for change in self.layers if change.name == layer), None)
        if change is None:
            raise unknown_name("layer", layer, [change.name for change in self.layers])
        if change.after is None:
            return f"{layer} was removed"
        sizes = {"input": change.after.in_channels, "output": change.after.out_channels}
        lines = [
            f"{layer} has {one.count} of {sizes[one.side]} {one.side} channels empty: {one.reason}"
            for one in self.kept
            if one.layer == layer
        ]
        if lines:
            return "\n".join(lines)
        if change.after.empty_inputs or change.after.empty_outputs:
            return (
                f"{layer} has {change.after.empty_inputs} input and {change.after.empty_outputs} output "
                "channels empty: it is not cut, because it has a hook or a forward of its own, shares its "
                "weight, or belongs to what stays Python"
            )
        return f"{layer} has no empty channels"

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        totals = {"channels_before": self.channels_before, "channels_after": self.channels_after}
        return {**asdict(self), **totals}

    def _table(self) -> Table:
        header = ["layer", "in", "", "out", "", "parameters", "", "FLOPs", ""]
        rows = [[change.name, *_before_after(change)] for change in self.layers]
        lines = [
            f"parameters {format_count(self.parameters_before)} -> {format_count(self.parameters_after)}, "
            f"channels {self.channels_before} -> {self.channels_after}"
        ]
        lines += [f"{step.name}: {step.detail} ({step.seconds:.2f} s)" for step in self.passes]
        lines += [_region_line(region) for region in self.regions]
        lines += [f"{part.name or 'the model'} stays Python: {part.reason}" for part in self.opaque]
        lines += [
            f"{part.name or 'the model'} trains otherwise: {part.what}" for part in self.as_in_evaluation
        ]
        return Table(header, rows, lines)


def report(
    model: nn.Module, after: nn.Module | None = None, *, example_inputs: Sequence[Any] | None = None
) -> ModelReport | ExportReport:
    """Describe a model's Linear and Conv layers; with ``after``, what changed between two models.

    Args:
        model: any model, masked or not.
        after: its exported form.
        example_inputs: positional arguments of the models; without them there are no FLOPs.

    Returns:
        A printable table that is plain data too.

    Example:
        >>> import torch, sparsefx
        >>> net = sparsefx.sparsify(torch.nn.Sequential(torch.nn.Linear(4, 8)), density=0.25)
        >>> sparsefx.report(net).layers[0].nonzeros
        8
    """
    given = {"model": model} if after is None else {"model": model, "after": after}
    for name, value in given.items():
        if not isinstance(value, nn.Module):
            hint = "; inputs go to example_inputs=" if name == "after" else ""
            raise ArgumentError(f"{name} must be a torch.nn.Module, got {type(value).__name__}{hint}")
        check_undivided(value, "report")
    if after is None:
        return describe(model, example_inputs)
    return compare(model, after, example_inputs)


def describe(model: nn.Module, example_inputs: Sequence[Any] | None = None) -> ModelReport:
    """The report of one model; see :func:`report`."""
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
    )


def _weights(layers: Sequence[LayerReport]) -> int:
    return sum(torch.Size(layer.shape).numel() for layer in layers)


def _active(layers: Sequence[LayerReport]) -> float:
    return sum(layer.density * torch.Size(layer.shape).numel() for layer in layers)


def compare(
    before: nn.Module,
    after: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    compiled: Compiled | None = None,
) -> ExportReport:
    """The report of a model and its exported form; see :func:`report`."""
    compiled = compiled or Compiled(after)
    old, new = describe(before, example_inputs), describe(after, example_inputs)
    after_by_name = {layer.name: layer for layer in new.layers}
    before_by_name = {layer.name: layer for layer in old.layers}
    names = dict.fromkeys((*before_by_name, *after_by_name))
    changes = [LayerChange(name, before_by_name.get(name), after_by_name.get(name)) for name in names]
    return ExportReport(
        tuple(changes),
        old.parameters,
        new.parameters,
        tuple(compiled.passes),
        tuple(compiled.graphs),
        tuple(OpaqueModule(name, reason) for name, reason in compiled.opaque.items()),
        tuple(AsInEvaluation(name, what) for name, what in compiled.as_in_evaluation.items()),
    )


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
    weight = cast(Tensor, layer.weight).detach()
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


def _region_line(region: RegionReport) -> str:
    """What computes some layers, and why."""
    names = region.layers[0] if len(region.layers) == 1 else f"{region.layers[0]} to {region.layers[-1]}"
    kernels = "sparse" if region.taken else "dense"
    if region.dense is None or region.sparse is None:
        return f"{names}: {kernels} kernels"
    times = f"dense {1e3 * region.dense:.2f} ms, sparse {1e3 * region.sparse:.2f} ms"
    return f"{names}: {kernels} kernels ({times})"


def _before_after(change: LayerChange) -> list[str]:
    cells = []
    for cell in ("in_channels", "out_channels", "parameters", "flops_dense"):
        sides = (change.before, change.after)
        cells += [format_count(None if side is None else getattr(side, cell)) for side in sides]
    return cells
