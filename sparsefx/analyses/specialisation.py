"""How far the channels of a trained model are each active for one class alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx._common.table import Table, Tabular
from sparsefx.analyses.activations import Where, listening
from sparsefx.errors import ArgumentError

_BINS = 20


@dataclass(frozen=True, eq=False)
class LayerSpecialisation:
    """The channels of one layer.

    Attributes:
        name: the layer.
        channels: how many it has.
        kept: indices of the channels that count, int64, shape (K,): the others are dead or weak.
        values: float64, shape (K,): the largest class's share of each kept channel's activity, between
            1 / classes (alike for all) and 1 (active for one class).
    """

    name: str
    channels: int
    kept: Tensor
    values: Tensor

    @property
    def mean(self) -> float:
        """Mean over the kept channels; NaN without any."""
        return float(self.values.mean())


@dataclass(frozen=True, eq=False)
class Specialisation(Tabular):
    """The class specialisation of a model's channels; ``print`` shows the layers' means.

    Attributes:
        classes: number of classes.
        layers: in the order in which they ran.
    """

    classes: int
    layers: tuple[LayerSpecialisation, ...]

    @property
    def values(self) -> Tensor:
        """The values of all layers, float64, shape (kept channels,)."""
        return torch.cat([layer.values for layer in self.layers])

    def as_dict(self, bins: int = _BINS) -> dict[str, Any]:
        """Means and histograms as plain data, as the results ledger keeps them.

        Args:
            bins: how many, of equal width, between 1 / classes and 1.

        Returns:
            A mean without channels is None.
        """
        edges = torch.linspace(1 / self.classes, 1, bins + 1, dtype=torch.float64)
        layers = [
            {
                "name": layer.name,
                "channels": layer.channels,
                "kept": len(layer.kept),
                "mean": _finite(layer.mean),
                "counts": _histogram(layer.values, bins, 1 / self.classes),
            }
            for layer in self.layers
        ]
        return {
            "classes": self.classes,
            "mean": _finite(float(self.values.mean())),
            "edges": edges.tolist(),
            "layers": layers,
        }

    def _table(self) -> Table:
        rows = [
            [layer.name, str(layer.channels), str(len(layer.kept)), f"{layer.mean:.4f}"]
            for layer in self.layers
        ]
        return Table(["layer", "channels", "kept", "mean specialisation"], rows)


def class_specialisation(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    *,
    where: Where = "relu outputs",
    weak: float = 0.05,
    balance: bool = False,
) -> Specialisation:
    """Measure what share of each channel's activity its favourite class has.

    The activity of a channel for a class is the sum of its absolute activations over the class's samples
    and all positions (Dettmers & Zettlemoyer 2019, section 5.2 and Figure 3).

    Args:
        model: a trained model; it is run in evaluation mode, without gradients.
        batches: inputs (N, ...) and labels (N,), int64 in [0, classes); the whole training set, say.
        classes: number of classes.
        where: ``"relu outputs"`` or, for networks with activations before their convolutions (wide
            ResNets), ``"convolution inputs"``.
        weak: of each layer, drop the channels of least activity that together have less than this
            share of it, as the paper's published code does; dead channels are dropped always.
        balance: divide by the number of samples of each class, for classes of different sizes.

    Raises:
        ArgumentError: ``where`` is unknown, ``weak`` is outside [0, 1), a label is outside the classes, or
            no activation map was seen.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
        >>> _ = torch.nn.init.eye_(model[0].weight)
        >>> found = class_specialisation(model, [(torch.eye(2), torch.tensor([0, 1]))], classes=2)
        >>> found.layers[0].values
        tensor([1., 1.], dtype=torch.float64)
    """
    _check(where, weak)
    activity = _Activity(classes)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), listening(model, where, activity.add):
            for inputs, labels in batches:
                activity.start(labels)
                model(inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not activity.sums:
        raise ArgumentError(f"where={where!r} found no activation map in {type(model).__name__}")
    scale = 1 / activity.samples.clamp(min=1) if balance else torch.ones(classes, dtype=torch.float64)
    layers = [_layer(name, sums, scale, weak) for name, sums in activity.sums.items()]
    return Specialisation(classes, tuple(layers))


class _Activity:
    """Sums activations by channel and class, batch after batch.

    Attributes:
        sums: float64, shape (channels, classes), by the activation's name.
        samples: seen of each class, float64, shape (classes,).
    """

    def __init__(self, classes: int) -> None:
        self.sums: dict[str, Tensor] = {}
        self.samples = torch.zeros(classes, dtype=torch.float64)
        self._labels = torch.empty(0, dtype=torch.int64)

    def start(self, labels: Tensor) -> None:
        """The labels, shape (N,), of the batch that runs next."""
        classes = len(self.samples)
        self._labels = labels.cpu().long()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ArgumentError(
                f"batches has labels from {int(labels.min())} to {int(labels.max())}, but classes={classes}"
            )
        self.samples += torch.bincount(self._labels, minlength=classes)

    def add(self, name: str, maps: Tensor) -> None:
        """Maps of shape (N, C, ...)."""
        wide = torch.promote_types(maps.dtype, torch.float32)
        by_sample = maps.abs().reshape(*maps.shape[:2], -1).sum(2, dtype=wide).cpu().double()
        sums = self.sums.setdefault(name, by_sample.new_zeros(maps.shape[1], len(self.samples)))
        sums.index_add_(1, self._labels, by_sample.t())


def _layer(name: str, activity: Tensor, scale: Tensor, weak: float) -> LayerSpecialisation:
    """From a layer's activity, shape (channels, classes), to its values."""
    total = activity.sum(1)
    order = total.argsort(stable=True)
    cumulative = total[order].cumsum(0)
    strong = cumulative >= weak * total.sum()
    kept = order[strong & (total[order] > 0)].sort().values
    scaled = activity[kept] * scale
    values = (scaled / scaled.sum(1, keepdim=True)).amax(1)
    return LayerSpecialisation(name, len(total), kept, values)


def _histogram(values: Tensor, bins: int, low: float) -> list[int]:
    # A value of exactly 1 / classes may be rounded to just below it; histc would leave it out.
    counts: list[int] = torch.histc(values.clamp(low, 1), bins, low, 1).long().tolist()
    return counts


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check(where: str, weak: float) -> None:
    if where not in ("relu outputs", "convolution inputs"):
        raise ArgumentError(f"where={where!r} is neither 'relu outputs' nor 'convolution inputs'")
    if not 0 <= weak < 1:
        raise ArgumentError(f"weak={weak!r} is not in [0, 1)")
