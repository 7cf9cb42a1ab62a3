"""What a pass raises; the verbs that run passes add their own context once."""

from __future__ import annotations


class PassError(RuntimeError):
    """A graph pass was given a model it cannot work on, or failed its own verification."""
