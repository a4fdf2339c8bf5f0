"""Characters that steer instead of being read, as marks: what a model wrote is shown, and steers nothing."""

from __future__ import annotations

import re
import unicodedata

_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_LONE = "\u061c\u200e\u200f"  # bidi marks whose class is that of a letter
_STEERS = re.compile(
    "["
    + "".join(
        f"\\U{code:08x}"
        for code in range(0x10000)
        if chr(code) not in "\n\t"
        and (
            unicodedata.category(chr(code)) in ("Cc", "Cs", "Zl", "Zp")
            or unicodedata.bidirectional(chr(code)) in _BIDI
            or chr(code) in _LONE
        )
    )
    + "]"
)


def visible(text: str) -> str:
    """`text` with each control and bidi character as a mark (␛, ⟨U+202E⟩); line breaks and tabs stay."""
    return _STEERS.sub(_mark, text)


def _mark(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
