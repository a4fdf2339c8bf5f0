"""The charts of one job: what its sequences look like together, drawn from a summary of its shards."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from jobs.charts.chart import Chart, Frame, axes, column, picture, readout, rule, short, step, text, ticks
from jobs.charts.positions import by_position
from jobs.estimates import clustered
from jobs.gold import RULE
from jobs.series import starts_of_groups
from jobs.summary import SEQUENCE_BINS, ByPosition, Summary, bucket_starts, quantiles
from jobs.text import marked, percent

_BARS = 40
_TOP, _BOTTOM, _HEIGHT = 36, 246, 292
_REASONS = {
    "eos": "ended by itself",
    "stop": "stop string",
    "length": "cut at max_new_tokens",
    "scored": "given, not sampled",
}


def draw(summary: Summary, cut: int | None, samples: int | None) -> list[Chart]:
    """All that the summary has something for. `cut` is max_new_tokens, `samples` is G."""
    return list(_charts(summary, cut, samples)) if summary.sequences else []


def _charts(summary: Summary, cut: int | None, samples: int | None) -> Iterator[Chart]:
    for name, measurement in measured_of(summary):
        if summary.tokens:
            yield by_position(name, measurement)
    yield _lengths(summary, cut)
    yield _reasons(summary)
    if any(name.endswith("logprobs") for name in summary.measured):
        yield _sequence_logprobs(summary)
    if summary.judged:
        yield _correct(summary, samples)


def measured_of(summary: Summary) -> list[tuple[str, ByPosition]]:
    """The measurements by column, entropies first."""
    return sorted(summary.measured.items(), key=lambda item: not item[0].endswith("entropies"))


def accuracy_of(summary: Summary) -> tuple[float, float | None]:
    """(share of correct responses, its standard error over prompts)."""
    return clustered(summary.correct, summary.judged / int(summary.correct.sum()))


def _lengths(summary: Summary, cut: int | None) -> Chart:
    starts = bucket_starts(len(summary.lengths))
    size = max(1, math.ceil(step(0, float(starts[-1]), _BARS)))
    first = starts_of_groups(starts, size)
    edges = [int(starts[i]) // size * size for i in first]
    counts = np.add.reduceat(summary.lengths, first)
    bars = [
        (edge - 0.5, edge + size - 0.5, int(count), f"{edge}" if size == 1 else f"{edge}–{edge + size - 1}")
        for edge, count in zip(edges, counts, strict=True)
    ]
    marks = [(summary.tokens / summary.sequences, f"mean {summary.tokens / summary.sequences:,.1f}")]
    stopped = summary.reasons["length"]
    note = f"{stopped:,} of {summary.sequences:,} were cut at max_new_tokens = {cut:,}." if stopped and cut else ""
    return _histogram("lengths", "Response length", "length, tokens", bars, note=note, marks=marks)


def _sequence_logprobs(summary: Summary) -> Chart:
    counts, edges = summary.sequence_counts, SEQUENCE_BINS.edges
    [[least, most]] = quantiles(counts[None], SEQUENCE_BINS, (0.0, 0.995))
    size = step(least, most, _BARS)
    places = np.arange(math.floor(least / size), math.ceil(most / size) + 1) * size
    below = np.interp(places, edges, np.concatenate(([0], np.cumsum(counts))))
    bars = [
        (-float(end), -float(start), count, f"{_short(-end)} … {_short(-start)}")
        for start, end, count in zip(places, places[1:], np.rint(np.diff(below)).astype(int).tolist(), strict=False)
    ][::-1]
    finite = summary.sequences - summary.sequence_infinite
    marks = [(summary.sequence_sum / finite, f"mean {_short(summary.sequence_sum / finite)}")] if finite else []
    beyond = summary.sequences - int(below[-1])
    note = f"{beyond:,} more lie further left." if beyond else ""
    label = "sum of log-probabilities, nats"
    return _histogram("sequence-logprobs", "Sequence log-probability", label, bars, note=note, marks=marks, least=0)


def _correct(summary: Summary, samples: int | None) -> Chart:
    counts = np.zeros(max(len(summary.correct), (samples or 0) + 1), np.int64)
    counts[: len(summary.correct)] = summary.correct
    most, prompts = len(counts) - 1, int(counts.sum())
    size = math.ceil((most + 1) / _BARS)
    bars = [
        (k - 0.5, k + size - 0.5, int(counts[k : k + size].sum()), f"{k}" if size == 1 else f"{k}–{k + size - 1}")
        for k in range(0, most + 1, size)
    ]
    note = (
        f"{percent(accuracy_of(summary)[0])} of {summary.judged:,} responses are correct; "
        f"{percent(1 - counts[0] / prompts)} of {prompts:,} prompts have a correct one. "
        f"Correct is {RULE}; everything else is wrong."
    )
    label = f"correct responses of {most}"
    return _histogram("correct", "Accuracy", label, bars, note=note, unit="prompts")


def _reasons(summary: Summary) -> Chart:
    known = [name for name in _REASONS if summary.reasons[name]]
    names = known + sorted(summary.reasons.keys() - _REASONS.keys())
    most = max(summary.reasons.values())
    frame = Frame((0, len(names)), (0, most * 1.1), _TOP, _BOTTOM)
    places = [(i + 0.5, marked(name)) for i, name in enumerate(names)]
    parts = [axes(frame, x=places, y=ticks(*frame.y, least=1), y_label="sequences")]
    rows = []
    for i, name in enumerate(names):
        count = summary.reasons[name]
        share = percent(count / summary.sequences)
        rows.append((marked(name), f"{count:,}", share))
        parts.append(column(frame, i + 0.2, i + 0.8, count))
        parts.append(text(frame, i + 0.5, count, share))
        parts.append(readout(frame, i, i + 1, f"{marked(name)}: {count:,} sequences, {share}"))
    note = "; ".join(f"{name}: {_REASONS[name]}" for name in known) + "."
    svg = picture(_HEIGHT - 16, "sequences by the reason for which they ended", parts)
    return Chart("reasons", "Why responses ended", note, svg, ("reason", "sequences", "share"), rows)


def _histogram(
    name: str,
    title: str,
    label: str,
    bars: list[tuple[float, float, int, str]],
    *,
    note: str,
    unit: str = "sequences",
    marks: list[tuple[float, str]] | None = None,
    least: float = 1,
) -> Chart:
    """Bars of (start, end, count, what they hold), side by side; `least` between two values that the axis names."""
    total = sum(count for _, _, count, _ in bars)
    frame = Frame((bars[0][0], bars[-1][1]), (0, max(count for _, _, count, _ in bars) * 1.08 or 1), _TOP, _BOTTOM)
    x, y = ticks(*frame.x, 6, least=least), ticks(*frame.y, least=1)
    parts = [axes(frame, x=x, y=y, x_label=label, y_label=unit)]
    parts += [column(frame, start, end, count) for start, end, count, _ in bars]
    parts += [rule(frame, at, words) for at, words in marks or () if frame.x[0] <= at <= frame.x[1]]
    rows = []
    for start, end, count, place in bars:
        share = percent(count / (total or 1))
        rows.append((place, f"{count:,}", share))
        parts.append(readout(frame, start, end, f"{place}: {count:,} {unit}, {share}"))
    svg = picture(_HEIGHT, f"histogram: {unit} by {label}", parts)
    return Chart(name, title, note, svg, (label, unit, "share"), rows)


def _short(value: float) -> str:
    return short(float(value))
