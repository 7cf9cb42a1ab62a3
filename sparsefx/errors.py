"""The errors that sparsefx raises, and the error for unknown names.

Every message names the argument, the value received and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparseFxError(Exception):
    """Base of every error that sparsefx raises on purpose."""


class ArgumentError(SparseFxError, ValueError):
    """An argument has a value that cannot be used."""


class InvariantError(SparseFxError, RuntimeError):
    """A weight is not zero where its mask is False, or a mask is neither 0 nor 1."""


class CycleError(SparseFxError, RuntimeError):
    """A prune-redistribute-grow cycle cannot run, or a custom part of it broke its contract."""


class CheckpointError(SparseFxError, RuntimeError):
    """A saved state does not fit the object it is loaded into."""


class ArchiveError(SparseFxError, RuntimeError):
    """A file is damaged, of another model or not an exported model, or a model cannot be saved."""


class LedgerError(SparseFxError, RuntimeError):
    """A file of the results ledger is damaged, or holds a different run."""


class MissingPackageError(SparseFxError, ImportError):
    """An optional package that this call needs is not installed."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> ArgumentError:
    """The error for a name that is not registered, with the nearest registered names.

    Args:
        what: what the name stands for, e.g. ``"grow"`` or ``"layer"``.
        name: the name received.
        known: the names that exist.
    """
    names = sorted(known)
    same = [one for one in names if one.lower() == str(name).lower()]  # a paper's capitals: SET, RigL
    nearest = same or difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, nearest))}?" if nearest else f"known: {', '.join(names)}"
    return ArgumentError(f"{what}={name!r} is not known; {hint}")
