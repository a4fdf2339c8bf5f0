"""What templates say figures with: counts, sizes, spans and moments."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from markupsafe import Markup, escape

from jobs.text import moment, plural, seconds, size

_STEPS = ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h"), (30 * 86_400, 86_400, "d"))


def ago(epoch: float | None) -> Markup:
    """A `<time>`: how long ago, coarsely, so that what polls does not change all the time; exact in its title."""
    if epoch is None:
        return Markup("")
    past = max(0.0, time.time() - epoch)
    words = moment(epoch)[:10]
    for below, unit, name in _STEPS:
        if past < below:
            count = int(past // unit)
            words = f"{count // 10 * 10} s ago" if unit == 1 and count >= 10 else f"{count} {name} ago"
            break
    if past < 10:
        words = "just now"
    return _time(epoch, words)


def at(epoch: float | None) -> Markup:
    """A `<time>`: the moment itself."""
    return Markup("") if epoch is None else _time(epoch, moment(epoch))


def _time(epoch: float, words: str) -> Markup:
    exact = datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, moment(epoch), words)


def count(number: float) -> str:
    return f"{number:,.0f}"


def percent(part: float, whole: float) -> str:
    """Rounded down, so that 100 % is all of it."""
    return f"{int(100 * part / whole) if whole else 0} %"


def code(text: str) -> Markup:
    """Our own words, with what stands between backticks as code."""
    parts = enumerate(text.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else escape(part) for n, part in parts)


FILTERS = {
    "ago": ago,
    "at": at,
    "code": code,
    "count": count,
    "percent": percent,
    "plural": plural,
    "seconds": seconds,
    "size": size,
}
