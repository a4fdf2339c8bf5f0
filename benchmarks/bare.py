"""Bare Celery, to compare with: one task that notes when it began, on one idle worker with one thread.

Started as `celery -A benchmarks.bare worker`; BARE_REDIS_URL and BARE_FILE say where. Defaults but for the pool, which
is that of `seqproc worker`, and for results, which nobody reads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from celery import Celery

from benchmarks.lanes import ROOT, until
from benchmarks.wrong import Wrong

app = Celery("bare", broker=os.environ.get("BARE_REDIS_URL", "redis://"))
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)


@app.task
def note(name: str) -> None:
    began = time.monotonic()
    with Path(os.environ["BARE_FILE"]).open("a") as file:
        file.write(f"{name} {began:.6f}\n")


def noted(file: Path) -> dict[str, float]:
    """Name → when its task began, in monotonic seconds of this machine."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {name: float(began) for name, began in map(str.split, lines)}


@contextmanager
def worker(redis_url: str) -> Iterator[Path]:
    """One worker process, up and warm; `note.delay` in this process reaches it, and it notes to this file."""
    app.conf.broker_url = redis_url
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.bare", "worker"]
    options = ["-P", "threads", "-c", "1", "--loglevel", "ERROR"]
    with TemporaryDirectory(prefix="seqproc-bare-") as folder:
        file = Path(folder) / "noted"
        environment = os.environ | {"BARE_REDIS_URL": redis_url, "BARE_FILE": str(file)}
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen([*command, *options], env=environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            for n in range(5):
                note.delay(f"warm-{n}")
            until(lambda: len(noted(file)) >= 5 or process.poll() is not None, "the bare Celery worker")
            if process.poll() is not None:
                raise Wrong(f"The bare Celery worker ended: {(Path(folder) / 'log').read_text()[-1000:]}")
            yield file
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
