"""Capture: what traces, what stays a leaf and why, and that nothing is changed on the way."""

from __future__ import annotations

import copy
import inspect
import random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sparsefx.passes.capture.argument_guards import require_default
from sparsefx.passes.capture.capture import Capture, capture
from sparsefx.passes.running.examples import bind


class Base(nn.Module):
    """A linear layer, for subclasses that do something odd around it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.last: Any = None
        self.history: list[Tensor] = []
        self.cache: dict[str, Tensor] = {}
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Branches(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


class PythonRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * random.random()


class NumpyRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * float(numpy.random.rand())


class TorchRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * torch.rand(1)


class Counts(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x)


class Remembers(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return self.fc(x)


class Adds(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.extra = x
        return self.fc(x)


class Deletes(Base):
    def forward(self, x: Tensor) -> Tensor:
        del self.history
        return self.fc(x)


class Appends(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.history.append(x)
        return self.fc(x)


class Stores(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.cache["x"] = x
        return self.fc(x)


class ReplacesBuffer(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.ones(())
        return self.fc(x)


class RemembersAndBranches(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.history.append(x)
        return self.fc(x) if x.sum() > 0 else x


class WithoutGradient(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.fc(x)
        return y + x


class Autocast(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(x)


class FreezesItsNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        return self.norm(self.fc(x))


NOT_REPLAYABLE = {
    Branches: "TraceError: symbolically traced variables cannot be used as inputs to control flow",
    PythonRandom: "its forward draws random numbers outside the graph",
    NumpyRandom: "its forward draws random numbers outside the graph",
    TorchRandom: "its forward draws random numbers outside the graph",
    Counts: "its forward changes its attribute 'calls'",
    Remembers: "its forward changes its attribute 'last'",
    Adds: "its forward changes its attribute 'extra'",
    Deletes: "its forward changes its attribute 'history'",
    Appends: "its forward changes its attribute 'history'",
    Stores: "its forward changes its attribute 'cache'",
    ReplacesBuffer: "its forward changes its attribute '_buffers'",
    RemembersAndBranches: "TraceError: symbolically traced variables",
    WithoutGradient: "its forward switches gradients or autocast on or off",
    Autocast: "its forward switches gradients or autocast on or off",
    FreezesItsNorm: "its forward changes its attribute 'training'",
}


class Nest(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x))


class Box:
    """An argument that no graph can carry."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class TakesBox(Base):
    def forward(self, box: Any) -> Tensor:
        return self.fc(box.value) if box.value.sum() > 0 else box.value


class PassesBox(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = TakesBox()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(Box(x))


class Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(4, 4)]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)


class MakesModules(Base):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.GELU()]

    def forward(self, x: Tensor) -> Tensor:
        return nn.Softmax(dim=-1)(self.hidden[0](self.fc(x)))


class WritesToItsChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = Base()

    def forward(self, x: Tensor) -> Tensor:
        self.child.last = x
        return self.child(x)


class Twice(nn.Linear):
    """A layer with a forward of its own that traces."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Renamed(nn.Linear):
    """A layer that computes just what its base does."""


class ReadsBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale + 1)


class Optional(nn.Module):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, negate: bool = False, *, extra: Tensor | None = None
    ) -> Tensor:
        if mask is not None:
            x = x * mask
        if extra is not None:
            x = x + extra
        return -x if negate else x


class Checkpointed(Base):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.fc, x, use_reentrant=False)


def attributes(model: nn.Module) -> list[Any]:
    """Every attribute of every module by identity, and the contents of its containers."""
    return [
        (name, id(value), list(map(id, value)) if isinstance(value, (list, dict)) else None)
        for module in model.modules()
        for name, value in module.__dict__.items()
    ]


def leaves(captured: Capture) -> list[str]:
    assert captured.graph is not None
    captured.graph.lint()
    return [str(node.target) for node in captured.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("kind", NOT_REPLAYABLE)
def test_what_a_graph_cannot_replay_stays_a_leaf(kind: type[nn.Module]) -> None:
    model = nn.Sequential(Base(), Nest(kind()), nn.Linear(4, 4))
    captured = capture(model)
    assert leaves(captured) == ["0.fc", "1.first", "1.inner", "2"]
    assert list(captured.opaque) == ["1.inner"]
    assert captured.opaque["1.inner"].startswith(NOT_REPLAYABLE[kind])


@pytest.mark.parametrize("kind", NOT_REPLAYABLE)
def test_a_model_that_a_graph_cannot_replay_has_no_graph(kind: type[nn.Module]) -> None:
    captured = capture(kind())
    assert captured.graph is None
    assert list(captured.opaque) == [""]
    assert captured.opaque[""].startswith(NOT_REPLAYABLE[kind])


@pytest.mark.parametrize("kind", NOT_REPLAYABLE)
@pytest.mark.parametrize("nested", [True, False])
def test_capture_changes_nothing(kind: type[nn.Module], nested: bool) -> None:
    model = Nest(kind()) if nested else kind()
    before, state = attributes(model), copy.deepcopy(model.state_dict())
    seeds = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    capture(model)
    assert attributes(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), seeds[0])
    assert random.getstate() == seeds[1]
    assert (numpy.random.get_state()[1] == seeds[2]).all()


@pytest.mark.parametrize("mode", [True, False])
def test_a_model_that_traces_leaves_no_opaque_module(mode: bool) -> None:
    model = nn.Sequential(Base(), nn.ReLU(), Nest(Base())).train(mode)
    captured = capture(model)
    assert captured.opaque == {}
    assert leaves(captured) == ["0.fc", "1", "2.first", "2.inner.fc"]
    assert all(module.training is mode for module in model.modules())


def test_training_is_baked_in_by_mode() -> None:
    class Dropout(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    for mode in (True, False):
        graph = capture(Dropout().train(mode)).graph
        assert graph is not None
        (node,) = [node for node in graph.nodes if node.op == "call_function"]
        assert node.kwargs["training"] is mode


def test_only_the_outermost_opaque_module_is_named() -> None:
    inner = Nest(Branches())
    captured = capture(nn.Sequential(nn.Sequential(inner, PassesBox())))
    assert set(captured.opaque) == {"0.0.inner", "0.1"}
    assert captured.opaque["0.1"].startswith("NotImplementedError: argument of type")


def test_an_argument_that_no_graph_carries_is_its_callers_doing() -> None:
    captured = capture(PassesBox())
    assert captured.graph is None
    assert captured.opaque[""].startswith("NotImplementedError: argument of type")


def test_a_module_that_is_not_registered() -> None:
    captured = capture(nn.Sequential(Unregistered()))
    line = inspect.getsourcelines(Unregistered.forward)[1] + 1
    reason = "it calls a module with parameters that is none of its submodules"
    assert captured.opaque == {"0": f"{reason}, at test_capture.py:{line}"}


@pytest.mark.parametrize("along_calls", [False, True])
def test_a_module_made_in_forward_is_part_of_its_caller(along_calls: bool) -> None:
    model = MakesModules().eval()
    x = torch.randn(2, 4)
    captured = capture(model, [bind(model, (x,), {})] if along_calls else ())
    assert captured.graph is not None
    assert not captured.opaque
    assert torch.equal(fx.GraphModule(model, captured.graph)(x), model(x))


def test_a_module_that_writes_to_its_child() -> None:
    model = WritesToItsChild()
    captured = capture(nn.Sequential(model))
    assert captured.opaque == {"0": "its forward changes its attribute 'last'"}
    assert model.child.last is None


@pytest.mark.parametrize("pre", [True, False])
def test_hooks_of_a_container_are_not_traced_away(pre: bool) -> None:
    calls: list[Any] = []
    model = nn.Sequential(Base(), nn.Linear(4, 4))
    if pre:
        model[0].register_forward_pre_hook(lambda module, args: calls.append(args))
    else:
        model[0].register_forward_hook(lambda module, args, output: calls.append(output))
    captured = capture(model)
    assert captured.opaque == {"0": "it has forward hooks"}
    assert calls == []


def test_subclasses_of_torch_layers() -> None:
    captured = capture(nn.Sequential(Twice(4, 4), Renamed(4, 4)))
    assert leaves(captured) == ["1"]
    assert captured.graph is not None
    assert [node.target for node in captured.graph.nodes if node.op == "get_attr"] == ["0.weight", "0.bias"]


def test_a_buffer_is_read_when_the_graph_runs() -> None:
    model = ReadsBuffer()
    graph = capture(model).graph
    assert graph is not None
    module = torch.fx.GraphModule(model, graph)
    model.scale.fill_(4)
    assert torch.equal(module(torch.ones(3)), torch.full((3,), 5.0))


def test_optional_arguments() -> None:
    model = Optional()
    graph = capture(model).graph
    assert graph is not None
    graph.lint()
    names = [node.target for node in graph.nodes if node.op == "placeholder"]
    assert names == ["x", "mask", "negate", "extra"]
    module, x = torch.fx.GraphModule(model, graph), torch.ones(2)
    for keywords in ({}, {"mask": None}, {"negate": False}, {"extra": None, "mask": None, "negate": False}):
        assert torch.equal(module(x, **keywords), x)
    assert torch.equal(module(x=x), x)
    for name, value, default in (("mask", x, None), ("negate", True, False), ("extra", x, None)):
        with pytest.raises(TypeError, match=f"argument '{name}' was traced as {default} and cannot change"):
            module(x, **{name: value})


def test_a_required_default_is_traced_again_as_itself() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            require_default(mask, None, "mask")
            return x

    graph = torch.fx.Tracer().trace(Root())
    assert require_default in [node.target for node in graph.nodes]


def test_checkpointed_layers_are_traced() -> None:
    model = Checkpointed()
    graph = capture(model).graph
    assert graph is not None
    x = torch.randn(2, 4)
    assert torch.equal(torch.fx.GraphModule(model, graph)(x), model(x))


def test_a_graph_module_is_captured_as_it_is() -> None:
    inner = torch.fx.symbolic_trace(Optional(), concrete_args={"mask": None, "negate": False, "extra": None})
    assert capture(inner).opaque == {}
    nested = nn.Sequential(torch.fx.symbolic_trace(Base()), nn.Linear(4, 4))
    captured = capture(nested)
    assert captured.opaque == {}
    assert leaves(captured) == ["0.fc", "1"]
