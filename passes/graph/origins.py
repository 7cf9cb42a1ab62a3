"""Origins: the original parameter, and the indices in it, of each parameter of a rewritten model.

A parameter that has an origin holds it as a Python attribute. A pass that replaces or reorders parameters
says so with :func:`follow` and :func:`reorder`; what it writes into them does not matter here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from sparsefx.passes.running.broadcast import broadcast_shapes
from sparsefx.passes.running.deep_copy import deep_copy

_KEY = "_sparsefx_origin"
_Module = TypeVar("_Module", bound=nn.Module)
_Tensor = TypeVar("_Tensor", bound=Tensor)
Take = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Origin:
    """Where one parameter comes from.

    Attributes:
        name: the parameter's name in the original model.
        shape: its shape there.
        indices: for each dimension of the original, where each element lies along it: int32 tensors on the
            CPU that broadcast to the parameter's shape, so that ``original[indices]`` is the parameter.
    """

    name: str
    shape: torch.Size
    indices: tuple[Tensor, ...]

    @classmethod
    def whole(cls, name: str, shape: torch.Size) -> Origin:
        """All of a parameter."""
        indices = [torch.arange(size, dtype=torch.int32) for size in shape]
        return cls(name, shape, tuple(_along(i, dim, len(shape)) for dim, i in enumerate(indices)))

    @property
    def kept(self) -> torch.Size:
        """The parameter's shape."""
        return torch.Size(broadcast_shapes(*(indices.shape for indices in self.indices)))

    def taken(self, take: Take) -> Origin:
        """The origin of what is made of the parameter by taking some of its elements."""
        return replace(self, indices=tuple(_narrow(take(i.expand(self.kept))) for i in self.indices))

    def cut(self, tensor: Tensor) -> Tensor | None:
        """What these indices take from a tensor that goes with the original parameter; always a copy.

        A dimension of size 1 that the parameter has at full size (a statistic of its rows, say) stays. None
        for any other shape.
        """
        if tensor.dim() != len(self.shape):
            return None
        dims = [dim for dim, full in enumerate(self.shape) if tensor.shape[dim] != full]
        indices = [i.to(tensor.device) for i in self.indices]
        for dim in dims:
            indices[dim] = torch.zeros((1,) * tensor.dim(), dtype=torch.int32, device=tensor.device)
        shape = broadcast_shapes(*(i.shape for i in indices))
        if any(tensor.shape[dim] != 1 or shape[dim] != 1 for dim in dims):
            return None
        return tensor.detach()[tuple(indices)].clone()

    def matches(self, other: Origin | None) -> bool:
        """Whether two origins are the same."""
        if other is None or self.name != other.name:
            return False
        return self.kept == other.kept and all(map(torch.equal, self.indices, other.indices))


def mark(model: nn.Module) -> None:
    """Make every parameter of a model its own origin; a tied one goes by its first name."""
    for name, parameter in model.named_parameters():
        _set(parameter, Origin.whole(name, parameter.shape))


def origin_of(parameter: Tensor) -> Origin | None:
    """Where a parameter of any shape comes from; None for one that is new, or if origins are not tracked."""
    return parameter.__dict__.get(_KEY)


def follow(new: _Tensor, old: Tensor, take: Take | None = None) -> _Tensor:
    """Give a parameter the origin of the one that it replaces.

    Args:
        new: the replacement, which is also returned.
        old: what it replaces.
        take: what was taken of it, as a function of any CPU tensor of its shape; all by default.
    """
    origin = origin_of(old)
    if origin is not None:
        _set(new, origin if take is None else origin.taken(take))
    return new


def rows_of(parameter: Tensor, rows: Tensor) -> nn.Parameter:
    """Some rows (a vector of indices) of a parameter as a parameter of their own."""
    return _selected(parameter, 0, rows)


def columns_of(parameter: Tensor, columns: Tensor) -> nn.Parameter:
    """Some columns (a vector of indices) of a parameter as a parameter of their own."""
    return _selected(parameter, 1, columns)


def reorder(parameter: Tensor, dim: int, indices: Tensor) -> None:
    """Note that a parameter was permuted in place along a dimension."""
    follow(parameter, parameter, lambda labels: labels.index_select(dim, indices.cpu()))


def duplicate(model: _Module, *, share: bool = False) -> _Module:
    """A deep copy whose parameters keep their origins, which ``copy.deepcopy`` loses.

    Args:
        model: the model.
        share: keep the very parameters and buffers, in copied modules.
    """
    if share:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        return deep_copy(model, shared)
    copied = deep_copy(model)
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


def _selected(parameter: Tensor, dim: int, indices: Tensor) -> nn.Parameter:
    def take(tensor: Tensor) -> Tensor:
        return tensor.index_select(dim, indices.to(tensor.device))

    return follow(nn.Parameter(take(parameter.detach()), parameter.requires_grad), parameter, take)


def _along(vector: Tensor, dim: int, rank: int) -> Tensor:
    return vector.view(*(-1 if d == dim else 1 for d in range(rank)))


def _narrow(labels: Tensor) -> Tensor:
    """Labels without the dimensions along which they are all alike: those have size 1 then."""
    for dim, size in enumerate(labels.shape):
        first = labels.narrow(dim, 0, min(size, 1))
        if size > 1 and labels.numel() and bool((labels == first).all()):
            labels = first
    return labels.clone()


def _set(parameter: Tensor, origin: Origin) -> None:
    parameter.__dict__[_KEY] = origin
