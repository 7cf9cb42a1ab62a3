"""The operation table: one entry for each ATen operation that the passes know.

An operation without an entry keeps every channel that it touches, unless torch's own tag says that it is
elementwise. To describe one, give it the family whose rules it follows (see CONTRIBUTING). An operation
that is not ATen's has its qualified name as key, ``mylib::op``.
"""

from __future__ import annotations

import torch

from sparsefx.passes.analysis.ops.attention import Attention
from sparsefx.passes.analysis.ops.base import Operation, Unknown
from sparsefx.passes.analysis.ops.batch_norm import BatchNorm
from sparsefx.passes.analysis.ops.contraction import Convolution, ConvolutionCall, MatrixProduct
from sparsefx.passes.analysis.ops.elementwise import Copy, Elementwise, Like, Multiply, Restride
from sparsefx.passes.analysis.ops.group_norm import GroupNorm, InstanceNorm
from sparsefx.passes.analysis.ops.lookup import Embedding, Index
from sparsefx.passes.analysis.ops.movement import (
    Concatenate,
    Movement,
    Permute,
    View,
    dim_argument,
    padded_dims,
    rolled_dims,
)
from sparsefx.passes.analysis.ops.normalisation import Normalisation
from sparsefx.passes.analysis.ops.reduction import (
    Mix,
    Softmax,
    always,
    dims_argument,
    last_dims,
    norm_dims,
    normalized_dims,
    pads_nothing,
)
from sparsefx.passes.graph.program import Call

__all__ = ["OPERATIONS", "ConvolutionCall", "Operation", "is_known", "operation_of"]

_UNKNOWN = Unknown()
_ELEMENTWISE = Elementwise()
_RESTRIDE = Restride()

_ATTENTIONS = (
    "flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention",
    "fused_attention_overrideable",
)  # fmt: skip

OPERATIONS: dict[str, Operation] = {
    # elementwise, but not tagged so
    **dict.fromkeys(["hardswish", "_prelu_kernel"], _ELEMENTWISE),
    **dict.fromkeys(["alias", "detach", "lift_fresh", "copy"], _ELEMENTWISE),
    **dict.fromkeys(["clone", "_to_copy"], Copy()),
    **{f"{kind}_like": Like() for kind in ("zeros", "ones", "full")},
    "mul": Multiply(),
    # data movement
    **dict.fromkeys(["view", "_unsafe_view", "squeeze", "unsqueeze"], View()),
    **dict.fromkeys(["expand", "stack", "flip", "repeat", "pixel_shuffle", "pixel_unshuffle"], Movement()),
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], Movement(lambda call: [1], whole=True)),
    "roll": Movement(rolled_dims, whole=True),
    **dict.fromkeys(["slice", "select", "split", "split_with_sizes"], Movement(dim_argument)),
    **dict.fromkeys(["unbind", "unfold"], Movement(dim_argument, whole=True)),
    "constant_pad_nd": Movement(padded_dims, whole=True),
    **{
        f"{kind}_pad{n}d": Movement(padded_dims, whole=True)
        for kind in ("reflection", "replication")
        for n in (1, 2, 3)
    },
    **dict.fromkeys(["t", "transpose", "permute"], Permute()),
    "cat": Concatenate(),
    # contractions
    "convolution": Convolution(),
    **dict.fromkeys(["mm", "addmm", "bmm", "baddbmm"], MatrixProduct()),
    # normalisation
    **dict.fromkeys(["native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"], BatchNorm()),
    "native_layer_norm": Normalisation(normalized_dims),
    "native_group_norm": GroupNorm(),
    "instance_norm": InstanceNorm(),
    "_fused_rms_norm": Normalisation(normalized_dims),
    "_softmax": Softmax(dims_argument),
    **dict.fromkeys(["_log_softmax", "_safe_softmax", "logcumsumexp"], Mix(dims_argument)),
    # attention and lookup
    **{f"_scaled_dot_product_{kind}": Attention() for kind in _ATTENTIONS},
    "embedding": Embedding(),
    **dict.fromkeys(["index", "index_select"], Index()),
    # reductions and pooling
    **dict.fromkeys(["mean", "amax", "amin"], Mix(dims_argument, always)),
    **dict.fromkeys(["sum", "prod", "logsumexp", "any", "all", "cumsum", "cumprod"], Mix(dims_argument)),
    **dict.fromkeys(["argmax", "argmin", "max", "min", "sort", "median"], Mix(dims_argument)),
    **dict.fromkeys(["var", "std", "var_mean", "std_mean"], Mix(dims_argument)),
    "linalg_vector_norm": Mix(norm_dims),
    **{f"max_pool{n}d_with_indices": Mix(last_dims(n), always) for n in (2, 3)},
    **{f"avg_pool{n}d": Mix(last_dims(n), pads_nothing) for n in (2, 3)},
    **{f"_adaptive_avg_pool{n}d": Mix(last_dims(n), always) for n in (2, 3)},
    **{f"adaptive_max_pool{n}d": Mix(last_dims(n), always) for n in (2, 3)},
    **dict.fromkeys(
        ["upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"], Mix(last_dims(2), always)
    ),
    "grid_sampler_2d": Mix(last_dims(2)),
    **{f"_upsample_nearest_exact{n}d": Mix(last_dims(n), always) for n in (1, 2, 3)},
    **{f"upsample_nearest{n}d": Mix(last_dims(n), always) for n in (1, 2, 3)},
    **{
        f"upsample_{kind}{n}d": Mix(last_dims(n), always)
        for n, kind in enumerate(("linear", "bilinear", "trilinear"), 1)
    },
}

_ANY_SIZE = frozenset({
    "view", "_unsafe_view", "expand", "slice", "select", "split", "split_with_sizes",
    *(name for name in OPERATIONS if name.startswith(("upsample_", "_adaptive_", "adaptive_"))),
})  # fmt: skip


def holds_for_computed_sizes(call: Call) -> bool:
    """Whether an operation's facts hold whatever the sizes that it is handed.

    A padding of 0 in one run may be 1 in another; but a map may be resized to any size, and a slice
    along positions is described by what all positions have in common.
    """
    return call.name in _ANY_SIZE


def is_known(call: Call) -> bool:
    """Whether the table describes an operation; if not, it keeps every channel that it touches."""
    return operation_of(call) is not _UNKNOWN


def operation_of(call: Call) -> Operation:
    """The rules of a recorded operation."""
    if (
        call.aliases or not call.outputs or call.op is torch.ops.aten.view.dtype
    ):  # the same bytes, read otherwise
        return _UNKNOWN
    if call.name == "as_strided":
        return _RESTRIDE if Restride.describes(call) else _UNKNOWN
    if call.name in OPERATIONS:
        operation = OPERATIONS[call.name]
        # where elements come from may be otherwise in another run; dimensions that only trade places may not
        moved = isinstance(operation, Movement) and not isinstance(operation, (Permute, Concatenate))
        return _UNKNOWN if call.opaque and moved else operation
    elementwise = torch.Tag.pointwise in call.op.tags and not call.op._schema.is_mutable
    return _ELEMENTWISE if elementwise and len(call.outputs) == 1 else _UNKNOWN
