"""How a method's own paper trains, where that is not as the recipe of the data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefx.cycle import AdaptiveThreshold, ForAllLayers

_ADAM = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0}

TUNING: Mapping[str, Mapping[str, Any]] = {
    # Bellec et al. 2018, code: plain SGD, its learning rate, and the random walk instead of weight decay
    "deep-r": {"lr": 0.5, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "soft-deep-r": {"lr": 0.05, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    # Molchanov, Ashukha & Vetrov 2017, code: Adam; the penalty takes the place of weight decay. Their
    # learning rate falls in a line; here it falls as the data set's recipe says
    "variational-dropout": _ADAM,
    # Louizos, Welling & Kingma 2018, code: Adam
    "hard-concrete": _ADAM,
    # Ullrich, Meeds & Welling 2017, code: Adam; without weight decay, for which the prior stands
    "soft-weight-sharing": {**_ADAM, "lr": 5e-4},
}
"""Fields of the recipe by method; the reasons stand beside them."""


def _removes(count: int) -> dict[str, Any]:
    """DSR that removes about so many weights at an update."""
    return {"prune": ForAllLayers(AdaptiveThreshold(wanted=count))}


NETWORK_TUNING: Mapping[tuple[str, str], Mapping[str, Any]] = {
    # Mostafa & Wang 2019, code: a number a network, whatever its density
    ("dsr", "lenet-300-100"): _removes(600),
    ("dsr", "lenet-300-100-norm"): _removes(600),
    ("dsr", "wrn-28-2"): _removes(20_000),
    ("dsr", "resnet-50"): _removes(400_000),
    # Bellec et al. 2018, code: 1, 3 and 30% of the three layers' weights, which this is close to; with 1% of
    # each the last layer has one weight an output
    ("deep-r", "lenet-300-100"): {"distribution": "erk"},
}
"""Fields of the method by its name and the network's; the reasons stand beside them."""
