"""``report``: what a model's layers look like, or what changed between two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import check_unsharded
from sparsefx.report.export_report import ExportReport, compare
from sparsefx.report.model_report import ModelReport, describe


def report(
    model: nn.Module, after: nn.Module | None = None, *, example_inputs: Sequence[Any] | None = None
) -> ModelReport | ExportReport:
    """Describe a model's Linear and Conv layers; with ``after``, what changed between two models.

    Args:
        model: any model, masked or not.
        after: its exported form.
        example_inputs: positional arguments of the models; without them there are no FLOPs.

    Returns:
        A printable table that is plain data too.

    Raises:
        ArgumentError: ``model`` or ``after`` is no module.

    Example:
        >>> import torch, sparsefx
        >>> net = sparsefx.sparsify(torch.nn.Sequential(torch.nn.Linear(4, 8)), density=0.25)
        >>> sparsefx.report(net).layers[0].nonzeros
        8
    """
    given = {"model": model} if after is None else {"model": model, "after": after}
    for name, value in given.items():
        if not isinstance(value, nn.Module):
            hint = "; inputs go to example_inputs=" if name == "after" else ""
            raise ArgumentError(f"{name} must be a torch.nn.Module, got {type(value).__name__}{hint}")
        check_unsharded(value, "report")
    if after is None:
        return describe(model, example_inputs)
    return compare(model, after, example_inputs)
