"""What users train with: compilation, precision, checkpointing of activations, averages, channels-last."""

import pytest
import torch
from helpers import masked_conv_net
from networks import NETWORKS
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer

import sparsefx


class Block(nn.Module):
    """A decoder block of GPT-2: attention with one fused projection, and a perceptron."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attend = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.attend(self.norms[0](x)).chunk(3, dim=-1)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.contract(F.gelu(self.expand(self.norms[1](x))))


class Decoder(nn.Module):
    def __init__(self, words=50, width=32, depth=2):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(16, width)
        self.blocks = nn.ModuleList([Block(width, 4) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


MODELS = {
    "bottlenecks": (NETWORKS["bottlenecks"][0], lambda: torch.randn(2, 3, 32, 32)),
    "transformer": (
        lambda: VisionTransformer(32, 16, 2, 4, 32, 64, num_classes=10),
        lambda: torch.randn(2, 3, 32, 32),
    ),
    "decoder": (Decoder, lambda: torch.randint(50, (2, 16))),
}


@pytest.mark.filterwarnings("ignore:sparsify. not traced")  # chunk, without an example to count its parts by
@pytest.mark.parametrize(
    ("name", "trace"),
    [
        pytest.param("bottlenecks", True, marks=pytest.mark.slow),
        ("transformer", True),
        pytest.param("decoder", True, marks=pytest.mark.slow),
        ("decoder", False),
    ],
)
def test_cycles_break_no_graph_and_compile_nothing_anew(name, trace):
    torch._dynamo.reset()
    build, batch = MODELS[name]
    torch.manual_seed(0)
    model = sparsefx.sparsify(build(), density=0.1, trace=trace)
    optimizer = sparsefx.SparseMomentum(sgd(model), model, cycles=10)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(5):
        optimizer.zero_grad()
        compiled(batch()).square().mean().backward()
        optimizer.step()
        optimizer.cycle()
    assert counter.frame_count == 1
    assert len(optimizer.history) == 5


@pytest.mark.parametrize("make", ["sgd", "adam"])
def test_a_compiled_optimizer_step(make):
    torch._dynamo.reset()
    model, plain = masked_conv_net(), masked_conv_net()
    optimizers = [MAKERS[make](plain), MAKERS[make](model)]
    counter = CompileCounter()
    optimizers[1].step = torch.compile(optimizers[1].step, backend=counter)
    wrapped = [
        sparsefx.SparseMomentum(one, net, cycles=10)
        for one, net in zip(optimizers, (plain, model), strict=True)
    ]
    compilations = []
    for step in range(6):
        for net, optimizer in zip((plain, model), wrapped, strict=True):
            train_step(net, optimizer, step)
            optimizer.cycle()
        compilations.append(counter.frame_count)
    assert compilations[-1] == compilations[1] > 0  # the second step has momentum, the first has none
    assert_same(model, plain)


@pytest.mark.parametrize("what", ["step", "training step"])
def test_compiling_around_the_wrapper_changes_nothing(what):
    """A trace of a cycle would be wrong; what is compiled around it leaves the wrapper's step as it is."""
    torch._dynamo.reset()
    model, plain = masked_conv_net(), masked_conv_net()
    for net in (plain, model):
        optimizer = sparsefx.SparseMomentum(sgd(net), net, cycles=4, every=2)
        one_step, compiled = train_step, torch.compile(backend="eager")
        if net is model and what == "step":
            optimizer.step = compiled(optimizer.step)
        elif net is model:
            one_step = compiled(train_step)
        for step in range(6):
            one_step(net, optimizer, step)
        assert [record.step for record in optimizer.history] == [2, 4, 6]
    assert_same(model, plain)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


MAKERS = {"sgd": sgd, "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, capturable=False)}


def images(step):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def train_step(model, optimizer, step, forward=None):
    optimizer.zero_grad()
    (forward or model)(images(step)).square().mean().backward()
    optimizer.step()


def assert_same(one, other):
    for (name, value), wanted in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, msg=name)


def test_activation_checkpointing_changes_nothing():
    model, plain = masked_conv_net(), masked_conv_net()
    for net, forward in ((plain, plain), (model, lambda x: checkpoint(model, x, use_reentrant=False))):
        optimizer = sparsefx.SparseMomentum(sgd(net), net, cycles=4)
        for step in range(4):
            train_step(net, optimizer, step, forward)
            optimizer.cycle()
    assert_same(model, plain)


def test_autocast_and_bfloat16_parameters():
    for dtype in (torch.float32, torch.bfloat16):
        model = masked_conv_net().to(dtype)
        optimizer = sparsefx.SparseMomentum(sgd(model), model, cycles=6)
        before = sum(int(layer.mask.sum()) for layer in sparsefx.masked_weights(model))
        for step in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(images(step).to(dtype)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.cycle()
            assert all(layer.is_enforced() for layer in sparsefx.masked_weights(model))
        assert sum(int(layer.mask.sum()) for layer in sparsefx.masked_weights(model)) == before
        assert loss.isfinite()


def test_channels_last_changes_nothing():
    model, plain = masked_conv_net(), masked_conv_net()
    model.to(memory_format=torch.channels_last)
    for net in (plain, model):
        optimizer = sparsefx.SparseMomentum(sgd(net), net, cycles=4)
        for step in range(4):
            train_step(net, optimizer, step)
            optimizer.cycle()
    conv = next(layer for layer in sparsefx.masked_weights(model) if layer.weight.dim() == 4)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same(model, plain)


def test_averaged_models_are_sparse_after_apply_masks():
    """An average mixes weights of several masks: its copy has the masks, which cut it to the present one."""
    model = masked_conv_net()
    optimizer = sparsefx.SparseMomentum(sgd(model), model, cycles=4)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=False
    )
    for step in range(4):
        train_step(model, optimizer, step)
        optimizer.cycle()
        average.update_parameters(model)
    inner = average.module
    for layer, trained in zip(sparsefx.masked_weights(inner), sparsefx.masked_weights(model), strict=True):
        assert torch.equal(layer.mask, trained.mask)
    sparsefx.apply_masks(inner, like=model)
    compact = sparsefx.export(inner, (images(0),))
    torch.testing.assert_close(compact(images(1)), inner.eval()(images(1)))


def test_clipping_sees_the_same_gradients():
    model, plain = masked_conv_net(), masked_conv_net()
    for net in (plain, model):
        optimizer = sparsefx.SparseMomentum(sgd(net), net, cycles=4)
        for step in range(3):
            optimizer.zero_grad()
            net(images(step)).square().mean().backward()
            held = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(net.parameters() if net is plain else held, 0.1)
            optimizer.step()
    assert_same(model, plain)
