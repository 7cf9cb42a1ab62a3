"""The changes of an export, layer by layer, and their reasons, as a table and as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx, nn
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY

from sparsefx._common.table import Table, Tabular, format_count
from sparsefx.errors import unknown_name
from sparsefx.passes.capture.size_guards import InputSize
from sparsefx.passes.manager.partial_compile import Compiled
from sparsefx.passes.manager.pipeline import KeptChannels, PassReport, RegionReport
from sparsefx.report.model_report import LayerReport, describe


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after an export; ``None`` where the layer does not exist."""

    name: str
    before: LayerReport | None
    after: LayerReport | None


@dataclass(frozen=True)
class OpaqueModule:
    """A module whose forward stays Python (``""`` is the model itself), and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class AsInEvaluation:
    """A compiled module (``""`` is the model itself), and what of its training forward is left out."""

    name: str
    what: str


@dataclass(frozen=True)
class ExportReport(Tabular):
    """The changes of an export. ``print`` and notebooks show a table; :meth:`as_dict` gives plain data.

    Attributes:
        layers: each layer before and after.
        parameters_before: the number of parameters of the model.
        parameters_after: the number of parameters of the exported model.
        passes: what each pass did, in order, and what kept channels that nothing reads.
        graphs: the names of the modules that were compiled; ``""`` is the whole model.
        opaque: the modules that stay Python, with the reason.
        as_in_evaluation: the compiled modules that do in training something that the model did only in
            evaluation; empty unless ``fold_batchnorm=False``.
        sizes: each dimension of each graph's arguments, whether it varies, and over what range it was tried.
    """

    layers: tuple[LayerChange, ...]
    parameters_before: int
    parameters_after: int
    passes: tuple[PassReport, ...] = ()
    graphs: tuple[str, ...] = ()
    opaque: tuple[OpaqueModule, ...] = ()
    as_in_evaluation: tuple[AsInEvaluation, ...] = ()
    sizes: tuple[InputSize, ...] = ()

    @property
    def captured(self) -> str:
        """Whether the model was captured ``"whole"``, in ``"parts"`` or ``"not"``."""
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
        """The parts that sparse kernels can compute, with times, and the layers that they cannot.

        Empty with ``kernels="dense"``. :meth:`kernels` returns what computes one layer.
        """
        return tuple(one for step in self.passes for one in step.regions)

    def kernels(self, layer: str) -> str:
        """What computes a layer: ``"sparse"`` or ``"dense"`` kernels.

        Args:
            layer: the layer's name.

        Raises:
            ArgumentError: no layer has this name.
        """
        self._change(layer)
        taken = any(layer in region.layers for region in self.regions if region.taken)
        return "sparse" if taken else "dense"

    @property
    def kept(self) -> tuple[KeptChannels, ...]:
        """The empty channels that were kept, with the reason, except those of modules that stay Python."""
        return tuple(one for step in self.passes for one in step.kept)

    def why(self, layer: str) -> str:
        """Say in words why a layer still has empty channels.

        Args:
            layer: the layer's name.

        Raises:
            ArgumentError: no layer has this name.

        Example:
            >>> import torch, sparsefx
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> _ = net[2].weight.data[0].zero_()
            >>> print(sparsefx.export(net, (torch.randn(1, 4),)).report.why("2"))
            2 has 1 of 2 output channels empty: the model returns them
        """
        change = self._change(layer)
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
                "channels empty: it is not cut, because it shares its weight or belongs to what stays Python"
            )
        return f"{layer} has no empty channels"

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        totals = {"channels_before": self.channels_before, "channels_after": self.channels_after}
        return {**asdict(self), **totals}

    def _change(self, layer: str) -> LayerChange:
        change = next((change for change in self.layers if change.name == layer), None)
        if change is None:
            raise unknown_name("layer", layer, [change.name for change in self.layers])
        return change

    def _table(self) -> Table:
        header = ["layer", "in", "", "out", "", "parameters", "", "FLOPs", ""]
        rows = [[change.name, *_before_after(change)] for change in self.layers]
        if self.regions:
            header.append("kernels")
            rows = [
                [*row, self.kernels(change.name) if change.after else ""]
                for row, change in zip(rows, self.layers, strict=True)
            ]
        lines = [
            f"parameters {format_count(self.parameters_before)} -> {format_count(self.parameters_after)}, "
            f"channels {self.channels_before} -> {self.channels_after}"
        ]
        lines += [f"{step.name}: {step.detail} ({step.seconds:.2f} s)" for step in self.passes]
        lines += map(str, self.regions)
        lines += [f"{part.name or 'the model'} stays Python: {part.reason}" for part in self.opaque]
        lines += [
            f"{part.name or 'the model'} trains otherwise: {part.what}" for part in self.as_in_evaluation
        ]
        lines += list(map(str, (size for size in self.sizes if not size.graph)))
        return Table(header, rows, lines)


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
        tuple(compiled.sizes),
    )


def attach_report(model: nn.Module, report: ExportReport) -> None:
    """Make a report a model's ``report``, and that of its copies."""
    model.report = report  # type: ignore[assignment]
    if isinstance(model, fx.GraphModule):  # of which deep copies lose what torch does not know
        model.meta.setdefault(_USER_PRESERVED_ATTRIBUTES_KEY, {})["report"] = report


def _before_after(change: LayerChange) -> list[str]:
    cells = []
    for cell in ("in_channels", "out_channels", "parameters", "flops_dense"):
        sides = (change.before, change.after)
        cells += [format_count(None if side is None else getattr(side, cell)) for side in sides]
    return cells
