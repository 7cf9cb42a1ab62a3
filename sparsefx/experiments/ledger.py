"""The results ledger: a folder with one small JSON file for each finished run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sparsefx.errors import LedgerError, unknown_name
from sparsefx.experiments.metrics import metric_named
from sparsefx.experiments.record import Run, canonical, file_name, thin
from sparsefx.experiments.statistics import Mean, mean_of


class Ledger:
    """A folder of finished runs.

    Several processes may add to it at once: a file appears whole or not at all, and never in the place
    of a different run.

    Args:
        folder: where the files are; made when the first run is added.

    Example:
        >>> Ledger("no/such/folder").runs(network="lenet-300-100")
        []
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def runs(self, **filters: Any) -> list[Run]:
        """The runs whose fields have the values given, in order of their file names.

        Args:
            filters: fields of :class:`~sparsefx.experiments.record.Run` and their values, for example
                ``network="lenet-300-100", density=0.05``.

        Raises:
            ArgumentError: a run has no such field.
            LedgerError: a file is damaged, or a copy of another one.
        """
        found: dict[str, Path] = {}
        runs = []
        for path in sorted(self.folder.glob("*.json")):
            runs.append(_read(path))
            first = found.setdefault(file_name(runs[-1].configuration), path)
            if first != path:
                raise LedgerError(f"{path} is of the configuration and seed of {first}; delete one of them")
        return select(runs, **filters)

    def check_writable(self) -> None:
        """Find out now whether a run could be added.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_beside(self.folder / "trial", "").unlink()

    def add(self, run: Run, *, overwrite: bool = False) -> Path:
        """Write a run to its file, with its epochs thinned; adding the same run again changes nothing.

        Args:
            run: the run.
            overwrite: replace another run of the same configuration.

        Returns:
            The file.

        Raises:
            LedgerError: the run could not be read again, or a different run of the same configuration and
                seed is there and ``overwrite`` is False.
        """
        run = Run.from_json(replace(run, epochs=thin(run.epochs)).to_json())
        text = run.to_json()
        path = self.folder / file_name(run.configuration)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = _write_beside(path, text)
        try:
            if overwrite:
                temporary.replace(path)
            elif not _place(temporary, path) and path.read_text(encoding="utf-8") != text:
                raise LedgerError(
                    f"{path} holds a different run of this configuration and seed; pass overwrite=True to "
                    "replace it, or move it away"
                )
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def mean(self, metric: str = "test error", **filters: Any) -> Mean | None:
        """The mean of a metric over the seeds of one configuration.

        Args:
            metric: a name in :data:`~sparsefx.experiments.metrics.METRICS`.
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
    """The runs whose fields have the values given.

    Raises:
        ArgumentError: a run has no such field.
    """
    known = [field.name for field in fields(Run)]
    for name in filters:
        if name not in known:
            raise unknown_name("filter", name, known)
    return [run for run in runs if all(getattr(run, name) == value for name, value in filters.items())]


def differing(runs: Iterable[Run]) -> list[str]:
    """The fields of the configuration, besides the seed, in which runs differ."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.configuration.items():
            seen.setdefault(name, set()).add(canonical(value))
    return [name for name, values in seen.items() if len(values) > 1 and name != "seed"]


def _read(path: Path) -> Run:
    try:
        return Run.from_json(path.read_text(encoding="utf-8"))
    except (LedgerError, OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"{path} is damaged: {error}; restore it, or delete it and run again") from error


def _write_beside(path: Path, text: str) -> Path:
    """A complete file in the same folder, under a name that is no run's."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError:
        os.unlink(name)
        raise
    os.chmod(name, 0o644)  # mkstemp's is for its owner alone
    return Path(name)


def _place(temporary: Path, path: Path) -> bool:
    """Give a complete file its name unless the name is taken; whether it was free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: two processes could now pass this test at once
        if path.exists():
            return False
        temporary.replace(path)
    return True
