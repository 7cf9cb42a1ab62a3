"""How a method begins, the network with its first masks and the regulariser, and how its density ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Literal

import torch
from torch import nn

from sparsefx._common.distributions import active_counts
from sparsefx.cycle import LayerState, keep_largest
from sparsefx.cycle.updates.constant_fan_in import constant_fan_in_mask
from sparsefx.errors import ArgumentError
from sparsefx.masking.first_masks import warn_of_empty
from sparsefx.masking.masks import masked_weights
from sparsefx.masking.selection import Selector
from sparsefx.masking.sparsify import sparsify
from sparsefx.methods.parts import Sparsity
from sparsefx.methods.row import Method
from sparsefx.regularisers import REGULARISERS, Regulariser


def first_model(
    method: Method,
    network: nn.Module,
    dense: Selector | Iterable[Selector],
    generator: torch.Generator,
    prune_by_score: Callable[[nn.Module], None],
) -> nn.Module:
    """A masked copy of a network, as the method begins with it.

    Args:
        method: the method.
        network: the untrained network; it is not changed.
        dense: layers that stay dense.
        generator: for random masks.
        prune_by_score: prunes a model that still has all its weights, for methods that do so first.
    """
    # A mask over another one would leave active weights at 0.
    density = 1.0 if method.first_masks.constant_fan_in else method.first_density
    distribution = method.sparsity.distribution
    model = sparsify(network, density, distribution=distribution, dense=dense, generator=generator)
    if method.first_masks.constant_fan_in:
        _give_constant_fan_in(model, method.sparsity, generator)
    if method.first_masks.score is not None:
        prune_by_score(model)
        warn_of_empty(masked_weights(model), f"method {method.name!r}", stacklevel=3)
    return model


def _give_constant_fan_in(model: nn.Module, sparsity: Sparsity, generator: torch.Generator) -> None:
    layers = masked_weights(model)
    shapes = [layer.mask.shape for layer in layers]
    counts = active_counts(shapes, sparsity.density, sparsity.distribution)
    for layer, shape, count in zip(layers, shapes, counts, strict=True):
        layer.set_mask(constant_fan_in_mask(shape, count, generator).to(layer.weight.device))


def first_regulariser(method: Method, model: nn.Module, samples: int | None) -> Regulariser | None:
    """The regulariser of a method as it begins; None for a method without one.

    Args:
        method: the method.
        model: the masked model.
        samples: number of training samples, for a regulariser that divides by it.

    Raises:
        ArgumentError: it does, and ``samples`` is None.
    """
    if method.penalty is None:
        return None
    kind = REGULARISERS[method.penalty.regulariser]
    options = dict(method.penalty.options(method.sparsity))
    if "samples" in signature(kind).parameters:
        if samples is None:
            raise ArgumentError(f"samples: method {method.name!r} needs the number of training samples")
        options.setdefault("samples", samples)
    return kind(model, **options)


@torch.no_grad()
def prune_to_density(model: nn.Module, sparsity: Sparsity, scope: Literal["layer", "global"]) -> None:
    """Prune at the end of training what no update has, because training was too short for one."""
    layers = [layer for layer in masked_weights(model) if layer.weight.requires_grad]
    wanted = round(sparsity.density * sum(layer.mask.numel() for layer in layers))
    if sum(int(layer.mask.sum()) for layer in layers) <= wanted:
        return
    states = [LayerState(layer.name, layer.weight.detach(), layer.mask) for layer in layers]
    outcomes = keep_largest(states, sparsity.density, scope, sparsity.distribution)
    for layer, outcome in zip(layers, outcomes, strict=True):
        layer.set_mask(outcome.mask)
