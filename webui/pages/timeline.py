"""When the attempts of a job ran, on which worker, and how many tokens a second came of them, laid out to be drawn.

Lengths are in units of a drawing that is `WIDTH` wide and stretched to whatever room there is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.records import Span
from jobs.text import plural, seconds

WIDTH = 1000
HEIGHT = 100  # of the throughput
_GAP = 4  # attempts closer than this, that ended alike, are drawn as one bar
_THINNEST = 2
_LANES = 12
_BINS = 120
_TICKS = 5


@dataclass(slots=True)
class Bar:
    """Attempts of one worker that ended alike, one after the other. Grows while the drawing is laid out."""

    start: float
    stop: float
    outcome: str  # an attempt's, or `running`
    attempts: int
    tokens: int
    lasted: float  # seconds, all together
    first: Span

    @property
    def width(self) -> float:
        return max(_THINNEST, self.stop - self.start)

    @property
    def title(self) -> str:
        made = f"{self.outcome}, {plural(self.tokens, 'token')} in {seconds(self.lasted)}"
        if self.attempts > 1:
            return f"{self.attempts:,} attempts {made}"
        return f"shard {self.first.shard}, attempt {self.first.attempt}: {made}"


@dataclass(frozen=True, slots=True)
class Timeline:
    """`lanes` are workers with their bars, in order of their first attempt; `hidden` ones more are not drawn."""

    lanes: dict[str, list[Bar]]
    hidden: int
    outcomes: list[str]
    outline: str  # of the throughput, as an SVG path
    peak: float  # tokens a second
    ticks: list[str]  # time since the start, evenly spaced, no two alike


def timeline(spans: Sequence[Span], tokens: Mapping[tuple[int, int], int], now: float) -> Timeline | None:
    """None without an attempt.

    Args:
        spans: attempts of one job, in any order.
        tokens: what running attempts have made so far, by (shard, attempt).
        now: when an attempt that runs is cut off.
    """
    if not spans:
        return None
    told = (
        s if s.ended_at is not None else replace(s, tokens=tokens.get((s.shard, s.attempt), s.tokens)) for s in spans
    )
    ordered = sorted(told, key=lambda span: span.claimed_at)
    began = ordered[0].claimed_at
    ended = max(now if span.ended_at is None else span.ended_at for span in ordered)
    length = max(ended - began, 1e-3)
    lanes: dict[str, list[Bar]] = defaultdict(list)
    for span in ordered:
        _add(lanes[span.worker_id], span, began, ended, WIDTH / length)
    rates = _rates(ordered, began, ended, length)
    peak = max(rates)
    return Timeline(
        lanes=dict(list(lanes.items())[:_LANES]),
        hidden=max(0, len(lanes) - _LANES),
        outcomes=sorted({bar.outcome for bars in lanes.values() for bar in bars}),
        outline=_outline(rates, peak),
        peak=peak,
        ticks=_ticks(length),
    )


def _add(bars: list[Bar], span: Span, began: float, ended: float, scale: float) -> None:
    """Draw an attempt as a bar of its own, or as more of the last one."""
    end = ended if span.ended_at is None else span.ended_at
    start, stop, lasted = (span.claimed_at - began) * scale, (end - began) * scale, end - span.claimed_at
    outcome = span.outcome or "running"
    last = bars[-1] if bars else None
    if last is None or last.outcome != outcome or start - last.stop > _GAP or stop - start > 4 * _GAP:
        bars.append(Bar(start, stop, outcome, 1, span.tokens, lasted, span))
        return
    last.stop = max(last.stop, stop)
    last.attempts += 1
    last.tokens += span.tokens
    last.lasted += lasted


def _rates(spans: Sequence[Span], began: float, ended: float, length: float) -> list[float]:
    """Tokens a second in each of `_BINS` equal parts of the time; an attempt's are spread evenly over it."""
    width = length / _BINS
    rates = [0.0] * _BINS
    for span in spans:
        start, stop = span.claimed_at, ended if span.ended_at is None else span.ended_at
        rate = span.tokens / max(stop - start, 1e-3)
        first, last = min(_BINS - 1, int((start - began) / width)), min(_BINS - 1, int((stop - began) / width))
        if first == last:
            rates[first] += rate * (stop - start) / width
            continue
        rates[first] += rate * (began + (first + 1) * width - start) / width
        rates[last] += rate * (stop - began - last * width) / width
        for n in range(first + 1, last):
            rates[n] += rate
    return rates


def _outline(rates: Sequence[float], peak: float) -> str:
    step = WIDTH / len(rates)
    tops = [HEIGHT * (1 - rate / peak) if peak else HEIGHT for rate in rates]
    steps = " ".join(f"V{top:.1f}H{(n + 1) * step:.1f}" for n, top in enumerate(tops))
    return f"M0,{HEIGHT} {steps} V{HEIGHT}Z"


def _ticks(length: float) -> list[str]:
    """The ends alone of a time so short that tenths of a second do not tell its parts from each other."""
    found = ["0 s", *(seconds(length * n / (_TICKS - 1)) for n in range(1, _TICKS))]
    return found if len(set(found)) == _TICKS else ["0 s", f"{1000 * length:.0f} ms"]
