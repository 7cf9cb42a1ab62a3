"""The version number, of which ``pyproject.toml`` is the only place."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_VERSION = re.compile(r'^\[project\]\nname = "sparsefx"\nversion = "([^"]+)"$', re.MULTILINE)


def _version() -> str:
    """The checkout's own number where this file is in one, else that of the installed distribution.

    A checkout on the path may stand before another version that is installed.
    """
    text = _PROJECT.read_text("utf-8") if _PROJECT.is_file() else ""
    own = _VERSION.search(text)
    return own[1] if own else metadata.version("sparsefx")


VERSION = _version()
