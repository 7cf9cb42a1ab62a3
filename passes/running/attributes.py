"""What a module holds as Python attributes, and how to bring it back after a run of its forward."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def kept_attributes(model: nn.Module) -> Iterator[None]:
    """Undo what is done to the Python attributes of a model's modules, such as a counter of its calls."""
    before = attributes_of(model)
    try:
        yield
    finally:
        for attributes in before.values():
            attributes.restore()


def attributes_of(model: nn.Module) -> dict[nn.Module, Attributes]:
    """The attributes of each module of a model, but those of a scripted one, which are not in Python."""
    scripted = torch.jit.ScriptModule
    return {part: Attributes(part) for part in model.modules() if not isinstance(part, scripted)}


class Attributes:
    """A module's attributes at one moment, and what its lists, dicts and sets contained then."""

    def __init__(self, module: nn.Module) -> None:
        self.live = module.__dict__
        self.attributes = dict(module.__dict__)
        containers = {k: v for k, v in module.__dict__.items() if isinstance(v, _CONTAINERS)}
        self.contents = {key: _contents(value) if value else () for key, value in containers.items()}

    def restore(self, but: Collection[str] = ()) -> list[str]:
        """Undo every change since then; the names of what changed.

        Args:
            but: attributes that stay as they are now, and are not named.
        """
        constants = {key: value for key, value in self.live.items() if key.startswith("_tensor_constant")}
        before = self.attributes | constants  # fx's own, for tensors made in forward
        before |= {key: self.live[key] for key in but if key in self.live}
        changed = [key for key in self.live | before if self.live.get(key, self) is not before.get(key, self)]
        if changed:
            self.live.clear()
            self.live.update(before)
        for key in self.contents.keys() - set(but):
            container, contents = self.live[key], self.contents[key]
            if (container or contents) and _identities(container) != _identities(contents):
                changed.append(key)
                container.clear()
                container.extend(contents) if isinstance(container, list) else container.update(contents)
        return changed


_CONTAINERS = (list, dict, set)


def _contents(container: Any) -> Any:
    """What a container holds, in a plain one of its kind."""
    return next(kind for kind in _CONTAINERS if isinstance(container, kind))(container)


def _identities(container: Collection[Any]) -> list[int]:
    keys = list(map(id, container))
    if isinstance(container, set):  # a copy may have them in another order
        return sorted(keys)
    return keys + list(map(id, container.values())) if isinstance(container, dict) else keys
