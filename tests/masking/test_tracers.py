"""Other tools that trace a sparsified model by torch.fx: they stop at masked layers and keep the masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import NETWORKS
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.split_module import split_module

import sparsefx
from sparsefx.masking.layers import MASKABLE, MaskedLinear, masked_class, unmask_layer
from sparsefx.masking.masks import check_invariant, masked_weights


class Flagged(nn.Module):
    """Modes that differ, and arguments with defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.drop, self.two = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, twice: bool = False) -> Tensor:
        y = self.two(self.drop(torch.relu(self.one(x))))
        y = y if mask is None else y * mask
        return 2 * y if twice else y


class Mine(nn.Linear):
    """A layer of a user's own class."""


MODELS = {
    "flags": (Flagged, (2, 4)),
    "own layer": (lambda: nn.Sequential(Mine(4, 8), nn.ReLU(), nn.Linear(8, 4)), (2, 4)),
    "bottlenecks": (NETWORKS["bottlenecks"][0], (2, 3, 32, 32)),
}
TOOLS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "symbolic_trace": fx.symbolic_trace,
    "transformer": lambda model: fx.Transformer(model).transform(),
    "fuse": fuse,
    "split": lambda model: split_module(model, model, lambda node: int(node.op == "output")),
}


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        *(("flags", tool) for tool in TOOLS),
        ("own layer", "symbolic_trace"),
        ("bottlenecks", "fuse"),
        *(
            pytest.param(name, tool, marks=pytest.mark.slow)
            for name in ("own layer", "bottlenecks")
            for tool in ("transformer", "split")
        ),
    ],
)
def test_a_sparsified_model_is_traced_again(name: str, tool: str) -> None:
    make, shape = MODELS[name]
    model = sparsefx.sparsify(make(), 0.4, seed=0).eval()
    again = TOOLS[tool](model)
    x = torch.randn(shape)
    torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-5)
    masks = [masked.mask for masked in masked_weights(again)]
    assert len(masks) == len(masked_weights(model))
    check_invariant(again)


def test_a_traced_model_trains_and_exports() -> None:
    model = fx.symbolic_trace(sparsefx.sparsify(Flagged(), 0.5, seed=0))
    optimizer = sparsefx.SparseMomentum(torch.optim.SGD(model.parameters(), 0.1, 0.9), model, cycles=3)
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    optimizer.cycle()
    check_invariant(model)
    x = torch.randn(2, 4)
    torch.testing.assert_close(sparsefx.export(model.eval(), (x,))(x), model(x))


def test_each_mode_is_traced_as_itself() -> None:
    model = sparsefx.sparsify(Flagged(), 1.0)
    x = torch.ones(64, 4)
    training, evaluation = (fx.symbolic_trace(model.train(mode)) for mode in (True, False))
    assert torch.equal(evaluation(x), model(x))
    twice = fx.symbolic_trace(evaluation)
    assert torch.equal(twice(x), model(x))
    torch.manual_seed(0)
    expected = model.train()(x)
    torch.manual_seed(0)
    assert torch.equal(training(x), expected)


@pytest.mark.parametrize("kind", [*MASKABLE, Mine])
def test_masked_layers_are_leaves_and_plain_ones_what_they_were(kind: type[nn.Module]) -> None:
    arguments = (4, 4) if issubclass(kind, nn.Linear) else (4, 4, 1)
    for layer in (masked_class(kind)(*arguments), sparsefx.sparsify(kind(*arguments), 0.5, trace=False)):
        assert fx.Tracer().is_leaf_module(layer, "layer")
        assert type(layer).__module__ != "torch.nn.modules.linear"
        unmask_layer(layer)
        assert "__module__" not in vars(layer)
    assert MaskedLinear.__module__ == "sparsefx.masking.layers"


@pytest.mark.parametrize("trace", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_feature_extractors_keep_masks(trace: bool) -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    make, shape = MODELS["bottlenecks"]
    dense = make()
    model = sparsefx.sparsify(dense, 0.4, trace=trace).eval()
    layers = [name for name, module in dense.named_modules() if isinstance(module, MASKABLE)]
    extractor = extraction.create_feature_extractor(model, layers).eval()
    assert len(masked_weights(extractor)) == len(masked_weights(model))
    x = torch.randn(shape)
    found = extractor(x)
    assert set(found) == set(layers)
    optimizer = sparsefx.SparseMomentum(torch.optim.SGD(extractor.parameters(), 0.1), extractor, cycles=3)
    sum(value.square().mean() for value in extractor.train()(x).values()).backward()
    optimizer.step()
    optimizer.cycle()
    check_invariant(extractor)
    compact = sparsefx.export(extractor.eval(), (x,))
    for name, value in extractor(x).items():
        torch.testing.assert_close(compact(x)[name], value, rtol=1e-4, atol=1e-4)
