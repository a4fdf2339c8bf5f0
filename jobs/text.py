"""How text and figures are shown to people, on a terminal and on a page.

Text that came from elsewhere (prompts, responses, names, errors) is hostile: it may hold characters that steer a
terminal or turn a line around. A terminal is shown none of them, a page a mark in the place of each.
"""

from __future__ import annotations

import time

_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), *map(ord, _BIDI), 0x2028, 0x2029))
_MULTI_LINE = {code: new for code, new in _CONTROLS.items() if chr(code) not in "\n\t"}
_ONE_LINE: dict[int, str | None] = {**_CONTROLS, **dict.fromkeys(map(ord, "\n\t\u2028\u2029"), " ")}
STEERING = frozenset(_MULTI_LINE)
"""Code points that a terminal or a page does not show but obeys: all that `clean` takes out."""

_MARKS = {code: chr(0x2400 + code) if code < 0x20 else "\ufffd" for code in STEERING}  # ␛ for an escape


def clean(text: str) -> str:
    """`text` without characters that steer a terminal (C0, C1, bidi, separators); line breaks and tabs stay."""
    return text.encode("utf-8", "replace").decode().translate(_MULTI_LINE)


def clean_line(text: str) -> str:
    """`clean`, in one line."""
    return text.encode("utf-8", "replace").decode().translate(_ONE_LINE)


def marked(text: str) -> str:
    """`text` with a mark in the place of each character that `clean` takes out: as many characters as before."""
    return text.encode("utf-8", "replace").decode().translate(_MARKS)


def seconds(value: float | None) -> str:
    """A span of time: `< 0.1 s`, `0.8 s`, `42 s`, `7:03`, `2:07:03`, `3 d 04:00`."""
    if value is None:
        return "?"
    if value < 0.05:
        return "< 0.1 s"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days} d {hours_left:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment(epoch: float | None) -> str:
    """A point in time on this machine's clock: `2026-03-01 14:05:09`."""
    return "" if epoch is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def size(count: float) -> str:
    """Bytes for people: `3.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def plural(count: int, noun: str) -> str:
    """`1 shard`, `2,000 shards`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(share: float, *, digits: int = 1) -> str:
    """A share of one in percent: `62.5 %`."""
    return f"{100 * share:.{digits}f} %"


def minus(figure: str) -> str:
    """A figure with minus signs for its hyphens: `−12.5`, as wide as a plus."""
    return figure.replace("-", "−")
