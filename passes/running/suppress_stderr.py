"""Runs that may fail."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator


@contextlib.contextmanager
def suppress_stderr() -> Iterator[None]:
    """Keep a graph module that fails from printing its code to the standard error, as fx does."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
