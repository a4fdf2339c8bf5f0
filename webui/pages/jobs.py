"""The list of jobs: how many in each state, which of them, and cancelling several at once."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from jobs.errors import SeqprocError
from jobs.paging import cursor
from jobs.states import JobState
from jobs.text import plural
from webui.caller import TheCaller
from webui.pages.pace import Pace, running
from webui.pages.query import Query
from webui.polled import polled
from webui.refusals import refuse
from webui.site import Site, TheSite
from webui.templates import page

_PAGE = 50

router = APIRouter()


@router.get("/")
def root() -> RedirectResponse:
    return RedirectResponse("/jobs", 303)


@router.get("/jobs")
def list_jobs(request: Request, site: TheSite) -> Response:
    query = Query.of(request.query_params)
    return polled(request, lambda: _list(request, site, query))


def _list(request: Request, site: Site, query: Query) -> Response:
    shown = site.store.jobs_page(states=query.state or None, before=query.place, limit=_PAGE, **query.filters)
    at_work = running(site.store)
    return page(
        request,
        "jobs.html",
        query=query,
        states=list(JobState),
        counts=site.store.job_counts(**query.filters),
        paces=[Pace.of(job, at_work.get(job.id, [])) for job in shown.jobs],
        older=None if shown.next is None else query.url(before=cursor(shown.next)),
        busy=bool(at_work),
    )


@router.post("/jobs/cancel")
def cancel_jobs(
    request: Request,
    site: TheSite,
    caller: TheCaller,
    job: Annotated[list[str], Form(default_factory=list)],
    back: Annotated[str, Form()] = "",
    confirm: Annotated[str, Form()] = "",
) -> Response:
    """`back`: the query of the list to go back to. Asks once before anything is done."""
    listed = f"/jobs?{back}" if back else "/jobs"
    if not job:
        return refuse(request, 400, "No job was chosen: tick those to cancel, then press the button.", code="none")
    handles = [site.steered(job_id, caller) for job_id in job[:_PAGE]]
    if not confirm:
        jobs = [handle.record for handle in handles]
        return page(request, "cancel.html", jobs=jobs, back=back, listed=listed)
    problems = []
    for handle in handles:
        try:
            handle.cancel()
        except SeqprocError as error:
            problems.append(str(error))
    if problems:
        message = f"{plural(len(problems), 'job')} could not be cancelled."
        return refuse(request, 409, message, code="WrongState", problems=problems)
    return RedirectResponse(listed, 303)
