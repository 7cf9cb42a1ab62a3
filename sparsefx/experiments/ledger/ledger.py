"""The results ledger: a folder with a JSON-lines file per network and data set, a line for each run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sparsefx.errors import LedgerError, unknown_name
from sparsefx.experiments.ledger.entries import Entry, entries
from sparsefx.experiments.ledger.files import append_line, locked, write_whole
from sparsefx.experiments.ledger.identity import canonical, file_name, run_name
from sparsefx.experiments.ledger.metrics import metric_named
from sparsefx.experiments.ledger.record import Run, subsample
from sparsefx.experiments.ledger.statistics import Mean, mean_of
from sparsefx.experiments.networks import network_name


class Ledger:
    """A folder of finished runs.

    Several processes may add runs at once: no line is lost, and none takes the place of a different run. A
    folder in the older format, a JSON file for each run, is read as well;
    :func:`~sparsefx.experiments.ledger.convert.convert` brings it to this one.

    Args:
        folder: where the files are; made when the first run is added.

    Example:
        >>> Ledger("no/such/folder").runs(network="lenet-300-100")
        []
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def runs(self, **filters: Any) -> list[Run]:
        """The runs whose fields have the values given, in the order of their names.

        Args:
            filters: fields of :class:`~sparsefx.experiments.ledger.record.Run` and their values, for example
                ``network="lenet-300-100", density=0.05``.

        Raises:
            ArgumentError: a run has no such field.
            LedgerError: an entry is damaged, or of the configuration and seed of another one.
        """
        try:
            runs = self._all()
        except LedgerError:  # as a line looks that another process is still writing
            with suppress(OSError), locked(self.folder):
                return select(self._all(), **filters)
            raise
        return select(runs, **filters)

    def _all(self) -> list[Run]:
        runs: dict[str, Run] = {}
        places: dict[str, str] = {}
        for entry in entries(self.folder):
            run = entry.run()
            name = run_name(run.configuration)
            first = places.setdefault(name, entry.place)
            if first != entry.place:
                raise LedgerError(
                    f"{entry.place} is of the configuration and seed of {first}; delete one of them"
                )
            runs[name] = run
        return [runs[name] for name in sorted(runs)]

    def find(self, configuration: Mapping[str, Any]) -> Entry | None:
        """The entry of a configuration and seed; None if there is none that can be read."""
        name = run_name(configuration)
        return next((entry for entry in entries(self.folder) if entry.is_of(name)), None)

    def file(self, configuration: Mapping[str, Any]) -> Path:
        """The file that holds the runs of a configuration's network and data set."""
        return self.folder / file_name(configuration)

    def check_writable(self) -> None:
        """Find out now whether a run could be added.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        with locked(self.folder):
            pass

    def add(self, run: Run, *, overwrite: bool = False) -> Path:
        """Add a run, with at most 25 of its epochs; adding the same run again changes nothing.

        Args:
            run: the run.
            overwrite: replace another run of the same configuration and seed.

        Returns:
            The file that holds it.

        Raises:
            LedgerError: the run could not be read again, or a different run of the same configuration and
                seed is there and ``overwrite`` is False.
            OSError: it cannot be written; the ledger is as it was.
        """
        run = Run.from_json(replace(run, epochs=subsample(run.epochs)).to_json())
        with locked(self.folder):
            present = self.find(run.configuration)
            if present is None:
                append_line(path := self.file(run.configuration), run.to_json())
                return path
            if overwrite:
                return self._replace(present, run)
            if present.run().to_json() != run.to_json():
                raise LedgerError(
                    f"{present.place} holds a different run of this configuration and seed; pass "
                    "overwrite=True to replace it, or move it away"
                )
            return present.path

    def _replace(self, present: Entry, run: Run) -> Path:
        """Put a run in the place of an entry; one in the older format moves to the file of lines."""
        if not present.line:
            append_line(path := self.file(run.configuration), run.to_json())
            present.path.unlink()
            return path
        lines = present.path.read_bytes().split(b"\n")
        lines[present.line - 1] = run.to_json().encode()
        return write_whole(present.path, b"\n".join(lines).rstrip(b"\n") + b"\n")

    def mean(self, metric: str = "test error", **filters: Any) -> Mean | None:
        """The mean of a metric over the seeds of one configuration.

        Args:
            metric: a name in :data:`~sparsefx.experiments.ledger.metrics.METRICS`.
            filters: as for :meth:`runs`.

        Returns:
            None if no run has the metric.

        Raises:
            ArgumentError: the metric or a field is not known.
            LedgerError: the runs differ in more than their seeds, so that a mean would mix them.
        """
        measure = metric_named(metric)
        runs = self.runs(**filters)
        if mixed := differing(runs):
            raise LedgerError(f"these {len(runs)} runs differ in {', '.join(mixed)}; filter by these fields")
        values = [value for run in runs if (value := measure(run)) is not None]
        return mean_of(values) if values else None


def select(runs: Iterable[Run], **filters: Any) -> list[Run]:
    """The runs whose fields have the values given; a network may be spelled as :func:`network_name` reads it.

    Raises:
        ArgumentError: a run has no such field.
    """
    known = [field.name for field in fields(Run)]
    for name in filters:
        if name not in known:
            raise unknown_name("filter", name, known)
    return [run for run in runs if all(_has(run, name, value) for name, value in filters.items())]


def _has(run: Run, name: str, value: Any) -> bool:
    if name == "network" and isinstance(value, str):
        return network_name(run.network) == network_name(value)
    return bool(getattr(run, name) == value)


def differing(runs: Iterable[Run]) -> list[str]:
    """The fields of the configuration, besides the seed, in which runs differ."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.configuration.items():
            seen.setdefault(name, set()).add(canonical(value))
    return [name for name, values in seen.items() if len(values) > 1 and name != "seed"]
