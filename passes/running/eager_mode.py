"""A dispatch mode that keeps torch's compiler out."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class EagerMode(TorchDispatchMode):
    """A dispatch mode in which nothing is compiled: torch need not import its compiler to leave it alone."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
