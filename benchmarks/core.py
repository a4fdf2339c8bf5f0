"""`make bench`: the batched core against the usual pattern and against the machine, in one run.

Each measurement runs in a fresh process, one after the other. A table with the bar, the aim and what was measured;
the last line of stdout is one JSON object with everything. Exit code 1 only if an output is wrong: never for a speed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import platformdirs
from rich.table import Table

from benchmarks import limits, machine, measures, table
from benchmarks.table import Figure, console, finish, in_own_process
from benchmarks.workload import DIGEST
from benchmarks.wrong import Wrong
from rlp_datasets import DatasetError

T = TypeVar("T")

FEW = "a few tokens"  # what a quick run is on


@dataclass
class Session:
    """One run of the benchmark: its options, and what was measured so far, each thing once."""

    model: str
    runs: int = 3
    usual_runs: int = 1
    quick: bool = False
    cache: Path = field(default_factory=lambda: platformdirs.user_cache_path("sequence-processor") / "bench")
    measured: dict[str, Any] = field(default_factory=dict)

    def measure(self, function: Callable[..., T], *args: Any, name: str) -> T:
        """`function(*args)` in a process of its own; what it raises, and `BrokenProcessPool` if it dies."""
        if name not in self.measured:
            self.measured[name] = in_own_process(name, function, *args)
        return cast(T, self.measured[name])

    def case(self, model: str) -> measures.Case:
        return self.measure(measures.prepare, model, self.cache, self.quick, name=f"{model}: model")

    def ceilings(self) -> dict[str, Any]:
        return self.measure(measures.ceilings, self.quick, name="ceilings")

    def usual(self, model: str) -> dict[str, Any]:
        return self.measure(measures.usual_pattern, self.case(model), self.usual_runs, name=f"{model}: usual pattern")

    def generate(self, model: str, *ways: str) -> dict[str, Any]:
        name = f"{model}: generate, {' and '.join(ways)}"
        return self.measure(measures.generate, self.case(model), self.runs, ways, name=name)

    def teacher_forcing(self, model: str) -> dict[str, Any]:
        return self.measure(measures.teacher_forcing, self.case(model), self.runs, name=f"{model}: teacher forcing")

    def head(self, model: str, way: str, trained: bool) -> float:
        """Peak GiB."""
        case, tokens = self.case(model), 256 if self.quick else measures.HEAD_TOKENS
        name = f"{model}: {'trained' if trained else 'frozen'} head, {way}"
        return float(self.measure(measures.head_memory, case, way, trained, tokens, name=name)["peak_gib"])

    def floors(self, model: str) -> dict[str, float]:
        """Seconds of `generate` and of `teacher_forcing` below which this machine cannot go."""
        found, rates = self.measure(measures.shape, self.case(model), name=f"{model}: shape"), self.ceilings()
        flops, workload = rates["flops"][found["dtype"]], self.case(model).workload
        return {
            "generate": limits.generation_floor(workload, found["shape"], flops, rates["bandwidth"]),
            "teacher_forcing": limits.teacher_forcing_floor(workload, found["shape"], flops),
        }


@dataclass(frozen=True)
class Row(table.Row):
    """One line of the table. `bar` and `aim` hold for the model that is named beside them."""

    aim: float
    model: str  # "halfb", or the small model that this row is about

    def verdict(self, value: float) -> str | None:
        if self.reaches(value, self.aim):
            return "aim reached"
        return "bar reached" if super().verdict(value) == "reached" else "missed"

    def shown(self, value: float) -> str:
        return f"{value:.0%}" if self.unit == "%" else super().shown(value)


def speed(session: Session, model: str) -> Figure:
    """Generation with all four quantities, against the usual pattern's two passes."""
    ours, usual = session.generate(model, "default")["ways"]["default"], session.usual(model)
    return Figure(
        usual["seconds"] / ours["seconds"],
        f"{_per_second(session, model, ours['seconds'])} against {_per_second(session, model, usual['seconds'])}"
        f" tok/s; floor {_per_second(session, model, session.floors(model)['generate'])}",
    )


def share(session: Session, model: str) -> Figure:
    """The floor's seconds, of those taken."""
    seconds, floor = session.generate(model, "default")["ways"]["default"]["seconds"], session.floors(model)["generate"]
    return Figure(floor / seconds, f"{seconds:.2f} s; floor {floor:.2f} s")


def way_against_default(way: str) -> Callable[[Session, str], Figure]:
    """Seconds of another way to generate, against the default, in turns."""

    def of(session: Session, model: str) -> Figure:
        timings = session.generate(model, "default", way)["ways"]
        seconds, default = timings[way]["seconds"], timings["default"]["seconds"]
        floor = session.floors(model)["generate"]
        return Figure(seconds / default, f"{seconds:.2f} s against {default:.2f} s; floor {floor:.2f} s")

    return of


def way_against(way: str, other: str) -> Callable[[Session, str], Figure]:
    """Seconds of a way to generate, against those of another, in turns."""

    def of(session: Session, model: str) -> Figure:
        timings = session.generate(model, other, way)["ways"]
        seconds, without = timings[way]["seconds"], timings[other]["seconds"]
        return Figure(seconds / without, f"{seconds:.2f} s against {without:.2f} s")

    return of


def teacher_forcing(session: Session, model: str) -> Figure:
    """Measuring given responses, against the second pass of the usual pattern."""
    ours, usual = session.teacher_forcing(model)["seconds"], session.usual(model)["teacher_forcing_s"]
    floor = session.floors(model)["teacher_forcing"]
    return Figure(usual / ours, f"{ours:.2f} s against {usual:.2f} s; floor {floor:.2f} s")


def memory(session: Session, model: str) -> Figure:
    """Peak with all rows of W1 at once, weights included."""
    ours, usual = session.generate(model, "default")["peak_gib"], session.usual(model)["peak_gib"]
    return Figure(ours, f"usual pattern, 32 rows: {usual:.2f} GiB")


def head(trained: bool) -> Callable[[Session, str], Figure]:
    """Memory of forward and backward above the body's own, against full logits."""

    def of(session: Session, model: str) -> Figure:
        body = session.head(model, "body", trained)
        ours, naive = session.head(model, "ours", trained) - body, session.head(model, "naive", trained) - body
        weight = ", each with the weight's gradient" if trained else ""
        beside = f"{ours:.2f} against {naive:.2f} GiB above {body:.2f}{weight}"
        return Figure(ours / naive if naive > 0 else float("nan"), beside)

    return of


ROWS: dict[str, Row] = {
    "speed": Row("generate, four quantities ÷ usual pattern, speed", 10, True, "x", speed, 16, "halfb"),
    "share": Row("share of the machine's floor", 0.30, True, "%", share, 0.55, "halfb"),
    "nucleus": Row(
        "temperature 0.8, top_p 0.95 ÷ 1, 1, seconds", 1.15, False, "x", way_against_default("nucleus"), 1.05, "halfb"
    ),
    "teacher-forcing": Row(
        "teacher forcing, G=8 ÷ usual padded forward, speed", 4, True, "x", teacher_forcing, 8, "halfb"
    ),
    "memory": Row("peak memory at 128 rows", 3.3, False, "GiB", memory, 2.4, "halfb"),
    "head-trained": Row(
        "with_grad: trained head ÷ full logits, memory", 1 / 6, False, "x", head(True), 1 / 12, "halfb"
    ),
    "head-frozen": Row("with_grad: frozen head ÷ full logits, memory", 1 / 6, False, "x", head(False), 1 / 12, "halfb"),
    "measuring": Row(
        "measurements on ÷ off, same sampler, seconds",
        1.15,
        False,
        "x",
        way_against("default", "unmeasured"),
        1.05,
        "halfb",
    ),
    "diagnostics": Row(
        "every diagnostic and 5 alternatives on ÷ off, seconds",
        1.25,
        False,
        "x",
        way_against("diagnosed", "default"),
        1.1,
        "halfb",
    ),
    "diagnostics-nucleus": Row(
        "the same at temperature 0.8, top_p 0.95, seconds",
        1.25,
        False,
        "x",
        way_against("diagnosed nucleus", "nucleus"),
        1.15,
        "halfb",
    ),
    "deterministic": Row(
        "deterministic ÷ default, seconds", 1.5, False, "x", way_against_default("deterministic"), 1.15, "halfb"
    ),
    "tiny-arithmetic": Row("tiny-arithmetic ÷ usual pattern, speed", 8, True, "x", speed, 12, "tiny-arithmetic"),
    "tiny": Row("tiny (4 layers of 256) ÷ usual pattern, speed", 8, True, "x", speed, 12, "tiny"),
}


def rows_for(model: str, only: list[str]) -> dict[str, Row]:
    """The rows of a run over `model`: those about halfb, which are then about `model`, and its own; over halfb all."""
    about = {row.model for row in ROWS.values()} if model == "halfb" else {"halfb", model}
    return {name: row for name, row in ROWS.items() if row.model in about and (not only or name in only)}


def run(session: Session, only: list[str]) -> dict[str, Any]:
    """Everything that was measured, and the rows of the table."""
    lines = []
    for name, row in rows_for(session.model, only).items():
        about = session.model if row.model == "halfb" else row.model
        judged = not session.quick and about == row.model
        lines.append(row.line(name, session, about, judged=judged) | {"model": about, "aim": row.aim})
    case = session.case(session.model)
    return {
        "quick": session.quick,
        "machine": machine.described(),
        "published_data": case.published_data,
        "workload": case.workload.described(),
        "rows": lines,
        "measured": {name: _plain(value) for name, value in session.measured.items()},
    }


def check_digest(case: measures.Case, session: Session) -> None:
    """`Wrong` if W1 on the published data is not the W1 of other machines."""
    comparable = case.published_data and not session.quick and session.model != "tiny-arithmetic"
    if comparable and case.workload.digest != DIGEST:
        raise Wrong(f"The digest of W1 is {case.workload.digest}, and not {DIGEST}: figures do not compare.")


def drawn(report: dict[str, Any]) -> Table:
    about, workload = report["machine"], report["workload"]
    title = (
        f"W1 ({workload['digest']}), {workload['response_tokens']['sum']:,} tokens; {about['cpu']}, "
        f"{about['threads']} threads, torch {about['torch']}, transformers {about['transformers']}"
    )
    lines = Table(title=title, title_justify="left")
    for column in ("", "bar", "aim", "measured", "", "made of"):
        lines.add_column(column)
    for line in report["rows"]:
        row = ROWS[line["name"]]
        title = line["title"] if line["model"] == row.model else f"{line['title']} ({line['model']})"
        value = "" if line["measured"] is None else row.shown(line["measured"])
        lines.add_row(title, row.goal(row.bar), row.goal(row.aim), value, line["verdict"] or "", line["beside"])
    return lines


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    cache = {"cache": options.models} if options.models else {}
    runs = 1 if options.quick else options.runs
    session = Session(options.model, runs=runs, usual_runs=options.usual_runs, quick=options.quick, **cache)
    try:
        check_digest(session.case(session.model), session)
        report = run(session, options.only)
    except (Wrong, DatasetError, BrokenProcessPool) as error:
        print(error, file=sys.stderr)
        return 1
    out = console()
    out.print(drawn(report))
    if not report["published_data"]:
        out.print("GSM8K here is not the published one: the figures are of another workload than W1.")
    return finish(report, FEW)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=["halfb", "tiny", "tiny-arithmetic"], default="halfb")
    parser.add_argument("--only", choices=ROWS, nargs="+", default=[], help="these rows of the table")
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--usual-runs", type=int, default=1, help="the same for the usual pattern, which takes minutes")
    parser.add_argument("--quick", action="store_true", help=f"{FEW}, to see that everything works")
    parser.add_argument("--models", type=Path, help="folder to keep the models in")
    return parser.parse_args(arguments)


def _per_second(session: Session, model: str, seconds: float) -> str:
    return f"{session.case(model).workload.tokens / seconds:,.0f}"


def _plain(value: Any) -> Any:
    """What JSON can hold: a case without its prompts."""
    if isinstance(value, measures.Case):
        return {"name": Path(value.name).name, **value.workload.described()}
    if isinstance(value, limits.Shape):
        return asdict(value)
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    sys.exit(main())
