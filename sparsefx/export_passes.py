"""The options of an export, and the passes that follow from them, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sparsefx.errors import ArgumentError
from sparsefx.kernels.frontend.backend import SparseKernels
from sparsefx.passes.manager.pipeline import Pass, Pipeline
from sparsefx.passes.regions.regions import Regions
from sparsefx.passes.rewrites.align_head_dims import AlignHeadDims
from sparsefx.passes.rewrites.canonical import FunctionalToModules, RemoveIdentities
from sparsefx.passes.rewrites.constant_folding import ConstantFolding
from sparsefx.passes.rewrites.decompose_attention import DecomposeAttention
from sparsefx.passes.rewrites.explain import Explain
from sparsefx.passes.rewrites.flatten import NameFlatten
from sparsefx.passes.rewrites.fold_batchnorm import FoldBatchNorm
from sparsefx.passes.rewrites.fold_constant_channels import FoldConstantChannels
from sparsefx.passes.rewrites.functionalize import Functionalize
from sparsefx.passes.rewrites.gather import Gather
from sparsefx.passes.rewrites.merge_permutes import MergePermutes
from sparsefx.passes.rewrites.shrink import Shrink
from sparsefx.passes.rewrites.shrink_layer_norm import ShrinkLayerNorm
from sparsefx.passes.rewrites.split_fused import SplitFused
from sparsefx.passes.running.timing import When

Kernels = Literal["dense", "sparse", "auto"]
"""What computes the layers of an export."""


@dataclass(frozen=True)
class ExportOptions:
    """The options of :func:`sparsefx.export`, which describes what each does.

    Attributes:
        align: layer widths are rounded up to a multiple of this.
        gather: whether layers gather the channels they read: ``"auto"``, ``"never"`` or ``"always"``.
        round_groups: whether groups of convolutions keep widths for which kernels are made: ``"auto"``,
            ``"never"`` or ``"always"``.
        fold_batchnorm: fold BatchNorm and remove dropout; False for a result that can be trained further.
        kernels: ``"dense"``, ``"sparse"`` or ``"auto"``.

    Raises:
        ArgumentError: an option is none of its values, or ``kernels`` is not ``"dense"`` together with
            ``fold_batchnorm=False``.
    """

    align: int = 1
    gather: When = "auto"
    round_groups: When = "auto"
    fold_batchnorm: bool = True
    kernels: Kernels = "dense"

    def __post_init__(self) -> None:
        if not isinstance(self.align, int) or isinstance(self.align, bool) or self.align < 1:
            raise ArgumentError(
                f"align={self.align!r} is not a positive integer; align=1 removes all that is removable"
            )
        if not isinstance(self.fold_batchnorm, bool):
            raise ArgumentError(f"fold_batchnorm={self.fold_batchnorm!r} is neither True nor False")
        for name, kind in {"gather": When, "round_groups": When, "kernels": Kernels}.items():
            if getattr(self, name) not in get_args(kind):
                values = ", ".join(map(repr, get_args(kind)))
                raise ArgumentError(f"{name}={getattr(self, name)!r} is none of {values}")
        if self.kernels != "dense" and not self.fold_batchnorm:
            raise ArgumentError(
                f"kernels={self.kernels!r} with fold_batchnorm=False: sparse kernels do not train; train the "
                "export with dense ones, and export it again"
            )


def default_passes(options: ExportOptions | None = None) -> Pipeline:
    """The passes that an export with these options runs, in order.

    Print the pipeline to see them. Cut it (``until``), remove a pass (``without``) or insert your own, and
    give the result to ``export(..., passes=)``.

    Example:
        >>> import sparsefx
        >>> print(sparsefx.default_passes(sparsefx.ExportOptions(align=8)).until("fold_batchnorm"))
        functionalize
        remove_identities(dropout=True)
        constant_folding
        functional_to_modules
        decompose_attention(trains=False)
        split_fused
        merge_permutes
        fold_batchnorm
    """
    options = options or ExportOptions()
    folds = options.fold_batchnorm
    return Pipeline((
        Functionalize(),
        RemoveIdentities(dropout=folds),
        *([ConstantFolding()] if folds else []),
        FunctionalToModules(),
        DecomposeAttention(trains=not folds),
        SplitFused(),
        MergePermutes(),
        *([FoldBatchNorm()] if folds else []),
        FoldConstantChannels(),
        ShrinkLayerNorm(),
        AlignHeadDims(),
        Shrink(options.align, _when(options.round_groups, folds)),
        *_kernel_passes(options.kernels),  # before Gather, which is for dense kernels
        Gather(_when(options.gather, folds)),
        Explain(),
    ))  # fmt: skip


def _when(choice: When, folds: bool) -> When:
    """The choice, or ``"never"`` for ``"auto"`` if the result will be trained, as all of it is."""
    return choice if folds or choice != "auto" else "never"


def _kernel_passes(kernels: Kernels) -> list[Pass]:
    if kernels == "dense":
        return []
    return [NameFlatten(), Regions(SparseKernels(measured=kernels == "auto"))]
