"""What an optimizer keeps of a weight anyway: its smoothed gradient, or the weight at other times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsefx.masking.sharding import local

_DEFAULT_EPS = 1e-8
_MOMENTA = ("momentum_buffer", "exp_avg")
_WEIGHTS = frozenset(
    {
        *("z", "ax"),  # schedule-free's, ASGD's
        *("slow_buffer", "slow_buff", "lookahead_slow_buff", "slow_params", "cached_params"),  # Lookahead's
    }
)


def state_of(optimizer: Optimizer, weight: Tensor) -> Mapping[str, Any]:
    """What an optimizer keeps of a weight of any shape, and what one inside it does, as that of SAM."""
    state: Mapping[str, Any] = optimizer.state.get(weight) or {}
    if type(optimizer).__module__.startswith("torch.optim"):
        return state
    inner = [one for one in vars(optimizer).values() if isinstance(one, Optimizer)]
    for one in inner:
        if one.state is not optimizer.state:
            state = {**state_of(one, weight), **state}
    return state


def keeps_momentum(optimizer: Optimizer, weight: Tensor) -> bool:
    """Whether the optimizer's state for this weight, of any shape, holds a smoothed gradient of its shape."""
    state = state_of(optimizer, weight)
    return any(_is_like(state.get(name), weight) for name in _MOMENTA)


def unreadable_momentum(optimizer: Optimizer, weight: Tensor) -> str:
    """The name of a smoothed gradient that is not of its weight's shape; empty if there is none.

    GaLore keeps one of a projection, SPAM of some positions, AggMo several in a dict.
    """
    state = state_of(optimizer, weight)
    odd = [name for name in _MOMENTA if state.get(name) is not None and not _is_like(state[name], weight)]
    return odd[0] if odd and not keeps_momentum(optimizer, weight) else ""


def read_momentum(optimizer: Optimizer, weight: Tensor) -> Tensor | None:
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
        with 0 for what is not finite; None if the optimizer keeps no momentum of this shape, or not
        yet. May be the optimizer's own buffer: do not write to it.
    """
    kept = state_of(optimizer, weight).items()
    state = {name: local(value) for name, value in kept if _is_like(value, weight)}
    buffer, average = (state.get(name) for name in _MOMENTA)
    if buffer is not None:
        return finite(buffer)
    if average is None:
        return None
    scale = _scale(state)
    if scale is None:
        return finite(average)
    return finite(_wide(average) / (scale + _eps(optimizer, weight)))


def kept_weights(optimizer: Optimizer, weight: Tensor) -> list[Tensor]:
    """The optimizer's tensors of the weight's shape that are averages of it, or that these come from.

    Schedule-free optimizers (Defazio et al. 2024) evaluate with an average that they compute from ``z``, and
    Lookahead (Zhang et al. 2019) goes back towards slow weights.
    """
    state = state_of(optimizer, weight)
    if not state or _WEIGHTS.isdisjoint(state):
        return []
    return [state[name] for name in state if name in _WEIGHTS and _is_like(state[name], weight)]


def finite(values: Tensor) -> Tensor:
    """Values of any shape in float32 at least, NaN and infinities as 0; no copy where nothing changes."""
    wide = _wide(values.detach())
    # A finite sum has finite terms, and takes a fiftieth of the time; one that is not may only be large.
    if bool(wide.sum().isfinite()) or bool(wide.isfinite().all()):
        return wide
    return wide.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _scale(state: Mapping[str, Tensor]) -> Tensor | None:
    """What an adaptive optimizer divides its average gradient by."""
    if "exp_avg_sq" in state:
        return _wide(state["exp_avg_sq"]).sqrt()
    return _wide(state["exp_inf"]) if "exp_inf" in state else None


def _is_like(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and local(value).shape == local(weight).shape


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _eps(optimizer: Optimizer, weight: Tensor) -> float:
    for group in optimizer.param_groups:
        if any(parameter is weight for parameter in group["params"]):
            return float(group.get("eps", _DEFAULT_EPS))
    return _DEFAULT_EPS
