"""How the parts of a model are called: recorded while it runs, and tried at other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsefx.passes.running.compare import run
from sparsefx.passes.running.examples import Inputs, bind, call
from sparsefx.passes.running.leaves import tensors_in
from sparsefx.passes.running.size_search import at_other_sizes
from sparsefx.passes.running.trials import Trials
from sparsefx.passes.running.untouched import untouched

Call = tuple[tuple[Any, ...], dict[str, Any]]


def calls_of_parts(model: nn.Module, inputs: Inputs) -> dict[str, list[Call]]:
    """The arguments with which each module inside a model is called when it runs on the inputs."""
    calls: dict[str, list[Call]] = {}
    hooks = []
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)  # takes no hooks, and is no part either
        if name and not scripted and next(module.children(), None) is not None:

            def note(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                # containers as they are now: the caller may append to its lists
                calls.setdefault(name, []).append(pytree.tree_map(lambda leaf: leaf, (args, kwargs)))

            hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        for values in inputs:
            run(model, values)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def trials_of(module: nn.Module, calls: Sequence[Call]) -> Trials | None:
    """The calls of a module by name, and those at other sizes: its parent may hand it any that it takes.

    A call with tensors of no elements says nothing of others, and is left out.
    """

    def try_call(example: Any) -> Any:
        with torch.no_grad(), untouched(module, (example,)) as (copied,):
            return call(module, copied)

    some = [arguments for arguments in calls if all(tensor.numel() for tensor in tensors_in(arguments))]
    try:
        examples = [bind(module, args, kwargs) for args, kwargs in _distinct(some)]
    except (TypeError, ValueError):  # a hook of the module's own, or a decorator, rewrites its arguments
        return None
    return at_other_sizes(try_call, examples[0]).also_at(*examples[1:]) if examples else None


def _distinct(calls: Sequence[Call]) -> list[Call]:
    """Calls that differ in a size: one of each kind, the first and the last few are enough."""
    shapes: dict[Any, Call] = {}
    for arguments in calls:
        leaves = pytree.tree_leaves(arguments)
        shapes.setdefault(tuple(leaf.shape for leaf in leaves if isinstance(leaf, Tensor)), arguments)
    kinds = list(shapes.values())
    return [*kinds[:1], *kinds[1:][-2:]]
