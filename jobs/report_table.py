"""Reports as a table for people: one row a job, in the columns that any of them has something for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jobs.report import Report, Spread
from jobs.text import minus, percent

_Column = tuple[str, Callable[[Report], str | None]]
EQUAL_TEXT = "equal text"  # the rule of `jobs.gold`
_NAMED = 4  # jobs in a sentence
_GAP = 2  # columns of a terminal between two of the table


class Table(NamedTuple):
    """Cells in the order of the header, a row a report."""

    header: list[str]
    rows: list[list[str]]


def table_of(reports: Sequence[Report]) -> Table:
    """The reports in their order; a figure that a job does not have is an empty cell."""
    columns = [*_BEFORE, *_judged(reports), *_passes(reports), *_AFTER]
    cells = {title: [of(made) for made in reports] for title, of in columns}
    cells = {title: found for title, found in cells.items() if any(cell is not None for cell in found)}
    return Table(list(cells), [[cell or "" for cell in row] for row in zip(*cells.values(), strict=True)])


def folded(table: Table, width: int) -> Iterator[Table]:
    """Tables no wider than `width`, if their columns allow it, that hold all columns one below the other.

    Each begins with what tells the rows apart, the names if all jobs have one of their own, else the ids.
    """
    sizes = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    names = [row[1] for row in table.rows] if "NAME" in table.header else []
    key = 1 if all(names) and len(set(names)) == len(table.rows) else 0
    taken: list[int] = []
    for i in range(len(table.header)):
        if taken and sum(sizes[j] + _GAP for j in (*taken, i)) - _GAP > width:
            yield _only(table, taken)
            taken = [key]
        taken.append(i)
    yield _only(table, taken)


def notes(reports: Sequence[Report]) -> Iterator[str]:
    """Sentences on what the table cannot say: of which jobs no drift is known, and why."""
    silent: dict[str, list[str]] = {}
    for made in reports:
        if made.drift is None:
            if not made.sequences:
                continue
            why = "no worker has told of it"
        elif made.drift.logprob_mean is None:
            why = made.drift.reason or "no reason is known"
        else:
            continue
        silent.setdefault(why, []).append(label_of(made))
    for why, jobs in silent.items():
        names = ", ".join(jobs) if len(jobs) <= _NAMED else f"{len(jobs)} of {len(reports)} jobs"
        whose = f" for {names}" if len(jobs) < len(reports) else ""
        yield f"Drift from float32 was not measured{whose}: {why}."


def label_of(report: Report) -> str:
    """The job's name, or its id."""
    return report.name or report.id


def _only(table: Table, columns: Sequence[int]) -> Table:
    return Table([table.header[i] for i in columns], [[row[i] for i in columns] for row in table.rows])


def _judged(reports: Sequence[Report]) -> list[_Column]:
    """By what accuracy or the mean is; that it is equal text is said only beside jobs that go by a reward."""
    plain = EQUAL_TEXT if any(made.reward for made in reports) else None
    return [
        ("BY", lambda made: made.reward or (plain if made.accuracy else None)),
        ("UNJUDGED", lambda made: f"{made.unjudged:,}" if made.reward and made.unjudged else None),
    ]


def _passes(reports: Sequence[Report]) -> list[_Column]:
    """pass@k for the powers of two, and for each job's own G."""
    known = {k for made in reports for k in made.pass_at_k}
    ends = {len(made.pass_at_k) for made in reports}
    shown = sorted(k for k in known - {1} if k in ends or k.bit_count() == 1)
    return [(f"PASS@{k}", lambda made, k=k: _percent(made.pass_at_k.get(k))) for k in shown]  # type: ignore[misc]


def _percent(share: float | None) -> str | None:
    return None if share is None else percent(share)


def _accuracy(made: Report) -> str | None:
    if made.accuracy is None:
        return None
    mean, low, high = (100 * bound for bound in made.accuracy)
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _reward(made: Report) -> str | None:
    """The mean and its standard error, of a reward that is no accuracy."""
    if made.mean_reward is None or made.accuracy is not None:
        return None
    error = "" if made.mean_reward_error is None else f" ± {made.mean_reward_error:.4f}"
    return minus(f"{made.mean_reward:.4f}") + error


def _mean(spread: Spread | None) -> str | None:
    return None if spread is None else minus(f"{spread.mean:.4f}")


def _cut(made: Report) -> str | None:
    return _percent(made.finish_reasons.get("length", 0) / made.sequences) if made.sequences else None


def _drift(made: Report) -> str | None:
    if made.drift is None:
        return None
    return "not measured" if made.drift.logprob_mean is None else f"{made.drift.logprob_mean:.1e}"


_BEFORE: list[_Column] = [
    ("ID", lambda made: made.id),
    ("NAME", lambda made: made.name),
    ("MODEL", lambda made: made.model),
    ("ADAPTER", lambda made: made.adapter),
    ("SEQUENCES", lambda made: f"{made.sequences:,}"),
    ("ACCURACY [95 %]", _accuracy),
    ("REWARD", _reward),
]
_AFTER: list[_Column] = [
    ("ENTROPY", lambda made: _mean(made.entropy)),
    ("LOGPROB", lambda made: _mean(made.logprob)),
    ("LENGTH", lambda made: None if made.mean_length is None else f"{made.mean_length:,.1f}"),
    ("CUT", _cut),
    ("KL", lambda made: None if made.apart is None else minus(f"{round(made.apart.kl, 4) + 0.0:.4f}")),
    ("ESS", lambda made: None if made.apart is None else _percent(made.apart.ess_share)),
    ("DRIFT", _drift),
]
