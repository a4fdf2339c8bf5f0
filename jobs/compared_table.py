"""How far scored sequences moved from their source, as a table: a row a distribution that both jobs kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jobs.compared import Comparison, Shift
from jobs.report import Report
from jobs.report_table import Table
from jobs.text import minus, percent

_Figure = tuple[str, Callable[[Comparison, Shift], str]]

_ALWAYS: list[_Figure] = [
    ("SOURCE", lambda made, _: made.source),
    ("SEQUENCES", lambda made, _: f"{made.sequences:,}"),
    ("KL k1", lambda _, shift: _nats(shift.k1)),
    ("KL k3", lambda _, shift: _nats(shift.k3)),
    ("LARGEST", lambda _, shift: _nats(shift.largest)),
    ("ESS", lambda _, shift: percent(shift.ess_share)),
]
_IF_ANY: list[_Figure] = [
    ("OUTSIDE", lambda _, shift: f"{shift.outside:,}"),
    ("UNKNOWN", lambda _, shift: f"{shift.unknown:,}"),
    ("FAILED", lambda made, _: f"{made.failed:,}"),
]


def comparison_of(reports: Sequence[Report]) -> Table | None:
    """Of those that scored another job's sequences; None if none of them did."""
    found = [(made.id, made.compared) for made in reports if made.compared is not None]
    return comparison_table(found) if found else None


def comparison_table(found: Sequence[tuple[str, Comparison]]) -> Table:
    """A row for each distribution of each of these jobs, by id. What is zero in all of them has no column."""
    shown = [
        (job_id, of, made, shift)
        for job_id, made in found
        for of, shift in (("sampling", made.sampling), ("model", made.model))
        if shift is not None
    ]
    columns = [*_ALWAYS, *(item for item in _IF_ANY if any(item[1](made, shift) != "0" for _, _, made, shift in shown))]
    header = ["ID", *(title for title, _ in columns[:1]), "OF", *(title for title, _ in columns[1:])]
    rows = []
    for job_id, of, made, shift in shown:
        source, *figures = (figure(made, shift) for _, figure in columns)
        rows.append([job_id, source, of, *figures])
    return Table(header, rows)


def _nats(value: float) -> str:
    return "∞" if value == float("inf") else minus(f"{value:.4f}")
