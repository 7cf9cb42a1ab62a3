"""Graphs and their values as plain data, and back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsefx.passes.capture.capture import capture
from sparsefx.passes.serialize.graph_data import decode_graph, encode_graph
from sparsefx.passes.serialize.plain_values import DataError, decode_value, encode_value
from sparsefx.passes.serialize.vocabulary import Names, general_vocabulary, name_of

VALUES = [
    None, True, False, 0, -1, 2**63, 1.5, -0.0, math.inf, -math.inf, 0.1, "", "a\"'\\\n", (), (1,),
    [1, [2, (3,)]],
    {"a": 1, 2: (None,)}, {}, slice(None, 3, -1), 1 - 0.5j, Ellipsis, torch.float32, torch.bool,
    torch.device("cpu"), torch.device("cuda", 1),
    torch.channels_last, torch.strided, (Ellipsis, slice(0, 2), None),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back_as_they_were(value: Any) -> None:
    text = json.dumps(encode_value(value), allow_nan=False)
    decoded = decode_value(json.loads(text))
    assert type(decoded) is type(value)
    assert repr(decoded) == repr(value)


def test_not_a_number_comes_back() -> None:
    assert math.isnan(decode_value(json.loads(json.dumps(encode_value(math.nan)))))


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1), object(), 2**64, range(3), {1}, b"a", len, nn.ReLU(), torch.max(torch.eye(2), 0)],
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="cannot be saved"):
        encode_value((1, [value]))


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.w = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, *rest: Tensor, scale: float = 2.0) -> dict[str, Any]:
        h = self.layer(x)[..., 1:].to(torch.float64) * scale
        values, _ = h.topk(2, dim=-1)
        return {"a": torch.cat([h, values], 1), "b": (F.pad(x, (1, 1)) + math.sqrt(x.shape[0]), self.w)}


def test_a_graph_comes_back_with_its_code() -> None:
    module = Everything()
    model = fx.GraphModule(module, capture(module).graph)
    rows = json.loads(json.dumps(encode_graph(model.graph)))
    graph = decode_graph(rows, Names(lambda: ()), model)
    graph.lint()
    assert fx.GraphModule(model, graph).code == model.code
    assert encode_graph(graph) == rows


def test_a_name_that_could_become_code_is_not_written() -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    next(iter(model.graph.nodes)).target = "x, y=print()"
    with pytest.raises(DataError, match=r"node 'input\w*': 'x, y=print\(\)' is not a plain Python name"):
        encode_graph(model.graph)


def test_every_known_function_has_one_name() -> None:
    functions = general_vocabulary().functions
    for name, function in functions.items():
        assert functions[name_of(function)] == function, name  # torch has some under two names
    assert name_of(F.relu) == "torch.nn.functional.relu"
    assert name_of(torch.ops.aten.add.Tensor) == "aten.add.Tensor"
    assert Names(lambda: ()).function("aten.add.Tensor") is torch.ops.aten.add.Tensor


def test_a_function_that_only_looks_known_is_not_written() -> None:
    def relu(x: Tensor) -> Tensor:
        return x

    relu.__module__, relu.__qualname__ = "torch.nn.functional", "relu"
    with pytest.raises(DataError, match="is another than the one known by this name"):
        name_of(relu)


def test_nothing_known_leaves_the_tensors() -> None:
    """No files, no processes, no other code, no Python callables, no raw memory."""
    vocabulary = general_vocabulary()
    names = {name.rpartition(".")[2] for name in vocabulary.functions} | vocabulary.methods
    packing = ("_pack_padded_sequence", "_pad_packed_sequence")
    bad = "load save from_file eval exec open compile apply_ map_ map2_ register_hook numpy set_ storage"
    assert not names & set(bad.split())
    assert not any(name.startswith("_") for name in names - {"_assert", *packing})
    assert not any(name.startswith("_") or "hook" in name for name in vocabulary.attributes)
