"""Which parameters a module holds under masks: the record on the module that all of masking reads."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

RECORD = "_masked_parameters"
HOLLOW = "_masks_without_values"  # made on the meta device, which to_empty() and the like fill with anything
_HOLDERS: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # that hold a masked parameter, of all models


def mask_names(model: nn.Module) -> list[str]:
    """The names of all mask buffers of a model, tied ones under each of their names."""
    return [
        f"{path}.{mask}".lstrip(".")
        for path, module in model.named_modules(remove_duplicate=False)
        for mask in module.__dict__.get(RECORD, {}).values()
    ]


def remember(module: nn.Module) -> None:
    """Note that a module holds masks; copies and unpickled ones have to say so themselves."""
    _HOLDERS.add(module)


def is_masked_anywhere(weights: Iterable[Tensor]) -> list[str]:
    """Which of some parameters, of any shape, are masked in some model: their layers, by class and shape."""
    wanted = {id(weight) for weight in weights}
    return [
        f"a {type(module).__name__} {tuple(weight.shape)}"
        for module in list(_HOLDERS)
        for name in module.__dict__.get(RECORD, {})
        if (weight := module._parameters.get(name)) is not None and id(weight) in wanted
    ]


def mask_of(module: nn.Module, parameter: str) -> Tensor:
    """The mask of a module's masked parameter, bool, of its shape; a layer may hold it by another name."""
    return module.get_buffer(module.__dict__[RECORD][parameter])


def has_masks(module: nn.Module) -> bool:
    """Whether this very module (not its children) holds a masked parameter."""
    return bool(module.__dict__.get(RECORD))


def has_values(module: nn.Module, buffer: str) -> None:
    """Note that a mask was given values, or is gone."""
    module.__dict__.get(HOLLOW, set()).discard(buffer)


def records(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a module's masked parameters, each with that of its mask buffer."""
    record: Mapping[str, str] = module.__dict__.get(RECORD, {})
    yield from record.items()
