"""Drawing as SVG: frames with axes, and what stands in them. Knows no job and no colour: those are CSS classes.

A picture is `WIDTH` units wide and scales with its column. What the pointer rests on is told in the line above the
frame, by CSS alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jobs.text import minus

WIDTH, LEFT, RIGHT = 480, 76, 468
_LINE = 20  # baseline of the legend, and of what the pointer rests on


@dataclass(frozen=True)
class Chart:
    """A picture with its name, what must be known to read it, and its figures as a table."""

    name: str
    title: str
    note: str
    svg: Markup
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


Ticks = Sequence[tuple[float, str]]  # (value, its label)
_Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """A region of the picture, `top` above `bottom`, and the ranges of the data that it shows."""

    x: tuple[float, float]
    y: tuple[float, float]
    top: float
    bottom: float

    def across(self, value: float) -> float:
        low, high = self.x
        return LEFT + (value - low) / ((high - low) or 1) * (RIGHT - LEFT)

    def up(self, value: float) -> float:
        low, high = self.y
        return self.bottom - (value - low) / ((high - low) or 1) * (self.bottom - self.top)


def step(low: float, high: float, most: int) -> float:
    """The least of 1, 2, 5, 10, … that divides the range into at most so many parts."""
    rough = ((high - low) or 1) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * (1 - 1e-9))


def ticks(low: float, high: float, most: int = 5, *, least: float = 0) -> Ticks:
    """Round values in the range, at least so far apart (1 for what is counted), with their labels."""
    size = max(step(low, high, most), least)
    return [(n * size, short(n * size)) for n in range(math.ceil(low / size), math.floor(high / size + 1e-9) + 1)]


def short(value: float) -> str:
    """`0.25`, `−12`, `8,000`, `120k`, `1.5M`."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, 1e4):
            return minus(f"{value / unit:.4g}{name}")
    return minus(f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}")


def axes(frame: Frame, *, x: Ticks, y: Ticks, x_label: str = "", y_label: str = "") -> Markup:
    """Gridlines with their labels, and what the axes count. A frame without `x` stands above another."""
    middle = (frame.top + frame.bottom) / 2
    parts = [
        *(_beside(frame.up(at), name) for at, name in y),
        *(_below(frame, frame.across(at), name) for at, name in x),
        Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, _n(frame.bottom), RIGHT),
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (LEFT + RIGHT) / 2, _n(frame.bottom + 37), x_label
        ),
        Markup('<text class="label" transform="translate(12 {})rotate(-90)" text-anchor="middle">{}</text>').format(
            _n(middle), y_label
        ),
    ]
    return Markup("").join(parts)


def line(frame: Frame, xs: Sequence[float], ys: Sequence[float], css: str) -> Markup:
    return Markup('<path class="{}" d="M{}"/>').format(css, "L".join(_points(frame, xs, ys)))


def band(frame: Frame, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], css: str) -> Markup:
    """The region between two lines."""
    around = [*_points(frame, xs, highs), *reversed(list(_points(frame, xs, lows)))]
    return Markup('<path class="{}" d="M{}Z"/>').format(css, "L".join(around))


def column(frame: Frame, start: float, end: float, height: float, css: str = "column") -> Markup:
    """A bar from the frame's bottom, a hair apart from its neighbours."""
    left, right, top = frame.across(start), frame.across(end), frame.up(height)
    gap = min(1.0, (right - left) / 8)
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
        css, _n(left + gap / 2), _n(top), _n(right - left - gap), _n(frame.bottom - top)
    )


def rule(frame: Frame, at: float, label: str) -> Markup:
    """A dashed line at a value of x."""
    place = frame.across(at)
    side = ("end", -5) if place > (LEFT + RIGHT) / 2 else ("start", 5)
    return Markup(
        '<path class="rule" d="M{0} {1}V{2}"/><text class="label" x="{3}" y="{4}" text-anchor="{5}">{6}</text>'
    ).format(_n(place), _n(frame.top), _n(frame.bottom), _n(place + side[1]), _n(frame.top + 11), side[0], label)


def whisker(frame: Frame, x: float, low: float, high: float, css: str) -> Markup:
    """An upright line between two values, with a short bar across each of its ends."""
    at, top, bottom = frame.across(x), frame.up(high), frame.up(low)
    bars = (f"M{_n(at - 4)} {_n(end)}h8" for end in (top, bottom))
    return Markup('<path class="{}" d="M{} {}V{}{}"/>').format(css, _n(at), _n(top), _n(bottom), "".join(bars))


def text(frame: Frame, x: float, y: float, words: str) -> Markup:
    """Words above a point."""
    return Markup('<text class="value" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        _n(frame.across(x)), _n(frame.up(y) - 5), words
    )


def readout(frame: Frame, start: float, end: float, words: str) -> Markup:
    """Words to be read above the frame while the pointer is between two values of x."""
    left, right = frame.across(start), frame.across(end)
    return Markup(
        '<g class="hit"><rect x="{}" y="{}" width="{}" height="{}"/><text x="{}" y="{}">{}</text></g>'
    ).format(_n(left), _n(frame.top), _n(right - left), _n(frame.bottom - frame.top), 4, _LINE, words)


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """(CSS class of a mark, what it means), in the line above the frame."""
    parts, at = [], float(LEFT)
    for css, words in entries:
        mark = '<path class="{}" d="M{}' + ("h18" if css.startswith("line") else "h18v10h-18Z") + '"/>'
        place = f"{_n(at)} {_LINE - 4 if css.startswith('line') else _LINE - 9}"
        parts.append(Markup(mark).format(css, place))
        parts.append(Markup('<text class="label" x="{}" y="{}">{}</text>').format(_n(at + 23), _LINE, words))
        at += 23 + 9 * len(words) + 14
    return Markup('<g class="legend">{}</g>').format(Markup("").join(parts))


def picture(height: float, label: str, parts: Iterable[Markup]) -> Markup:
    """The parts as one SVG; `label` is what it shows, for those who do not see it."""
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, _n(height), label, Markup("").join(parts)
    )


def _beside(y: float, name: str) -> Markup:
    return _grid((LEFT, y), (RIGHT, y), (LEFT - 7, y + 4), "end", name)


def _below(frame: Frame, x: float, name: str) -> Markup:
    return _grid((x, frame.bottom), (x, frame.bottom + 4), (x, frame.bottom + 18), "middle", name)


def _grid(start: _Point, end: _Point, at: _Point, anchor: str, name: str) -> Markup:
    return Markup(
        '<path class="grid" d="M{} {}L{} {}"/><text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>'
    ).format(*map(_n, (*start, *end, *at)), anchor, name)


def _points(frame: Frame, xs: Sequence[float], ys: Sequence[float]) -> list[str]:
    return [f"{_n(frame.across(x))} {_n(frame.up(y))}" for x, y in zip(xs, ys, strict=True)]


def _n(value: float) -> str:
    """A coordinate, to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")
