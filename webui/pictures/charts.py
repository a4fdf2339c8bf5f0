"""The charts of a job: what its sequences look like together, drawn from a summary of the shards that are done."""

from __future__ import annotations

from typing import Any, Literal
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Request
from starlette.responses import Response

from jobs.charts.chart import Chart
from jobs.charts.of_job import accuracy_of, draw, measured_of
from jobs.records import Job
from jobs.summary import Summary
from jobs.text import minus, percent
from webui.pages.job import head
from webui.polled import polled
from webui.site import Site, TheSite
from webui.templates import page

router = APIRouter(include_in_schema=False)

Distribution = Literal["model", "sampling"]
COLUMNS: dict[Distribution, tuple[str, str]] = {
    "model": ("logprobs", "entropies"),
    "sampling": ("sampling_logprobs", "sampling_entropies"),
}
_DRAWN: WeakKeyDictionary[Summary, list[Chart]] = WeakKeyDictionary()  # many look at one job, which is drawn once


@router.get("/jobs/{job_id}/charts")
def charts(request: Request, site: TheSite, job_id: str, of: Distribution | None = None) -> Response:
    return polled(request, lambda: _view(request, site, site.store.job(job_id), of), by_caller=True)


def _view(request: Request, site: Site, job: Job, of: Distribution | None) -> Response:
    kept = job.spec["measurements"] or ()
    offered = [name for name in COLUMNS if set(COLUMNS[name]) & set(kept)]
    of = of or (offered[0] if offered else "model")
    measured = tuple(name for name in COLUMNS[of] if name in kept)
    summary = site.summaries.of(site.store, site.paths(job.id), job, measured)
    values: dict[str, Any] = {**head(site, job, "charts"), "of": of, "offered": offered, "summary": summary}
    return page(request, "pictures/charts.html", **values, charts=_drawn(summary, job), figures=figures(summary))


def _drawn(summary: Summary, job: Job) -> list[Chart]:
    if summary not in _DRAWN:
        _DRAWN[summary] = draw(summary, job.spec["max_new_tokens"], job.spec["G"])
    return _DRAWN[summary]


def figures(summary: Summary) -> list[tuple[str, str]]:
    """The job in a line: (name, figure)."""
    found = [("sequences", f"{summary.sequences:,}"), ("tokens", f"{summary.tokens:,}")]
    if summary.sequences:
        found.append(("mean length", f"{summary.tokens / summary.sequences:,.1f} tokens"))
    for name, measurement in measured_of(summary):
        count = summary.tokens - int(measurement.infinite.sum())
        if count:
            what = "mean entropy" if name.endswith("entropies") else "mean log-probability"
            found.append((what, minus(f"{measurement.sums.sum() / count:.4f} nats/token")))
    if summary.judged:
        share, error = accuracy_of(summary)
        name = "accuracy" if error is None else "accuracy ± standard error"
        found.append((name, percent(share) + ("" if error is None else f" ± {percent(error)}")))
    return found
