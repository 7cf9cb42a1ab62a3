"""Run models on example inputs, and tell whether results are alike up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsefx.passes.running.interpreter import Interpreter
from sparsefx.passes.running.leaves import leaves
from sparsefx.passes.running.suppress_stderr import suppress_stderr
from sparsefx.passes.running.untouched import untouched

# Beyond this relative difference on the example inputs a rewrite is at fault, not rounding.
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3}
_COARSE_ROUNDING = 5e-2


def run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The model's outputs; it and the inputs stay as they are."""
    with torch.no_grad(), untouched(model, inputs) as copies:
        return model(*copies)


def interpret(graph_module: fx.GraphModule, inputs: tuple[Any, ...]) -> Any:
    """The outputs as running node by node gives them."""
    with torch.no_grad(), untouched(graph_module, inputs) as copies:
        return Interpreter(graph_module).run(*copies)


def gives(outputs: Callable[[], Any], expected: Any) -> bool:
    """Whether a run succeeds and gives results that are alike up to rounding."""
    try:
        with suppress_stderr():
            return same(outputs(), expected)
    except Exception:  # any operator, or Python code around a graph, may refuse what it is given
        return False


def same(outputs: Any, expected: Any) -> bool:
    """Whether two results are alike up to rounding."""
    one, other = leaves(outputs), leaves(expected)
    if pytree.tree_structure(outputs) != pytree.tree_structure(expected) or len(one) != len(other):
        return False
    return all(_close(a, b) for a, b in zip(one, other, strict=True) if isinstance(b, Tensor))


def _close(output: Any, expected: Tensor) -> bool:
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(output, expected)
    tolerance = _ROUNDING.get(expected.dtype, _COARSE_ROUNDING)
    scale = float(expected.abs().nan_to_num().max()) if expected.numel() else 0.0
    return torch.allclose(output, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
