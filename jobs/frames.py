"""Reports as data frames, for a notebook: a row a job, a row a (job, k), a row a (job, measurement, position).

Needs pandas, which is loaded when a function is called. Every frame begins with the job's `id` and `name`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from jobs.report import Report, Study, table
from jobs.series import Series

if TYPE_CHECKING:
    import pandas

__all__ = ["by_position", "pass_at_k", "table"]

_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


def pass_at_k(reports: Iterable[Report]) -> pandas.DataFrame:
    """Columns id, name, k, pass_at_k: one row for every k up to each job's G; none for jobs without gold answers."""
    import pandas

    columns = ["id", "name", "k", "pass_at_k"]
    rows = [(made.id, made.name, k, share) for made in reports for k, share in made.pass_at_k.items()]
    return pandas.DataFrame(rows, columns=columns)


def by_position(studies: Iterable[Study]) -> pandas.DataFrame:
    """What the charts by position draw, in nats: a row for each position (`position` up to, not including, `end`).

    Columns id, name, measurement (`entropies`, …), position, end, n (responses that reach it, on average), mean (of
    finite values), p10, p25, p50, p75, p90. Positions are exact to 256, and in groups of 1/128 of their size beyond.
    """
    import pandas

    columns = ["id", "name", "measurement", "position", "end", "n", "mean"]
    frames = [pandas.DataFrame(columns=[*columns, *(f"p{100 * share:.0f}" for share in _SHARES)])]
    for study in studies:
        for measurement, measured in study.summary.measured.items():
            if not len(measured.counts):
                continue
            series = Series.of(measurement, measured, _SHARES)
            told = (study.report.id, study.report.name, measurement)
            along = zip(series.edges, series.edges[1:], series.reach, series.means, *series.bands, strict=False)
            frames.append(pandas.DataFrame([(*told, *values) for values in along], columns=frames[0].columns))
    return pandas.concat(frames[1:], ignore_index=True) if len(frames) > 1 else frames[0]
