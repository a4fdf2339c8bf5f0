"""The HTTP API, under /api/v1: what `jobs.Client` offers, for whoever is not on this machine."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(prefix="/api/v1")
