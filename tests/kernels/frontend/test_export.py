"""``export(kernels=...)``: the same function, in a module like any other."""

import copy
import functools
import itertools
import pickle
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from networks import NETWORKS
from torch import nn

import sparsefx
from sparsefx.errors import ArgumentError, MissingPackageError
from sparsefx.kernels.frontend import backend
from sparsefx.kernels.runtime import native
from sparsefx.kernels.runtime.region import SparseRegion


class Everything(nn.Module):
    """Every operation that has an instruction, and some that have none."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.right = nn.Conv2d(8, 8, 1)
        self.down = nn.Conv2d(16, 12, 3, stride=2, padding=1)
        self.gate = nn.Conv2d(12, 12, 1)
        self.after = nn.BatchNorm2d(12)
        self.head = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 5))

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = nn.functional.max_pool2d(x.cos() - 0.5, 3, 2, 1)
        x = torch.cat([torch.relu(self.left(x)) + x, nn.functional.silu(self.right(x))], 1)
        x = nn.functional.hardtanh(self.down(x), -1.0, 2.0)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = nn.functional.hardswish(self.after(x + torch.tanh(x)))
        x = nn.functional.avg_pool2d(x, 2) + nn.functional.gelu(
            nn.functional.avg_pool2d(x, 2), approximate="tanh"
        )
        return self.head(x.mean((2, 3)))


def model_and_input(images=2, size=24):
    torch.manual_seed(0)
    model = Everything()
    for norm in (model.norm, model.after):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return sparsefx.sparsify(model, density=0.4).eval(), torch.randn(images, 3, size, size)


@functools.cache
def _exported():
    model, x = model_and_input()
    return model, x, sparsefx.export(model, (x,), kernels="sparse")


def exported():
    """A model, an input and its export by sparse kernels, made once: to look at, not to change."""
    model, x, compact = _exported()
    return model, x.clone(), compact


def regions_of(model):
    return [module for module in model.modules() if isinstance(module, SparseRegion)]


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def close(output, expected):
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_equals_the_model_at_every_size():
    model, _, compact = exported()
    for images, size in itertools.product([1, 2, 5, 16, 19], [24, 25, 31]):
        other = torch.randn(images, 3, size, size)
        close(compact(other), model(other))
    layers = {name for region in regions_of(compact) for name, _, _ in region.layers}
    assert layers == {"stem", "left", "right", "down", "gate", "head.0", "head.2"}


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [*map(slow, ["shufflenet_v2_x0_5", "resnet18", "mobilenet_v3_small", "googlenet"])]
)
def test_equals_networks_of_torchvision(name):
    torch.manual_seed(0)
    arguments = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, num_classes=10, **arguments)
    sparse, x = sparsefx.sparsify(model, density=0.3).eval(), torch.randn(3, 3, 64, 64)
    close(sparsefx.export(sparse, (x,), kernels="sparse")(x), sparse(x))


@torch.no_grad()
@pytest.mark.parametrize("name", [slow("residual"), "mobile_net", slow("inception"), "shuffle_net"])
def test_equals_small_networks(name):
    torch.manual_seed(0)
    make, sizes = NETWORKS[name]
    sparse, x = sparsefx.sparsify(make(), density=0.3).eval(), torch.randn(3, 3, sizes[0], sizes[0])
    close(sparsefx.export(sparse, (x,), kernels="sparse")(x), sparse(x))


@torch.no_grad()
def test_linear_layers_of_sequences():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
    model, x = sparsefx.sparsify(layer, density=0.3, trace=False).eval(), torch.randn(3, 7, 32)
    compact = sparsefx.export(model, (x,), kernels="sparse")
    assert regions_of(compact)
    for other in (x, torch.randn(2, 300, 32)):
        close(compact(other), model(other))


@torch.no_grad()
def test_is_a_module_like_any_other(tmp_path):
    model, x = model_and_input()
    compact = sparsefx.export(model, (x,), kernels="sparse")
    expected = compact(x)
    assert torch.equal(copy.deepcopy(compact)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(regions_of(compact)[0]))(x), regions_of(compact)[0](x))
    compact.load_state_dict(compact.state_dict())
    assert torch.equal(compact(x), expected)
    sparsefx.save(compact, tmp_path / "compact")
    loaded = sparsefx.load(tmp_path / "compact", Everything())
    assert torch.equal(loaded(x), expected)
    assert str(loaded.report) == str(compact.report)


@torch.no_grad()
def test_is_exported_by_torch_with_any_batch_size(tmp_path):
    _, x, compact = exported()
    program = torch.export.export(compact, (x,), dynamic_shapes=({0: torch.export.Dim("images")},))
    torch.export.save(program, tmp_path / "model.pt2")
    other = torch.randn(5, 3, 24, 24)
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(other), compact(other))


def test_the_operator_is_as_torch_wants_it():
    _, x, compact = exported()
    region = regions_of(compact)[0]
    sample = ([x], region.tensors(), region.program)
    torch.library.opcheck(torch.ops.sparsefx.region.default, sample)


@torch.no_grad()
def test_is_compiled_without_a_break():
    _, x, compact = exported()
    compiled = torch.compile(compact, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), compact(x))


@torch.no_grad()
def test_bfloat16_is_computed_in_float32():
    _, x, compact = exported()
    output = copy.deepcopy(compact).bfloat16()(x.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), compact(x), rtol=0.05, atol=0.05)


def test_the_report_has_the_layers():
    model, x, compact = exported()
    dense, report = sparsefx.export(model, (x,)).report, compact.report
    after = {change.name: change.after for change in dense.layers}
    for change in report.layers:
        assert change.after is not None
        assert change.after.shape == after[change.name].shape
        assert change.after.nonzeros == after[change.name].nonzeros
        assert change.after.flops_dense == after[change.name].flops_dense
        assert change.after.parameters < after[change.name].parameters
    assert report.parameters_after < dense.parameters_after
    assert all(region.taken for region in report.regions)
    assert "\nleft to head.2: sparse kernels" in str(report)


def test_auto_says_what_it_measured():
    model, x = model_and_input()
    compact = sparsefx.export(model, (x,), kernels="auto")
    assert compact.report.regions
    given_up = "so none is taken" in str(compact.report)
    for region in compact.report.regions:
        assert region.dense > 0
        assert region.sparse > 0
        assert region.taken == (region.sparse < 0.95 * region.dense and not given_up)
    assert len(regions_of(compact)) == sum(region.taken for region in compact.report.regions)
    with torch.no_grad():
        close(compact(x), model(x))


def test_a_network_that_is_not_faster_stays_dense(monkeypatch):
    model, x = model_and_input()
    monkeypatch.setattr(backend, "medians", lambda *_: (1.0, 2.0))
    monkeypatch.setattr("sparsefx.passes.regions.regions.medians", lambda *_: (0.003, 0.002))
    compact = sparsefx.export(model, (x,), kernels="auto")
    dense = sparsefx.export(model, (x,))
    assert not regions_of(compact)
    assert compact.state_dict().keys() == dense.state_dict().keys()
    assert not any(region.taken for region in compact.report.regions)
    assert "dense 2.00 ms, now 3.00 ms, so none is taken" in str(compact.report)
    with torch.no_grad():
        close(compact(x), model(x))


def test_layers_that_slow_a_region_down_are_left_out(monkeypatch):
    monkeypatch.setattr("sparsefx.passes.regions.regions.medians", lambda *_: (1.0, 2.0))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 3, 8, 8)
    seconds = iter([(2.0, 1.0), (1.0, 2.0), (1.0, 2.0)])  # the whole, then what is left on both sides
    monkeypatch.setattr(backend, "medians", lambda *_: next(seconds))
    monkeypatch.setattr(backend, "_is_slower", lambda graph, node, *_: node.target == "2")
    compact = sparsefx.export(model, (x,), kernels="auto")
    found = [(region.layers, region.taken) for region in compact.report.regions]
    assert found == [(("0", "2", "4"), False), (("0",), True), (("4",), True)]
    with torch.no_grad():
        torch.testing.assert_close(compact(x), model(x), rtol=1e-5, atol=1e-5)


def test_double_precision_stays_dense():
    model, x = model_and_input()
    compact = sparsefx.export(model.double(), (x.double(),), kernels="sparse")
    assert not regions_of(compact)


def test_gradients_are_refused():
    _, x, compact = exported()
    with pytest.raises(RuntimeError, match=r"give no gradients .* kernels='dense'"):
        compact(x.requires_grad_()).sum().backward()


def test_wrong_arguments():
    model, x = model_and_input()
    with pytest.raises(ArgumentError, match="kernels='fast' is none of 'dense', 'sparse', 'auto'"):
        sparsefx.export(model, (x,), kernels="fast")
    with pytest.raises(ArgumentError, match="do not train"):
        sparsefx.export(model, (x,), kernels="sparse", fold_batchnorm=False)


@torch.no_grad()
def test_wrong_inputs():
    _, x, compact = exported()
    with pytest.raises(ValueError, match="argument 'x' has size 4 in dimension 1"):
        compact(torch.randn(2, 4, 24, 24))
    with pytest.raises(ArgumentError, match="take 4 dimensions"):
        compact(x[0])
    with pytest.raises(ArgumentError, match="too small"):
        compact(x[:, :, :2, :2])


def test_without_the_compiler(monkeypatch):
    sparsefx.export.__globals__["_tell_missing"].cache_clear()
    monkeypatch.setattr(native, "available", lambda: False)
    model, x = model_and_input()
    with pytest.raises(MissingPackageError, match="pip install 'sparsefx\\[kernels\\]'"):
        sparsefx.export(model, (x,), kernels="sparse")
    with pytest.warns(UserWarning, match=r"takes dense ones: .* llvmlite"):
        compact = sparsefx.export(model, (x,), kernels="auto")
    assert not regions_of(compact)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsefx.export(model, (x,), kernels="auto")  # it was said once
        sparsefx.export(model, (x,))


class Network(nn.Module):
    """Two convolutions, ``a`` and ``b``, and a gate of 1x1, ``g``, called by a function."""

    def __init__(self, call):
        super().__init__()
        self.call = call
        self.a, self.b = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.g = nn.Conv2d(4, 4, 1)

    def forward(self, *inputs):
        return self.call(self, *inputs)


def gate(net, x):
    return net.g(x.mean((2, 3), keepdim=True))


def written(net, x):
    y = net.a(x)
    y.view(y.shape).relu_()
    return net.b(y)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize(
    ("call", "layers"),
    [
        (lambda net, x: net.a(x) + gate(net, x), {"a", "g"}),
        (lambda net, x: gate(net, x) + net.a(x), {"a", "g"}),
        (lambda net, x: torch.mul(other=gate(net, x), input=net.a(x)), {"a", "g"}),
        (written, set()),
        (lambda net, x: nn.functional.max_pool2d(net.a(x).clamp(0, -1), 3, 1, 1), {"a"}),
        (lambda net, x: net.a(x).mean((2, 3), keepdim=True, dtype=torch.bfloat16), {"a"}),
        (lambda net, x: torch.relu(x.bfloat16()) + net.a(x), {"a"}),
        (lambda net, x: (torch.tanh(x[:, 0].mean(1, keepdim=True)), net.a(x)), {"a"}),
    ],
)
def test_unusual_uses_of_layers(call, layers, size):
    torch.manual_seed(0)
    model, x = Network(call).eval(), torch.randn(2, 4, size, size)
    compact = sparsefx.export(model, (x,), kernels="sparse")
    assert {name for region in regions_of(compact) for name, _, _ in region.layers} == layers
    for other in (x, torch.randn(3, 4, 7, 9)):
        torch.testing.assert_close(compact(other), model(other), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_layers_that_share_nothing_are_regions_apart():
    model = Network(lambda net, x, y: (net.a(x), net.b(y))).eval()
    x = torch.randn(2, 4, 6, 5)
    compact = sparsefx.export(model, (x, x), kernels="sparse")
    assert len(regions_of(compact)) == 2
    for outputs in zip(compact(x, x[:1]), model(x, x[:1]), strict=True):
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)])
def test_pooling_of_a_single_image_is_not_that_of_a_batch(pool):
    model, x = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), pool).eval(), torch.randn(2, 3, 8)
    compact = sparsefx.export(model, (x,), kernels="sparse")
    assert regions_of(compact)
    close(compact(x), model(x))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("kernel", "padding", "taken"), [(3, "same", True), (2, "same", False), (2, "valid", True)]
)
def test_padding_by_name(kernel, padding, taken):
    model, x = nn.Sequential(nn.Conv2d(3, 4, kernel, padding=padding)).eval(), torch.randn(2, 3, 8, 7)
    compact = sparsefx.export(model, (x,), kernels="sparse")
    assert bool(regions_of(compact)) == taken
    close(compact(x), model(x))


@torch.no_grad()
def test_other_types_are_refused():
    _, x, compact = exported()
    region, x = regions_of(compact)[0], torch.ones(2, 3, 24, 24)
    for type_ in (torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float64):
        with pytest.raises(ArgumentError, match=r"compute in float32: give them torch\.float32"):
            region(x.to(type_))
    with pytest.raises(ArgumentError, match=r"input is of torch\.float64"):
        copy.deepcopy(region).double()(x.double())


@torch.no_grad()
@pytest.mark.parametrize("type_", [torch.float64, torch.bfloat16])
def test_the_default_type_is_not_that_of_kernels(type_):
    _, x, compact = exported()
    expected = compact(x)
    torch.set_default_dtype(type_)
    try:
        assert torch.equal(compact(x), expected)
        sparsefx.report(compact)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_tangents_are_refused():
    _, x, compact = exported()
    with pytest.raises(RuntimeError, match="give no gradients"):
        torch.func.jvp(compact, (x,), (torch.ones_like(x),))
    with torch.autograd.forward_ad.dual_level():
        compact(x)  # without a tangent


def test_an_export_is_not_exported_again():
    _, x, compact = exported()
    with pytest.raises(ArgumentError, match="exported already"):
        sparsefx.export(compact, (x,))


def test_the_report_says_what_computes_each_layer():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.mirrored = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
            self.plain, self.turned = nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 2, 3)

        def forward(self, x):
            return self.turned(self.plain(self.mirrored(x)))

    report = sparsefx.export(Model(), (torch.randn(2, 3, 8, 8),), kernels="sparse").report
    layers = ("mirrored", "plain", "turned")
    assert [report.kernels(layer) for layer in layers] == ["dense", "sparse", "dense"]
    text = str(report)
    assert "mirrored: dense kernels (it pads by padding_mode='reflect')" in text
    assert "turned: dense kernels (it is a transposed convolution)" in text
    assert "regions: 1 of 1 regions, 1 layers" in text
    with pytest.raises(ArgumentError, match="layer"):
        report.kernels("other")
    dense = sparsefx.export(Model(), (torch.randn(2, 3, 8, 8),)).report
    assert dense.kernels("plain") == "dense"
    assert "dense kernels" not in str(dense)


@torch.no_grad()
def test_new_sizes_write_no_new_kernels():
    """A kernel is made of its tile, not of the sizes that it goes over."""
    from sparsefx.kernels.codegen.convolution import convolution

    layers = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 40))
    compact = sparsefx.export(sparsefx.sparsify(layers, 0.2).eval(), (torch.randn(2, 40),), kernels="sparse")
    before = convolution.cache_info().misses
    for rows in range(1, 130):
        compact(torch.randn(rows, 40))
    assert convolution.cache_info().misses - before < 16


@torch.no_grad()
def test_threads_at_the_first_call_compute_the_same(monkeypatch):
    """What one of them made must not be freed while another runs it."""
    from sparsefx.kernels.runtime import execution_plan

    model, x = model_and_input()
    compact = sparsefx.export(model, (x,), kernels="sparse")
    build = execution_plan.Calls

    def slow(*arguments):
        time.sleep(0.02)
        return build(*arguments)

    monkeypatch.setattr(execution_plan, "Calls", slow)
    execution_plan.execution_plan_for.cache_clear()
    execution_plan._calls_of.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: compact(x), range(8)))
    for output in outputs:
        close(output, model(x))


@torch.no_grad()
def test_weights_without_memory_give_no_outputs():
    _, x, compact = exported()
    region = regions_of(compact)[0]
    assert copy.deepcopy(region).to("meta")(x.to("meta")).is_meta
    with pytest.raises(ArgumentError, match="cpu and meta"):
        copy.deepcopy(region).to("meta")(x)


@torch.no_grad()
def test_weights_that_do_not_fit_are_not_loaded():
    _, x, compact = exported()
    expected = compact(x)
    forged = {name: tensor.clone() for name, tensor in compact.state_dict().items()}
    for name in forged:
        if name.endswith("indices"):
            forged[name] *= 1000
    with pytest.raises(RuntimeError, match="weights of other layers"):
        compact.load_state_dict(forged)
    assert torch.equal(compact(x), expected)
