"""What the benchmarks do to a network: random statistics, empty weights, comparison of outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

PATTERNS = ("rows", "columns", "both", "random", "everything")
_UNTRAINED = 1e-3
"""Parameters that are the same number everywhere, 1 or below this, have not been trained."""


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Move norms, scales, biases and whatever else starts as 0 or 1 away from it."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if _is_untrained(parameter):
                _randomise_parameter(name, parameter)


@torch.no_grad()
def calibrate(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Give each norm statistics near those of what reaches it, so that signals last to the outputs."""
    handles = [
        module.register_forward_pre_hook(_set_statistics)
        for module in model.modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
    ]
    try:
        outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def _set_statistics(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    running_mean, running_var = module.get_buffer("running_mean"), module.get_buffer("running_var")
    variance, mean = torch.var_mean(arguments[0].transpose(0, 1).flatten(1), 1, correction=0)
    if mean.shape == running_mean.shape:
        variance = torch.where(variance < 1e-6 * variance.max(), 1.0, variance).clamp_min(1e-12)
        running_mean.copy_(mean + torch.randn_like(mean) * 0.3 * variance.sqrt())
        running_var.copy_(variance * torch.empty_like(variance).uniform_(0.5, 2))


def _is_untrained(parameter: Tensor) -> bool:
    if not parameter.is_floating_point() or parameter.numel() == 0:
        return False
    value = float(parameter.flatten()[0])
    return bool((parameter == value).all()) and (value == 1 or abs(value) < _UNTRAINED)


def _randomise_parameter(name: str, parameter: Tensor) -> None:
    spatial = [size for size in parameter.shape if size > 1]
    if "bias" in name or (len(spatial) > 1 and not parameter.any()):  # positions start at 0
        parameter.normal_(0, 0.3 if len(spatial) < 2 else 0.1)
    else:
        parameter.uniform_(0.5, 1.5)


def weights(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """The weights that a pattern empties, each once, with the dimension of its rows (outputs)."""
    seen = set()
    for module in model.modules():
        name, rows = "weight", 0
        if isinstance(module, nn.MultiheadAttention):
            name = "in_proj_weight"
        elif type(module).__name__ == "Conv1D":  # transformers' own: its weight is (in, out)
            rows = 1
        elif not isinstance(module, (nn.Linear, _ConvNd)):
            continue
        weight = module._parameters.get(name)  # not one that is computed
        if weight is not None and id(weight) not in seen:
            seen.add(id(weight))
            yield weight, rows


@torch.no_grad()
def empty(model: nn.Module, pattern: str) -> None:
    """Empty 40% of the rows and/or columns of every weight, or 95% at random as well, or everything.

    The first row and column stay, and what stays is scaled up to the weight's former norm: outputs that
    do not vary, or not above rounding, would show nothing.

    Args:
        model: is changed.
        pattern: one of :data:`PATTERNS`.
    """
    for weight, dim in weights(model):
        norm = weight.norm()
        rows, columns = weight.transpose(0, dim), weight.transpose(1, dim)  # their first dimensions
        if pattern == "random":
            rows[1:][torch.rand_like(rows[1:]) > 0.05] = 0
        if pattern in ("rows", "both", "random"):
            rows[1:][torch.rand(len(rows) - 1) < 0.4] = 0
        if pattern in ("columns", "both"):
            columns[1:][torch.rand(len(columns) - 1) < 0.4] = 0
        if pattern == "everything":
            weight.zero_()
        if (left := weight.norm()) > 0:
            weight *= norm / left


def sizes(model: nn.Module) -> tuple[int, int]:
    """Elements of all parameters, and of those with two dimensions or more: folded norms have one."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.dim() > 1)


def opaque_weights(model: nn.Module) -> int:
    """Elements of the weights in modules that a graph calls as one, torch's own layers not counted."""
    if not isinstance(model, fx.GraphModule):
        return 0
    found = {}
    for node in model.graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if any(module.children()) and not type(module).__module__.startswith("torch.nn."):
                found.update({id(p): p.numel() for p in module.parameters() if p.dim() > 1})
    return sum(found.values())


@torch.no_grad()
def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """All tensors of a model's outputs on a copy of the inputs."""
    copies = pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = [leaf for leaf in pytree.tree_leaves(model(*copies)) if isinstance(leaf, Tensor)]
    if not tensors:
        raise ValueError("the model returns no tensors")
    return [tensor.detach().clone() for tensor in tensors]


def difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference over the largest expected magnitude; infinite where shapes or integers differ."""
    if [tensor.shape for tensor in actual] != [tensor.shape for tensor in expected]:
        return math.inf
    found, scale = 0.0, 1e-30
    for one, other in zip(actual, expected, strict=True):
        if not other.is_floating_point() and not other.is_complex():
            found = found if torch.equal(one, other) else math.inf
        elif other.numel():
            known = other.isfinite()
            if not torch.equal(one[~known].nan_to_num(), other[~known].nan_to_num()):
                return math.inf
            scale = max(scale, _largest(other[known]))
            found = max(found, _largest(one[known] - other[known]))
    return found / scale


@torch.no_grad()
def rounding(model: nn.Module, inputs: tuple[Any, ...], expected: list[Tensor]) -> float:
    """How much a model's outputs change when each weight is off by about a unit in the last place."""
    perturbed = copy.deepcopy(model)
    for parameter in perturbed.parameters():
        parameter.mul_(1 + torch.finfo(parameter.dtype).eps * torch.randn_like(parameter))
    return difference(outputs(perturbed, inputs), expected)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


class AsDouble(TorchFunctionMode):
    """Runs a model's casts to float32 as casts to float64, so that rounding stays that of float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function with float64 in the place of float32."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        kwargs = {name: _as_double(value) for name, value in (kwargs or {}).items()}
        return func(*map(_as_double, args), **kwargs)


def _as_double(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


class SinglePrecision(TorchDispatchMode):
    """Sees whether a model computes in float32 what it was asked to compute in float64."""

    found: bool = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and look at its results."""
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        self.found |= any(leaf.dtype in (torch.float32, torch.float16, torch.bfloat16) for leaf in leaves)
        return result
