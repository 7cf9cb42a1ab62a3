"""Where the parameters of a rewritten model come from: of which parameter they are which indices.

A parameter that has an origin holds it as a Python attribute. A pass that replaces or reorders parameters
says so with :func:`follow` and :func:`reorder`; what it writes into them is of no account here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

_KEY = "_sparsefx_origin"
_Module = TypeVar("_Module", bound=nn.Module)
_Tensor = TypeVar("_Tensor", bound=Tensor)


@dataclass(frozen=True, eq=False)
class Origin:
    """Where one parameter comes from.

    Attributes:
        name: the parameter's name in the original model.
        shape: its shape there.
        indices: for each dimension, which of the original's indices these are, in this order (int64, CPU).
    """

    name: str
    shape: torch.Size
    indices: tuple[Tensor, ...]

    @classmethod
    def whole(cls, name: str, shape: torch.Size) -> Origin:
        """All of a parameter."""
        return cls(name, shape, tuple(torch.arange(size) for size in shape))

    def taken(self, dim: int, indices: Tensor) -> Origin:
        """The origin of some indices along one dimension."""
        own = list(self.indices)
        own[dim] = own[dim][indices.to(own[dim].device)]
        return replace(self, indices=tuple(own))

    def cut(self, tensor: Tensor) -> Tensor | None:
        """What these indices take from a tensor that goes with the original parameter; always a copy.

        A dimension of size 1 that the parameter has at full size (a statistic of its rows, say) stays. None
        for any other shape.
        """
        sizes = list(zip(tensor.shape, self.shape, strict=False))
        if tensor.dim() != len(self.shape) or any(size not in (full, 1) for size, full in sizes):
            return None
        result = tensor.detach().clone()
        for dim, (size, full) in enumerate(sizes):
            if size == full:
                result = result.index_select(dim, self.indices[dim].to(result.device))
        return result

    def matches(self, other: Origin | None) -> bool:
        """Whether two origins are the same."""
        if other is None or self.name != other.name:
            return False
        return all(map(torch.equal, self.indices, other.indices))


def mark(model: nn.Module) -> None:
    """Make every parameter of a model its own origin; a tied one goes by its first name."""
    for name, parameter in model.named_parameters():
        _set(parameter, Origin.whole(name, parameter.shape))


def origin_of(parameter: Tensor) -> Origin | None:
    """Where a parameter comes from; None for one that is new, or where nobody asked."""
    return parameter.__dict__.get(_KEY)


def follow(new: _Tensor, old: Tensor, indices: Mapping[int, Tensor] | None = None) -> _Tensor:
    """Give a parameter the origin of the one that it replaces.

    Args:
        new: the replacement, which is also returned.
        old: what it replaces.
        indices: dimension to the indices that were taken along it; all others are whole.
    """
    origin = origin_of(old)
    if origin is not None:
        for dim, taken in (indices or {}).items():
            origin = origin.taken(dim, taken)
        _set(new, origin)
    return new


def rows_of(parameter: Tensor, rows: Tensor) -> nn.Parameter:
    """Some rows of a parameter as a parameter of their own."""
    taken = parameter.detach()[rows.to(parameter.device)]
    return follow(nn.Parameter(taken, parameter.requires_grad), parameter, {0: rows})


def reorder(parameter: Tensor, dim: int, indices: Tensor) -> None:
    """Note that a parameter was permuted in place along a dimension."""
    follow(parameter, parameter, {dim: indices})


def duplicate(model: _Module) -> _Module:
    """A deep copy whose parameters keep their origins, which ``copy.deepcopy`` loses."""
    copied = copy.deepcopy(model)
    pairs = zip(
        model.named_parameters(remove_duplicate=False),
        copied.named_parameters(remove_duplicate=False),
        strict=True,
    )
    for (_, old), (_, new) in pairs:
        follow(new, old)
    return copied


def take_origins(model: nn.Module) -> dict[str, Origin]:
    """The origins of a model's parameters by the names they have now; they are held no longer."""
    named = dict(model.named_parameters(remove_duplicate=False))
    found = {name: origin_of(parameter) for name, parameter in named.items()}
    for parameter in named.values():
        parameter.__dict__.pop(_KEY, None)
    return {name: origin for name, origin in found.items() if origin is not None}


def _set(parameter: Tensor, origin: Origin) -> None:
    parameter.__dict__[_KEY] = origin
