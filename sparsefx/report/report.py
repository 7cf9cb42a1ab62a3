"""``report``: the layers of a model, or the changes between two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sparsefx._common.inputs import call_of
from sparsefx._common.plain_tensors import check_values
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import check_unsharded
from sparsefx.report.export_report import ExportReport, compare
from sparsefx.report.model_report import ModelReport, describe


def report(
    model: nn.Module,
    after: nn.Module | None = None,
    *,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> ModelReport | ExportReport:
    """Describe a model's Linear and Conv layers or, with ``after``, the changes between two models.

    Args:
        model: any model, masked or not.
        after: its exported form.
        example_inputs: positional arguments of the models; without them FLOPs are not counted.
        example_kwargs: those that go by name.

    Returns:
        A report that prints as a table; its ``as_dict`` gives plain data.

    Raises:
        ArgumentError: ``model`` or ``after`` is not a module, or has parameters without values.

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
        check_values(value)
    if example_kwargs:
        example_inputs = call_of(example_inputs or (), example_kwargs)
    if after is None:
        return describe(model, example_inputs)
    return compare(model, after, example_inputs)
