"""A ledger of the older format, a JSON file for each run, to one file of lines per network and data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sparsefx.errors import ArgumentError, LedgerError
from sparsefx.experiments.ledger.entries import Entry, lines_of, single_entries
from sparsefx.experiments.ledger.files import locked, write_whole
from sparsefx.experiments.ledger.identity import file_name, run_name


def convert(folder: str | os.PathLike[str]) -> list[Path]:
    """Move every run that has a file of its own to the file of its network and data set.

    The old files are deleted once the new ones are on the disk. A conversion that is interrupted is completed
    by another call.

    Args:
        folder: the ledger.

    Returns:
        The files that runs were added to.

    Raises:
        ArgumentError: ``folder`` is not a folder.
        LedgerError: a file is damaged, or a different run of its configuration and seed is in the ledger
            already. Nothing is changed then.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArgumentError(f"ledger={str(folder)!r} is no folder; give the one that holds the runs")
    with locked(folder):
        old = list(single_entries(folder))
        contents = {path: _joined(path, added) for path, added in _by_file(folder, old).items()}
        for path, content in contents.items():
            write_whole(path, content)
        for entry in old:
            entry.path.unlink()
    return list(contents)


def _by_file(folder: Path, old: list[Entry]) -> dict[Path, dict[str, Entry]]:
    """The entries by the file that they belong to and by name."""
    by_file: dict[Path, dict[str, Entry]] = {}
    for entry in old:
        configuration = entry.run().configuration
        by_name = by_file.setdefault(folder / file_name(configuration), {})
        _add(by_name, run_name(configuration), entry)
    return by_file


def _joined(path: Path, added: Mapping[str, Entry]) -> bytes:
    """The lines of a file, and after them those that are added, in the order of their names."""
    present = list(lines_of(path))
    known: dict[str, Entry] = {}
    for entry in present:
        _add(known, run_name(entry.run().configuration), entry)
    for name, entry in added.items():
        _add(known, name, entry)
    fresh = [added[name].run().to_json().encode() for name in sorted(added) if known[name] is added[name]]
    return b"".join(line + b"\n" for line in [*(entry.content for entry in present), *fresh])


def _add(by_name: dict[str, Entry], name: str, entry: Entry) -> None:
    """Enter it under its name unless the same run is there.

    Raises:
        LedgerError: a different run is there.
    """
    first = by_name.setdefault(name, entry)
    if first.run().to_json() != entry.run().to_json():
        raise LedgerError(
            f"{entry.place} and {first.place} are different runs of one configuration and seed; move one away"
        )
