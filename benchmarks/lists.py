"""What people ask of the list of jobs, in tables with many: how long the queries, the page and its polls take."""

from __future__ import annotations

import html
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle, islice
from typing import Any
from urllib.parse import urlencode

from benchmarks import many_jobs
from benchmarks.lanes import Lane
from benchmarks.plans import plans
from benchmarks.server import Server, server
from benchmarks.wrong import Wrong
from jobs.states import JobState
from jobs.store import Store
from jobs.store_id import check_root

Filters = dict[str, Any]  # as of Store.jobs_page

_FEW = 5  # ways to ask: each has to wait until the server forgets its last answer, so fewer samples are taken
_SHOWN = ("all", "owner", "label", "text that is nowhere", "owner and model")  # the kinds whose plans are shown


@dataclass(frozen=True)
class Kind:
    """A kind of list, as different people ask for it."""

    name: str
    asked: Sequence[Filters]
    finds: bool = True  # jobs, however it is asked


def kinds(jobs: int) -> list[Kind]:
    """Every kind of list, of tables with so many jobs."""
    failed = {"states": [JobState.FAILED]}
    often = [state for state in JobState if state is not JobState.CANCELLING]
    owners = [{"owner": f"owner{n}"} for n in range(0, many_jobs.OWNERS, 7)]
    models = [{"model": f"org/model-{n}"} for n in range(many_jobs.MODELS)]
    runs = [{"label": ("run", f"run{n}")} for n in range(0, jobs // many_jobs.RUN, max(1, jobs // many_jobs.RUN // 50))]
    projects = [{"label": ("project", f"project{n}")} for n in range(many_jobs.PROJECTS)]
    owner, model = {"owner": "owner0"}, {"model": "org/model-0"}
    nowhere = [{"text": f"nowhere {n}"} for n in range(50)]
    return [
        Kind("all", [{}]),
        Kind("a state", [{"states": [state]} for state in often]),
        Kind("two states", [{"states": two} for two in combinations(often, 2)]),
        Kind("owner", owners),
        Kind("model", models),
        Kind("queue", [{"queue": name} for name in ("default", "gpu", "rare")]),
        Kind("label", runs),
        Kind("common label", projects),
        Kind("any value of a label", [{"label": (key, None)} for key in ("run", "project")]),
        Kind("text", [{"text": f"step {n}"} for n in range(50)]),
        Kind("text that is nowhere", nowhere, finds=False),
        Kind("owner, failed", [one | failed for one in owners], finds=False),
        Kind("label, failed", [one | failed for one in projects], finds=False),
        Kind("owner and model", [owner | one for one in models]),
        Kind("owner and label", [owner | one for one in projects], finds=False),
        Kind("owner and rare queue", [one | {"queue": "rare"} for one in owners], finds=False),
        Kind("owner, model, label, text", [owner | model | p | t for p in projects for t in nowhere[:3]], finds=False),
    ]


def url(filters: Filters) -> str:
    """The list's page with these filters."""
    names = {"states": "state", "text": "q"}
    fields = {names.get(name, name): value for name, value in filters.items()}
    if "label" in fields:
        fields["label"] = "=".join(part for part in fields["label"] if part is not None)
    return f"/jobs?{urlencode(fields, doseq=True)}" if fields else "/jobs"


def fill(lane: Lane, jobs: int) -> float:
    """Put so many jobs into the lane; the seconds that took."""
    store = Store.open(lane.settings)
    check_root(store, lane.settings.results)  # while there are no jobs, whose results it would miss
    took = _seconds(many_jobs.fill, store, jobs, now=time.time())
    store.close()
    return took


def queries(lane: Lane, jobs: int, *, samples: int) -> dict[str, Any]:
    """The database's part of a list: its first page, and how many jobs there are in each state. By kind."""
    store = Store.open(lane.settings)
    report: dict[str, Any] = {"jobs": jobs, "kinds": {}, "plans": []}
    for kind in kinds(jobs):
        with plans(store) as seen:
            _ask(store, kind, kind.asked[0])
        if kind.name in _SHOWN:
            report["plans"] += [f"{kind.name}:\n{plan}" for plan in seen]
        asked = islice(cycle(kind.asked), samples)
        report["kinds"][kind.name] = quantiles([_seconds(_ask, store, kind, filters) for filters in asked])
    store.close()
    return report


def _ask(store: Store, kind: Kind, filters: Filters) -> None:
    page = store.jobs_page(**filters)
    counts = store.job_counts(**{name: value for name, value in filters.items() if name != "states"})
    if kind.finds and not (page.jobs and any(counts.values())):
        raise Wrong(f"There is no job with {filters}, though the tables were filled with some.")


def _seconds(action: Callable[..., object], *args: Any, **options: Any) -> float:
    began = time.perf_counter()
    action(*args, **options)
    return time.perf_counter() - began


def pages(lane: Lane, jobs: int, *, samples: int) -> dict[str, Any]:
    """The list's page and its polls from a real server, each drawn anew. By kind; `older`: page after page of all."""
    report: dict[str, Any] = {"jobs": jobs, "page": {}, "poll": {}}
    with server(lane) as web:
        for kind in kinds(jobs):
            urls = [url(filters) for filters in kind.asked]
            _measure(web, report, kind.name, urls, samples if len(urls) > _FEW else min(samples, 30), finds=kind.finds)
        _measure(web, report, "older", _older(web, samples), samples, finds=True)
    return report


def _measure(web: Server, report: dict[str, Any], name: str, urls: Sequence[str], samples: int, *, finds: bool) -> None:
    for what in ("page", "poll"):
        seconds = []
        for one in islice(cycle(urls), samples):
            took, text = web.get(one, poll=what == "poll")
            if finds and not re.search(r'href="/jobs/[0-9a-f]{12}', text):
                raise Wrong(f"{one} shows no job, though the tables were filled with some.")
            seconds.append(took)
        report[what][name] = quantiles(seconds)


def _older(web: Server, count: int) -> list[str]:
    """So many pages of all jobs, as the link to the older ones leads from each to the next."""
    urls = ["/jobs"]
    while len(urls) <= count:
        _, text = web.get(urls[-1], fresh=False)
        link = re.search(r'href="([^"]*[?&;]before=[^"]*)"', text)
        if link is None:
            break
        target = html.unescape(link[1])
        urls.append(target if target.startswith("/") else f"/jobs{target}")
    if len(urls) < 2:
        raise Wrong("The list of jobs has no link to older ones.")
    return urls[1:]


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    cuts = statistics.quantiles(seconds, n=20, method="inclusive") if len(seconds) > 1 else list(seconds) * 19
    return {"p50": 1e3 * statistics.median(seconds), "p95": 1e3 * cuts[-1], "max": 1e3 * max(seconds)}
