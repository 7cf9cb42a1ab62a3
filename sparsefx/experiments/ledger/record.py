"""One finished run as the ledger keeps it: its configuration, where it ran, and what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from sparsefx.errors import LedgerError
from sparsefx.experiments.ledger.identity import CONFIGURATION, canonical
from sparsefx.experiments.ledger.json_decode import decode

SCHEMA = 1
"""The version of the records that this code writes, and the only one that it reads."""

MOST_EPOCHS = 25
"""How many rows of epochs a record keeps."""

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Final:
    """What a run ended with, measured after its last epoch.

    Attributes:
        test_error: wrong answers on the test split, %.
        validation_error: wrong answers on the validation split, %; None without one.
        test_loss: mean loss on the test split; None if it is not finite.
        train_loss: mean loss over the last epoch; None if it is not finite.
        density: fraction of the masked weights that are active, in [0, 1].
        density_of_all: fraction of all parameters that are active, in [0, 1].
        explored: fraction of the masked weights that were ever active; None if they were not counted.
    """

    test_error: float
    validation_error: float | None
    test_loss: float | None
    train_loss: float | None
    density: float
    density_of_all: float
    explored: float | None = None


@dataclass(frozen=True)
class EpochRow:
    """One epoch of a run.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean loss over it; None if it is not finite.
        validation_error: % after it; None if not measured.
        test_error: % after it; None if not measured.
        learning_rate: of its last step.
        prune_rate: fraction of the active weights its cycle set out to remove; None without a cycle.
        densities: of every masked layer after it, in [0, 1].
    """

    epoch: int
    train_loss: float | None
    validation_error: float | None
    test_error: float | None
    learning_rate: float
    prune_rate: float | None
    densities: tuple[float, ...]


@dataclass(frozen=True)
class LayerRow:
    """One masked layer at the end of a run: name, weight shape, active weights and their fraction."""

    name: str
    shape: tuple[int, ...]
    active: int
    density: float


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        network: name of the network.
        data: name of the data set. The JPEG copy of CIFAR-10 is ``"cifar10-jpeg"``, never ``"cifar10"``.
        method: name of the method, ``"dense"`` for none.
        density: fraction of the maskable weights asked for, 1.0 for dense.
        seed: of initialisation, masks and order of the data.
        options: what is set otherwise than in the method, as plain data.
        recipe: the recipe's fields, as plain data.
        shortened: whether it trained for less than the published recipe.
        versions: of ``sparsefx``, ``torch`` and ``python``.
        hardware: what it ran on, in words.
        seconds: how long it took.
        finished: when, as an ISO 8601 date or date and time.
        final: what it ended with.
        epochs: what happened on the way; the ledger keeps at most 25.
        layers: every masked layer at the end.
        analyses: further results by name, as plain data.
    """

    network: str
    data: str
    method: str
    density: float
    seed: int
    options: dict[str, Any]
    recipe: dict[str, Any]
    shortened: bool
    versions: dict[str, str]
    hardware: str
    seconds: float
    finished: str
    final: Final
    epochs: tuple[EpochRow, ...]
    layers: tuple[LayerRow, ...]
    analyses: dict[str, Any] = field(default_factory=dict)

    @property
    def configuration(self) -> dict[str, Any]:
        """What was asked for, with the seed. Runs that differ in the seed alone are repetitions."""
        return {name: getattr(self, name) for name in CONFIGURATION}

    def to_json(self) -> str:
        """The run as one line of JSON, in the order of the fields; numbers that are not finite become null.

        Raises:
            LedgerError: ``options``, ``recipe`` or ``analyses`` hold something that JSON has no word for.
        """
        plain = {"schema": SCHEMA, **asdict(self)}
        return "{" + ", ".join(f'"{name}": {canonical(entry)}' for name, entry in plain.items()) + "}"

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Undo :meth:`to_json`.

        Raises:
            LedgerError: the text is not JSON, of another schema, or not exactly a run.
        """
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LedgerError(f"it is not JSON: {error}") from error
        schema = plain.pop("schema", None) if isinstance(plain, dict) else None
        if schema != SCHEMA:
            raise LedgerError(f"its schema is {schema!r}, this version of sparsefx reads {SCHEMA}")
        run: Run = decode(cls, plain, "run")
        _check(run)
        return run


def subsample(rows: Sequence[_Row], limit: int = MOST_EPOCHS) -> tuple[_Row, ...]:
    """At most ``limit`` rows: the first, the last, and evenly spaced ones between them.

    Example:
        >>> subsample(range(1, 101), 4)
        (1, 34, 67, 100)
    """
    if len(rows) <= limit:
        return tuple(rows)
    step = (len(rows) - 1) / (limit - 1)
    return tuple(rows[round(index * step)] for index in range(limit))


def _check(run: Run) -> None:
    if not 0 <= run.density <= 1:
        raise LedgerError(f"run.density is {run.density!r}, not in [0, 1]")
    if not 0 <= run.final.test_error <= 100:
        raise LedgerError(f"run.final.test_error is {run.final.test_error!r}, not a percentage")
    try:
        datetime.fromisoformat(run.finished)
    except ValueError as error:
        raise LedgerError(f"run.finished is {run.finished!r}, not an ISO 8601 date") from error
