"""What a benchmark raises when an output is wrong: the one thing that makes it fail."""

from __future__ import annotations


class Wrong(RuntimeError):
    """A measured run gave something else than it was asked for: then no figure of it means anything."""
