"""A measurement by position in the response: its mean and quantile bands, and how many responses reach so far."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from jobs.charts.chart import Chart, Frame, axes, band, legend, line, picture, readout, short, ticks
from jobs.series import Series
from jobs.summary import ByPosition
from jobs.text import minus, percent

_POINTS = 256  # of a line, at most
_FEW = 10  # responses, below which nothing is drawn
_SHARES = (0.1, 0.25, 0.75, 0.9)


def by_position(name: str, measurement: ByPosition) -> Chart:
    """The chart of a measurement, whose column is `name`."""
    what = "log-probability" if name.endswith("logprobs") else "entropy"
    what = f"sampling {what}" if name.startswith("sampling") else what
    series = Series.of(name, measurement, _SHARES, _POINTS)
    enough = series.reach >= min(_FEW, series.reach[0])
    shown = int(np.argmin(np.append(enough, False)))
    rows = [_row(series, i) for i in range(shown)]
    note = "Mean and quantiles over all responses that reach a position, counted from 0."
    if shown < len(series.reach):
        note += f" Not drawn where fewer than {_FEW} do."
    if infinite := int(measurement.infinite.sum()):
        note += f" {infinite:,} tokens have no finite value (−∞): the mean leaves them out, the quantiles count them."
    svg = picture(308, f"{what} by position in the response, with quantile bands", _parts(series, rows, what))
    header = ("position", "mean", *(percent(share, digits=0) for share in _SHARES), "n")
    return Chart(name, f"{what.capitalize()} by position", note, svg, header, rows)


def _parts(series: Series, rows: list[tuple[str, ...]], what: str) -> list[Markup]:
    n, edges = len(rows), series.edges
    sides = [edge - 0.5 for edge in edges[: n + 1]]  # a position stands at its number, not behind it
    xs = [sides[0], *((left + right) / 2 for left, right in pairwise(sides)), sides[-1]]
    drawn = np.vstack((series.bands, np.nan_to_num(series.means), series.reach))[:, :n]
    low, lower, upper, high, means, reach = np.pad(drawn, ((0, 0), (1, 1)), mode="edge").tolist()
    x, most = (sides[0], sides[-1]), max(reach)
    frame = Frame(x, _range([*low, *high, *means]), top=36, bottom=210)
    below = Frame(x, (0, most), top=226, bottom=262)
    whole = Frame(x, frame.y, frame.top, below.bottom)
    return [
        axes(frame, x=(), y=ticks(*frame.y), y_label=f"{what}, nats"),
        band(frame, xs, low, high, "band outer"),
        band(frame, xs, lower, upper, "band inner"),
        line(frame, xs, means, "line"),
        axes(below, x=ticks(*x, 6, least=1), y=[(most, short(most))], x_label="position, tokens", y_label="n"),
        band(below, xs, [0.0] * len(xs), reach, "band outer"),
        legend([("line", "mean"), ("band inner", "25–75 %"), ("band outer", "10–90 %")]),
        *(readout(whole, sides[i], sides[i + 1], _words(rows[i])) for i in range(n)),
    ]


def _row(series: Series, i: int) -> tuple[str, ...]:
    mean, *bands = (minus(f"{round(float(value), 3) + 0.0:.3f}") for value in (series.means[i], *series.bands[:, i]))
    return (_place(series, i), "−∞" if math.isnan(series.means[i]) else mean, *bands, f"{series.reach[i]:,.0f}")


def _words(row: tuple[str, ...]) -> str:
    place, mean, low, _, _, high, n = row
    return f"at {place}: mean {mean}, 10–90 % {low} … {high}, n {n}"


def _range(values: list[float]) -> tuple[float, float]:
    """A range from zero with some room at its other end; of something even where all is zero."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    room = 0.05 * (high - low) or 0.1
    return (low - room if low < 0 else 0.0, high + room if high > 0 or low == 0 else 0.0)


def _place(series: Series, i: int) -> str:
    """A group's positions, as a person reads them."""
    start, end = series.edges[i], series.edges[i + 1]
    return f"{start}" if end - start == 1 else f"{start}–{end - 1}"
