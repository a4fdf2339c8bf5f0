"""Characters that steer instead of being read: shown as marks, or spelled out."""

from __future__ import annotations

import json

_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
_STEER = [code for code in (*range(0x20), *range(0x7F, 0xA0), *map(ord, _BIDI)) if chr(code) not in "\n\t"]
_MARKS = {code: chr(0x2400 + code) if code < 0x20 else "\ufffd" for code in _STEER}  # ␛ for an escape
_SPELLED = {code: f"\\u{code:04x}" for code in _STEER}


def visible(text: str) -> str:
    """`text` with a mark in the place of each control and bidi character; line breaks and tabs stay."""
    return text.translate(_MARKS)


def spelled(text: str) -> str:
    """`text` in quotes, with each such character, line breaks too, as JSON spells it."""
    return json.dumps(text, ensure_ascii=False).translate(_SPELLED)
