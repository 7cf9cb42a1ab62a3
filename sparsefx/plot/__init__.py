"""Pictures of training and of exports, for files and notebooks."""

from sparsefx.plot.channels import channels
from sparsefx.plot.graph import graph
from sparsefx.plot.history import densities, growth_shares, turnover
from sparsefx.plot.masks import masks
from sparsefx.plot.svg import Svg

__all__ = ["Svg", "channels", "densities", "graph", "growth_shares", "masks", "turnover"]
