"""The activation maps of a model as it runs, whatever way its code is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from sparsefx.report.costs import maskable_layers

Where = Literal["relu outputs", "convolution inputs"]
Listen = Callable[[str, Tensor], None]
"""Called with a name and the map, shape (N, C) or (N, C, ...)."""

_RELU = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)


@contextmanager
def listening(model: nn.Module, where: Where, listen: Listen) -> Iterator[None]:
    """Hand every activation map of a forward pass to a function, while the context is open.

    Args:
        model: any model; its forward passes are listened to.
        where: ``"relu outputs"``: the result of every ReLU, module or function, under the name of the
            Linear or Conv layer that was called last (a further one is ``<name>, 2`` and so on);
            ``"convolution inputs"``: what every convolution but those that read the model's input
            reads, under the convolution's name.
        listen: called during the pass; a map may be overwritten after the call returns.
    """
    if where == "relu outputs":
        with _relu_outputs(model, listen):
            yield
    else:
        with _convolution_inputs(model, listen):
            yield


@contextmanager
def _relu_outputs(model: nn.Module, listen: Listen) -> Iterator[None]:
    names = _Names()
    handles = [model.register_forward_pre_hook(lambda *_: names.restart())]
    for name, layer in maskable_layers(model).items():
        handles.append(layer.register_forward_hook(lambda *_, name=name: names.enter(name)))
    try:
        with _ReluMode(lambda result: listen(names.next(), result)):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _convolution_inputs(model: nn.Module, listen: Listen) -> Iterator[None]:
    inputs: set[int] = set()

    def start(_: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.clear()
        inputs.update(id(value) for value in args)

    def hear(name: str, args: tuple[Any, ...]) -> None:
        if id(args[0]) not in inputs:
            listen(name, args[0])

    handles = [model.register_forward_pre_hook(start)]
    for name, layer in maskable_layers(model).items():
        if isinstance(layer, _ConvNd):
            handles.append(layer.register_forward_pre_hook(lambda _, args, name=name: hear(name, args)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Names:
    """Names activations by the layer that was called before them."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._layer, self._counts = "input", dict[str, int]()

    def enter(self, layer: str) -> None:
        self._layer = layer

    def next(self) -> str:
        count = self._counts[self._layer] = self._counts.get(self._layer, 0) + 1
        return self._layer if count == 1 else f"{self._layer}, {count}"


class _ReluMode(TorchDispatchMode):
    """Sees every ReLU as the operation it ends in."""

    def __init__(self, hear: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._hear = hear

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in _RELU:
            self._hear(result)
        return result
