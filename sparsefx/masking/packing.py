"""Packed weights: a masked parameter as the vector of its active values, and dense where that is asked for.

The layers of an accelerated model have parameters of two shapes, by turns. *Packed*, a parameter is
``[active]``: the values of the active positions, in the order of the flat weight. *Dense*, it has the
weight's shape, with zeros outside the mask. The :class:`torch.nn.Parameter` stays the same object. Its
gradient, and what optimizers keep of it in its shape, change along: so an optimizer that computes
element by element takes time and memory by the number of active weights.

The forward pass of a region packs. Everything else sees dense weights: it gets them from
:func:`dense_weight`, which unpacks, or through the hooks on ``state_dict()`` here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from sparsefx.errors import ArgumentError
from sparsefx.masking.averaged_gradients import (
    AveragedGradients,
    averaged_gradients,
    ddp_in_forward,
    in_backward,
)

_RECORD = "_packings"
_NOT_ELEMENTWISE = frozenset(
    {"Adafactor", "LBFGS", "Muon", "SOAP", "Shampoo", "CAME", "GaLoreAdamW", "GaLoreAdafactor", "SparseAdam"}
)

_packings: Any = WeakTensorKeyDictionary()
"""Weakly, the packing of each parameter that was packed or unpacked; a packing holds its parameter."""

_registered = 0  # so many parameters, ever

_known: Any = weakref.WeakKeyDictionary()
"""The optimizers that were looked at, with what there was to find then."""

_restored: Any = weakref.WeakSet()
"""Packings of copies and of what was loaded, which are registered when somebody asks for packings."""


def _ordinary_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function make tensors that can be trained on, where it is first called in a validation, too."""
    return torch.inference_mode(False)(torch.no_grad()(function))


class Packing:
    """How one masked weight is packed.

    Args:
        holders: each (module, parameter name, mask buffer name) that holds the weight.

    Attributes:
        positions: of the active weights in the flat weight, ascending, as last seen: int64 [active].
        version: counts how often the positions have changed.
        shape: of the weight.
    """

    def __init__(self, holders: Sequence[tuple[nn.Module, str, str]]) -> None:
        self._module, self._name, self._mask = holders[0]
        self.shape = self.parameter.shape
        self.positions = torch.empty(0, dtype=torch.int64, device="cpu")
        self.version = 0
        self._seen: Any = None
        self._held: set[str] = set()
        self._optimizers: Any = weakref.WeakSet()
        self._averaged: AveragedGradients | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "_optimizers"}
        return {**state, "_held": self._held - {"ranks"}, "_seen": None, "_averaged": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._optimizers = weakref.WeakSet()
        _watch_optimizers()  # a process that loaded the model has attached no packing
        _restored.add(self)

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter, packed or dense."""
        parameter: Any = self._module._parameters[self._name]
        return parameter  # type: ignore[no-any-return]

    @property
    def is_packed(self) -> bool:
        """Whether the parameter is packed now."""
        return self.parameter.shape != self.shape

    @property
    def hold_dense(self) -> bool:
        """Whether it shall stay dense, since gradients of inactive weights are wanted."""
        return bool(self._held)

    def hold(self, why: str, held: bool = True) -> None:
        """Stay dense from now on, for a reason; or do not, as far as that reason goes."""
        if held:
            self._held.add(why)
            self.unpack()
        else:
            self._held.discard(why)

    def adopt(self, optimizer: Optimizer) -> None:
        """Let what an optimizer keeps of the parameter change along with it."""
        self._optimizers.add(optimizer)
        self._register()
        # Some begin their state before the first step, and copies come with the state of either shape.
        if self.is_packed:
            self._change_states([optimizer], self._packed, self.shape)
        elif self.version:
            self._change_states([optimizer], self._dense, self.positions.shape)

    @_ordinary_tensors
    def pack(self) -> None:
        """Keep the active values alone; nothing where they are packed already."""
        self._register()
        self._follow_ranks()
        if self.is_packed:
            return
        self._find_positions()
        if "ranks" not in self._held:
            self._change(self._packed, self.shape)

    @_ordinary_tensors
    def unpack(self) -> None:
        """Keep the weight with its zeros; nothing where it is dense already."""
        self._register()
        if self.is_packed:
            self._change(self._dense, self.positions.shape)

    def follow_mask(self) -> None:
        """Find the positions again where the mask of a dense weight has changed."""
        self._follow_ranks()
        self._find_positions()

    @property
    def values(self) -> Tensor:
        """Of the active positions, [active]: of this moment, where the weight is dense."""
        if self.is_packed:
            return self.parameter.detach()
        self._find_positions()
        return self._packed(self.parameter)

    @_ordinary_tensors
    def set_values(self, values: Tensor) -> None:
        """Give the active positions other values, [active]."""
        self.parameter.copy_(values if self.is_packed else self._dense(values))

    def _follow_ranks(self) -> None:
        """Learn, in a forward pass, who averages the gradient over ranks, if anybody does.

        DistributedDataParallel does only for weights that it was not told to leave out, such as those of a
        model inside of another one. They stay dense, as it knows them.
        """
        ddp = ddp_in_forward()
        if ddp is None:
            if self._averaged is not None and not in_backward():
                self._averaged.follow(synchronises=False)
            return
        averaged = averaged_gradients(ddp, packings)
        if averaged is None or not (averaged is self._averaged or averaged.has(self)):
            self._let_ddp_average()
        else:
            self._averaged = averaged
            averaged.watch(self.parameter)
            averaged.follow(ddp.require_backward_grad_sync)

    def _let_ddp_average(self) -> None:
        if self.is_packed:
            raise ArgumentError(
                "an accelerated model inside of the model that DistributedDataParallel wraps has packed "
                "weights already, which it cannot average; wrap the accelerated model itself, or wrap before "
                "the first forward pass"
            )
        self.hold("ranks")

    @_ordinary_tensors
    def _find_positions(self) -> None:
        mask: Any = self._module._buffers[self._mask]
        seen = id(mask), mask._version
        if seen == self._seen:
            return
        positions = mask.flatten().nonzero().flatten()
        if self.version == 0 or not torch.equal(positions, self.positions):
            self.positions = positions
            self.version += 1
        self._seen = seen

    def _change(self, change: Any, shape: torch.Size) -> None:
        """Give the parameter, its gradient and its optimizers' tensors of this shape another one."""
        parameter = self.parameter
        gradient, parameter.grad = parameter.grad, None
        self._change_states(self._optimizers, change, shape)
        changed = change(parameter)
        # A graph that is still alive holds a node that adds up gradients of the shape before; torch makes
        # another one where the type changes, but not where only the shape does.
        parameter.data = torch.empty(0, dtype=torch.float16, device=changed.device)
        parameter.data = changed
        if gradient is not None:
            parameter.grad = change(gradient)

    def _register(self) -> None:
        """Let optimizers that hold the parameter be found; a copy may be packed from its beginning."""
        global _registered
        known = _packings.get(self.parameter)
        if known is None or known() is not self:
            _packings[self.parameter] = weakref.ref(self)
            _registered += 1

    def register_copy(self) -> None:
        """Let optimizers find the parameter of a copy; of one that failed there may be none."""
        if self._name in vars(self._module).get("_parameters", ()):
            self._register()

    def _change_states(self, optimizers: Iterable[Optimizer], change: Any, shape: torch.Size) -> None:
        for optimizer in optimizers:
            for state in _states(optimizer, self.parameter):
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == shape:
                        state[name] = change(value)

    def _dense(self, tensor: Tensor) -> Tensor:
        result = torch.zeros(self.shape.numel(), dtype=tensor.dtype, device=tensor.device)
        return result.index_copy_(0, self.positions, tensor.detach()).view(self.shape)

    def _packed(self, tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(-1).index_select(0, self.positions)


def attach_packing(holders: Sequence[tuple[nn.Module, str, str]]) -> Packing:
    """Let a masked weight be packed; it is dense until somebody packs it.

    Args:
        holders: each (module, parameter name, mask buffer name) that holds the weight.

    Returns:
        The one packing of all holders, the same if there is one already.
    """
    _watch_optimizers()
    module, name, _ = holders[0]
    found = packing_of(module, name)
    if found is not None:
        return found
    packing = Packing(holders)
    for module, name, _ in holders:
        packings = module.__dict__.setdefault(_RECORD, {})
        if not packings:
            module.register_state_dict_pre_hook(_unpack_before)
        packings[name] = packing
    return packing


def detach_packings(module: nn.Module) -> None:
    """Undo :func:`attach_packing` for what a module holds (not its children); its weights are dense then."""
    for packing in module.__dict__.pop(_RECORD, {}).values():
        packing.unpack()
    hooks = module._state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _unpack_before]:
        del hooks[key]


def packing_of(module: nn.Module, parameter: str = "weight") -> Packing | None:
    """How a module's parameter is packed; None if it never is."""
    packing: Packing | None = module.__dict__.get(_RECORD, {}).get(parameter)
    return packing


def packings(model: nn.Module) -> list[Packing]:
    """Every packing of a model, in the order of its modules."""
    found = (one for module in model.modules() for one in module.__dict__.get(_RECORD, {}).values())
    return list({id(one): one for one in found}.values())


def dense_weight(module: nn.Module, parameter: str) -> nn.Parameter:
    """A module's parameter with its full shape."""
    packing = packing_of(module, parameter)
    if packing is not None:
        packing.unpack()
    return module.get_parameter(parameter)


def unpack_all(model: nn.Module) -> None:
    """Make every weight of a model dense, until its next forward pass."""
    for packing in packings(model):
        packing.unpack()


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether a step at one position depends on nothing at another, as far as the optimizer's name tells."""
    inner = [one for one in vars(optimizer).values() if isinstance(one, Optimizer)]
    return type(optimizer).__name__ not in _NOT_ELEMENTWISE and all(map(is_elementwise, inner))


def _states(optimizer: Optimizer, parameter: Tensor) -> Iterator[dict[str, Any]]:
    """What an optimizer, and one inside it, keeps of a parameter."""
    seen: list[Any] = []
    for one in (optimizer, *(value for value in vars(optimizer).values() if isinstance(value, Optimizer))):
        state = one.state.get(parameter) if hasattr(one, "state") else None
        if state and not any(state is other for other in seen):
            seen.append(state)
            yield state


def _unpack_before(module: nn.Module, *_: object) -> None:
    for packing in module.__dict__.get(_RECORD, {}).values():
        packing.unpack()


@cache
def _watch_optimizers() -> None:
    """See each optimizer before its steps and state dicts, once in a process.

    torch has a hook for the steps of all optimizers, and for state dicts only one of each optimizer. Of a
    new one, or a copy, nobody knows before its first step, but its state may be packed already.
    """
    register_optimizer_step_pre_hook(_before_step)
    for method in (Optimizer.state_dict, Optimizer.load_state_dict):
        setattr(Optimizer, method.__name__, _on_dense_state(method))


def _on_dense_state(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of optimizers that first makes dense what they keep."""

    @wraps(method)
    def on_dense_state(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        for packing in list(packed_in(optimizer)):
            adopt(packing, optimizer)
            packing.unpack()
        return method(optimizer, *args, **kwargs)

    return on_dense_state


def _before_step(optimizer: Optimizer, *_: object) -> None:
    """Learn which optimizers hold packed weights; again where there are others, or groups have grown."""
    present = _registered, sum(len(group["params"]) for group in optimizer.param_groups)
    if _known.get(optimizer) == present:
        return
    for packing in list(packed_in(optimizer)):
        adopt(packing, optimizer)
    _known[optimizer] = present


def packed_in(optimizer: Optimizer) -> Iterator[Packing]:
    """The packings of the parameters that an optimizer holds, of those that were ever packed."""
    while _restored:
        _restored.pop().register_copy()
    held: Iterable[Any] = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for parameter in held:
        known = _packings.get(parameter)
        packing = None if known is None else known()
        if packing is not None:
            yield packing


def adopt(packing: Packing, optimizer: Optimizer) -> None:
    """Let an optimizer's tensors follow a packing; hold it dense for one that must see all of a weight."""
    if optimizer in packing._optimizers:
        return
    packing.adopt(optimizer)
    if not is_elementwise(optimizer):
        packing.hold("optimizer")
