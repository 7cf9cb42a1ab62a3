"""The leaves of nested values: lists, dicts, and dataclasses too, which torch's own trees take for leaves."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def leaves(tree: Any) -> list[Any]:
    """Every leaf, in order."""
    found = []
    for leaf in pytree.tree_leaves(tree):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            found += leaves([getattr(leaf, part.name) for part in fields(leaf)])
        else:
            found.append(leaf)
    return found


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor in a tree of containers, of whatever shape, in order."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]
