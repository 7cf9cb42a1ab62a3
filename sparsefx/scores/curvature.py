"""The diagonal of the Hessian of a task's mean loss, exactly or nearly, three ways.

Each takes a task and the model to differentiate (in evaluation mode, where examples do not meet)
and returns, for each masked weight's name, a tensor of its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from sparsefx.masks import masked_weights
from sparsefx.scores.derivatives import hessian_vector_product
from sparsefx.scores.task import Task

Curvature = Callable[[Task, nn.Module], dict[str, Tensor]]
_ByExample = Callable[[Tensor, Any], Tensor]


def gauss_newton(task: Task, model: nn.Module, *, chunk: int = 64) -> dict[str, Tensor]:
    """The Gauss-Newton diagonal, exactly: what is left of the Hessian when f'' of the layers is dropped.

    ``h = mean over examples of diag(J^T H J)``, ``J`` the output's derivative by the weights and ``H``
    the loss' Hessian by the output, factored as ``S S^T``, so that each column of ``S`` costs one
    backward pass. This is the "Levenberg-Marquardt approximation" of LeCun et al. 1990 without
    their recursion's second one, that a layer's units have no mixed derivatives. Never negative.
    It costs as many gradients an example as the network has outputs.

    Args:
        task: a loss that averages over examples; a few thousand examples are usually enough.
        model: a function of each example alone, with one tensor as output.
        chunk: examples whose gradients are held in memory at a time.
    """
    total = _zeros(model)
    examples = 0
    for inputs, targets in task.data():
        with torch.no_grad():
            factors = _factors(task, model(inputs).detach(), targets)
        for column in factors.unbind(dim=2):
            _add_squares(total, model, _along, inputs, column, chunk)
        examples += len(inputs)
    return {name: value / examples for name, value in total.items()}


def fisher(task: Task, model: nn.Module, *, chunk: int = 64) -> dict[str, Tensor]:
    """The empirical Fisher diagonal: the mean over examples of the squared gradient.

    It costs one gradient an example, but vanishes where a network fits its data.

    Args:
        task: a loss that averages over examples.
        model: a function of each example alone.
        chunk: examples whose gradients are held in memory at a time.
    """

    def loss(output: Tensor, target: Any) -> Tensor:
        return task.loss(output[None], target[None])

    total = _zeros(model)
    examples = 0
    for inputs, targets in task.data():
        _add_squares(total, model, loss, inputs, targets, chunk)
        examples += len(inputs)
    return {name: value / examples for name, value in total.items()}


def hutchinson(task: Task, model: nn.Module, *, probes: int = 64) -> dict[str, Tensor]:
    """An unbiased estimate of the true Hessian's diagonal: the mean of ``z * H z`` for random signs ``z``.

    Hutchinson 1990. Its variance is the sum of squares of the Hessian's other entries in the row, over
    ``probes``; entries may be negative.

    Args:
        task: any mean loss.
        model: what it computes must have second derivatives.
        probes: Hessian-vector products to average; the signs come from ``task.generator``.
    """
    layers = masked_weights(model)
    weights = [layer.weight for layer in layers]
    total = [torch.zeros_like(weight) for weight in weights]
    for _ in range(probes):
        signs = [_signs(weight, task.generator) for weight in weights]
        products = hessian_vector_product(task, model, weights, signs)
        torch._foreach_addcmul_(total, signs, products)
    return {layer.name: value / probes for layer, value in zip(layers, total, strict=True)}


def _zeros(model: nn.Module) -> dict[str, Tensor]:
    return {layer.name: torch.zeros_like(layer.weight) for layer in masked_weights(model)}


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else None
    return torch.randint(0, 2, like.shape, generator=generator, device=device).to(like).mul_(2).sub_(1)


def _factors(task: Task, outputs: Tensor, targets: Any) -> Tensor:
    """For each example a matrix S (outputs, outputs) with ``S S^T`` the loss' Hessian by the output."""

    def loss(output: Tensor, target: Any) -> Tensor:
        return task.loss(output.view(1, *outputs.shape[1:]), target[None])

    hessians = vmap(jacrev(jacrev(loss)))(outputs.flatten(1), targets)
    values, vectors = torch.linalg.eigh(hessians)
    factors: Tensor = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    return factors


def _along(output: Tensor, direction: Tensor) -> Tensor:
    return output.flatten().dot(direction)


def _add_squares(
    total: dict[str, Tensor], model: nn.Module, scalar: _ByExample, inputs: Tensor, extra: Tensor, chunk: int
) -> None:
    """Add the squared gradient of ``scalar(output, extra)`` of each example."""
    parameters = dict(_named_weights(model))

    def value(weights: dict[str, Tensor], example: Tensor, own: Any) -> Tensor:
        by_path = {path: weights[name] for name, (path, _) in parameters.items()}
        return scalar(functional_call(model, by_path, (example[None],))[0], own)

    weights = {name: weight.detach() for name, (_, weight) in parameters.items()}
    gradients = vmap(grad(value), in_dims=(None, 0, 0))
    for examples, own in zip(inputs.split(chunk), extra.split(chunk), strict=True):
        for name, slopes in gradients(weights, examples, own).items():
            total[name] += slopes.square().sum(dim=0)


def _named_weights(model: nn.Module) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Each masked weight's layer name, with the parameter's own path in the model and its value."""
    paths = {id(parameter): path for path, parameter in model.named_parameters()}
    for layer in masked_weights(model):
        yield layer.name, (paths[id(layer.weight)], layer.weight)


CURVATURES: dict[str, Curvature] = {
    "gauss-newton": gauss_newton,
    "fisher": fisher,
    "hutchinson": hutchinson,
}
