"""Tensors that are not plain ones: sparse layouts, and subclasses around other tensors."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor, nn, strided
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sparsefx.errors import ArgumentError


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor of any shape is a subclass around other tensors, as torchao's quantised ones are."""
    return bool(is_traceable_wrapper_subclass(tensor))


def dense(tensor: Tensor) -> Tensor:
    """A tensor of any shape in the strided layout; one in CSR or the like is copied, a parameter as one."""
    if tensor.layout == strided:
        return tensor
    values = tensor.detach().to_dense()
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def plain_values(tensor: Tensor, name: str) -> Tensor:
    """The numbers that a tensor of any shape stands for, detached.

    Args:
        tensor: a weight in any layout, or one that a subclass quantises.
        name: what an error calls it.

    Raises:
        ArgumentError: it is a subclass that does not tell them.
    """
    if not is_wrapped(tensor):
        return dense(tensor.detach())
    wrapped: Any = tensor
    with contextlib.suppress(Exception):  # each library has its own
        values: Tensor = wrapped.dequantize()
        if not is_wrapped(values):
            return values.detach()
    raise ArgumentError(
        f"{name} is of {_class_of(tensor)}, which does not tell its numbers; take the model as it was before "
        "it was quantised or packed"
    )


def check_plain(model: nn.Module, verb: str) -> None:
    """Refuse parameters and buffers whose numbers a subclass of tensor keeps to itself.

    Args:
        model: a model that is not sharded.
        verb: who asks.

    Raises:
        ArgumentError: it has some.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_wrapped(tensor):
            raise ArgumentError(
                f"{name} of model is of {_class_of(tensor)}, whose numbers cannot be cut; {verb} the model "
                f"before it is quantised or packed, and quantise what {verb} returns"
            )


def check_values(model: nn.Module) -> None:
    """Refuse parameters and buffers without values: those of lazy layers and on the meta device.

    Args:
        model: any model.

    Raises:
        ArgumentError: it has some.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ArgumentError(f"{name} of model has no shape yet; run the model once before")
        if tensor.is_meta:
            raise ArgumentError(
                f"{name} of model is on the meta device and has no values; give it some before, by "
                "model.to_empty(device='cpu') and model.load_state_dict(...)"
            )


def _class_of(tensor: Tensor) -> str:
    kind = type(tensor)
    return f"class {kind.__name__} of {kind.__module__.partition('.')[0]}"
