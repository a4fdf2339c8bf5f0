"""The charts of several jobs side by side, in the order given: a sweep over checkpoints is read from left to right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup

from jobs.charts.chart import LEFT, RIGHT, Chart, Frame, Ticks, axes, picture, readout, ticks, whisker
from jobs.charts.series import css_of, ends, legend, series
from jobs.gold import RULE
from jobs.report import Report, Spread
from jobs.report_table import EQUAL_TEXT
from jobs.text import marked, minus, percent

_LETTER, _LONGEST = 8, 16  # units of a letter; letters of a name in a legend
_NUMBERED = 12  # jobs, above which only their numbers are said
_DEPTH = 210  # units from a frame's top to its bottom
_ROUNDING = 1e-5  # nats, and share of the effective sample
_READ = 5  # jobs whose figures have room in one line

_Value = tuple[float, float, float] | None  # with its bounds, which are it where there are none
_Line = tuple[str, Sequence[_Value]]  # what a series is, and one value a job


def draw(reports: Sequence[Report]) -> list[Chart]:
    """All that any of the jobs has something for."""
    return list(_charts(reports))


def pass_at_k(reports: Sequence[Report]) -> Chart | None:
    """pass@k over k of all jobs that have it, or None if none has more than one response to judge."""
    curves = [(n, made.pass_at_k) for n, made in enumerate(reports) if made.pass_at_k]
    most = max((max(curve) for _, curve in curves), default=1)
    if most < 2:
        return None
    names = _names(reports, (n for n, _ in curves))
    key, lower = legend(names) if len(reports) > 1 else (Markup(""), 0)
    shares = [share for _, curve in curves for share in curve.values()]
    reach = math.log2(most)
    frame = _frame((0, reach * (1.08 if key else 1.03)), _room(shares), lower)
    ks = _ks(most)
    parts = [axes(frame, x=_powers(most), y=_percents(frame), x_label="k (log scale)", y_label="pass@k, %"), key]
    for place, (_, curve) in enumerate(curves):
        parts.append(series(frame, place, [(math.log2(k), curve[k]) for k in ks if k in curve]))
    if key and len(curves) <= _NUMBERED:
        tips = [(math.log2(max(curve)), curve[max(curve)]) for _, curve in curves]
        parts.append(ends(frame, tips, [str(n + 1) for n, _ in curves]))
    rows = [(f"{k}", *(percent(curve[k]) if k in curve else "" for _, curve in curves)) for k in ks]
    if len(curves) <= _READ:
        parts += _readouts(frame, ks, rows, [n + 1 for n, _ in curves] if key else [])
    note = (
        "Chance that one of k responses to a prompt is correct: the unbiased estimate 1 − C(n−c, k) / C(n, k) from c "
        "correct of n that were judged (Chen et al. 2021), averaged over prompts with at least k of them."
    )
    svg = picture(frame.bottom + 46, "pass@k over k, one line a job", parts)
    return Chart("pass-at-k", "pass@k", note, svg, ("k", *names), rows)


def _charts(reports: Sequence[Report]) -> Iterator[Chart]:
    yield from _verdicts(reports)
    if (curves := pass_at_k(reports)) is not None:
        yield curves
    yield from _nats(
        reports, "", "the model's distribution, at temperature 1", lambda made: (made.entropy, made.logprob)
    )
    if not all(map(samples_the_model, reports)):
        sampling = "the distribution that was sampled from (temperature, top-p)"
        yield from _nats(reports, "sampling ", sampling, lambda made: (made.sampling_entropy, made.sampling_logprob))
    means, medians = (
        [_point(value) for value in values]
        for values in zip(*((made.mean_length, made.median_length) for made in reports), strict=True)
    )
    if any(means):
        note = "Response tokens. A median beyond 256 tokens is known to 1/128."
        lines: list[_Line] = [("mean", means), ("median", medians)]
        yield _by_job("lengths", "Response length by job", note, "length, tokens", reports, lines)


def judged_by(reports: Sequence[Report]) -> str:
    """What tells right from wrong in these reports, in words."""
    names = {made.reward for made in reports if made.accuracy is not None}
    if len(names) > 1:
        return f"by what stands under BY in the table, where {EQUAL_TEXT} is {RULE}"
    return RULE if names == {None} else f"by the reward {', '.join(marked(name) for name in names if name)}"


def _verdicts(reports: Sequence[Report]) -> Iterator[Chart]:
    accuracy: list[_Value] = [made.accuracy for made in reports]
    if any(accuracy):
        note = f"Share of responses that are correct: {judged_by(reports)}. Bars: 95 % interval (Wilson) over prompts."
        lines: list[_Line] = [("accuracy", accuracy)]
        yield _by_job("accuracy", "Accuracy by job", note, "accuracy, %", reports, lines, shares=True)
    rewards = [_reward(made) for made in reports]
    if any(rewards):
        names = ", ".join(sorted({marked(made.reward) for made in reports if made.reward and _reward(made)}))
        note = f"Mean over prompts of {names}. Bars: one standard error, clustered by prompt."
        yield _by_job("reward", "Mean reward by job", note, "reward", reports, [("reward", rewards)])


def _reward(made: Report) -> _Value:
    """The mean and a standard error around it, of a reward that is no accuracy."""
    if made.mean_reward is None or made.accuracy is not None:
        return None
    error = made.mean_reward_error or 0.0
    return (made.mean_reward, made.mean_reward - error, made.mean_reward + error)


def samples_the_model(report: Report) -> bool:
    """Whether the distribution that was sampled from is the model's own, but for rounding."""
    apart = report.apart
    return apart is not None and abs(apart.kl) < _ROUNDING and apart.ess_share > 1 - _ROUNDING


def _nats(
    reports: Sequence[Report], which: str, whose: str, of: Callable[[Report], tuple[Spread | None, Spread | None]]
) -> Iterator[Chart]:
    entropies, logprobs = zip(*map(of, reports), strict=True)
    lines: list[_Line] = [
        ("entropy", [_point(spread and spread.mean) for spread in entropies]),
        ("−log-probability", [_point(spread and -spread.mean) for spread in logprobs]),
    ]
    lines = [(name, values) for name, values in lines if any(values)]
    if not lines:
        return
    note = f"Mean over all response tokens, of {whose}. The two agree where responses are sampled from it."
    title = f"{which}entropy and log-probability by job".capitalize()
    yield _by_job(f"{which.strip() or 'model'}-nats", title, note, "nats/token", reports, lines)


def _by_job(
    name: str,
    title: str,
    note: str,
    label: str,
    reports: Sequence[Report],
    lines: Sequence[_Line],
    *,
    shares: bool = False,
) -> Chart:
    """Values of each job above its place, jobs from left to right. `shares` are drawn in percent, others from zero."""
    key, lower = legend([words for words, _ in lines]) if len(lines) > 1 else (Markup(""), 0)
    bounds = [bound for _, values in lines for value in values if value for bound in value]
    frame = _frame((0, len(reports)), _room(bounds) if shares else _from_zero(bounds), lower)
    x, x_label = _places(reports)
    y = _percents(frame) if shares else ticks(*frame.y)
    parts = [axes(frame, x=x, y=y, x_label=x_label, y_label=label), key]
    for n, (_, values) in enumerate(lines):
        known = [(i + 0.5, value) for i, value in enumerate(values) if value]
        parts += [whisker(frame, at, low, high, css_of(n)) for at, (_, low, high) in known if low < high]
        parts.append(series(frame, n, [(at, value) for at, (value, _, _) in known]))
    said = percent if shares else _figure
    names, rows = _names(reports, range(len(reports))), []
    for i, job in enumerate(names):
        cells = [value and tuple(said(bound) for bound in value) for _, values in lines for value in [values[i]]]
        rows.append((job, *(cell for found in cells for cell in (found or ("", "", ""))[: 3 if shares else 1])))
        told = ", ".join(f"{words} {found[0]}" for (words, _), found in zip(lines, cells, strict=True) if found)
        parts.append(readout(frame, i, i + 1, f"{job}: {told or 'nothing measured'}"))
    header = ("job", *(cell for words, _ in lines for cell in ((words, "low", "high") if shares else (words,))))
    svg = picture(frame.bottom + 46, f"{label} by job", parts)
    return Chart(name, title, note, svg, header, rows)


def _frame(x: tuple[float, float], y: tuple[float, float], lower: float) -> Frame:
    return Frame(x, y, top=36 + lower, bottom=36 + lower + _DEPTH)


def _point(value: float | None) -> _Value:
    return None if value is None else (value, value, value)


def _room(shares: Sequence[float]) -> tuple[float, float]:
    """A range around shares, with some room, within 0 and 1."""
    low, high = min(shares), max(shares)
    room = max(0.08 * (high - low), 0.02)
    return max(0.0, low - room), min(1.0, high + room)


def _from_zero(values: Sequence[float]) -> tuple[float, float]:
    return min(0.0, *values), max(0.0, *values) * 1.08 or 1.0


def _percents(frame: Frame) -> Ticks:
    return [(value / 100, name) for value, name in ticks(100 * frame.y[0], 100 * frame.y[1], 7)]


def _places(reports: Sequence[Report]) -> tuple[Ticks, str]:
    """Where the jobs stand and how the axis calls them: by name if all have room, else by their rows' numbers."""
    middles = [i + 0.5 for i in range(len(reports))]
    names = [marked(made.name or made.id) for made in reports]
    slot = (RIGHT - LEFT) / len(reports)
    if max(map(len, names)) * _LETTER <= slot:
        return list(zip(middles, names, strict=True)), "job"
    every = math.ceil(_LETTER * (len(str(len(reports))) + 1) / slot)
    return [(middles[i], str(i + 1)) for i in range(0, len(reports), every)], "job, by its number in the table"


def _names(reports: Sequence[Report], places: Iterable[int]) -> list[str]:
    """`3 step 20`: a job's number, and its name as far as there is room."""
    if len(reports) > _NUMBERED:
        return [str(n + 1) for n in places]
    return [f"{n + 1} {_cut(marked(reports[n].name or reports[n].id))}" for n in places]


def _cut(name: str) -> str:
    """The name without its middle if it is long: checkpoints of one run differ at an end."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[: half - 1]}…{name[-half:]}"


def _ks(most: int) -> list[int]:
    """Every k to 16, from there on about eight an octave, and the last."""
    ks = {*range(1, min(most, 16) + 1), most}
    return sorted(ks | {round(16 * 2 ** (n / 8)) for n in range(math.ceil(8 * math.log2(max(most, 16) / 16)))})


def _powers(most: int) -> Ticks:
    """Powers of two, and the last k if it has room beside them."""
    shown = [1 << n for n in range(most.bit_length())]
    if most != shown[-1] and math.log2(most / shown[-1]) > 0.4:
        shown.append(most)
    return [(math.log2(k), f"{k:,}") for k in shown]


def _readouts(
    frame: Frame, ks: Sequence[int], rows: Sequence[tuple[str, ...]], numbers: Sequence[int]
) -> Iterator[Markup]:
    """The row of each k, around its place; `numbers` are the jobs', if there are several."""
    at = [math.log2(k) for k in ks]
    sides = [frame.x[0], *((a + b) / 2 for a, b in pairwise(at)), frame.x[1]]
    for i, (k, *cells) in enumerate(rows):
        told = " · ".join(f"{n}: {cell}" for n, cell in zip(numbers, cells, strict=True)) if numbers else cells[0]
        yield readout(frame, sides[i], sides[i + 1], f"pass@{k} · {told}")


def _figure(value: float) -> str:
    return minus(f"{value:,.4g}")
