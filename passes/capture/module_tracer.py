"""The ``torch.fx`` tracer: stops at layers, and keeps as leaves the modules that a graph cannot replay."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from sparsefx.passes.capture.assignable import Assignable, NotReplayable
from sparsefx.passes.capture.constructors import CONSTRUCTORS, recorded
from sparsefx.passes.capture.custom_functions import known_to_proxies
from sparsefx.passes.capture.handed import Handed
from sparsefx.passes.capture.left_over import Names
from sparsefx.passes.graph.in_place import written
from sparsefx.passes.running.attributes import attributes_of

SCRIPTED = "torch.jit compiled it; export the model as it was before that"


class ModuleTracer(fx.Tracer):
    """Stops at torch's own layers and their subclasses, and at modules that do not trace.

    Args:
        keeps_idle: also stop at modules without parameters that hand their argument on in evaluation,
            such as stochastic depth: they act in training, and follow the mode by themselves.
        opaque: modules to stop at, with the reason.

    Attributes:
        opaque: these, and the modules that did not trace, by name, with the reason.
        caches: attributes that the graph makes anew in each call, by the module that keeps them.
    """

    # A buffer read while tracing would otherwise be folded in as a constant, and go stale when a
    # checkpoint is loaded.
    proxy_buffer_attributes = True
    constructors: tuple[str, ...] = (
        CONSTRUCTORS  # functions of torch that are recorded where a size is a proxy
    )

    def __init__(self, *, keeps_idle: bool = False, opaque: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.keeps_idle = keeps_idle
        self.opaque = dict(opaque or {})
        self.contexts = self.context()
        self.caches: Names = {}
        self._reads: dict[str, fx.Proxy] = {}
        self._versions: dict[Tensor, int] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Assignable(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        if self.context() != self.contexts:
            raise NotReplayable("its forward switches gradients or autocast on or off")
        if any(map(_is_constant, written(kind, target, args, kwargs))):
            raise NotReplayable(
                "it writes what it computes into a tensor that is made without its input; "
                "x.new_zeros(...) makes one from it"
            )
        return super().create_proxy(kind, target, args, kwargs, *rest, **options)

    def create_arg(self, a: Any) -> Any:
        if _is_constant(a) and not a.is_inference():
            self._versions.setdefault(a, a._version)
        return super().create_arg(a)

    def _check_constants(self) -> None:
        """Refuse a forward that changed a tensor after the graph took it for a constant."""
        held = self._versions.keys() & self.tensor_attrs.keys()
        if any(tensor._version != self._versions[tensor] for tensor in held):
            raise NotReplayable("it changes a tensor in place that it used before")

    def context(self) -> tuple[bool, ...]:
        """The switches that a graph does not record, but has to follow."""
        return _contexts()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or _inherits_torch_forward(m)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        self._reads = parameter_proxy_cache  # fx's own: so that what is taken back is not read again
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace into a module; if that fails, take back what it left and make the module a leaf.

        Raises:
            NotReplayable: the module has parameters and is no submodule of the model.
        """
        try:
            path = self.path_of_module(m)
        except NameError:  # made in forward, or held where no name leads: a part of its caller
            if next(m.parameters(), None) is not None:
                raise NotReplayable(
                    "it calls a module with parameters that is none of its submodules"
                ) from None
            return forward(*args, **kwargs)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)  # what fails here is its caller's doing
        changed: list[Any] = []
        handed = Handed((args, kwargs))
        if path not in self.opaque and not (self.keeps_idle and self._is_idle(m, forward, args, kwargs)):
            last, stack = self.last_node(), self.module_stack.copy()
            enter = functools.partial(super().call_module, m, forward, args, kwargs)
            try:
                if m._forward_hooks or m._forward_pre_hooks:
                    raise NotReplayable("it has forward hooks")
                if isinstance(m, torch.jit.ScriptModule):
                    raise NotReplayable(SCRIPTED)
                return self.traced(m, enter, path, args, kwargs)
            except Exception as error:  # tracing runs the user's code on proxies: anything may be raised
                self.take_back(last)
                self.module_stack = stack
                inside = [name for name in self.opaque if name.startswith(f"{path}.")]
                for name in inside:  # part of this leaf now
                    del self.opaque[name]
                self.opaque[path] = reason_of(error)
            changed = handed.restore()
        create = functools.partial(self.create_proxy, "call_function", kwargs={})
        return handed.call(changed, create, functools.partial(self.create_proxy, "call_module", path))

    def traced(self, module: nn.Module, enter: Callable[[], Any], path: str, args: Any, kwargs: Any) -> Any:
        """The result of a forward, whose effects must not get lost in its graph.

        Args:
            module: the module whose forward it is.
            enter: traces it.
            path: the name of the module; ``""`` for the model.
            args: the forward's positional arguments.
            kwargs: the forward's keyword arguments.

        Raises:
            NotReplayable: they would.
        """
        with must_be_replayable(module, self.caches):
            result = enter()
        self._check_constants()
        return result

    def _is_idle(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether a module without parameters, buffers or children does nothing in evaluation."""
        if m._parameters or m._buffers or m._modules or m._forward_hooks or m._forward_pre_hooks or not args:
            return False
        last, mode = self.last_node(), m.training
        m.training = False
        try:
            with must_be_replayable(m):
                return forward(*args, **kwargs) is args[0]
        except Exception:  # whatever it does, it does not just hand its argument on
            return False
        finally:
            m.training = mode
            self.take_back(last)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        enter = functools.partial(super().trace, root, concrete_args)
        proxies = known_to_proxies(self.create_proxy if self.needs_gradients else None)
        with recorded(self.constructors, self.create_proxy), proxies:
            graph: fx.Graph = self.traced(root, enter, "", (), {})
        return graph

    @property
    def needs_gradients(self) -> bool:
        """Whether the graph will be trained."""
        return True

    def last_node(self) -> fx.Node | None:
        """The last node of the graph so far."""
        return next(iter(reversed(self.graph.nodes)), None) if hasattr(self, "graph") else None

    def take_back(self, last: fx.Node | None) -> None:
        """Erase the nodes after one; all, if it is None."""
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)
        alive = set(self.graph.nodes)
        read = {str(node.target) for node in alive if node.op == "get_attr"}
        for tensor, constant in list(self.tensor_attrs.items()):
            if constant.startswith("_tensor_constant") and constant not in read:  # made by this forward
                del self.tensor_attrs[tensor], self.root.__dict__[constant]
        for name in [name for name, proxy in self._reads.items() if proxy.node not in alive]:
            del self._reads[name]


def _is_constant(value: Any) -> bool:
    """Whether a value is a tensor itself; along examples, proxies pass for tensors too."""
    return isinstance(value, Tensor) and not isinstance(value, fx.Proxy)


def reason_of(error: Exception) -> str:
    """One line for why a forward does not trace, and where."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if isinstance(error, NotReplayable):
        text = str(error)
    place = _place(error)
    return f"{text}, at {place}" if place else text


def _place(error: Exception) -> str:
    """The innermost line of code outside torch and this package."""
    inside = tuple(os.path.join(os.path.dirname(file), "") for file in (torch.__file__, __file__))
    # Not extract_tb, which fails on code without lines; torch 2.6 makes such code of a forward with *args.
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if (line or 0) > 0 and not file.startswith((*inside, contextlib.__file__)):
            return f"{os.path.basename(file)}:{line}"
    return ""


@contextlib.contextmanager
def must_be_replayable(module: nn.Module, caches: Names | None = None) -> Iterator[None]:
    """Refuse a forward with an effect that its graph would lose; undo that effect.

    Args:
        module: whose forward runs.
        caches: attributes that may change, and stay changed if nothing is raised.

    Raises:
        NotReplayable: the forward changed an attribute or drew random numbers outside the graph.
    """
    before = attributes_of(module)
    seeds = rng_state()
    kept: Names = {}
    try:
        yield
        kept = caches or {}
    finally:
        changed = [name for part, state in before.items() for name in state.restore(kept.get(part, ()))]
        drawn = rng_state() != seeds
        restore_rng(seeds)
        if changed or drawn:
            for state in before.values():
                state.restore()
    if changed:
        raise NotReplayable(f"its forward changes its attribute {changed[0]!r}")
    if drawn:
        raise NotReplayable("its forward draws random numbers outside the graph")


def _contexts() -> tuple[bool, ...]:
    """The switches that a graph does not record."""
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def rng_state() -> tuple[bytes, Any, Any]:
    """The state of torch's generator on the CPU, Python's and numpy's."""
    state: Any = numpy.random.get_state()
    kind, keys, *rest = state
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), (kind, keys.tobytes(), *rest)


def restore_rng(state: tuple[bytes, Any, Any]) -> None:
    """Set the generators to a state from :func:`rng_state`."""
    torch.set_rng_state(torch.frombuffer(bytearray(state[0]), dtype=torch.uint8))
    random.setstate(state[1])
    kind, keys, *rest = state[2]
    numpy.random.set_state((kind, numpy.frombuffer(keys, dtype=numpy.uint32), *rest))


def _inherits_torch_forward(module: nn.Module) -> bool:
    """Whether a user's subclass of a torch layer computes just what that layer does."""
    if isinstance(module, (nn.Sequential, fx.GraphModule, torch.jit.ScriptModule)):
        return False
    return str(getattr(type(module).forward, "__module__", "")).startswith("torch.nn.modules.")
