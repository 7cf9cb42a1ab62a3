"""The graph module with two modes: which graph runs, what it holds, and its copies."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from helpers import reloaded
from torch import Tensor, fx, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.passes.capture.capture import capture
from sparsefx.passes.graph.graph_module import TwoModeGraphModule


class Net(nn.Module):
    """Differs by mode; holds an unused module, a buffer and a tensor made in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.unused = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.register_buffer("temporary", torch.ones(1), persistent=False)
        self.note = "kept"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm(self.fc(x)) * (self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0]))
        return F.dropout(x, 0.5) + 1 if self.training else x


class SameInBothModes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def two_mode(model: nn.Module) -> TwoModeGraphModule:
    """Keeps the model's own mode; the module takes over a copy."""
    root, mode = copy.deepcopy(model), model.training
    graphs = {training: capture(root.train(training)).graph for training in (True, False)}
    assert graphs[True] is not None
    assert graphs[False] is not None
    root.train(mode)
    return TwoModeGraphModule(root, graphs[True], graphs[False])


def through_pickle(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def copied_twice(module: Any) -> Any:
    return copy.deepcopy(through_pickle(copy.deepcopy(module)))


COPIES = [copy.deepcopy, copy.copy, through_pickle, reloaded, copied_twice]


def assert_behaves_as(actual: nn.Module, expected: nn.Module) -> None:
    x = torch.randn(6, 4)
    for mode in (True, False, True, False):
        actual.train(mode)
        expected.train(mode)
        torch.manual_seed(0)
        got = actual(x)
        torch.manual_seed(0)
        assert torch.equal(got, expected(x))


def test_each_mode_runs_its_graph() -> None:
    model = Net()
    module = two_mode(model)
    assert_behaves_as(module, copy.deepcopy(model))
    module.train()
    assert module.graph is module.mode_graph(True)
    assert "dropout" in module.code
    module.eval()
    assert module.graph is module.mode_graph(False)
    assert "dropout" not in module.code
    for mode in (True, False):
        module.mode_graph(mode).lint()


@pytest.mark.parametrize("mode", [True, False])
def test_it_starts_in_the_mode_of_the_model(mode: bool) -> None:
    module = two_mode(Net().train(mode))
    assert module.training is mode
    assert module.graph is module.mode_graph(mode)
    assert all(child.training is mode for child in module.modules())


def test_a_mode_set_as_an_attribute_counts() -> None:
    module = two_mode(Net().eval())
    module.training = True
    assert module.graph is module.mode_graph(True)


def test_a_parents_train_and_eval_reach_it() -> None:
    module = two_mode(Net())
    parent = nn.Sequential(module)
    parent.eval()
    assert module.graph is module.mode_graph(False)
    assert not module.get_submodule("norm").training


def test_it_holds_all_of_the_model() -> None:
    model = Net()
    module = two_mode(model)
    assert isinstance(module, fx.GraphModule)
    assert list(module.state_dict()) == list(model.state_dict())
    assert [name for name, _ in module.named_modules()] == [name for name, _ in model.named_modules()]
    assert module.note == "kept"
    assert type(module).__name__ == "Net"
    assert "temporary" not in module.state_dict()
    assert "temporary" in dict(module.named_buffers())


@pytest.mark.parametrize("make_copy", COPIES)
@pytest.mark.parametrize("mode", [True, False])
def test_copies(make_copy: Any, mode: bool) -> None:
    model = Net().train(mode)
    module = two_mode(model)
    other = make_copy(module)
    assert type(other).__name__ == "Net"
    assert isinstance(other, TwoModeGraphModule)
    assert other.training is mode
    assert other.note == "kept"
    assert list(other.state_dict()) == list(model.state_dict())
    assert all(torch.equal(other.state_dict()[key], value) for key, value in model.state_dict().items())
    assert other.mode_graph(True) is not module.mode_graph(True)
    other.mode_graph(not mode).lint()
    assert_behaves_as(copy.deepcopy(other), copy.deepcopy(model))
    with pytest.raises(TypeError, match="argument 'mask' was traced as None"):
        other(torch.randn(6, 4), torch.ones(4))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, through_pickle])
def test_a_copy_shares_nothing(make_copy: Any) -> None:
    module = two_mode(Net().eval())
    before = copy.deepcopy(module.state_dict())
    other = make_copy(module)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    assert not other(torch.randn(2, 4)).any()


@pytest.mark.parametrize("make_copy", COPIES)
def test_a_copy_reads_its_own_buffers(make_copy: Any) -> None:
    module = two_mode(Net().eval())
    other = make_copy(module)
    state = {**module.state_dict(), "scale": torch.full((4,), 7.0)}
    other.load_state_dict(state)
    model = Net().eval()
    model.load_state_dict(state)
    x = torch.randn(2, 4)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("make_copy", COPIES)
def test_one_graph_stays_one_graph(make_copy: Any) -> None:
    root = SameInBothModes()
    graph = capture(root).graph
    assert graph is not None
    other = make_copy(TwoModeGraphModule(root, graph, graph))
    assert other.mode_graph(True) is other.mode_graph(False)
    assert_behaves_as(other, root)


def refuse_zeros(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook that torch calls with the module."""
    module.note = f"loaded {len(state_dict)}"


@pytest.mark.parametrize("make_copy", [lambda module: module, *COPIES])
def test_hooks_of_the_model_are_called_with_the_graph_module(make_copy: Any) -> None:
    root = SameInBothModes()
    root.register_load_state_dict_pre_hook(refuse_zeros)
    graph = capture(root).graph
    assert graph is not None
    module = make_copy(TwoModeGraphModule(root, graph, graph))
    del root
    gc.collect(1)  # it is young
    module.load_state_dict(module.state_dict())
    assert module.note == "loaded 2"


def test_forward_hooks_of_the_model_survive() -> None:
    calls: list[Tensor] = []
    root = SameInBothModes()
    root.register_forward_hook(lambda module, args, output: calls.append(output))
    module = two_mode(root)
    output = module(torch.randn(2, 4))
    assert len(calls) == 1
    assert calls[0] is output


def test_a_new_graph_replaces_that_of_the_present_mode() -> None:
    module = two_mode(Net().eval())
    training_graph = module.mode_graph(True)
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.neg, (x,)))
    module.graph = graph
    assert module.graph is graph
    assert module.mode_graph(True) is training_graph
    x = torch.randn(2, 4)
    assert torch.equal(module(x), -x)
    assert module.train()(x).shape == (2, 4)
    assert "neg" not in module.code
    assert "neg" in module.eval().code
    assert torch.equal(through_pickle(module)(x), -x)


def test_an_edited_graph_runs_after_recompile() -> None:
    module = two_mode(Net().eval())
    graph = module.graph
    (output,) = [node for node in graph.nodes if node.op == "output"]
    with graph.inserting_before(output):
        negated = graph.call_function(torch.neg, (output.args[0],))
    output.args = (negated,)
    x = torch.randn(2, 4)
    before = module(x)
    module.recompile()
    assert torch.equal(module(x), -before)
    module.mode_graph(True).lint()
    assert "neg" in module.code


def test_a_compiled_module_switches_modes() -> None:
    model = Net()
    compiled = torch.compile(two_mode(model), backend="eager")
    assert_behaves_as(compiled, model)


def test_copies_of_a_compiled_part_keep_what_its_parent_reads() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part: Any = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
            self.part.source = [-1]

        def forward(self, x: Tensor) -> Tensor:
            y = self.part(x) * self.part.source[0]
            return y if y.sum() < 1e9 else x

    torch.manual_seed(0)
    model, x = Parent(), torch.randn(2, 4)
    with pytest.warns(UserWarning, match="stays Python"):
        compact = sparsefx.export(model, (x,))
    copied = copy.deepcopy(compact)
    assert isinstance(copied.get_submodule("part"), fx.GraphModule)
    assert torch.equal(copied(x), compact(x))
    copied.get_submodule("part").source.append(1)  # type: ignore[union-attr, operator]
    assert compact.get_submodule("part").source == [-1]
    part = compact.get_submodule("part")
    assert torch.equal(pickle.loads(pickle.dumps(part))(x), part(x))
