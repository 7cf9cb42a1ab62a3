"""What an optimizer keeps of a weight anyway: its smoothed gradient, or the weight at other times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsefx.masking.sharding import local

_DEFAULT_EPS = 1e-8
_WEIGHTS = frozenset({"z", "ax"})  # schedule-free's, ASGD's


def keeps_momentum(optimizer: torch.optim.Optimizer, weight: Tensor) -> bool:
    """Whether the optimizer's state for this weight, of any shape, holds a smoothed gradient."""
    state = optimizer.state.get(weight, {})
    return state.get("momentum_buffer") is not None or state.get("exp_avg") is not None


def read_momentum(optimizer: torch.optim.Optimizer, weight: Tensor) -> Tensor | None:
    """The momentum that sparse momentum ranks by (Dettmers & Zettlemoyer 2019, section 3.2).

    It is SGD's, RMSprop's or Muon's ``momentum_buffer``; for the Adam family the average gradient
    over its root mean square, ``exp_avg / (sqrt(exp_avg_sq) + eps)``, for Adamax over ``exp_inf``;
    and ``exp_avg`` alone for those that keep nothing else, such as Lion. A factor common to all
    weights changes no decision, so SGD's dampening and Adam's bias correction are left out.

    Args:
        optimizer: any optimizer.
        weight: one of its parameters, shape ``S``.

    Returns:
        Shape ``S`` (this process's block, where the weight is sharded), signed, in float32 at least,
        with 0 for what is not finite; None if the optimizer keeps no momentum for this weight, or not
        yet. May be the optimizer's own buffer: do not write to it.
    """
    state = {name: local(value) for name, value in optimizer.state.get(weight, {}).items()}
    buffer, average = state.get("momentum_buffer"), state.get("exp_avg")
    if buffer is not None:
        return finite(buffer)
    if average is None:
        return None
    scale = _scale(state)
    if scale is None:
        return finite(average)
    return finite(_wide(average) / (scale + _eps(optimizer, weight)))


def kept_weights(optimizer: torch.optim.Optimizer, weight: Tensor) -> list[Tensor]:
    """The optimizer's tensors of the weight's shape that are averages of it, or that these come from.

    Schedule-free optimizers (Defazio et al. 2024) evaluate with an average that they compute from ``z``.
    """
    state = optimizer.state.get(weight)
    if not state or _WEIGHTS.isdisjoint(state):
        return []
    return [state[name] for name in state if name in _WEIGHTS and isinstance(state[name], Tensor)]


def finite(values: Tensor) -> Tensor:
    """Values of any shape in float32 at least, NaN and infinities as 0; no copy where nothing changes."""
    wide = _wide(values.detach())
    # A finite sum has finite terms, and takes a fiftieth of the time; one that is not may only be large.
    if bool(wide.sum().isfinite()) or bool(wide.isfinite().all()):
        return wide
    return wide.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _scale(state: Mapping[str, Any]) -> Tensor | None:
    """What an adaptive optimizer divides its average gradient by."""
    if isinstance(state.get("exp_avg_sq"), Tensor):
        return _wide(state["exp_avg_sq"]).sqrt()
    if isinstance(state.get("exp_inf"), Tensor):
        return _wide(state["exp_inf"])
    return None


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _eps(optimizer: torch.optim.Optimizer, weight: Tensor) -> float:
    for group in optimizer.param_groups:
        if any(parameter is weight for parameter in group["params"]):
            return float(group.get("eps", _DEFAULT_EPS))
    return _DEFAULT_EPS
