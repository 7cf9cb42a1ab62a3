"""How many channels a layer uses, and how many it does not use or has lost."""

from __future__ import annotations

from typing import NamedTuple

from sparsefx.report.export_report import LayerChange
from sparsefx.report.model_report import LayerReport


class Counts(NamedTuple):
    """Channels on one side of a layer.

    Attributes:
        kept: in use.
        gone: empty, or removed by an export.
        new: in use, and not there before the export.
    """

    kept: int
    gone: int
    new: int = 0

    @property
    def before(self) -> int:
        """How many there were."""
        return self.kept + self.gone

    @property
    def after(self) -> int:
        """How many are in use."""
        return self.kept + self.new


def of_layer(layer: LayerReport) -> tuple[Counts, Counts]:
    """A layer's input and its output channels."""
    inputs, outputs = layer.in_channels, layer.out_channels
    return (
        Counts(inputs - layer.empty_inputs, layer.empty_inputs),
        Counts(outputs - layer.empty_outputs, layer.empty_outputs),
    )


def of_change(change: LayerChange) -> tuple[Counts, Counts]:
    """What an export made of a layer's input and of its output channels."""
    inputs, outputs = zip(_channels(change.before), _channels(change.after), strict=True)
    return _between(*inputs), _between(*outputs)


def _channels(layer: LayerReport | None) -> tuple[int, int]:
    return (layer.in_channels, layer.out_channels) if layer else (0, 0)


def _between(before: int, after: int) -> Counts:
    kept = min(before, after)
    return Counts(kept, before - kept, after - kept)
