"""Several series in one frame, told apart by lightness, by the shape of their marks, and by what stands beside them."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from jobs.charts.chart import LEFT, RIGHT, Frame, line

COLOURS = 6  # .s0 to .s5 in chart.css
_SHAPES = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z", "M-3.5-3.5h7v7h-7Z", "M0-4.8L4.8 3.8H-4.8Z", "M0-5L5 0L0 5L-5 0Z")
_LINE, _LETTER = 20, 9  # units: between two lines of a legend, and of a letter at its widest

Points = Sequence[tuple[float, float]]


def css_of(n: int) -> str:
    """The classes of series `n`, counted from 0. Its colour comes again after `COLOURS`, with another mark."""
    return f"series s{n % COLOURS}"


def series(frame: Frame, n: int, points: Points) -> Markup:
    """A line through the points, which rise in x, with a mark on each."""
    if not points:
        return Markup("")
    xs, ys = zip(*points, strict=True)
    parts = [line(frame, xs, ys, css_of(n)) if len(points) > 1 else Markup("")]
    parts += [mark(n, frame.across(x), frame.up(y)) for x, y in points]
    return Markup("").join(parts)


def mark(n: int, x: float, y: float) -> Markup:
    """The mark of series `n` at a place of the picture."""
    shape = _SHAPES[(n + n // COLOURS) % len(_SHAPES)]
    return Markup('<path class="mark s{}" transform="translate({:.1f} {:.1f})" d="{}"/>').format(
        n % COLOURS, x, y, shape
    )


def ends(frame: Frame, points: Sequence[tuple[float, float]], words: Sequence[str]) -> Markup:
    """Words to the right of the points, moved up or down where they would stand on each other."""
    order = sorted(range(len(points)), key=lambda i: frame.up(points[i][1]))
    places, least = {}, frame.top
    for left, i in zip(range(len(order), 0, -1), order, strict=True):
        highest = frame.bottom - 13 * (left - 1)  # the words below this one need room too
        places[i] = max(least, min(frame.up(points[i][1]), highest))
        least = places[i] + 13
    return Markup("").join(
        Markup('<text class="value" x="{:.1f}" y="{:.1f}">{}</text>').format(
            frame.across(points[i][0]) + 8, at + 4, words[i]
        )
        for i, at in places.items()
    )


def legend(words: Sequence[str]) -> tuple[Markup, int]:
    """What each series is, above the frame; and how many units the frame must stand lower for it."""
    parts, x, y = [], float(LEFT), _LINE
    for n, name in enumerate(words):
        width = 16 + _LETTER * len(name) + 14
        if x > LEFT and x + width > RIGHT + 14:
            x, y = float(LEFT), y + _LINE
        parts.append(mark(n, x + 5, y - 4))
        parts.append(Markup('<text class="label" x="{:.1f}" y="{}">{}</text>').format(x + 16, y, name))
        x += width
    return Markup('<g class="legend">{}</g>').format(Markup("").join(parts)), y - _LINE
