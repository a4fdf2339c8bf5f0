"""`make bench-web`: the page where there are very many jobs, sequences and readers. Times in milliseconds are p95.

A real server, asked over loopback; each measurement runs in a fresh process, one after the other. A table with the bars
and what was measured, every kind of list by itself, the plans of some, and as the last line of stdout one JSON object
with everything. Exit code 1 only if an answer is wrong: never for a speed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from benchmarks import browsers, charts, lists
from benchmarks.lanes import Lane
from benchmarks.run import Run
from benchmarks.table import Figure, Row, console, drawn, finish, parsed


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    jobs: dict[str, int] = field(default_factory=lambda: {"sqlite": 200_000, "postgresql": 1_000_000})
    samples: int = 100
    prompts: int = 12_500  # of the job with charts, with 8 sequences each
    browsers: int = 100
    seconds: float = 30.0


FEW = "few jobs"  # what a quick run is on
QUICK = Sizes({"sqlite": 20_000, "postgresql": 20_000}, 3, 500, 5, 4.0)


@dataclass
class Session(Run[Sizes]):
    """What the rows are figures of, and the databases that were filled for it."""

    _lanes: dict[str, Lane] = field(default_factory=dict)

    def lane(self, name: str) -> Lane:
        """A database full of jobs."""
        if name not in self._lanes:
            lane = self.servers.lane(name)
            self.measure(f"filling {name}", lists.fill, lane, self.sizes.jobs[name])
            self._lanes[name] = lane
        return self._lanes[name]

    def lists(self, name: str, function: Callable[..., Any]) -> dict[str, Any]:
        options = {"samples": self.sizes.samples}
        title = f"{function.__name__}, {name}"
        return self.measure(title, function, self.lane(name), self.sizes.jobs[name], **options)

    def charts(self) -> dict[str, Any]:
        options = {"prompts": self.sizes.prompts, "samples": min(self.sizes.samples, 20)}
        return self.measure("charts", charts.measure, lanes="sqlite", **options)

    def browsers(self) -> dict[str, Any]:
        options = {"browsers": self.sizes.browsers, "seconds": self.sizes.seconds}
        return self.measure("browsers", browsers.measure, self.lane("sqlite"), **options)


def slowest(lane: str, function: Callable[..., Any], what: str) -> Callable[[Session], Figure]:
    """The largest p95 of all kinds of lists."""

    def of(session: Session) -> Figure:
        report = session.lists(lane, function)
        kind, worst = max(report[what].items(), key=lambda one: one[1]["p95"])
        plain = report[what]["all"]
        return Figure(
            worst["p95"],
            f"{report['jobs']:,} jobs; slowest: {kind}, p50 {worst['p50']:.1f} ms; "
            f"without a filter p50 {plain['p50']:.1f} ms, p95 {plain['p95']:.1f} ms",
        )

    return of


def first_charts(session: Session) -> Figure:
    report = session.charts()
    return Figure(report["first_s"], f"{report['sequences']:,} sequences of {report['tokens']:,} tokens")


def later_charts(session: Session) -> Figure:
    after = session.charts()["after"]
    return Figure(after["p95"], f"p50 {after['p50']:.1f} ms, largest {after['max']:.1f} ms")


def polling(what: str) -> Callable[[Session], Figure]:
    def of(session: Session) -> Figure:
        report = session.browsers()
        of_all = f"{report['browsers']} browsers, {report[what]['answers_per_second']:.0f} answers per second"
        return Figure(report[what]["percent"], of_all)

    return of


_NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}

ROWS: dict[str, Row] = {
    **{
        f"queries-{lane}": Row(f"a list's queries, {name}", None, False, "ms", slowest(lane, lists.queries, "kinds"))
        for lane, name in _NAMES.items()
    },
    **{
        f"{what}-{lane}": Row(f"a list's {what}, {name}", 50, False, "ms", slowest(lane, lists.pages, what))
        for lane, name in _NAMES.items()
        for what in ("page", "poll")
    },
    "charts-first": Row("a job's charts, the first time", 1, False, "s", first_charts),
    "charts-after": Row("a job's charts, after that", 50, False, "ms", later_charts),
    "polling": Row("the list open in many browsers, of one core", 10, False, "%", polling("one view")),
    "polling-views": Row("five views open in many browsers, of one core", None, False, "%", polling("several views")),
}


def kinds(measured: dict[str, Any]) -> Table:
    """p50 and p95 of every kind of list, in milliseconds."""
    columns = {}
    for name, report in measured.items():
        for what in ("kinds", "page", "poll"):
            if isinstance(report, dict) and what in report:
                columns[name if what == "kinds" else name.replace("pages", what)] = report[what]
    table = Table(title="Every kind of list: p50 / p95, ms", title_justify="left")
    for column in ("", *columns):
        table.add_column(column)
    for kind in dict.fromkeys(kind for report in columns.values() for kind in report):
        figures = [report.get(kind) for report in columns.values()]
        table.add_row(kind, *("" if of is None else f"{of['p50']:.1f} / {of['p95']:.1f}" for of in figures))
    return table


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments, "benchmarks.web", __doc__, ROWS, FEW)
    session = Session(QUICK if options.quick else Sizes())
    report = session.report(ROWS, options.only, options.quick)
    about, out = report["machine"], console()
    out.print(drawn(f"The page; {about['cpu']}, {about['cores']} cores", ROWS, report["rows"]))
    out.print(kinds(report["measured"]))
    for name, measured in report["measured"].items():
        for plan in measured.get("plans", ()) if isinstance(measured, dict) else ():
            out.print(f"\n{name}, {plan}", markup=False, highlight=False)
    return finish(report, FEW)


if __name__ == "__main__":
    sys.exit(main())
