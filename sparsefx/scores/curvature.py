"""The diagonal of the Hessian of the mean loss, exactly or nearly, three ways.

Each takes a context and the model to differentiate (in evaluation mode, where examples do not meet)
and returns, for each masked weight's name, a tensor of its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import masked_weights
from sparsefx.scores.derivatives import hessian_vector_product
from sparsefx.scores.example_gradients import recorded, squared_gradients
from sparsefx.scores.scoring_context import ScoringContext

Curvature = Callable[[ScoringContext, nn.Module], dict[str, Tensor]]


def gauss_newton(context: ScoringContext, model: nn.Module) -> dict[str, Tensor]:
    """The Gauss-Newton diagonal, exactly: what is left of the Hessian when f'' of the layers is dropped.

    ``h = mean over examples of diag(J^T H J)``, ``J`` the output's derivative by the weights and ``H``
    the loss' Hessian by the output, factored as ``S S^T``, so that each column of ``S`` costs one
    backward pass. This is the "Levenberg-Marquardt approximation" of LeCun et al. 1990 without
    their recursion's second one, that a layer's units have no mixed derivatives. Never negative.

    Args:
        context: a loss that averages over examples; a few thousand examples are usually enough.
        model: a function of each example alone, with one tensor (n, ...) as output.

    Raises:
        ArgumentError: a masked weight is of another kind of layer than Linear and Conv, or never called.
    """
    total = _zeros(model)
    examples, called = 0, set[str]()
    for inputs, targets in context.data():
        with recorded(model) as calls:
            output = model(inputs)
        for column in _factors(context, output.detach(), targets).unbind(dim=2):
            _add(total, squared_gradients((output.flatten(1) * column).sum(), calls, len(inputs)))
        examples += len(inputs)
        called |= {call.layer.name for call in calls}
    _check_called(total, called)
    return {name: value / examples for name, value in total.items()}


def fisher(context: ScoringContext, model: nn.Module) -> dict[str, Tensor]:
    """The empirical Fisher diagonal: the mean over examples of the squared gradient.

    It costs one backward pass, but vanishes where a network fits its data.

    Args:
        context: a loss that averages over examples.
        model: a function of each example alone.

    Returns:
        A tensor of each weight's shape, by the layer's name.

    Raises:
        ArgumentError: a masked weight is of another kind of layer than Linear and Conv, or never called.
    """
    total = _zeros(model)
    examples, called = 0, set[str]()
    for inputs, targets in context.data():
        with recorded(model) as calls:
            loss = context.loss(model(inputs), targets) * len(inputs)
        _add(total, squared_gradients(loss, calls, len(inputs)))
        examples += len(inputs)
        called |= {call.layer.name for call in calls}
    _check_called(total, called)
    return {name: value / examples for name, value in total.items()}


def hutchinson(context: ScoringContext, model: nn.Module, *, probes: int = 64) -> dict[str, Tensor]:
    """An unbiased estimate of the true Hessian's diagonal: the mean of ``z * H z`` for random signs ``z``.

    Hutchinson 1990. Its variance is the sum of squares of the Hessian's other entries in the row, over
    ``probes``; entries may be negative.

    Args:
        context: any mean loss.
        model: what it computes must have second derivatives.
        probes: Hessian-vector products to average; the signs come from ``context.generator``.
    """
    layers = masked_weights(model)
    weights = [layer.weight for layer in layers]
    total = [torch.zeros_like(weight) for weight in weights]
    for _ in range(probes):
        signs = [_signs(weight, context.generator) for weight in weights]
        products = hessian_vector_product(context, model, weights, signs)
        torch._foreach_addcmul_(total, signs, products)
    return {layer.name: value / probes for layer, value in zip(layers, total, strict=True)}


def _zeros(model: nn.Module) -> dict[str, Tensor]:
    return {layer.name: torch.zeros_like(layer.weight) for layer in masked_weights(model)}


def _check_called(layers: Iterable[str], called: set[str]) -> None:
    missing = [name for name in layers if name not in called]
    if missing:
        raise ArgumentError(
            f"layers {', '.join(missing)} are not called by the model (torch's attention reads a layer's "
            "weight without calling it): keep them dense, or choose curvature='hutchinson'"
        )


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else None
    return torch.randint(0, 2, like.shape, generator=generator, device=device).to(like).mul_(2).sub_(1)


def _add(total: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    for name, part in parts.items():
        total[name] += part


def _factors(context: ScoringContext, output: Tensor, targets: Any) -> Tensor:
    """For each example a matrix S (outputs, outputs) with ``S S^T`` the loss' Hessian by the output."""
    output = output.requires_grad_()
    loss = context.loss(output, targets) * len(output)
    (slope,) = torch.autograd.grad(loss, output, create_graph=True)
    columns = [
        torch.autograd.grad(entry.sum(), output, retain_graph=True)[0].flatten(1)
        for entry in slope.flatten(1).unbind(dim=1)
    ]
    hessians = torch.stack(columns, dim=2)
    wide = torch.promote_types(hessians.dtype, torch.float32)  # there is no eigh in half precision
    values, vectors = torch.linalg.eigh(hessians.to(wide))
    factors: Tensor = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    return factors.to(hessians.dtype)


CURVATURES: dict[str, Curvature] = {
    "gauss-newton": gauss_newton,
    "fisher": fisher,
    "hutchinson": hutchinson,
}
