"""The public models that export is measured on, with random weights and small inputs."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib import import_module

from zoo.case import Case

ZOOS = {"torchvision": "vision", "timm": "image_models", "huggingface": "hugging_face"}
"""Zoo to the module of this package that lists its models; imported only when asked for."""


def find(zoo: str | None = None, patterns: list[str] | None = None) -> Iterator[Case]:
    """The cases of one zoo or all, whose name or key matches one of the patterns.

    Args:
        zoo: a key of :data:`ZOOS`, or None for all.
        patterns: shell patterns, e.g. ``resnet*`` or ``timm/*``; None for all models.

    Yields:
        The cases in the zoos' order.
    """
    for name in [zoo] if zoo else ZOOS:
        for case in import_module(f"zoo.{ZOOS[name]}").cases():
            if any(fnmatchcase(text, p) for p in patterns or ["*"] for text in (case.name, case.key)):
                yield case


def get(key: str) -> Case:
    """The case of a key such as ``torchvision/resnet18``."""
    return next(find(key.partition("/")[0], [key]))


__all__ = ["ZOOS", "Case", "find", "get"]
