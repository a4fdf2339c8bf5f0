"""Sequences as pictures: tokens tinted by a measurement, and what a whole job's sequences look like."""

from __future__ import annotations

from fastapi import APIRouter

from webui.pictures import charts, sequences

router = APIRouter(include_in_schema=False)
router.include_router(sequences.router)
router.include_router(charts.router)
