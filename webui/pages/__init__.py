"""The pages: jobs, a job, workers, and the form that submits."""

from __future__ import annotations

from fastapi import APIRouter

from webui.pages import job, jobs, steer, submit, workers

router = APIRouter(include_in_schema=False)
for module in (jobs, job, steer, workers, submit):
    router.include_router(module.router)
