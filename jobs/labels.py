"""A label that jobs are found by, as people write it: KEY, or KEY=VALUE."""

from __future__ import annotations

Label = tuple[str, str | None]
"""A key and a value; None: whatever its value."""


def label_of(text: str | None) -> Label | None:
    """What the text asks for; None without a key."""
    key, equals, value = (text or "").partition("=")
    return (key, value if equals else None) if key else None


def written(label: Label) -> str:
    """The text that asks for it."""
    key, value = label
    return key if value is None else f"{key}={value}"
