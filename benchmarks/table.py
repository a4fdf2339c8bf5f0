"""What the tables of all benchmarks are made of: rows with a bar, each filled in by something that was measured."""

from __future__ import annotations

import json
import multiprocessing
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A measured value, and in words what it was made of."""

    value: float
    beside: str


@dataclass(frozen=True)
class Row:
    """One line of the table; a row without a bar only tells."""

    title: str
    bar: float | None
    at_least: bool  # else at most
    unit: str
    of: Callable[..., Figure]

    def reaches(self, value: float, goal: float) -> bool:
        return value >= goal if self.at_least else value <= goal

    def verdict(self, value: float) -> str | None:
        if self.bar is None:
            return None
        return "reached" if self.reaches(value, self.bar) else "missed"

    def shown(self, value: float) -> str:
        return f"{value:,.0f} {self.unit}" if abs(value) >= 1_000 else f"{value:.3g} {self.unit}"

    def goal(self, value: float | None) -> str:
        return "" if value is None else f"{'≥' if self.at_least else '≤'} {self.shown(value)}"

    def line(self, name: str, *of: Any, judged: bool = True) -> dict[str, Any]:
        """The row filled in from what it is a figure of; whatever goes wrong fails this row and no other."""
        try:
            figure, failed = self.of(*of), False
        except Exception as error:  # of a child: the other rows took too long to be thrown away
            figure, failed = Figure(float("nan"), str(error) or type(error).__name__), True
            print(f"{name} failed: {figure.beside}", file=sys.stderr, flush=True)
        verdict = "failed" if failed else self.verdict(figure.value) if judged else None
        line = {"name": name, "title": self.title, "bar": self.bar, "at_least": self.at_least, "unit": self.unit}
        return line | {"measured": None if failed else figure.value, "verdict": verdict, "beside": figure.beside}


def in_own_process(name: str, function: Callable[..., T], *args: Any, **options: Any) -> T:
    """`function(*args, **options)` in a new process; what it raises, and `BrokenProcessPool` if it dies."""
    print(f"... {name}", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **options).result()
        except BrokenProcessPool as error:
            raise BrokenProcessPool(f"The process of {name!r} died, perhaps for want of memory.") from error


def drawn(title: str, rows: dict[str, Row], lines: Iterable[dict[str, Any]]) -> Table:
    """The table of lines that `Row.line` made."""
    table = Table(title=title, title_justify="left")
    for column in ("", "bar", "measured", "", "made of"):
        table.add_column(column)
    for line in lines:
        row = rows[line["name"]]
        value = "" if line["measured"] is None else row.shown(line["measured"])
        table.add_row(row.title, row.goal(row.bar), value, line["verdict"] or "", line["beside"])
    return table


def console() -> Console:
    """Where tables are printed: as wide as the terminal, or wide enough for a file."""
    return Console(width=None if sys.stdout.isatty() else 160)


def parsed(arguments: list[str] | None, prog: str, about: str | None, rows: dict[str, Row], few: str) -> Namespace:
    """The options `only` and `quick`; the module's docstring says what it is `about`, `few` what a quick run is on."""
    parser = ArgumentParser(prog=f"python -m {prog}", description=(about or "").splitlines()[0])
    parser.add_argument("--only", choices=rows, nargs="+", default=[], help="these rows of the table")
    parser.add_argument("--quick", action="store_true", help=f"{few}, to see that everything works")
    return parser.parse_args(arguments)


def finish(report: dict[str, Any], few: str) -> int:
    """Say what a quick run is worth, and print the report as the last line; the exit code: 1 only if a row failed."""
    if report["quick"]:
        console().print(f"A quick run on {few}: it shows that everything works; its figures mean nothing.")
    print(json.dumps(report))
    return int(any(line["verdict"] == "failed" for line in report["rows"]))
