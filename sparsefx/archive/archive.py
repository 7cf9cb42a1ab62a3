"""``save`` and ``load``."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from sparsefx._common.version import VERSION
from sparsefx.archive import file
from sparsefx.archive.architecture import Architecture
from sparsefx.archive.describe import describe
from sparsefx.archive.make import Mismatch
from sparsefx.archive.plan import ModulePlan
from sparsefx.archive.rebuild import rebuild
from sparsefx.archive.report_data import read_report
from sparsefx.archive.trial import remember, try_to_load
from sparsefx.errors import ArchiveError, ArgumentError
from sparsefx.kernels.runtime import native
from sparsefx.kernels.runtime.region import SparseRegion
from sparsefx.masking.mask_record import has_masks
from sparsefx.passes.serialize.plain_values import DataError, fields
from sparsefx.report.export_report import ExportReport, attach_report

_PLAN = {"format": int, "sha256": str, "sparsefx": str, "torch": str, "modules": list}


def save(compact: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write an exported model to one file: its tensors, and its graph as plain data.

    The file holds no code and no pickle, so :func:`load` needs a model of the exported architecture. The
    format is safetensors with a checksum; tied tensors are stored once. If ``compact`` is the object that
    :func:`sparsefx.export` or :func:`load` returned, ``save`` tries a load before it writes. An existing file
    is replaced only when the new one is complete. For a model exported with ``fold_batchnorm=False`` the file
    keeps the graph of evaluation, and not the graph of training or ``origins``; ``torch.save`` keeps all.

    Args:
        compact: what :func:`sparsefx.export` returned.
        path: the file to write.

    Raises:
        ArgumentError: ``compact`` is not the result of an export, or was returned whole.
        ArchiveError: a part of it cannot be written as plain data, or a load would not find it; the message
            names it.

    Example:
        >>> import tempfile, torch, sparsefx
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> _ = net[0].weight.data[3:].zero_()
        >>> compact = sparsefx.export(net, (torch.randn(1, 4),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sparsefx.save(compact, f"{folder}/net.safetensors")
        ...     loaded = sparsefx.load(f"{folder}/net.safetensors", net)
        >>> loaded.get_submodule("0").out_features
        3
    """
    _check(compact)
    target = Path(path)
    report = getattr(compact, "report", None)
    try:
        modules, tensors = describe(compact)
        plan: dict[str, Any] = {"sparsefx": VERSION, "torch": str(torch.__version__)}
        plan["modules"] = [module.as_data() for module in modules]
        try_to_load(compact, plan["modules"], tensors)
        if isinstance(report, ExportReport):
            plan["report"] = report.as_dict()
        file.write(target, plan, tensors)
    except DataError as error:
        reason = error.difference if isinstance(error, Mismatch) else error
        raise ArchiveError(
            f"compact cannot be saved to {target}: {reason}; torch.save keeps such a model whole"
        ) from error


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Read a file of :func:`save` into the architecture that was exported.

    Nothing in the file is executed, and nothing is imported by a name from it. Sizes, weights and graph come
    from the file. Layers and functions come from ``model`` and from torch. Everything is checked before it is
    used.

    Args:
        path: the file.
        model: the model that was exported, or one built by the same code. It may be dense or sparsified,
            with any weights, on any device. It is not changed.

    Returns:
        The exported model in evaluation mode, with its ``report`` and with the same ``state_dict`` and
        outputs as when it was saved. Each tensor is on the device of the tensor of the same name in
        ``model``, or on the CPU if that is the meta device.

    Raises:
        ArchiveError: the file is damaged, not a file of :func:`save`, or of another model.
        ArgumentError: ``model`` is not a module.
        OSError: the file cannot be read.

    Example:
        See :func:`save`.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be the exported model's architecture, got {type(model).__name__}")
    source, architecture = Path(path), Architecture(model)
    try:
        data, tensors = file.read(source, architecture.device_of)
        found = fields(data, "the plan", _PLAN, {"report": dict})
        plans = [ModulePlan.from_data(module) for module in found["modules"]]
        report = read_report(found["report"]) if "report" in found else None
        compact = rebuild(plans, tensors, architecture)
    except DataError as error:
        raise ArchiveError(f"{source} cannot be loaded: {error}") from error
    if report is not None:
        attach_report(compact, report)
    remember(compact, model)
    if not native.available() and any(isinstance(module, SparseRegion) for module in compact.modules()):
        warnings.warn(f"{source} has sparse kernels and cannot be run here: {native.MISSING}", stacklevel=2)
    return compact


def _check(compact: nn.Module) -> None:
    if not isinstance(compact, nn.Module):
        raise ArgumentError(f"compact must be a torch.nn.Module, got {type(compact).__name__}")
    modules = list(compact.modules())
    if any(has_masks(module) for module in modules):
        raise ArgumentError("compact is a sparsified model; save what sparsefx.export makes of it")
    if not any(isinstance(module, fx.GraphModule) for module in modules):
        raise ArgumentError(
            f"compact is a {type(compact).__name__} without a graph; save what sparsefx.export returned, "
            "and of a model that it returned whole the state_dict"
        )
