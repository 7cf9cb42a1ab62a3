"""Each rewriting pass alone: golden graphs, an honest flag, the same outputs, nothing left to do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from networks import NETWORKS, build, names, relative_difference
from pass_checks import check_pass, graph_of, text
from torch import Tensor, fx, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.manager.pipeline import Outcome, Pass, Pipeline
from sparsefx.passes.rewrites.align_head_dims import AlignHeadDims
from sparsefx.passes.rewrites.canonical import FunctionalToModules, RemoveIdentities
from sparsefx.passes.rewrites.decompose_attention import DecomposeAttention
from sparsefx.passes.rewrites.flatten import NameFlatten
from sparsefx.passes.rewrites.fold_batchnorm import FoldBatchNorm
from sparsefx.passes.rewrites.fold_constant_channels import FoldConstantChannels
from sparsefx.passes.rewrites.merge_permutes import MergePermutes
from sparsefx.passes.rewrites.shrink import Shrink
from sparsefx.passes.rewrites.split_fused import SplitFused


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_remove_identities() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2), nn.Dropout(), nn.Dropout1d())
    graph_module = check_pass(RemoveIdentities(), model, image(2, 3), removes=3)
    assert text(graph_module) == ["input_1 = input()", "_1 = Linear[2, 3]+b(input_1)", "output = output(_1)"]


def test_dropout_functions_are_identities_in_evaluation() -> None:
    class Dropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(x, 0.5, self.training) + 1
            x = F.dropout2d(x, training=self.training) + 1
            return F.dropout(F.dropout(x, 0.0), 0.5, training=self.training)  # one that always drops

    graph_module = check_pass(RemoveIdentities(), Dropped(), image(2, 3, 4, 4), removes=3)
    assert sum(node.target is F.dropout for node in graph_module.graph.nodes) == 1


class Reshaped(nn.Module):
    def __init__(self, reshape) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.reshape = reshape

    def forward(self, x: Tensor) -> Tensor:
        return self.reshape(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "reshape",
    [
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.reshape((x.size()[0], -1)),
        pytest.param(
            lambda x: torch.reshape(x, shape=(x.size(0), -1)),
            marks=pytest.mark.skipif(
                torch.__version__ < "2.7", reason="torch 2.6 takes no traced size by keyword"
            ),
        ),
    ],
)
def test_a_reshape_that_flattens_is_named(reshape) -> None:  # type: ignore[no-untyped-def]
    graph_module = check_pass(NameFlatten(), Reshaped(reshape), image(2, 3, 5), image(4, 3, 5))
    assert text(graph_module)[1:-1] == [f"{list(graph_module.graph.nodes)[1]} = flatten(x, 1)"]


@pytest.mark.parametrize(
    "reshape",
    [
        lambda x: x.view(x.size(1), -1),
        lambda x: x.view(-1, x.size(0)),
        lambda x: x.view(x.size(0), 3, -1),
        lambda x: x.view(3 * x.size(0), -1),
        lambda x: x.relu().view(x.size(0), -1),
        lambda x: x.flatten(1).t().reshape(x.shape[0], -1),
        lambda x: x[:, 0, 0].view(x.size(0), -1),
    ],
)
def test_other_reshapes_stay(reshape) -> None:  # type: ignore[no-untyped-def]
    check_pass(NameFlatten(), Reshaped(reshape), image(2, 3, 5), image(4, 3, 5), removes=0)


def test_a_vector_is_not_flattened() -> None:
    """It becomes a column; ``flatten`` from the second dimension on would fail."""
    model = nn.Sequential(Reshaped(lambda x: x.sum((1, 2))), Reshaped(lambda x: x.view(x.size(0), -1)))
    check_pass(NameFlatten(), model, image(2, 3, 5), image(4, 3, 5), removes=0)


class Functional(nn.Module):
    """Convolution, transposed convolution and linear as functions of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.t = nn.Parameter(torch.randn(4, 1, 3)), nn.Parameter(torch.randn(4, 2, 2))
        self.w, self.b = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv1d(x, self.k, None, 1, 1, groups=2)
        x = F.conv_transpose1d(x, self.t, groups=2, stride=2)
        return F.linear(x.mean(2), weight=self.w, bias=self.b)


def test_functional_to_modules() -> None:
    torch.manual_seed(0)
    graph_module = check_pass(FunctionalToModules(), Functional(), image(2, 2, 5))
    assert text(graph_module) == [
        "x = x()",
        "conv1d_layer = Conv1d[4, 1, 3](x)",
        "conv_transpose1d_layer = ConvTranspose1d[4, 2, 2](conv1d_layer)",
        "mean = mean(conv_transpose1d_layer, 2)",
        "linear_layer = Linear[5, 4]+b(mean)",
        "output = output(linear_layer)",
    ]


def test_fold_batchnorm_into_convolutions_and_linears() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.BatchNorm2d(6, affine=False),
        nn.Flatten(),
        nn.Linear(6 * 25, 5),
        nn.BatchNorm1d(5),
    )
    randomize_some_norms(model)
    graph_module = check_pass(FoldBatchNorm(), model, image(2, 3, 6, 6), removes=3)
    assert text(graph_module) == [
        "input_1 = input()",
        "_0 = Conv2d[4, 3, 3, 3]+b(input_1)",
        "_2 = ConvTranspose2d[4, 3, 2, 2]+b(_0)",
        "_4 = Flatten(_2)",
        "_5 = Linear[5, 150]+b(_4)",
        "output = output(_5)",
    ]


def randomize_some_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)


class Unfoldable(nn.Module):
    """Layers whose BatchNorm must stay: read twice, called twice, tied, other channels, batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.twice, self.one, self.other = (nn.Linear(6, 6) for _ in range(4))
        self.other.weight = self.one.weight
        self.sequence = nn.Linear(6, 6)
        self.norms = nn.ModuleList(nn.BatchNorm1d(6) for _ in range(4))
        self.batch_norm = nn.BatchNorm1d(6, track_running_stats=False)
        self.plain = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read_twice(x)
        h = self.norms[0](h) + h
        h = self.norms[1](self.twice(self.twice(h)))
        h = self.norms[2](self.one(h)) + self.other(h)
        h = self.batch_norm(self.plain(h))
        return self.norms[3](self.sequence(h.unsqueeze(1).expand(-1, 6, -1))).mean(1)


def test_fold_batchnorm_leaves_what_it_cannot_fold() -> None:
    torch.manual_seed(0)
    model = Unfoldable()
    randomize_some_norms(model.norms)
    check_pass(FoldBatchNorm(), model, image(4, 6), removes=0)


def test_fold_constants_into_a_bias() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 3.0, -1.0]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0, 5.0], [1.0, 4.0, 7.0]]))
    folded = check_pass(FoldConstantChannels(), model, image(2, 2))
    head = folded.get_submodule("2")
    assert head.weight.tolist() == [[1, 0, 0], [1, 0, 0]]  # columns 1 (constant 3) and 2 (constant 0)
    assert head.bias.tolist() == [6, 12]


def test_fold_constants_into_a_carrier_where_zeros_are_padded() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 1), nn.Conv1d(4, 1, 3, padding=1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0] = 1
        model[0].bias.copy_(torch.tensor([0.0, 2.0, 4.0, 0.0]))
        model[1].weight.copy_(torch.tensor([[[1.0, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]]))
    folded = check_pass(FoldConstantChannels(), model, image(2, 1, 5))
    # channel 2 carries channel 1 at half its weight; channel 3 is 0 and needs nobody
    assert folded.get_submodule("1").weight.tolist() == [[[1, 1, 1], [0, 0, 0], [4, 4, 4], [0, 0, 0]]]
    assert folded.get_submodule("1").bias is None


def test_shrink_cuts_layers_norms_and_hard_coded_sizes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv1d(2, 6, 1), nn.BatchNorm1d(6)
            self.last = nn.Linear(6 * 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.sigmoid(self.norm(self.first(x))).view(-1, 24))

    torch.manual_seed(0)
    model = Net()
    model.last.weight.data.view(2, 6, 4)[:, [1, 4]] = 0
    graph_module = check_pass(Shrink(), model, image(3, 2, 4), removes=0)
    assert text(graph_module) == [
        "x = x()",
        "first = Conv1d[4, 2, 1]+b(x)",
        "norm = BatchNorm1d[4]+b(first)",
        "sigmoid = sigmoid(norm)",
        "view = reshape(sigmoid, -1, 16)",
        "last = Linear[2, 16]+b(view)",
        "output = output(last)",
    ]
    assert graph_module.get_submodule("norm").num_features == 4


class Attends(nn.Module):
    """A layer of attention with a mask, and an attention without a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.register_buffer("mask", torch.ones(3, 3).triu(1).bool())

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.attention(x, x, x, attn_mask=self.mask, need_weights=False)
        return F.scaled_dot_product_attention(h, h, h)


def test_open_attention() -> None:
    torch.manual_seed(0)
    graph_module = check_pass(DecomposeAttention(), Attends(), image(2, 3, 4))
    assert text(graph_module) == [
        "x = x()",
        "mask = mask()",
        "attention_q_proj = Linear[4, 4]+b(x)",
        "unflatten = unflatten(attention_q_proj, -1, (2, 2))",
        "permute = permute(unflatten, 0, 2, 1, 3)",
        "attention_k_proj = Linear[4, 4]+b(x)",
        "unflatten_1 = unflatten(attention_k_proj, -1, (2, 2))",
        "permute_1 = permute(unflatten_1, 0, 2, 1, 3)",
        "attention_v_proj = Linear[4, 4]+b(x)",
        "unflatten_2 = unflatten(attention_v_proj, -1, (2, 2))",
        "permute_2 = permute(unflatten_2, 0, 2, 1, 3)",
        "attention_mask = attention_mask(mask, None, permute)",
        "scaled_dot_product_attention_1 = scaled_dot_product_attention(permute, permute_1, permute_2)",
        "permute_3 = permute(scaled_dot_product_attention_1, 0, 2, 1, 3)",
        "flatten = flatten(permute_3, -2)",
        "attention_out_proj = NonDynamicallyQuantizableLinear[4, 4]+b(flatten)",
        "scaled_dot_product_attention = "
        "scaled_dot_product_attention(attention_out_proj, attention_out_proj, attention_out_proj)",
        "output = output(scaled_dot_product_attention)",
    ]
    scales = [node.kwargs["scale"] for node in graph_module.graph.nodes if "scaled" in node.name]
    assert scales == pytest.approx([2**-0.5, 4**-0.5])


class AttendsAs(nn.Module):
    """A call of a layer of attention in one of the ways that torch has for it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        sizes = {"kdim": 2, "vdim": 3} if form == "other sizes" else {}
        first = form != "sequence first"
        self.m = nn.MultiheadAttention(4, 2, bias=form != "no bias", batch_first=first, **sizes)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.zeros(2, 3, dtype=torch.bool)
        if self.form == "keywords":
            return self.m(query=x, key=x, value=x, key_padding_mask=padding)[0]
        if self.form == "mask for each head":
            return self.m(x, x, x, attn_mask=torch.ones(4, 3, 3).tril(), need_weights=False)[0]
        if self.form == "both masks":
            return self.m(x, x, x, padding, False, torch.ones(3, 3).triu(1).bool())[0]
        if self.form == "other sizes":
            return self.m(x, x[..., :2], x[..., :3])[0]
        return self.m(x, x.tanh(), x.relu())[0]


FORMS = ["keywords", "mask for each head", "both masks", "other sizes", "sequence first", "no bias"]


@pytest.mark.parametrize("form", FORMS)
def test_open_attention_in_all_its_forms(form: str) -> None:
    torch.manual_seed(0)
    graph_module = check_pass(DecomposeAttention(), AttendsAs(form), image(2, 3, 4))
    assert sum("Linear" in line for line in text(graph_module)) == 4


class Weighted(nn.Module):
    """Attention that does more than the plain one, or is called twice."""

    def __init__(self, form: str) -> None:
        super().__init__()
        options = {form: True} if form in ("add_bias_kv", "add_zero_attn") else {}
        self.m = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        x, weights = self.m(x, x, x)
        if self.form == "weights":
            return weights
        return self.m(x, x, x)[0] if self.form == "twice" else x


@pytest.mark.parametrize("form", ["weights", "twice", "add_bias_kv", "add_zero_attn"])
def test_open_attention_leaves_what_it_cannot_open(form: str) -> None:
    torch.manual_seed(0)
    check_pass(DecomposeAttention(), Weighted(form), image(2, 3, 4), removes=0)


class Fused(nn.Module):
    """Queries, keys and values in one layer."""

    def __init__(self, form: str = "unbind", bias: bool = True) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12, bias)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        if self.form == "unbind":
            q, k, v = self.qkv(x).reshape(b, n, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.form == "index":
            parts = self.qkv(x).view((b, n, 3, 2, 2)).permute((2, 0, 3, 1, 4))
            q, k, v = parts[0], parts[1], parts[-1]
        elif self.form == "read twice":
            h = self.qkv(x)
            q, k, v = (h.view(b, n, 3, 2, 2).permute(2, 0, 3, 1, 4) + h.sum()).unbind(0)
        else:  # parts of the batch, not of the layer
            q, k = self.qkv(x).reshape(2, b // 2, n, 6, 2).unbind(0)
            v = k
        return (q @ k.transpose(2, 3)).softmax(-1) @ v


def test_split_fused() -> None:
    torch.manual_seed(0)
    graph_module = check_pass(SplitFused(), Fused(), image(2, 3, 4), image(3, 6, 4))
    assert text(graph_module) == [
        "x = x()",
        "size = size(x, 0)",
        "size_1 = size(x, 1)",
        "qkv_0 = Linear[4, 4]+b(x)",
        "qkv_1 = Linear[4, 4]+b(x)",
        "qkv_2 = Linear[4, 4]+b(x)",
        "reshape_1 = reshape(qkv_0, size, size_1, 2, 2)",
        "permute_1 = permute(reshape_1, 0, 2, 1, 3)",
        "reshape_2 = reshape(qkv_1, size, size_1, 2, 2)",
        "permute_2 = permute(reshape_2, 0, 2, 1, 3)",
        "reshape_3 = reshape(qkv_2, size, size_1, 2, 2)",
        "permute_3 = permute(reshape_3, 0, 2, 1, 3)",
        "transpose = transpose(permute_2, 2, 3)",
        "matmul = matmul(permute_1, transpose)",
        "softmax = softmax(matmul, -1)",
        "matmul_1 = matmul(softmax, permute_3)",
        "output = output(matmul_1)",
    ]


def test_split_fused_by_index_and_without_bias() -> None:
    torch.manual_seed(0)
    graph_module = check_pass(SplitFused(), Fused("index", bias=False), image(2, 3, 4), image(3, 6, 4))
    assert [line for line in text(graph_module) if "Linear" in line] == [
        f"qkv_{part} = Linear[4, 4](x)" for part in range(3)
    ]


@pytest.mark.parametrize("form", ["read twice", "batch"])
def test_split_fused_leaves_other_reshapes(form: str) -> None:
    torch.manual_seed(0)
    check_pass(SplitFused(), Fused(form), image(2, 3, 4), removes=0)


class Permuted(nn.Module):
    """Permutations that undo each other, that make one, and one that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).transpose(1, -1).permute(0, 2, 1)
        h = torch.permute(h.transpose(0, 1), (2, 0, 1)).transpose(1, 2)
        turned = h.relu().transpose(0, 1)
        return self.last(turned.permute(0, 2, 1)) + turned.sum()


def test_merge_permutes() -> None:
    torch.manual_seed(0)
    graph_module = check_pass(MergePermutes(), Permuted(), image(2, 3, 4), image(3, 3, 4), removes=4)
    assert text(graph_module) == [
        "x = x()",
        "first = Linear[4, 4]+b(x)",
        "transpose_2 = permute(first, 2, 0, 1)",
        "relu = relu(transpose_2)",
        "transpose_3 = transpose(relu, 0, 1)",
        "permute_2 = permute(transpose_3, 0, 2, 1)",
        "last = Linear[4, 4]+b(permute_2)",
        "sum_1 = sum(transpose_3)",
        "add = add(last, sum_1)",
        "output = output(add)",
    ]


@pytest.mark.parametrize(
    "permute",
    [
        lambda x: x.permute(0, 2, 1).relu().permute(0, 2, 1),
        lambda x: x.permute(dims=(0, 2, 1)).permute(0, 2, 1),
        lambda x: x.permute(0, 2, 1),
    ],
)
def test_other_permutes_stay(permute) -> None:  # type: ignore[no-untyped-def]
    check_pass(MergePermutes(), Reshaped(permute), image(2, 3, 4), image(4, 3, 4), removes=0)


def test_a_norm_behind_permutes_is_folded() -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).transpose(1, 2)
            return self.norm(tokens.transpose(1, 2))

    torch.manual_seed(0)
    x, model = image(2, 3, 5), Between().double().eval()
    compact = sparsefx.export(model, (x,))
    assert not any(isinstance(module, nn.BatchNorm1d) for module in compact.modules())
    torch.testing.assert_close(compact(x), model(x), rtol=1e-12, atol=1e-12)


class TwoHeads(nn.Module):
    """Attention of two heads of width 3, in layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(h.transpose(1, 2).flatten(2))


def test_line_up_brings_useful_dimensions_to_the_front() -> None:
    torch.manual_seed(0)
    model = TwoHeads().double()
    with torch.no_grad():
        for layer in (model.q, model.k):
            layer.weight[[0, 4]] = 0
            layer.bias[[0, 4]] = 0
        model.out.weight[:, [1, 3]] = 0
    q, v, out = (layer.weight.detach().clone() for layer in (model.q, model.v, model.out))
    graph_module = check_pass(AlignHeadDims(), model, image(2, 4, 6))
    assert torch.equal(graph_module.q.weight, q[[1, 2, 0, 3, 5, 4]])
    assert torch.equal(graph_module.v.weight, v[[0, 2, 1, 4, 5, 3]])
    assert torch.equal(graph_module.out.weight, out[:, [0, 2, 1, 4, 5, 3]])


class SharedHeads(nn.Module):
    """Two heads of keys and values of width 2, each for two of the four heads of queries."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, n) for n in (8, 4, 4, 8))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, 2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.form == "expand":
            b, h, n, w = k.shape
            k, v = (y[:, :, None].expand(b, h, 2, n, w).reshape(b, 2 * h, n, w) for y in (k, v))
        elif self.form == "repeat_interleave":
            k, v = (y.repeat_interleave(2, 1) for y in (k, v))
        elif self.form == "wrong order":
            k, v = (y.repeat(1, 2, 1, 1) for y in (k, v))
        h = F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=self.form == "native")
        return self.out(h.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("form", ["native", "expand", "repeat_interleave", "wrong order"])
def test_line_up_with_heads_that_share_keys_and_values(form: str) -> None:
    torch.manual_seed(0)
    model = SharedHeads(form).double()
    with torch.no_grad():
        model.k.weight[[0, 3]] = 0  # of the first head the first dimension, of the second head the second
        model.k.bias[[0, 3]] = 0
        model.v.weight[[0, 3]] = 0
    with torch.no_grad():
        model.q.weight[[0, 2, 5, 7]] = 0
        model.q.bias[[0, 2, 5, 7]] = 0
        model.out.weight[:, [0, 2, 5, 7]] = 0
    q, v, out = (layer.weight.detach().clone() for layer in (model.q, model.v, model.out))
    x = image(2, 5, 8)
    compact = sparsefx.export(model, (x,))
    assert (len(compact.k.weight), len(compact.v.weight)) == ((4, 4) if form == "wrong order" else (2, 2))
    torch.testing.assert_close(compact(x[:1]), model(x[:1]), rtol=1e-11, atol=1e-11)
    graph_module = check_pass(AlignHeadDims(), model, x, image(3, 7, 8))
    if form != "wrong order":
        assert torch.equal(graph_module.q.weight, q[[1, 0, 3, 2, 4, 5, 6, 7]])
        assert torch.equal(graph_module.v.weight, v[[1, 0, 2, 3]])
        assert torch.equal(graph_module.out.weight, out[:, [1, 0, 3, 2, 4, 5, 6, 7]])


class Products(nn.Module):
    """Attention of two heads of width 3, made of matrix products; its first weights may be masked."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], 2, 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.matmul(q * 0.5, k.transpose(-1, -2)), -1)
        if self.form == "not a mean":
            weights = weights * 2
        h = (weights @ v).transpose(1, 2).flatten(2)
        return self.out(h)


@pytest.mark.parametrize("form", ["mean", "not a mean"])
def test_attention_made_of_products(form: str) -> None:
    torch.manual_seed(0)
    model = Products(form).double()
    with torch.no_grad():
        for layer in (model.q, model.k):
            layer.weight[[0, 4]] = 0
            layer.bias[[0, 4]] = 0
        model.v.weight[[2, 3]] = 0  # constants, which only a mean of them keeps
    q = model.q.weight.detach().clone()
    x = image(2, 5, 6)
    graph_module = check_pass(AlignHeadDims(), model, x, image(3, 7, 6))
    assert torch.equal(graph_module.q.weight, q[[1, 2, 0, 3, 5, 4]])
    compact = sparsefx.export(model, (x,))
    torch.testing.assert_close(compact(x[:1]), model(x[:1]), rtol=1e-11, atol=1e-11)
    assert len(compact.q.weight) == len(compact.k.weight) == 4
    assert len(compact.v.weight) == (4 if form == "mean" else 6)


def test_line_up_leaves_what_is_in_order() -> None:
    torch.manual_seed(0)
    check_pass(AlignHeadDims(), TwoHeads(), image(2, 4, 6), removes=0)


@dataclass(frozen=True)
class Broken:
    """A pass that lies about having changed nothing."""

    name = "broken"

    def run(self, graph_module: fx.GraphModule, example_inputs: object) -> Outcome:
        graph_module.get_parameter("0.weight").data.zero_()
        return Outcome(False)


def test_check_pass_finds_a_dishonest_pass() -> None:
    with pytest.raises(AssertionError):
        check_pass(Broken(), nn.Sequential(nn.Linear(2, 2)), image(1, 2))


@pytest.mark.parametrize("name", names(("mlp", "lenet5", "residual", "mobile_net", "inception")))
def test_each_pass_in_turn_on_networks(name: str) -> None:
    """After every pass of the pipeline: a valid graph, the same outputs, and nothing left to do."""
    model = build(name, "both")
    x = image(2, 3, NETWORKS[name][1][0], NETWORKS[name][1][0])
    with torch.no_grad():
        expected = model(x)
    steps: list[Pass] = [
        RemoveIdentities(),
        FunctionalToModules(),
        DecomposeAttention(),
        SplitFused(),
        FoldBatchNorm(),
        FoldConstantChannels(),
        AlignHeadDims(),
        Shrink(),
    ]
    graph_module = graph_of(model)

    for step in steps:
        Pipeline((step,)).run(graph_module, [(x,)])
        graph_module.graph.lint()
        with torch.no_grad():
            assert relative_difference(graph_module(x), expected) <= 1e-11
        assert not step.run(graph_module, Analyses(graph_module, [(x,)])).modified


def test_a_graph_is_recorded_again_only_once_it_changed() -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    analyses = Analyses(model, [(torch.randn(2, 4),)])
    first = analyses.program
    model.get_submodule("0").weight.data.zero_()  # numbers in place: the program holds the tensor
    assert analyses.program is first
    assert analyses.program_of_first is first
    model.get_submodule("0").bias = nn.Parameter(torch.ones(4))
    assert analyses.program is not first


def test_facts_are_of_the_present_numbers() -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    analyses = Analyses(model, [(torch.randn(2, 4),)])
    program = analyses.program
    assert bool(analyses.facts(program)[program.outputs[0]].varies.all())
    model.get_submodule("0").weight.data.zero_()
    assert bool(analyses.facts(program)[program.outputs[0]].varies.all())  # nobody has said so yet
    analyses.invalidate()
    assert not bool(analyses.facts(analyses.program)[program.outputs[0]].varies.any())
