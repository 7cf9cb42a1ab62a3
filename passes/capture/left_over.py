"""What a forward left in attributes for its next call, such as a detector's anchors for an image's size.

A forward that asks whether what is left fits the present call, and makes it anew if not, is traced as in a
first call: its graph makes it in each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from sparsefx.passes.capture.assignable import NotReplayable
from sparsefx.passes.running.attributes import attributes_of
from sparsefx.passes.running.compare import gives

_TORCHS_OWN = frozenset(nn.Module().__dict__)


class LeftOver:
    """Stands for what earlier calls left: unlike everything, and of no other use.

    Attributes:
        asked: whether it was compared with something.
    """

    asked = False

    def __getattr__(self, name: str) -> LeftOver:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def _itself(self, *_: Any) -> LeftOver:
        return self

    __call__ = __getitem__ = _itself

    def __eq__(self, other: object) -> bool:
        self.asked = True
        return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _refuse(self, *_: Any) -> Any:
        raise NotReplayable("it uses what an earlier call left in an attribute")

    __bool__ = __iter__ = __len__ = __contains__ = __int__ = __hash__ = _refuse


Names = dict[nn.Module, set[str]]
"""Names of attributes, by the module that has them."""


def put_in(module: nn.Module, calls: Iterable[Callable[[], Any]], left: LeftOver) -> Names:
    """Put it in the place of each attribute that calls of a module change; the names of these.

    Raises:
        NotReplayable: they change something else than attributes, or items of lists, or return something else
            in a second call.
    """
    before = attributes_of(module)
    try:
        for call in calls:
            if not gives(call, call()):
                raise NotReplayable("it returns something else in a second call")
    finally:
        lengths = {part: {k: len(v) for k, v in vars(part).items() if isinstance(v, list)} for part in before}
        changed = {part: set(attributes.restore()) for part, attributes in before.items()}
    for part, names in changed.items():
        for name in names:
            _replace(part, name, left, lengths[part].get(name))
    return {part: names for part, names in changed.items() if names}


def _replace(part: nn.Module, name: str, left: LeftOver, length: int | None) -> None:
    value = vars(part).get(name)
    grown = isinstance(value, list) and len(value) != length
    if name in _TORCHS_OWN or isinstance(value, (dict, set)) or grown:
        raise NotReplayable(f"its forward changes its attribute {name!r}")
    if isinstance(value, list):
        value[:] = [left] * len(value)
    else:
        vars(part)[name] = left
