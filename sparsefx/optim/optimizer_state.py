"""What an optimizer keeps of parameters: the state that a first step begins with, and zeros where needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsefx._common.subnormal import flush_subnormal
from sparsefx.errors import ArgumentError
from sparsefx.masking.sharding import local
from sparsefx.optim.gradients.momentum import state_of


@torch.no_grad()
def begin_state(optimizer: Optimizer) -> None:
    """Give every trainable parameter that has no state the one that it begins with; no weight changes.

    A checkpoint can only be loaded into what has the same entries, so it must not matter which parameters
    had a gradient before it was saved. Only the optimizer knows how it begins, so it makes a step along
    gradients of 0, without weight decay, which is not counted.

    Raises:
        ArgumentError: it cannot step without a closure.
    """
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    new = [one for one in held if one.requires_grad and not optimizer.state.get(one)]
    if not new:
        return
    with _gradients_of_zero(held, new), _as_they_were(optimizer.param_groups, new):
        for group in optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
        _step(optimizer)
    for one in new:
        state = optimizer.state.get(one, {})
        if "step" in state:
            state["step"] = state["step"] * 0


@torch.no_grad()
def zero_state(optimizer: Optimizer, weight: Tensor, where: Tensor) -> None:
    """Zero what an optimizer keeps of some positions of a weight.

    Args:
        optimizer: holds the weight.
        weight: the weight.
        where: bool, of the shape that this process holds of it.
    """
    for buffer in state_of(optimizer, weight).values():
        if isinstance(buffer, Tensor) and buffer.shape == weight.shape:
            local(buffer).masked_fill_(where, 0)


_SMOOTHED = ("momentum_buffer", "exp_avg", "grad_avg")
_SQUARED = ("exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg")  # divided by, if with eps


def flush_states(optimizer: Optimizer) -> None:
    """Set averages that an optimizer on the CPU keeps to 0 where they are subnormal.

    Where a neuron is dead its gradient is 0, and its averages fall below 1e-38, but never to 0: the least
    number there is, times 0.9, is rounded to itself. Next to any weight, and next to ``eps``, that is
    nothing. Without ``eps``, squares that something is divided by are left alone.
    """
    for group in optimizer.param_groups:
        names = _SMOOTHED + (_SQUARED if group.get("eps", 0) else ())
        for weight in group["params"]:
            state = state_of(optimizer, weight)
            for name in names:
                if isinstance(state.get(name), Tensor):
                    flush_subnormal(local(state[name]))


def _step(optimizer: Optimizer) -> None:
    try:
        type(optimizer).step(optimizer)
    except TypeError as error:
        raise ArgumentError(
            f"optimizer {type(optimizer).__name__} does not step without a closure ({error}), so its state "
            "cannot be saved by name; save the state_dict() of model and optimizer by torch.save"
        ) from error


@contextmanager
def _gradients_of_zero(held: Sequence[Tensor], new: Sequence[Tensor]) -> Iterator[None]:
    """Gradients for the new parameters alone."""
    gradients = [one.grad for one in held]
    try:
        for one in held:
            one.grad = None
        for one in new:
            one.grad = torch.zeros_like(one)
        yield
    finally:
        for one, gradient in zip(held, gradients, strict=True):
            one.grad = gradient


@contextmanager
def _as_they_were(groups: Sequence[dict[str, Any]], new: Sequence[Tensor]) -> Iterator[None]:
    """Put the weights back, and what groups have beside them: options, and what some count there."""
    weights = [one.clone() for one in new]
    options = [dict(group) for group in groups]
    try:
        yield
    finally:
        for one, weight in zip(new, weights, strict=True):
            one.copy_(weight)
        for group, before in zip(groups, options, strict=True):
            group.update(before)
