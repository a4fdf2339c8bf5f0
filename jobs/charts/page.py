"""A report as one HTML file that needs nothing else: no script, no network; light and dark, for screens and paper."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from jobs.charts import of_job, of_jobs
from jobs.charts.chart import Chart
from jobs.charts.templates import environment
from jobs.compared_table import comparison_of
from jobs.files import replacing
from jobs.records import Job
from jobs.report import Report, Spread, Study
from jobs.report_table import Table, label_of, notes, table_of
from jobs.text import minus, moment, percent

_SETTINGS = (
    *("model", "adapter", "revision", "dtype", "dataset", "split", "seed"),
    *("G", "temperature", "top_p", "max_new_tokens", "stop_strings"),
)


def write_html(path: Path, studies: Sequence[Study]) -> None:
    """Write the page of these jobs, whole or not at all. Raises ResultsError if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(html(studies) + "\n", encoding="utf-8")


def html(studies: Sequence[Study]) -> str:
    """The page: one job with its own charts, or several side by side in the order given, at least one."""
    reports = [study.report for study in studies]
    return _template().render(
        title=f"Report on {label_of(reports[0])}" if len(studies) == 1 else f"Report on {len(studies)} jobs",
        css=_css(),
        studies=studies,
        figures=list(_figures(reports[0])) if len(studies) == 1 else [],
        table=_outcomes(table_of(reports)),
        notes=list(notes(reports)),
        comparison=comparison_of(reports),
        unfinished=[label_of(study.report) for study in studies if not study.job.state.ended],
        charts=_of_one(studies[0]) if len(studies) == 1 else of_jobs.draw(reports),
        settings=_settings(studies),
        made=moment(time.time()),
        version=version("sequence-processor"),
    )


def _of_one(study: Study) -> list[Chart]:
    """A job's charts; those of the sampling distribution only where it is another than the model's."""
    report, summary, spec = study.report, study.summary, study.job.spec
    charts = of_job.draw(summary, spec["max_new_tokens"], spec["G"])
    if of_jobs.samples_the_model(report):
        charts = [chart for chart in charts if not chart.name.startswith("sampling_")]
    if report.reward is not None:  # the chart of correct responses goes by equal text
        charts = [chart for chart in charts if chart.name != "correct"]
    curve = of_jobs.pass_at_k([report])
    return charts if curve is None else [*charts, curve]


def _figures(made: Report) -> Iterator[tuple[str, str]]:
    """The job in a line: (name, figure)."""
    yield from _counts(made)
    yield from _spreads(made)
    yield from _distances(made)


def _counts(made: Report) -> Iterator[tuple[str, str]]:
    yield "sequences", f"{made.sequences:,}"
    yield "tokens", f"{made.tokens:,}"
    if made.prompt_errors:
        yield "prompts that failed", f"{made.prompt_errors:,} of {made.prompts:,}"
    if made.accuracy is not None:
        mean, low, high = (100 * bound for bound in made.accuracy)
        by = f" by {made.reward}" if made.reward else ""
        yield f"accuracy{by} [95 % interval]", f"{mean:.1f} % [{low:.1f}, {high:.1f}]"
        last = max(made.pass_at_k, default=1)
        if last > 1:
            yield f"pass@{last}", percent(made.pass_at_k[last])
    elif made.mean_reward is not None:
        error = "" if made.mean_reward_error is None else f" ± {made.mean_reward_error:.4f}"
        yield f"mean {made.reward} ± standard error", minus(f"{made.mean_reward:.4f}") + error
    if made.reward and made.unjudged:
        yield f"not judged by {made.reward}", f"{made.unjudged:,}"
    if made.mean_length is not None:
        yield "mean length", f"{made.mean_length:,.1f} tokens"


def _distances(made: Report) -> Iterator[tuple[str, str]]:
    if made.apart is not None:
        yield "KL of sampling to model", minus(f"{round(made.apart.kl, 4) + 0.0:.4f} nats/token")
        yield "effective sample size", f"{made.apart.ess:,.1f} ({percent(made.apart.ess_share)})"
    if made.drift is not None and made.drift.logprob_mean is not None:
        drift = made.drift
        yield f"drift of log p, {drift.dtype} to float32", f"{drift.logprob_mean:.1e}, at most {drift.logprob_max:.1e}"
        yield "drift of entropy", f"{drift.entropy_mean:.1e}, at most {drift.entropy_max:.1e} nats"


def _spreads(made: Report) -> Iterator[tuple[str, str]]:
    named: list[tuple[str, Spread | None]] = [("mean entropy", made.entropy), ("mean log-probability", made.logprob)]
    if not of_jobs.samples_the_model(made):
        named += [("sampling entropy", made.sampling_entropy), ("sampling log-probability", made.sampling_logprob)]
    for name, spread in named:
        if spread is not None:
            yield name, minus(f"{spread.mean:.4f} nats/token")


def _outcomes(table: Table) -> Table:
    """The figures without what stands among the settings, and with each row's number, by which charts call a job."""
    kept = [i for i, title in enumerate(table.header) if title not in ("MODEL", "ADAPTER")]
    rows = [[str(n), *(row[i] for i in kept)] for n, row in enumerate(table.rows, start=1)]
    return Table(["#", *(table.header[i] for i in kept)], rows)


def _settings(studies: Sequence[Study]) -> Table:
    """How each job was sampled, a row a job; what none of them sets is left out."""
    header = [name for name in _SETTINGS if any(study.job.spec.get(name) not in (None, []) for study in studies)]
    rows = [
        [label_of(study.report), *(_cell(study.job, name) for name in header), _labels(study.job)] for study in studies
    ]
    if not any(row[-1] for row in rows):
        return Table(["job", *header], [row[:-1] for row in rows])
    return Table(["job", *header, "labels"], rows)


def _cell(job: Job, name: str) -> str:
    value: Any = job.spec.get(name)
    return "" if value is None or value == [] else value if isinstance(value, str) else json.dumps(value)


def _labels(job: Job) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(job.labels.items()))


@cache
def _template() -> Template:
    return environment().get_template("report.html")


@cache
def _css() -> Markup:
    folder = files("jobs.charts") / "static"
    return Markup("\n".join((folder / name).read_text(encoding="utf-8") for name in ("chart.css", "report.css")))
