"""What is told of a job: its spec as a run's config, its progress and its report as figures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jobs.progress import Progress
from jobs.records import Job
from jobs.report import Report
from jobs.tracking.tracker import Figures, Run

_UNTOLD = ("webhook", "labels")  # an address may hold a secret; labels stand one by one
_LONGEST_NAME = 250  # characters, by MLflow's rule


def run_of(job: Job) -> Run:
    """The run of a job. Made of what never changes in it."""
    labels = {f"label_{key}": value for key, value in job.labels.items()}
    told = {name: value for name, value in job.spec.items() if name not in _UNTOLD and value is not None}
    config = {_named(name): _plain(value) for name, value in {**told, **labels, "job": job.id}.items()}
    return Run(job.id, job.name or job.id, config, {_named(key): value for key, value in job.labels.items()})


def of_progress(progress: Progress) -> Figures:
    """`progress/tokens_per_second` and so on, as `Progress` names them."""
    return _numbers("progress", asdict(progress))


def of_report(report: Report) -> Figures:
    """`report/accuracy`, `report/entropy_mean`, `report/pass_at_4`: as `Report.flat` names them, but for the @.

    pass@k for powers of two and for G: there may be 65,536 of them.
    """
    ks = report.pass_at_k
    left_out = {f"pass@{k}" for k in ks if k.bit_count() > 1 and k != len(ks)}
    return _numbers("report", {name: value for name, value in report.flat().items() if name not in left_out})


def _numbers(of: str, values: Mapping[str, Any]) -> Figures:
    return {
        f"{of}/{_named(name)}": value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _named(name: str) -> str:
    """A name that every tracker takes."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name.replace("@", "_at_"))[:_LONGEST_NAME]


def _plain(value: Any) -> str | float | bool:
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
