"""What may reach no terminal from a text that others wrote."""

from __future__ import annotations

import unicodedata

_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of characters, separators of lines and paragraphs
_BIDIRECTIONAL = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
_MARKS = "\u200e\u200f\u061c"  # of direction, too


def steering(text: str) -> list[str]:
    """The characters of `text` that steer a terminal; line breaks and tabs do not count."""
    return [character for character in text if character not in "\n\t" and _steers(character)]


def _steers(character: str) -> bool:
    return (
        unicodedata.category(character) in _CATEGORIES
        or unicodedata.bidirectional(character) in _BIDIRECTIONAL
        or character in _MARKS
    )
