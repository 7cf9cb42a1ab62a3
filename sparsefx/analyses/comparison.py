"""Two networks' class specialisation side by side, such as a dense and a sparse one's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefx._common.table import Table, Tabular
from sparsefx.analyses.anova import Anova, two_way_anova
from sparsefx.analyses.specialisation import Specialisation
from sparsefx.errors import ArgumentError


@dataclass(frozen=True)
class LayerComparison:
    """One layer of both networks.

    Attributes:
        name: the layer.
        mean: of its channels' values in the first network.
        other: of those in the second.
        distance: the largest difference of the two cumulative distributions (Kolmogorov and Smirnov's), in
            [0, 1].
    """

    name: str
    mean: float
    other: float
    distance: float


@dataclass(frozen=True)
class Comparison(Tabular):
    """Both networks, layer by layer; ``print`` shows a table.

    Attributes:
        layers: those where both networks have channels that count.
        anova: layer (first factor) by network (second factor); None where it cannot be made.
    """

    layers: tuple[LayerComparison, ...]
    anova: Anova | None

    def _table(self) -> Table:
        rows = [
            [layer.name, f"{layer.mean:.4f}", f"{layer.other:.4f}", f"{layer.distance:.3f}"]
            for layer in self.layers
        ]
        return Table(["layer", "mean", "other's mean", "distance"], rows)

    def __str__(self) -> str:
        return "\n\n".join([super().__str__(), *([str(self.anova)] if self.anova else [])])

    def _repr_html_(self) -> str:
        return super()._repr_html_() + (self.anova._repr_html_() if self.anova else "")


def compare(one: Specialisation, other: Specialisation) -> Comparison:
    """Compare the specialisation of two networks of one architecture.

    Dettmers & Zettlemoyer (2019), section 5.2, expect the sparse network's distributions to lie lower
    than the dense one's, the more so the deeper the layer.

    Raises:
        ArgumentError: the networks' layers have different names, or their classes differ in number.
    """
    names, others = ([layer.name for layer in found.layers] for found in (one, other))
    if names != others or one.classes != other.classes:
        raise ArgumentError(
            f"one has the layers {names} and {one.classes} classes, other {others} and {other.classes}; "
            "compare networks of one architecture on the same data"
        )
    pairs = {
        first.name: (first.values, second.values)
        for first, second in zip(one.layers, other.layers, strict=True)
        if len(first.values) and len(second.values)
    }
    layers = [
        LayerComparison(name, float(first.mean()), float(second.mean()), _distance(first, second))
        for name, (first, second) in pairs.items()
    ]
    return Comparison(tuple(layers), _anova(pairs))


def _anova(pairs: dict[str, tuple[Tensor, Tensor]]) -> Anova | None:
    groups = {
        (name, network): values
        for name, both in pairs.items()
        for network, values in zip(("one", "other"), both, strict=True)
    }
    enough = len(pairs) > 1 and any(len(values) > 1 for values in groups.values())
    return two_way_anova(groups) if enough else None


def _distance(first: Tensor, second: Tensor) -> float:
    points = torch.cat([first, second])
    shares = [torch.searchsorted(v.sort().values, points, right=True) / len(v) for v in (first, second)]
    return float((shares[0] - shares[1]).abs().max())
