"""What an optimizer keeps of each weight, cut to what an export has left of the model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import bare
from sparsefx.passes.graph.origins import Origin

_EXPORT = "sparsefx.export(model, example_inputs, fold_batchnorm=False)"


def carry_over(optimizer: Optimizer, model: nn.Module, compact: nn.Module) -> Optimizer:
    """An optimizer of the same kind for an exported model, which goes on where this one is.

    Args:
        optimizer: holds parameters of ``model``; it is not changed.
        model: the model that was exported.
        compact: the exported model.

    Raises:
        ArgumentError: ``compact`` was not exported from ``model`` with ``fold_batchnorm=False``, or the
            optimizer cannot be built anew.
    """
    origins = _origins(model, compact)
    originals = dict(bare(model).named_parameters(remove_duplicate=False))
    heirs: dict[Tensor, list[str]] = {}
    for name, _ in bare(compact).named_parameters():
        source = origins.get(name) or _beside(name, origins)
        if source is not None:
            heirs.setdefault(originals[source.name], []).append(name)
    parameters = dict(bare(compact).named_parameters())
    groups = [_group(group, heirs, parameters) for group in optimizer.param_groups]
    if not any(group["params"] for group in groups):
        raise ArgumentError("the optimizer holds no parameter of which compact has anything left")
    result = _build(optimizer, groups)
    _carry_state(optimizer, result, parameters, {n: (o, originals[o.name]) for n, o in origins.items()})
    return result


def _origins(model: nn.Module, compact: nn.Module) -> Mapping[str, Origin]:
    """Where the parameters of an exported model come from, checked against both models."""
    if not isinstance(compact, nn.Module):
        raise ArgumentError(f"compact must be the model that {_EXPORT} returns, not {type(compact).__name__}")
    origins: Mapping[str, Origin] | None = getattr(bare(compact), "origins", None)
    if not isinstance(origins, dict):
        raise ArgumentError(f"compact does not say where its parameters come from; make it by {_EXPORT}")
    shapes = {name: p.shape for name, p in bare(model).named_parameters(remove_duplicate=False)}
    for origin in origins.values():
        if shapes.get(origin.name) != origin.shape:
            raise ArgumentError(
                f"compact was exported from another model: its parameter {origin.name!r} of shape "
                f"{tuple(origin.shape)} is not in this optimizer's model"
            )
    for name, parameter in bare(compact).named_parameters():
        if name in origins and parameter.shape != origins[name].kept:
            raise ArgumentError(f"compact's parameter {name!r} was given another shape after the export")
    return origins


def _beside(name: str, origins: Mapping[str, Origin]) -> Origin | None:
    """The origin of another parameter of the same layer: a bias that export made goes with the weight."""
    path = name.rpartition(".")[0]
    return next((origin for other, origin in origins.items() if other.rpartition(".")[0] == path), None)


def _group(
    group: Mapping[str, Any], heirs: Mapping[Tensor, list[str]], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Any]:
    """A parameter group of what is left of its members."""
    names = [name for original in group["params"] for name in heirs.get(original, ())]
    options = {key: _copy(value) for key, value in group.items() if key not in ("params", "param_names")}
    if "param_names" in group:
        return {**options, "params": [(name, parameters[name]) for name in names]}
    return {**options, "params": [parameters[name] for name in names]}


def _build(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    kind = type(optimizer)
    accepted = inspect.signature(kind).parameters
    options = {key: _copy(value) for key, value in optimizer.defaults.items() if key in accepted}
    try:
        return kind(groups, **options)
    except Exception as error:  # a constructor of the user's own
        raise ArgumentError(
            f"{kind.__name__} cannot be built from its parameter groups and defaults: {error}"
        ) from error


def _carry_state(
    old: Optimizer,
    new: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    origins: Mapping[str, tuple[Origin, Tensor]],
) -> None:
    """Give every parameter the state of its original; what cannot be cut starts anew, with a warning."""
    held = {parameter for group in new.param_groups for parameter in group["params"]}
    lost: dict[str, str] = {}
    for name, (origin, original) in origins.items():
        parameter = parameters.get(name)  # None for the second name of a tied one
        state = old.state.get(original)
        if parameter is None or parameter not in held or not state:
            continue
        cut = {key: _cut(value, origin, parameter) for key, value in state.items()}
        unknown = [key for key, value in cut.items() if value is _UNKNOWN]
        if unknown:
            lost[name] = unknown[0]
        else:
            new.state[parameter] = cut
    if lost:
        keys = ", ".join(sorted(set(lost.values())))
        warnings.warn(
            f"SparseMomentum.compact: {type(old).__name__} starts anew for {_some(lost)}: its {keys} does "
            "not have the shape of the parameter and cannot be cut with it",
            stacklevel=4,
        )


_UNKNOWN = object()


def _cut(value: Any, origin: Origin, parameter: nn.Parameter) -> Any:
    """One entry of a parameter's state; ``_UNKNOWN`` if it is not known how it goes with the parameter."""
    if not isinstance(value, Tensor):
        return value if value is None or isinstance(value, (bool, int, float, str)) else _UNKNOWN
    cut = origin.cut(value)
    if cut is not None and value.dim():
        return cut.to(parameter.device)
    return _copy(value) if value.numel() == 1 else _UNKNOWN


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
