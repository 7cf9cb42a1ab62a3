"""Writes in place, and the names that share what is written."""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import Tensor, fx, nn
from torch.nn import functional as F

import sparsefx
from sparsefx import ArgumentError
from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.in_place import FUNCTIONAL, FUNCTIONS, NAMES, writes
from sparsefx.passes.rewrites.functionalize import Functionalize

Forward = Callable[[nn.Module, Tensor], Any]


class Written(nn.Module):
    """A layer, and any forward around it."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.drop, self.relu = nn.Dropout(0.3), nn.ReLU(inplace=True)
        self.body = forward

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def made(forward: Forward) -> Written:
    torch.manual_seed(0)
    return Written(forward).double()


def drawn(rows: int = 4) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, training: bool) -> list[Tensor]:
    """What a model returns; its running statistics stay."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    found = model.train(training)(x.clone())
    model.load_state_dict(state)
    return [one.clone() for one in (found if isinstance(found, tuple) else (found,))]


def assert_same(
    model: nn.Module, other: nn.Module, x: Tensor, training: bool = False, error: float = 0
) -> None:
    for _ in range(2):  # what a call leaves behind would show in the next one
        pairs = zip(outputs(other, x, training), outputs(model, x, training), strict=True)
        for actual, expected in pairs:
            torch.testing.assert_close(actual, expected, rtol=error, atol=error, equal_nan=True)


def check(model: nn.Module, x: Tensor) -> tuple[nn.Module, nn.Module]:
    """What sparsify and export make of a model computes the same."""
    sparse, compact = sparsefx.sparsify(model, 1.0), sparsefx.export(model, (x,))
    for rows in (x, drawn(7)):
        for training in (True, False):
            assert_same(model, sparse, rows, training)
        assert_same(model, compact, rows, error=1e-10)
    return sparse, compact


def _residual(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x)
    res = h
    h += model.layer(h)
    return h + res


def _listed(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x)
    hs = [h]
    h *= 0.5
    return hs[0] + h


def _in_a_dict(model: Any, x: Tensor) -> Tensor:
    kept = {"h": model.layer(x)}
    before = kept["h"]
    kept["h"] -= 1
    return kept["h"] * before


def _viewed(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x)
    v = h[:, :3]
    v += 1
    return h


def _indexed(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x)
    before = h
    h[:, 0] = x[:, 0]
    h[:, 1] += 2
    h[1:] /= 3
    return h + before


def _method(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x)
    before = h
    h.add_(1).mul_(2)
    return h + before


def _data(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x)
    h.data += 1
    return h


def _out(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x).detach()
    before = h
    torch.mul(h, 2, out=h)
    return h + before


def _size(model: Any, x: Tensor) -> Tensor:
    rows = x.size(0)
    more = rows
    more += 1
    sizes = x.shape
    longer = sizes
    longer += (1,)
    return model.layer(x).view(rows, -1).reshape(longer).reshape(sizes) * rows / more


def _multiplied(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x)
    before = h
    h @= model.layer.weight  # tensors have no such operator in place
    return h + before


def _of_proxies(model: Any, x: Tensor) -> Tensor:
    hs = [model.layer(x)]
    same = hs
    hs += [x]
    return same[0] * same[1]


def _input(model: Any, x: Tensor) -> Tensor:
    y = x
    x += 1
    return model.layer(x) * y


def _copy(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x)
    before = h.clone()
    h += 1
    return h * before


CASES: list[Forward] = [
    _residual, _listed, _in_a_dict, _viewed, _indexed, _method, _data, _out, _size, _multiplied, _of_proxies,
    _input, _copy,
]  # fmt: skip


@pytest.mark.parametrize("forward", CASES)
def test_a_write_is_seen_under_every_name(forward: Forward) -> None:
    sparse, compact = check(made(forward), drawn())
    assert isinstance(sparse, fx.GraphModule)
    assert isinstance(compact, fx.GraphModule)


_INTEGERS = {"iand", "ior", "ixor", "ilshift", "irshift"}


@pytest.mark.parametrize("name", NAMES)
def test_each_operator_keeps_names_together(name: str) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        h = model.layer(x)
        if name in _INTEGERS:
            h = (h * 4).abs().long()
        before = h
        h = getattr(operator, name)(h, model.layer.weight if name == "imatmul" else 2)
        return before + h

    check(made(forward), drawn())


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_trace_takes_any_operator_of_numbers(name: str) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        rows = x.size(0)
        before = rows
        rows = rows if name == "imatmul" else getattr(operator, name)(rows, 2)
        return model.layer(x) * before + rows

    check(made(forward), drawn())


_METHODS: dict[str, tuple[Any, ...]] = {
    "pow_": (2,), "square_": (), "float_power_": (2,), "ldexp_": (torch.tensor(2),), "polygamma_": (1,),
}  # fmt: skip


@pytest.mark.parametrize("method", _METHODS)
def test_export_knows_what_a_method_writes(method: str) -> None:
    """The overload that only computes has another name, or other parameters."""

    def forward(model: Any, x: Tensor) -> Tensor:
        h = torch.sigmoid(model.layer(x))
        return model.relu(model.layer(getattr(h, method)(*_METHODS[method])))

    model = made(forward)
    model.layer.weight.data[:3] = 0
    _, compact = check(model, drawn())
    assert isinstance(compact, fx.GraphModule)


def test_a_graph_with_writes_is_pickled() -> None:
    sparse = sparsefx.sparsify(made(_size), 1.0)
    assert_same(sparse, pickle.loads(pickle.dumps(sparse)), drawn())


def _accumulates(model: Any, x: Tensor) -> Tensor:
    total = torch.zeros(6, dtype=torch.float64)
    total += model.layer(x).sum(0)
    return total


def _fills(model: Any, x: Tensor) -> Tensor:
    filled = torch.zeros(2, 6, dtype=torch.float64)
    filled[0] = model.layer(x)[0]
    return filled * 2


def _changes_later(model: Any, x: Tensor) -> Tensor:
    shift = torch.zeros(6, dtype=torch.float64)
    y = model.layer(x) + shift
    shift += 1
    return y


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (_accumulates, "writes what it computes into a tensor that is made without its input"),
        (_fills, "writes what it computes into a tensor that is made without its input"),
        (_changes_later, "changes a tensor in place that it used before"),
    ],
)
def test_a_constant_that_is_written_keeps_the_forward_python(forward: Forward, reason: str) -> None:
    model = made(forward)
    with pytest.warns(UserWarning, match=reason):
        sparse = sparsefx.sparsify(model, 1.0)
    assert_same(model, sparse, drawn())
    inside = nn.Sequential(model, nn.ReLU())
    with pytest.warns(UserWarning, match=reason):
        sparse = sparsefx.sparsify(inside, 1.0)
    assert isinstance(sparse, fx.GraphModule)
    assert_same(inside, sparse, drawn())


def _functionalized(forward: Forward) -> fx.GraphModule:
    graph_module = sparsefx.export(made(forward), (drawn(),))
    assert isinstance(graph_module, fx.GraphModule)
    return graph_module


def _block(model: Any, x: Tensor) -> Tensor:
    identity = model.relu(model.layer(x))
    out = model.layer(identity)
    out += identity
    return model.relu(out)


def _pieces(model: Any, x: Tensor) -> Tensor:
    one, other = model.layer(x).detach().chunk(2, -1)
    one *= 0.5
    return one + other


@pytest.mark.parametrize("forward", [_block, _pieces, _copy])
def test_a_write_that_nothing_sees_becomes_a_value(forward: Forward) -> None:
    graph = _functionalized(forward).graph
    assert not any(writes(node) for node in graph.nodes)


def _casts(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x).half()
    h += x
    return h


@pytest.mark.parametrize("forward", [_residual, _listed, _viewed, _method, _input, _casts])
def test_a_write_that_something_sees_stays(forward: Forward) -> None:
    graph_module = _functionalized(forward)
    assert any(writes(node) for node in graph_module.graph.nodes)
    assert not Functionalize().run(graph_module, Analyses(graph_module, [(drawn(),)])).modified


def test_dead_code_elimination_keeps_what_is_seen_under_another_name() -> None:
    model = made(_viewed)
    for graph_module in (sparsefx.sparsify(model, 1.0).eval(), _functionalized(_viewed)):
        assert isinstance(graph_module, fx.GraphModule)
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()
        assert_same(model, graph_module, drawn(), error=1e-10)


def test_every_assignment_has_its_operator() -> None:
    for name, function in FUNCTIONS.items():
        assert function(7, 2) == FUNCTIONAL[function](7, 2) if name != "imatmul" else True
    tensor = torch.ones(2)
    assert FUNCTIONS["iadd"](tensor, 1) is tensor


@pytest.mark.parametrize("training", [True, False])
def test_example_inputs_find_a_graph_that_differs(training: bool) -> None:
    calls: list[int] = []

    def forward(model: Any, x: Tensor) -> Tensor:
        calls.append(1)  # what no trace can know: Python state outside of the model
        scale = 2.0 if len(calls) > 2 and model.training is training else 1.0
        return model.drop(model.norm(model.layer(x))) * scale

    model = made(forward).eval()
    mode = "training" if training else "evaluation"
    with pytest.warns(UserWarning, match=f"its graph of {mode} returns something else"):
        sparse = sparsefx.sparsify(model, 1.0, example_inputs=(drawn(),))
    assert isinstance(sparse, Written)
    assert not sparse.training


def test_example_inputs_leave_no_trace() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.drop(model.norm(model.layer(x)))

    model = made(forward)
    model.norm.eval()
    torch.manual_seed(5)
    plain = sparsefx.sparsify(model, 0.5)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    sparse = sparsefx.sparsify(model, 0.5, example_inputs=(drawn(),))
    assert torch.equal(torch.get_rng_state(), after)
    assert isinstance(sparse, fx.GraphModule)
    assert sparse.training
    assert not sparse.norm.training
    for name, tensor in plain.state_dict().items():
        assert torch.equal(sparse.state_dict()[name], tensor), name


def test_example_inputs_that_do_not_run() -> None:
    model = made(lambda model, x: model.norm(model.layer(x)))
    with pytest.raises(ArgumentError, match="do not run through the model in training"):
        sparsefx.sparsify(model, example_inputs=(drawn(1),))
    with pytest.raises(ArgumentError, match="example_inputs must be a tuple"):
        sparsefx.sparsify(model, example_inputs="x")  # type: ignore[arg-type]


# --- random programs -------------------------------------------------------------------------------------

Names = list[Any]
"""What the variables of a program hold."""
Act = Callable[[Any, Names, int, int], None]
"""Does something to the variables, two of which are chosen."""


def gives(function: Callable[[Any, Any, Any], Any]) -> Act:
    """A new variable from two others."""

    def act(model: Any, names: Names, one: int, other: int) -> None:
        names.append(function(model, names[one], names[other]))

    return act


def assigns(function: Callable[[Any, Any, Any], Any]) -> Act:
    """An old variable with a new value, or with what it held."""

    def act(model: Any, names: Names, one: int, other: int) -> None:
        names[one] = function(model, names[one], names[other])

    return act


def _update(name: str, value: Callable[[Any], Any]) -> Act:
    return assigns(lambda model, a, b: getattr(operator, name)(a, value(b)))


def _set(key: Any) -> Act:
    def act(model: Any, names: Names, one: int, other: int) -> None:
        names[one][key] = names[other].mean()

    return act


def _update_part(key: Any, name: str) -> Act:
    def act(model: Any, names: Names, one: int, other: int) -> None:
        names[one][key] = getattr(operator, name)(names[one][key], 0.5)

    return act


def _in_container(model: Any, names: Names, one: int, other: int) -> None:
    held = ({"a": names[one]}, [names[other]])
    held[0]["a"] += 0.25
    held[1][0] *= 0.75
    names.append(held[0]["a"])
    names.append(held[1][0])


def _data_update(model: Any, names: Names, one: int, other: int) -> None:
    names[one].data -= 0.5


def _counted(model: Any, a: Any, b: Any) -> Any:
    rows = a.size(0)
    more = rows
    more += 1
    rows *= 2
    return b * more / rows


ACTS: dict[str, Act] = {
    "alias": gives(lambda model, a, b: a),
    "swap": assigns(lambda model, a, b: b),
    **{f"{name} number": _update(name, lambda b: 0.5) for name in ("iadd", "isub", "imul", "itruediv")},
    **{f"{name} tensor": _update(name, lambda b: b) for name in ("iadd", "isub", "imul")},
    **{f"{name} mean": _update(name, lambda b: b.mean()) for name in ("iadd", "imul", "imod", "ifloordiv")},
    "ipow": _update("ipow", lambda b: 2),
    "imatmul": assigns(lambda model, a, b: operator.imatmul(a, model.layer.weight)),
    **{
        f"{name}{given}": gives(lambda model, a, b, name=name, given=given: getattr(a, name)(*given))
        for name, given in [
            ("add_", (0.5,)), ("mul_", (0.5,)), ("relu_", ()), ("neg_", ()), ("sigmoid_", ()), ("tanh_", ()),
            ("clamp_", (-0.5, 0.5)), ("fill_", (0.25,)), ("square_", ()), ("pow_", (2,)), ("div_", (3,)),
            ("transpose", (0, 1)), ("reshape", (-1,)), ("view", (-1,)), ("flatten", ()), ("unsqueeze", (0,)),
            ("contiguous", ()), ("clone", ()), ("detach", ()), ("t", ()), ("abs", ()), ("squeeze", ()),
            ("narrow", (-1, 0, 2)), ("select", (-1, 1)),
        ]
    },
    "copy_": gives(lambda model, a, b: a.copy_(b)),
    "sub_": gives(lambda model, a, b: a.sub_(b, alpha=0.5)),
    "first": gives(lambda model, a, b: a[..., :3]),
    "last": gives(lambda model, a, b: a[..., 3:]),
    "row": gives(lambda model, a, b: a[0]),
    "chunk": gives(lambda model, a, b: a.chunk(2, -1)[1]),
    "unbind": gives(lambda model, a, b: a.unbind(-1)[0]),
    "split": gives(lambda model, a, b: torch.split(a, 2, -1)[0]),
    "set column": _set((..., 0)),
    "set row": _set(0),
    "set slice": _set((..., slice(1, None))),
    "update column": _update_part((..., 1), "iadd"),
    "update slice": _update_part((..., slice(0, 2)), "imul"),
    "update all": _update_part(slice(None), "isub"),
    "containers": _in_container,
    "data": _data_update,
    "out": gives(lambda model, a, b: torch.mul(a, 0.5, out=a)),
    "size": gives(_counted),
    "add": gives(lambda model, a, b: a + b),
    "cat": gives(lambda model, a, b: torch.cat([a, b], -1)[..., :6]),
    "layer": gives(lambda model, a, b: model.layer(a)),
    "norm": gives(lambda model, a, b: model.norm(a)),
    "drop": gives(lambda model, a, b: model.drop(a)),
    "relu": gives(lambda model, a, b: model.relu(a)),
    "F.relu": gives(lambda model, a, b: F.relu(a, inplace=True)),
    "F.dropout": gives(lambda model, a, b: F.dropout(a, 0.4, model.training, inplace=True)),
}  # fmt: skip

Program = Sequence[tuple[str, int, int]]


class Interpreted(Written):
    """Runs a program, and returns some of its variables."""

    def __init__(self, program: Program, returned: Sequence[int]) -> None:
        super().__init__(lambda model, x: None)
        self.program, self.returned = list(program), tuple(returned)

    def forward(self, x: Tensor) -> Any:
        names: Names = [x, self.layer(x)]
        for act, one, other in self.program:
            ACTS[act](self, names, one % len(names), other % len(names))
        return tuple(names[place % len(names)] for place in self.returned)


@torch.no_grad()
def that_runs(program: Program, returned: Sequence[int]) -> Interpreted:
    """The longest beginning of a program, without what does not fit there."""
    fitting: list[tuple[str, int, int]] = []
    for step in program:
        model = Interpreted([*fitting, step], [0])
        try:
            model(drawn().float())
            model(drawn(7).float())
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError):
            continue
        fitting.append(step)
    torch.manual_seed(0)
    return Interpreted(fitting, returned).double()


programs = st.lists(
    st.tuples(st.sampled_from(sorted(ACTS)), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8
)
returns = st.lists(st.integers(0, 9), min_size=1, max_size=3)


@properties(4000, quick=10)
@given(programs, returns)
def test_sparsify_of_a_random_program(program: Program, returned: Sequence[int]) -> None:
    model = that_runs(program, returned)
    sparse = sparsefx.sparsify(model, 1.0)
    assert isinstance(sparse, fx.GraphModule)
    for training in (True, False):
        assert_same(model, sparse, drawn(), training)


@properties(1000, quick=3)
@given(programs, returns)
def test_export_of_a_random_program(program: Program, returned: Sequence[int]) -> None:
    model = that_runs(program, returned)
    compact = sparsefx.export(model, (drawn(),))
    for rows in (drawn(), drawn(7)):
        assert_same(model, compact, rows, error=1e-9)
