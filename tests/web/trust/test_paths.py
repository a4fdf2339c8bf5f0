"""Paths that climb: nothing outside of what a route serves is ever read."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import Client
from tests.web.conftest import Web
from tests.web.trust.conftest import BEARER, ask

CLIMBS = [
    "../" * 8 + "etc/passwd",
    "..%2f" * 8 + "etc%2fpasswd",
    "%2e%2e/" * 8 + "etc/passwd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
]
PLACES = [
    "/static/{}",
    "/static/vendor/{}",
    "/{}",
    "/jobs/{}",
    "/jobs/{job}/{}",
    "/api/v1/jobs/{}",
    "/api/v1/jobs/{}/files/0",
    "/api/v1/jobs/{job}/files/{}",
    "/api/v1/jobs/{job}/files/{}/errors",
    "/api/v1/jobs/{job}/{}",
]


@pytest.fixture
def job(client: Client) -> str:
    return client.submit(model="tiny-arithmetic", prompts=["1+1="]).id


def test_nothing_climbs_out(guarded: Web, job: str, shared_home: Path) -> None:
    secrets = ["root:", (shared_home / "results" / "STORE_ID").read_text().strip()]
    climbs = [
        *CLIMBS,
        f"..%2f..%2f{job}%2fspec.json",
        "..%2f..%2fSTORE_ID",
        "..%5c..%5cSTORE_ID",
        "0%00",
        "-1",
        "0.5",
        "1e9",
    ]
    for place in PLACES:
        for climb in climbs:
            path = place.replace("{job}", job).replace("{}", climb)
            answer = ask(guarded, "GET", path, BEARER)
            assert answer.status in (400, 404, 405, 409, 422), path
            assert not [secret for secret in secrets if secret in answer.text], path
