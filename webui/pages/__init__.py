"""The pages: jobs, a job, workers, and the form that submits."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(include_in_schema=False)
