"""How a method's own paper trains, where that is not as the recipe of the data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ADAM = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0}

TUNING: Mapping[str, Mapping[str, Any]] = {
    # Bellec et al. 2018, code: plain SGD, and the random walk instead of weight decay
    "deep-r": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "soft-deep-r": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    # Molchanov, Ashukha & Vetrov 2017, code: Adam; the penalty takes the place of weight decay. Their
    # learning rate falls in a line; here it falls as the data set's recipe says
    "variational-dropout": _ADAM,
    # Louizos, Welling & Kingma 2018, code: Adam
    "hard-concrete": _ADAM,
}
"""Fields of the recipe by method; the reasons stand beside them."""
