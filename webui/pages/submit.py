"""Submitting by form: checked as on the command line; what is wrong stands by its field, and what was typed stays."""

from __future__ import annotations

from uuid import uuid4

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

import rlp_datasets
from jobs.errors import IdempotencyConflict, SpecError
from jobs.submit import Plan, plan, submit
from webui.admission import admit
from webui.caller import Caller, TheCaller
from webui.pages import form
from webui.pages.form import Values
from webui.site import Site, TheSite
from webui.templates import page

_LONGEST_TEXT = 8 << 20  # bytes of one field; more prompts come in a file

router = APIRouter()


@router.get("/submit")
def show(request: Request) -> Response:
    return _form(request, Values())


@router.post("/submit")
async def post(request: Request, site: TheSite, caller: TheCaller) -> Response:
    async with request.form(max_files=1, max_fields=200, max_part_size=_LONGEST_TEXT) as data:
        values = Values.of(data)
        checked_only = "check" in data
        return await run_in_threadpool(_post, request, site, caller, values, checked_only)


def _post(request: Request, site: Site, caller: Caller, values: Values, checked_only: bool) -> Response:
    try:
        fields = values.spec_fields()
        given = [name for name in ("prompts", "dataset") if name in fields]
        if values.upload and given:
            values.problems.append(f"upload: prompts come from one place, but a file and {given[0]} are given")
        spec = admit(fields, site.settings)
        if values.problems:
            return _form(request, values, status=422)
        stdin = None
        if values.upload:
            spec, stdin = spec.model_copy(update={"file": "-"}), values.upload.file
        if checked_only:
            return _form(request, values, plan=plan(site.store, site.settings, spec, stdin=stdin))
        done = submit(site.store, site.settings, spec, owner=caller.name, stdin=stdin)
    except SpecError as error:
        values.problems += [_named(problem, values) for problem in error.problems]
        if error.total > len(error.problems):
            values.problems.append(f"… and {error.total - len(error.problems):,} more problems")
        return _form(request, values, status=422)
    except IdempotencyConflict:
        values.key = uuid4().hex
        values.problems.append("This form made a job before, with other values. Submit again to make another one.")
        return _form(request, values, status=409)
    return RedirectResponse(f"/jobs/{done.job.id}", 303)


def _named(problem: str, values: Values) -> str:
    """Problems of an uploaded file's lines under the file's name, as problems of that field."""
    if values.upload and problem.startswith("<stdin>"):
        return f"upload: {values.upload.filename}{problem.removeprefix('<stdin>')}"
    return problem


def _form(request: Request, values: Values, *, status: int = 200, plan: Plan | None = None) -> Response:
    return page(
        request,
        "submit.html",
        status=status,
        values=values,
        plan=plan,
        main=form.fields(form.MAIN),
        of_dataset=form.fields(form.OF_DATASET),
        more=form.fields(form.MORE),
        datasets=list(rlp_datasets.DATASET_REGISTRY),
    )
