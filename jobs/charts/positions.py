"""A measurement by position in the response: its mean and quantile bands, and how many responses reach so far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from jobs.charts.chart import Chart, Frame, axes, band, legend, line, picture, readout, short, ticks
from jobs.summary import TOKEN_BINS, ByPosition, Floats, Ints, bucket_starts, quantiles
from jobs.text import minus, percent

_POINTS = 256  # of a line, at most
_FEW = 10  # responses, below which nothing is drawn
_SHARES = (0.1, 0.25, 0.75, 0.9)


@dataclass(frozen=True)
class _Series:
    """What is drawn: one value a group of neighbouring positions, in nats with their sign."""

    edges: list[int]  # [groups + 1] positions
    reach: Floats  # responses that reach the group's positions, on average
    means: Floats
    bands: Floats  # [len(_SHARES), groups] rising
    shown: int  # groups that are reached by enough responses

    @classmethod
    def of(cls, measurement: ByPosition, sign: int) -> _Series:
        starts = bucket_starts(len(measurement.counts))
        first = starts_of_groups(starts, max(1, math.ceil(starts[-1] / _POINTS)))
        edges = [*starts[first].tolist(), int(starts[-1])]
        counts = np.add.reduceat(measurement.counts, first, axis=0)
        finite = counts.sum(axis=1) - np.add.reduceat(measurement.infinite, first)
        reach = counts.sum(axis=1) / np.diff(edges)
        return cls(
            edges=edges,
            reach=reach,
            means=np.add.reduceat(measurement.sums, first) / np.maximum(finite, 1),
            bands=np.sort(sign * quantiles(counts, TOKEN_BINS, _SHARES), axis=1).T,
            shown=int(np.argmin(np.append(reach >= min(_FEW, reach[0]), False))),
        )

    def place(self, i: int) -> str:
        """The positions of a group: `17`, `512–515`."""
        start, end = self.edges[i], self.edges[i + 1]
        return f"{start}" if end - start == 1 else f"{start}–{end - 1}"


def by_position(name: str, measurement: ByPosition) -> Chart:
    """The chart of a measurement, whose column is `name`."""
    sign, what = (-1, "log-probability") if name.endswith("logprobs") else (1, "entropy")
    series = _Series.of(measurement, sign)
    rows = [_row(series, i) for i in range(series.shown)]
    note = "Mean and quantiles over all responses that reach a position, counted from 0."
    if series.shown < len(series.reach):
        note += f" Not drawn where fewer than {_FEW} do."
    if infinite := int(measurement.infinite.sum()):
        note += f" {infinite:,} tokens have no finite value (−∞): the mean leaves them out, the quantiles count them."
    svg = picture(308, f"{what} by position in the response, with quantile bands", _parts(series, rows, what))
    header = ("position", "mean", *(percent(share, digits=0) for share in _SHARES), "n")
    return Chart(name, f"{what.capitalize()} by position", note, svg, header, rows)


def starts_of_groups(starts: Ints, size: int) -> Ints:
    """Index of the first bucket of each run of buckets that begin in the same multiple of `size` tokens."""
    return np.flatnonzero(np.diff(starts[:-1] // size, prepend=-1))


def _parts(series: _Series, rows: list[tuple[str, ...]], what: str) -> list[Markup]:
    n, edges = series.shown, series.edges
    sides = [edge - 0.5 for edge in edges[: n + 1]]  # a position stands at its number, not behind it
    xs = [sides[0], *((left + right) / 2 for left, right in pairwise(sides)), sides[-1]]
    drawn = np.vstack((series.bands, series.means, series.reach))[:, :n]
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


def _row(series: _Series, i: int) -> tuple[str, ...]:
    nats = (minus(f"{round(float(value), 3) + 0.0:.3f}") for value in (series.means[i], *series.bands[:, i]))
    return (series.place(i), *nats, f"{series.reach[i]:,.0f}")


def _words(row: tuple[str, ...]) -> str:
    place, mean, low, _, _, high, n = row
    return f"at {place}: mean {mean}, 10–90 % {low} … {high}, n {n}"


def _range(values: list[float]) -> tuple[float, float]:
    """A range from zero with some room at its other end; of something even where all is zero."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    room = 0.05 * (high - low) or 0.1
    return (low - room if low < 0 else 0.0, high + room if high > 0 or low == 0 else 0.0)
