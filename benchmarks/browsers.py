"""Many open pages at once, each asking every two seconds what has changed: what that costs the server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

from benchmarks.lanes import PATIENCE, Lane
from benchmarks.server import Server, server
from benchmarks.wrong import Wrong
from jobs import Client

EVERY = 2.0  # seconds between two polls of a page on which something runs


def measure(lane: Lane, *, browsers: int, seconds: float) -> dict[str, Any]:
    """Percent of one core that the server's process spends: all browsers on the list, and on several views of it."""
    with server(lane) as web:
        with Client(lane.settings) as client:
            job = lane.submit(client)  # those that the tables are filled with have no shards
        views = ["/jobs", "/jobs?state=running", "/jobs?owner=owner0", f"/jobs/{job.id}", "/workers"]
        return {
            "browsers": browsers,
            "one view": _watch(web, ["/jobs"], browsers, seconds),
            "several views": _watch(web, views, browsers, seconds),
        }


def _watch(web: Server, views: Sequence[str], browsers: int, seconds: float) -> dict[str, float]:
    """The browsers look at the views in turn."""
    pages = [views[n % len(views)] for n in range(browsers)]
    before, began = web.cpu_seconds(), time.monotonic()
    with ThreadPoolExecutor(browsers) as pool:
        starts = [began + EVERY * n / browsers for n in range(browsers)]
        looks = [pool.submit(_browse, web.port, *one, began + seconds) for one in zip(pages, starts, strict=True)]
        answers = sum(look.result() for look in looks)
    took = time.monotonic() - began
    if answers < browsers * (seconds / EVERY - 2):
        raise Wrong(f"{answers} polls were answered in {took:.0f} s: the server does not keep up.")
    return {"percent": 100 * (web.cpu_seconds() - before) / took, "answers_per_second": answers / took}


def _browse(port: int, page: str, start: float, end: float) -> int:
    """One browser: it knows what it got last, and asks what is new. How many of its polls were answered."""
    headers, answers = {"HX-Request": "true"}, 0
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    time.sleep(max(0.0, start - time.monotonic()))
    while time.monotonic() < end:
        connection.request("GET", page, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status not in (200, 204, 304):
            raise Wrong(f"The poll of {page} was answered with {answer.status}: {body[:500]!r}")
        if tag := answer.headers["ETag"]:
            headers["If-None-Match"] = tag
        answers += 1
        time.sleep(EVERY)
    connection.close()
    return answers
